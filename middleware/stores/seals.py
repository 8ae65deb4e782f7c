"""Seals records on their way into a shared store, and follows the key ring that is given to it.

Guaranteed: what does not open is a miss, never an error, and counted (`tidegate_seal_refusals_total`). A ring that can
no longer be read, or has a mistake in it, is counted (`tidegate_errors_total{component="keys"}`) and the last good one
stays: keys do not go away because a file did.
"""

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from tidegate.middleware.core.codec import CodecError, encoded
from tidegate.middleware.core.keyring import KeyRing
from tidegate.middleware.core.records import Record
from tidegate.middleware.core.sealing import NONCE_BYTES, REASONS, Sealer, SealError
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.background import Background

__all__ = ["FOLLOW", "Seals"]

FOLLOW: Final = 5.0
"""Seconds between looks at the ring."""

_HURRY: Final = 1.0
"""Seconds after the last look, from which a record with an unknown key is worth another one."""


class Seals:
    """Seals and opens records with the ring that `read` gives.

    read: reads the ring anew; may block, and raise ConfigError or OSError.
    follow: seconds between looks at it.

    Raises:
        ConfigError, OSError: if the ring cannot be read at all.
    """

    def __init__(
        self,
        read: Callable[[], KeyRing],
        *,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.time,
        follow: float = FOLLOW,
    ) -> None:
        self._read = read
        self._clock = clock
        self._follow = follow
        self._metrics = metrics if metrics is not None else Metrics.of()
        self._refused = {reason: self._metrics.seal_refusals.labels(reason).inc for reason in REASONS}
        self._sealer = Sealer(read())
        self._background = Background()
        self._unknown = asyncio.Event()

    @property
    def ring(self) -> KeyRing:
        """As it was last read."""
        return self._sealer.ring

    def start(self) -> None:
        """Follow the ring from now on."""
        if not self._background.at_work:
            self._background.begin(self._follow_ring(), "tidegate-keys")

    async def aclose(self) -> None:
        """Stop following it."""
        await self._background.ended()

    def sealed(self, key: bytes, record: Record, retain: float) -> memoryview:
        """The record as it may lie in a shared store for `retain` seconds."""
        now = self._clock()
        return self._sealer.seal(key, encoded(record), until=now + retain, now=now, nonce=os.urandom(NONCE_BYTES))

    def opened(self, key: bytes, data: bytes, decoded: Callable[[bytes | memoryview], Record]) -> Record | None:
        """The record that was sealed under this key; None, and counted, if this is none. decoded: as `codec.decode`."""
        try:
            return self._sealer.open(key, data, decoded, now=self._clock())
        except SealError as error:
            if error.reason == "unknown-key":
                self._unknown.set()
            self._refused[error.reason]()
        except CodecError:
            self._refused["malformed"]()  # sealed by a version that encodes otherwise
        return None

    async def _follow_ring(self) -> None:
        self._unknown = asyncio.Event()  # of this loop
        while True:
            await asyncio.sleep(min(_HURRY, self._follow))
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._follow - _HURRY)):
                    await self._unknown.wait()
            self._unknown.clear()
            try:
                ring = await asyncio.to_thread(self._read)
            except Exception as error:  # noqa: BLE001 - P5; counted, and the last good ring stays
                self._metrics.fail("keys", error)
                continue
            if ring != self._sealer.ring:
                self._sealer = Sealer(ring)
