"""What it costs to seal and open an encoded record, beside the bare primitive: AES-256-GCM with a key at hand."""

import os
from collections.abc import Iterator

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.bench.frame import Bench, Case
from tidegate.middleware.core.codec import encoded
from tidegate.middleware.core.keyring import KeyRing, SealingKey
from tidegate.middleware.core.records import Entry
from tidegate.middleware.core.sealing import NONCE_BYTES, Sealer

__all__ = ["BENCHES"]

SIZES = {"2 KiB": 2048, "64 KiB": 65536, "1 MiB": 1048576}
NOW = 1_700_000_000.0


def sealing(bench: Bench) -> Iterator[Case]:
    """Both ways at several sizes. The bare primitive is given the record in one piece, as it has to be. What is made of
    an opened record is left out: of both it would be a copy of the body.
    """
    sealer = Sealer(KeyRing(keys=(SealingKey(os.urandom(32)),)))
    for size, length in SIZES.items():
        record = Entry(
            status=200,
            headers=((b"content-type", b"text/plain"),) * 6,
            body=os.urandom(length),
            born=NOW,
            lifetime=60.0,
        )
        key, pieces = os.urandom(20), encoded(record)
        sealed = bytes(sealer.seal(key, pieces, until=NOW + 60, now=NOW, nonce=os.urandom(NONCE_BYTES)))
        cipher, nonce = AESGCM(os.urandom(32)), os.urandom(NONCE_BYTES)
        names = {
            "sealer": sealer, "key": key, "pieces": pieces, "sealed": sealed, "now": NOW, "until": NOW + 60,
            "draw": os.urandom, "read": len, "cipher": cipher, "aad": bytes(33), "nonce": nonce,
            "encrypted": cipher.encrypt(nonce, b"".join(pieces), bytes(33)),
        }  # fmt: skip

        def verify(sealed: bytes = sealed, key: bytes = key, pieces: tuple[bytes, ...] = pieces) -> None:
            assert sealer.open(key, sealed, bytes, now=NOW) == b"".join(pieces)

        yield bench.statement(f"encrypt, {size}", 'cipher.encrypt(draw(12), b"".join(pieces), aad)', names)
        yield bench.statement(
            f"seal, {size}", "sealer.seal(key, pieces, until=until, now=now, nonce=draw(12))", names, verify=verify
        )
        yield bench.statement(f"decrypt, {size}", "cipher.decrypt(nonce, encrypted, aad)", names)
        yield bench.statement(f"open, {size}", "sealer.open(key, sealed, read, now=now)", names)


BENCHES = {"sealing": sealing}
