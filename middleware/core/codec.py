"""Records to bytes and back: a version byte, the length of the meta part, the meta part as msgpack, the body raw.

    1 byte   version (1)
    4 bytes  length of the meta part, big-endian
    meta     msgpack: ["v", names, keys] for Variants, ["e", ...] for an Entry, its body's length last
    body     as it is

The decoder trusts nothing: whatever the bytes, the result is a record that was encoded by `encode` in its every type
and range, or CodecError. No pickle, no code, no object beyond the two records.
"""

import struct
from math import isfinite
from typing import Any, Final, cast

import msgpack  # type: ignore[import-untyped]

from tidegate.errors import StoreError
from tidegate.middleware.core.records import BUT_BODY, Entry, Record, Variants, with_body

__all__ = ["LONGEST", "VERSION", "Alike", "CodecError", "decode", "encode", "encoded"]

VERSION: Final = 1
_HEAD: Final = struct.Struct(">BI")
_unpack_head: Final = _HEAD.unpack_from
_PARTS: Final = 14
LONGEST: Final = 2048
"""Bytes of all but the body that `Alike` remembers."""
_msgpack: Any = msgpack
_unpackb: Final = _msgpack.unpackb


class CodecError(StoreError, ValueError):
    """Bytes that are no record of this version."""


def encode(record: Record) -> bytes:
    """The record as bytes."""
    return b"".join(encoded(record))


def encoded(record: Record) -> tuple[bytes, ...]:
    """The same in pieces, for who copies them together anyway: a body may be large."""
    if isinstance(record, Variants):
        return _framed(["v", record.names, record.keys, record.scope], b"")
    e = record
    meta: list[object] = [
        "e",
        e.status,
        e.headers,
        e.born,
        e.lifetime,
        e.stale_while_revalidate,
        e.stale_if_error,
        e.must_revalidate,
        e.no_cache,
        e.vary,
        e.tags,
        e.positions,
        e.own_etag,
        len(e.body),
    ]
    return _framed(meta, e.body)


def _framed(meta: list[object], body: bytes) -> tuple[bytes, ...]:
    packed: bytes = _msgpack.packb(meta, unicode_errors="surrogatepass")
    return _HEAD.pack(VERSION, len(packed)), packed, body


def decode(data: bytes | memoryview) -> Record:
    """The record that `encode` made these bytes of. It holds nothing of a memoryview.

    Raises:
        CodecError: if it did not.
    """
    if len(data) < _HEAD.size:
        raise CodecError(f"{len(data)} bytes are no record")
    version, length = _unpack_head(data)
    if version != VERSION:
        raise CodecError(f"version {version} is not {VERSION}")
    end = _HEAD.size + length
    if end > len(data):
        raise CodecError(f"meta part of {length} bytes in {len(data)}")
    meta = _unpacked(data[_HEAD.size : end])
    if meta.__class__ is tuple and meta:
        if meta[0] == "e" and len(meta) == _PARTS:
            return _entry(meta, bytes(data[end:]))
        if meta[0] == "v" and len(meta) == 4 and end == len(data):
            return Variants(names=_items(meta[1]), keys=_items(meta[2]), scope=_text(meta[3]))
    raise CodecError("the meta part is no record's")


class Alike:
    """Decodes records, and one that begins as the last one did in less time: the same response, or the same but for the
    body. What it remembers of one is bounded: there are thousands of these."""

    __slots__ = ("_end", "_head", "_length", "_others")

    def __init__(self) -> None:
        self._head = b""
        self._end = 0
        self._length = -1
        self._others: tuple[Any, ...] = ()

    def decode(self, data: bytes | memoryview) -> Record:
        """As `decode`."""
        if len(data) == self._length:
            if type(data) is bytes:
                if data.startswith(self._head):
                    return with_body(self._others, data[self._end :])
            elif bytes(data[: self._end]) == self._head:  # a memoryview compares one byte after the other
                return with_body(self._others, bytes(data[self._end :]))
        record = decode(data)
        if type(record) is Entry:
            end = len(data) - len(record.body)
            if end > LONGEST:
                return record
            self._end, self._head, self._length = end, bytes(data[:end]), len(data)
            self._others = tuple(getattr(record, name) for name in BUT_BODY)
        return record


def _unpacked(packed: bytes | memoryview) -> Any:
    try:
        return _unpackb(packed, strict_map_key=True, use_list=False, unicode_errors="surrogatepass")
    except (ValueError, TypeError, OverflowError, RecursionError, _msgpack.UnpackException) as error:
        raise CodecError(f"the meta part is not msgpack: {type(error).__name__}") from error


def _entry(meta: tuple[Any, ...], body: bytes) -> Entry:
    # Every hit in a shared store waits for this: what is usual is seen in as few steps as can be.
    _, status, headers, born, lifetime, swr, sie, must, no_cache, vary, tags, positions, own, length = meta
    if type(length) is not int or length != len(body):
        raise CodecError(f"body of {len(body)} bytes, not {length!r}")
    if type(status) is not int or not 100 <= status <= 999:
        raise CodecError(f"{status!r} is no status")
    if type(must) is not bool or type(no_cache) is not bool or type(own) is not bool:
        raise CodecError("something else in the place of a flag")
    others = (
        status,
        _pairs(headers, bytes, bytes),
        _number(born),
        _number(lifetime),
        _number(swr),
        _number(sie),
        must,
        no_cache,
        _selecting(vary) if vary != () else (),
        _pairs(tags, str, str),
        _positions(positions),
        own,
    )
    return with_body(others, body)


def _items(value: Any) -> tuple[bytes, ...]:
    if value.__class__ is not tuple or any(type(each) is not bytes for each in value):
        raise CodecError("no list of bytes")
    return cast(tuple[bytes, ...], value)


def _pairs(value: Any, first: type, second: type) -> Any:
    # As they were unpacked, once all are seen to be what they are to be.
    if value.__class__ is not tuple:
        raise CodecError(f"{type(value).__name__} is no list")
    for each in value:
        if each.__class__ is not tuple or len(each) != 2 or type(each[0]) is not first or type(each[1]) is not second:
            raise CodecError(f"no pair of a {first.__name__} and a {second.__name__}")
    return value


def _selecting(value: Any) -> tuple[tuple[bytes, bytes | None], ...]:
    if value.__class__ is not tuple:
        raise CodecError(f"{type(value).__name__} is no list")
    for each in value:
        if each.__class__ is not tuple or len(each) != 2:
            raise CodecError("not a pair")
        if type(each[0]) is not bytes or (each[1] is not None and type(each[1]) is not bytes):
            raise CodecError("no field of a request")
    return cast(tuple[tuple[bytes, bytes | None], ...], value)


def _positions(value: Any) -> tuple[tuple[str, int], ...]:
    for _, position in _pairs(value, str, int):
        if position < 0:
            raise CodecError(f"{position} is no position")
    return cast(tuple[tuple[str, int], ...], value)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise CodecError(f"{type(value).__name__} is no text")
    return value


def _number(value: Any) -> float:
    if type(value) is float and isfinite(value):
        return value
    if type(value) is not int or abs(value) >= 2**53:
        raise CodecError(f"{type(value).__name__} is no number")
    return float(value)
