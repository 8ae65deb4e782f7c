"""Sealed records: AES-256-GCM over an encoded record, bound to the key it is kept under (P2).

     1 byte   version (2)
     4 bytes  id of the sealing key
     8 bytes  end of its life, milliseconds of wall-clock time, big-endian
    12 bytes  nonce, random
     ...      the encoded record, encrypted
    16 bytes  tag

The first 13 bytes and the whole cache key are authenticated with it. The cache key is made of the tenant, the user and
all else that selects the record (core.keys), so a record that was put under another key does not open; nor does one
that was cut, or changed in one bit, or whose life was made longer. A record whose life is over does not open, though
its server was made to keep it. That an older one of the same key is put back is not seen here: it opens while its life
lasts, and the purge ledger refuses it as it would have before.

Each sealing key stands for 256 AES keys, by the first byte of the cache key (which is evenly spread): HKDF-SHA-256
(RFC 5869) gives them. Random nonces are good for 2^32 records an AES key (NIST SP 800-38D 8.3), so for 2^40 a sealing
key: three years at 10,000 a second. A key of its own for each tenant would keep no more from whoever has the sealing
key, and would have to be known before the record is read.
"""

import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from typing import Final, Literal, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tidegate.errors import StoreError
from tidegate.middleware.core.codec import VERSION as UNSEALED
from tidegate.middleware.core.keyring import ID_BYTES, KeyRing, SealingKey

__all__ = ["LONGEST_ROOM", "NONCE_BYTES", "OVERHEAD", "REASONS", "ROOMY", "VERSION", "Reason", "SealError", "Sealer"]

VERSION: Final = 2
NONCE_BYTES: Final = 12
_TAG: Final = bytes(16)
_HEAD: Final = struct.Struct(f">B{ID_BYTES}sQ")
_unpack: Final = struct.Struct(f">{1 + ID_BYTES}sQ{NONCE_BYTES}s").unpack_from
_START: Final = _HEAD.size + NONCE_BYTES
_BOUND: Final = slice(_HEAD.size)
_ENCRYPTED: Final = slice(_START, None)
OVERHEAD: Final = _START + len(_TAG)
"""Bytes that sealing adds to a record."""
_LAST: Final = 2**63
_AES_KEYS: Final = 256

ROOMY: Final = 48 * 1024
"""Bytes of a sealed record from which it is opened into room that is there already: room that is made is filled with
zeros first, and of a record only copies are kept anyhow."""

_COPIED: Final = 4096
"""Bytes of a sealed record up to which a copy of what is encrypted is made sooner than a view."""

LONGEST_ROOM: Final = 1024 * 1024
"""Bytes of a sealed record up to which it is. So much room is kept at most."""

_NO_ROOM: Final = memoryview(b"")

T = TypeVar("T")

Reason = Literal["unsealed", "malformed", "unknown-key", "expired", "forged"]
REASONS: Final[tuple[Reason, ...]] = ("unsealed", "malformed", "unknown-key", "expired", "forged")


class SealError(StoreError):
    """Bytes that do not open.

    reason: `unsealed` (an encoded record without a seal), `malformed` (neither), `unknown-key` (of a ring that this is
    not), `expired` (its life is over), `forged` (changed, or put under another key).
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(f"a record does not open: {reason}")
        self.reason: Reason = reason


class Sealer:
    """Seals with one key of a ring and opens with all of them. Its AES keys are made when first needed, and kept."""

    __slots__ = ("_ciphers", "_end", "_first", "_made", "_openers", "_rooms", "_sealing", "_turns", "ring")

    def __init__(self, ring: KeyRing) -> None:
        self.ring = ring
        self._ciphers: Mapping[bytes, _Ciphers] = {key.id: _Ciphers(key) for key in ring.keys}
        self._openers = {bytes((VERSION,)) + number: ciphers.openers for number, ciphers in self._ciphers.items()}
        self._made = {bytes((VERSION,)) + number: ciphers.made for number, ciphers in self._ciphers.items()}
        self._rooms: deque[memoryview] = deque(maxlen=1)
        self._turns = sorted(key.since for key in ring.keys)
        self._choose(0.0)

    def _choose(self, now: float) -> None:
        """Find the key that seals now, and between which times it does."""
        self._sealing = self._ciphers[self.ring.sealing(now).id]
        self._first = max((turn for turn in self._turns if turn <= now), default=-inf)
        self._end = min((turn for turn in self._turns if turn > now), default=inf)

    def seal(self, key: bytes, pieces: Sequence[bytes], *, until: float, now: float, nonce: bytes) -> memoryview:
        """The pieces of an encoded record as one sealed one.

        key: the cache key, not empty. until: wall-clock seconds to which it opens. now: chooses the sealing key.
        nonce: 12 random bytes, never the same twice.
        """
        if not self._first <= now < self._end:
            self._choose(now)
        ciphers = self._sealing
        head = _HEAD.pack(VERSION, ciphers.id, int(min(until * 1000, _LAST)))
        # Put together once and encrypted where it lies: a copy of a body costs as much as its encryption.
        sealed = bytearray().join((head, nonce, *pieces, _TAG))
        whole = memoryview(sealed)
        cipher = ciphers.made[key[0]] or ciphers.make(key[0])
        cipher.encrypt_into(nonce, whole[_START : -len(_TAG)], head + key, whole[_START:])
        return whole.toreadonly()

    def open(self, key: bytes, data: bytes, read: Callable[[bytes | memoryview], T], *, now: float) -> T:
        """What `read` makes of the encoded record that was sealed under this cache key. now: wall-clock seconds.

        read: is lent the record, and keeps copies only: where a memoryview leads to, another record will be.

        Raises:
            SealError: if this is none, for its reason.
        """
        # All of it in as few steps as can be, for every hit in a shared store waits for it; what is wrong is found out
        # afterwards. Nothing is believed before it has opened, and it opens only with the head that it was sealed with.
        size, room = len(data), None
        encrypted = data[_ENCRYPTED] if size <= _COPIED else memoryview(data)[_ENCRYPTED]
        opened: bytes | memoryview
        try:
            sealed_as, until, nonce = _unpack(data)
            if size < ROOMY or size > LONGEST_ROOM:
                opened = self._openers[sealed_as][key[0]](nonce, encrypted, data[_BOUND] + key)
            else:
                room = self._room(size)
                opened = room[: size - OVERHEAD]
                cipher = self._made[sealed_as][key[0]] or self._ciphers[sealed_as[1:]].make(key[0])
                cipher.decrypt_into(nonce, encrypted, data[_BOUND] + key, opened)
        except (struct.error, KeyError, InvalidTag):
            raise SealError(self._fault(data)) from None
        if until <= now * 1000:
            raise SealError("expired")
        made = read(opened)
        if room is not None:
            self._rooms.append(room)
        return made

    def _room(self, size: int) -> memoryview:
        """Room that nobody else has until it is given back: another thread may open a record meanwhile."""
        try:
            room = self._rooms.pop()
        except IndexError:
            room = _NO_ROOM
        return room if len(room) >= size else memoryview(bytearray(1 << (size - 1).bit_length()))

    def _fault(self, data: bytes) -> Reason:
        """Why it did not open."""
        if len(data) < OVERHEAD or data[0] != VERSION:
            return "unsealed" if data[:1] == bytes((UNSEALED,)) else "malformed"
        return "forged" if data[1 : 1 + ID_BYTES] in self._ciphers else "unknown-key"


class _Ciphers:
    """The AES keys of one sealing key.

    openers: what opens with each.
    """

    __slots__ = ("_secret", "id", "made", "openers")

    def __init__(self, key: SealingKey) -> None:
        self.id = key.id
        self._secret = key.secret
        self.made: list[AESGCM | None] = [None] * _AES_KEYS
        self.openers: list[Callable[[bytes, bytes | memoryview, bytes], bytes]] = [
            partial(self._open_first, part) for part in range(_AES_KEYS)
        ]

    def make(self, part: int) -> AESGCM:
        """The AES key of the cache keys whose first byte is this."""
        info = b"tidegate-record-%d" % part
        cipher = AESGCM(HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(self._secret))
        self.made[part] = cipher
        self.openers[part] = cipher.decrypt
        return cipher

    def _open_first(self, part: int, nonce: bytes, data: bytes | memoryview, bound: bytes) -> bytes:
        return self.make(part).decrypt(nonce, data, bound)
