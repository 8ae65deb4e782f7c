"""How this machine compares with the one that the targets were set on: a few things that need nothing of Tidegate.

That one's figures stand in section 8 of the design, "Where the time goes". The bare Starlette of the same section (28
µs) is not the bare handler of this bench: it made its 2 KiB of JSON for each request, which is most of what it took.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from math import prod
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.bench.frame import Bench, Case, Figure

__all__ = ["BENCHES", "CALIBRATED", "THERE", "factors"]

CALIBRATED: Final = "calibration"
"""What stands for the size in the titles of these cases."""

THERE: Final[Mapping[str, float]] = {
    "keyed BLAKE2b": 0.497,
    "AES-256-GCM, open 2 KiB": 0.730,
    "asyncio.timeout": 2.857,
}
"""Microseconds on the machine of the targets."""


def factors(figures: Sequence[Figure]) -> tuple[float, dict[str, float]]:
    """How many times as long things take here: the geometric mean, and each. Nothing measured: 1.0."""
    found = {one.case.name: one.microseconds / THERE[one.case.name] for one in figures if one.case.size == CALIBRATED}
    return prod(found.values()) ** (1 / max(1, len(found))), found


def calibration(bench: Bench) -> list[Case]:
    """Two that are computed in C, and one that is Python."""
    cipher = AESGCM(bytes(32))
    names = {
        "blake2b": blake2b,
        "text": b"x" * 128,
        "key": b"k" * 32,
        "cipher": cipher,
        "nonce": bytes(12),
        "sealed": cipher.encrypt(bytes(12), bytes(2048), b""),
    }

    async def timeouts(count: int) -> float:
        began = time.thread_time()
        for _ in range(count):
            async with asyncio.timeout(60):  # noqa: ASYNC100 - what it costs itself is asked
                pass
        return time.thread_time() - began

    hashing, opening, timing = THERE
    return [
        bench.statement(hashing, "blake2b(text, digest_size=20, key=key).digest()", names, size=CALIBRATED),
        bench.statement(opening, 'cipher.decrypt(nonce, sealed, b"")', names, size=CALIBRATED),
        Case(name=timing, seconds=lambda count: bench.run(timeouts(count)), size=CALIBRATED),
    ]


BENCHES = {CALIBRATED: calibration}
