"""Law: decode(encode(record)) == record; and decode of anything else is CodecError, never another exception."""

import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgpack import fallback

from tidegate.errors import StoreError
from tidegate.middleware.core import codec
from tidegate.middleware.core.codec import LONGEST, Alike, CodecError, decode, encode
from tidegate.middleware.core.records import Entry, Record, Variants

pairs = st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=6).map(tuple)
names = st.text(st.characters(exclude_categories=[]), max_size=20)
seconds = st.floats(allow_nan=False, allow_infinity=False)
entries = st.builds(
    Entry,
    status=st.integers(100, 999),
    headers=pairs,
    body=st.binary(max_size=200),
    born=seconds,
    lifetime=seconds,
    stale_while_revalidate=seconds,
    stale_if_error=seconds,
    must_revalidate=st.booleans(),
    no_cache=st.booleans(),
    vary=st.lists(st.tuples(st.binary(max_size=9), st.none() | st.binary(max_size=9)), max_size=4).map(tuple),
    tags=st.lists(st.tuples(names, names), max_size=4).map(tuple),
    positions=st.lists(st.tuples(names, st.integers(0, 2**63)), max_size=4).map(tuple),
    own_etag=st.booleans(),
)
records: st.SearchStrategy[Record] = entries | st.builds(Variants, names=st.lists(st.binary(max_size=9)).map(tuple))
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=14) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=30,
)


def framed(meta: object, body: bytes = b"") -> bytes:
    packed: Any = msgpack.packb(meta)
    return struct.pack(">BI", 1, len(packed)) + packed + body


def decodes_or_is_refused(data: bytes) -> None:
    record = outcome(decode, data)
    assert lent(decode, data) == record
    if record is not None:
        assert decode(encode(record)) == record


@given(records)
def test_every_record_survives_the_round_trip(record: Record) -> None:
    assert decode(encode(record)) == record
    assert lent(decode, encode(record)) == record


def outcome(decoded: Callable[[bytes], Record], data: bytes) -> Record | None:
    try:
        return decoded(data)
    except CodecError:
        return None


def lent(decoded: Callable[[bytes | memoryview], Record], data: bytes) -> Record | None:
    """The outcome with bytes that lie where others will."""
    room = bytearray(data)
    try:
        return decoded(memoryview(room))
    except CodecError:
        return None
    finally:
        room[:] = b"x" * len(room)


@given(entries, st.lists(st.binary(max_size=3) | st.none() | entries, max_size=6), st.data())
def test_what_is_alike_decodes_as_everything_else(
    entry: Entry, then: list[bytes | Entry | None], data: st.DataObject
) -> None:
    alike, borrowing = Alike(), Alike()
    assert alike.decode(encode(entry)) == entry
    assert lent(borrowing.decode, encode(entry)) == entry
    for each in then:
        if each is None:  # the same, damaged
            changed = bytearray(encode(entry))
            changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(0, 255))
            encoded = bytes(changed)
        else:
            entry = each if isinstance(each, Entry) else replace(entry, body=each)
            encoded = encode(entry)
        assert outcome(alike.decode, encoded) == outcome(decode, encoded) == lent(borrowing.decode, encoded)


def test_what_is_remembered_of_a_record_is_bounded() -> None:
    fields = tuple((b"field", b"%d" % number * 1000) for number in range(10))
    large = Entry(status=200, headers=fields, body=b"body", born=1.0, lifetime=1.0)
    data = [encode(replace(large, born=float(number))) for number in range(100)]
    begun = [Alike() for _ in data]
    tracemalloc.start()
    try:
        for alike, each in zip(begun, data, strict=True):
            alike.decode(each)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 100 * LONGEST
    assert [alike.decode(each) for alike, each in zip(begun, data, strict=True)] == [decode(each) for each in data]


@given(st.binary(max_size=300))
def test_random_bytes_are_a_record_or_refused(data: bytes) -> None:
    decodes_or_is_refused(data)


@given(anything, st.binary(max_size=10))
def test_any_msgpack_in_the_meta_part_is_a_record_or_refused(meta: object, body: bytes) -> None:
    decodes_or_is_refused(framed(meta, body))
    decodes_or_is_refused(framed(["e", *meta] if isinstance(meta, list) else ["v", meta], body))


@given(st.binary(max_size=60))
def test_random_bytes_in_the_meta_part_are_a_record_or_refused(packed: bytes) -> None:
    decodes_or_is_refused(struct.pack(">BI", 1, len(packed)) + packed)


@given(entries, st.data())
def test_a_damaged_entry_is_a_record_or_refused(entry: Entry, data: st.DataObject) -> None:
    damaged = bytearray(encode(entry))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    decodes_or_is_refused(bytes(damaged))


@given(entries, st.data())
def test_a_truncated_or_extended_entry_is_refused(entry: Entry, data: st.DataObject) -> None:
    whole = encode(entry)
    with pytest.raises(CodecError):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(CodecError):
        decode(whole + b"x")


@given(entries, st.integers(0, 12), anything)
def test_a_field_of_another_type_is_refused_or_means_the_same(entry: Entry, at: int, value: object) -> None:
    whole = encode(entry)
    (length,) = struct.unpack_from(">I", whole, 1)
    meta: Any = msgpack.unpackb(whole[5 : 5 + length], unicode_errors="surrogatepass")
    meta[1 + at] = value
    packed: Any = msgpack.packb(meta, unicode_errors="surrogatepass")
    decodes_or_is_refused(struct.pack(">BI", 1, len(packed)) + packed + whole[5 + length :])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01\x00\x00\x00",
        b"\x01\xff\xff\xff\xff" + b"\xc0" * 100,
        b"\x02" + framed(["v", []])[1:],
        framed(["v", []], b"body"),
        framed([]),
        framed({}),
        struct.pack(">BI", 1, 5) + b"\xdd\xff\xff\xff\xff",
        struct.pack(">BI", 1, 20_000) + b"\x91" * 20_000,
        struct.pack(">BI", 1, 6) + b"\xd6\xff\x00\x00\x00\x01",
        struct.pack(">BI", 1, 3) + b"\x93\xc1\xc1",
    ],
    ids=["none", "short", "huge-length", "version", "variants-body", "list", "map", "huge-list", "deep", "ext", "c1"],
)
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode(data)


def test_the_refusal_is_a_value_error_and_a_store_error() -> None:
    assert issubclass(CodecError, ValueError)
    assert issubclass(CodecError, StoreError)


def test_nan_is_no_number_of_seconds() -> None:
    good: list[Any] = ["e", 200, [], 1.0, 1.0, 0.0, 0.0, False, False, [], [], [], False, 0]
    assert isinstance(decode(framed(good)), Entry)
    for at in (3, 4, 5, 6):
        bad = good.copy()
        bad[at] = float("nan")
        with pytest.raises(CodecError):
            decode(framed(bad))


WRONG: list[tuple[int, object]] = [
    (1, "200"),
    (1, 99),
    (1, 1000),
    (1, True),
    (2, [["text", b""]]),
    (2, [[b"name", "text"]]),
    (2, [[b"one"]]),
    (2, [[b"one", b"two", b"three"]]),
    (2, {}),
    (3, "1"),
    (4, None),
    (5, True),
    (6, 2**60),
    (7, 1),
    (8, None),
    (9, [[b"name", "text"]]),
    (10, [[b"scope", "tag"]]),
    (10, [["scope", b"tag"]]),
    (11, [["scope", -1]]),
    (11, [["scope", 1.0]]),
    (12, 0),
    (13, 1),
    (13, "0"),
]


@pytest.mark.parametrize(("at", "value"), WRONG)
def test_a_field_of_the_wrong_type_or_range_is_refused(at: int, value: object) -> None:
    meta: list[Any] = ["e", 200, [], 1.0, 1.0, 0.0, 0.0, False, False, [], [], [], False, 0]
    assert isinstance(decode(framed(meta)), Entry)
    meta[at] = value
    with pytest.raises(CodecError):
        decode(framed(meta))


@pytest.mark.parametrize("wrong", [-1, 1, 2**31])
def test_a_meta_length_that_is_not_the_meta_parts_is_refused(wrong: int) -> None:
    whole = encode(Entry(status=200, headers=(), body=b"", born=1.0, lifetime=1.0))
    (length,) = struct.unpack_from(">I", whole, 1)
    with pytest.raises(CodecError):
        decode(whole[:1] + struct.pack(">I", length + wrong) + whole[5:])


def test_the_other_implementation_of_msgpack_raises_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """msgpack falls back to pure Python where it finds no compiler."""

    def unpackb(packed: bytes, **options: Any) -> Any:
        unpacker = fallback.Unpacker(None, max_buffer_size=len(packed), **options)
        unpacker.feed(packed)
        return unpacker._unpack()

    monkeypatch.setattr(codec, "_unpackb", unpackb)
    for packed in (b"", b"\x91" * 20_000, b"\xdd\xff\xff\xff\xff", b"\xc1", b"\xd6\xff\x00\x00\x00\x01", b"\xc6\xff"):
        with pytest.raises(CodecError):
            decode(struct.pack(">BI", 1, len(packed)) + packed)
