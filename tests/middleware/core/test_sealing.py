"""Law: what was sealed under a key opens under it while its life lasts; anything else is SealError, for its reason."""

import struct
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tidegate.errors import StoreError
from tidegate.middleware.core.codec import Alike, decode, encode, encoded
from tidegate.middleware.core.keyring import KeyRing, SealingKey
from tidegate.middleware.core.records import Entry
from tidegate.middleware.core.sealing import LONGEST_ROOM, OVERHEAD, REASONS, ROOMY, Sealer, SealError

NOW = 1_700_000_000.0
OLD, NEW = SealingKey(b"o" * 32), SealingKey(b"n" * 32, since=NOW)
KEY, OTHER = b"\x07" + b"k" * 19, b"\x07" + b"o" * 19  # of one AES key
NONCE = bytes(range(12))
BOTH = Sealer(KeyRing(keys=(OLD, NEW)))
ENTRY = Entry(status=200, headers=((b"a", b"b"),), body=b"secret of acme" * 9, born=NOW, lifetime=60.0)
LARGE = replace(ENTRY, body=b"secret of acme" * 5000)


def sealed(
    sealer: Sealer = BOTH, *, key: bytes = KEY, until: float = NOW + 60, now: float = NOW, entry: Entry = ENTRY
) -> bytes:
    return bytes(sealer.seal(key, encoded(entry), until=until, now=now, nonce=NONCE))


def refused(data: bytes, *, key: bytes = KEY, now: float = NOW, sealer: Sealer = BOTH) -> str:
    with pytest.raises(SealError) as raised:
        sealer.open(key, data, bytes, now=now)
    assert isinstance(raised.value, StoreError)
    assert raised.value.reason in REASONS
    return raised.value.reason


@given(
    key=st.binary(min_size=1, max_size=40),
    pieces=st.lists(st.binary(max_size=300), max_size=4),
    nonce=st.binary(min_size=12, max_size=12),
    now=st.sampled_from([NOW - 1, NOW]),
)
def test_what_was_sealed_opens_and_shows_nothing(key: bytes, pieces: list[bytes], nonce: bytes, now: float) -> None:
    data = bytes(BOTH.seal(key, pieces, until=now + 1, now=now, nonce=nonce))
    plain = b"".join(pieces)
    assert BOTH.open(key, data, bytes, now=now) == plain
    assert len(data) == len(plain) + OVERHEAD
    assert len(plain) < 8 or plain not in data[OVERHEAD - 16 :]


def test_the_latest_key_seals_and_a_ring_that_has_it_already_opens() -> None:
    early = Sealer(KeyRing(keys=(OLD,)))
    assert sealed(now=NOW - 1)[1:5] == OLD.id
    assert sealed()[1:5] == NEW.id
    assert early.open(KEY, sealed(now=NOW - 1), bytes, now=NOW) == encode(ENTRY)
    assert refused(sealed(), sealer=early) == "unknown-key"
    assert BOTH.open(KEY, sealed(early), bytes, now=NOW) == encode(ENTRY)


def test_a_record_under_another_key_is_forged() -> None:
    assert refused(sealed(), key=OTHER) == "forged"
    assert refused(sealed(), key=b"\x08" + KEY[1:]) == "forged"


def test_a_record_whose_life_is_over_does_not_open_whatever_its_server_says() -> None:
    data = sealed(until=NOW + 60)
    assert BOTH.open(KEY, data, bytes, now=NOW + 59.999)
    assert refused(data, now=NOW + 60) == "expired"
    longer = data[:5] + struct.pack(">Q", int((NOW + 600) * 1000)) + data[13:]
    assert refused(longer, now=NOW + 60) == "forged"


@pytest.mark.parametrize("size", [ROOMY - 1, ROOMY, ROOMY + 1, LONGEST_ROOM, LONGEST_ROOM + 1])
def test_a_large_record_opens_and_is_refused_as_a_small_one(size: int) -> None:
    entry = replace(ENTRY, body=bytes(size - len(sealed()) + len(ENTRY.body)))
    data = sealed(entry=entry)
    assert abs(len(data) - size) <= 6  # its length is written with more bytes
    assert BOTH.open(KEY, data, bytes, now=NOW) == encode(entry)
    assert refused(data, key=OTHER) == "forged"
    assert refused(data[:-1]) == "forged"
    assert refused(data[:700] + b"x" + data[701:]) == "forged"
    assert refused(data, now=NOW + 60) == "expired"
    assert refused(b"\x03" + data[1:]) == "malformed"
    assert refused(data[:1] + b"nokey" + data[6:]) == "unknown-key"
    assert BOTH.open(KEY, data, bytes, now=NOW) == encode(entry)


def test_of_a_large_record_nothing_is_left_in_the_next_one() -> None:
    shorter, other = replace(LARGE, body=b"of bolt" * 9000), replace(LARGE, headers=((b"a", b"c"),))
    entries = [LARGE, LARGE, other, LARGE, shorter, shorter]
    for decoded in (decode, Alike().decode):
        assert [BOTH.open(KEY, sealed(entry=each), decoded, now=NOW) for each in entries] == entries


def test_a_large_record_that_is_being_read_is_not_overwritten_by_another() -> None:
    other = replace(LARGE, body=b"secret of bolt" * 5000)

    def read(lent: bytes | memoryview) -> bytes:
        # As another thread may, now.
        assert BOTH.open(KEY, sealed(entry=other), bytes, now=NOW) == encode(other)
        return bytes(lent)

    for _ in range(3):
        assert BOTH.open(KEY, sealed(entry=LARGE), read, now=NOW) == encode(LARGE)


def test_a_record_without_a_seal_is_refused() -> None:
    assert refused(encode(ENTRY)) == "unsealed"
    assert refused(encode(replace(ENTRY, body=b""))) == "unsealed"


@given(st.data())
def test_one_changed_bit_or_any_cut_is_refused(data: st.DataObject) -> None:
    whole = sealed()
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    flipped = bytearray(whole)
    flipped[bit // 8] ^= 1 << bit % 8
    assert refused(bytes(flipped)) in ("forged", "unknown-key", "malformed", "unsealed")
    assert refused(whole[: data.draw(st.integers(0, len(whole) - 1))]) in ("forged", "malformed")
    assert refused(whole + data.draw(st.binary(min_size=1, max_size=9))) == "forged"


@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_are_refused(data: bytes, begun: bool) -> None:
    assume(not data or data != sealed())
    refused(b"\x02" + NEW.id + data if begun else data)
