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
from typing import Any, Final, TypeGuard, TypeVar, cast

import msgpack  # type: ignore[import-untyped]

from tidegate.errors import StoreError
from tidegate.middleware.core.records import Entry, Record, Variants, new_entry

__all__ = ["VERSION", "CodecError", "decode", "encode", "encoded"]

VERSION: Final = 1
_HEAD: Final = struct.Struct(">BI")
_FIELDS: Final = 13
_msgpack: Any = msgpack

T = TypeVar("T")


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


def decode(data: bytes) -> Record:
    """The record that `encode` made these bytes of.

    Raises:
        CodecError: if it did not.
    """
    if len(data) < _HEAD.size:
        raise CodecError(f"{len(data)} bytes are no record")
    version, length = _HEAD.unpack_from(data)
    if version != VERSION:
        raise CodecError(f"version {version} is not {VERSION}")
    end = _HEAD.size + length
    if end > len(data):
        raise CodecError(f"meta part of {length} bytes in {len(data)}")
    meta = _unpacked(data[_HEAD.size : end])
    if _is_list(meta) and meta:
        kind, *fields = meta
        if kind == "e" and len(fields) == _FIELDS:
            return _entry(fields, data[end:])
        if kind == "v" and len(fields) == 3 and end == len(data):
            return Variants(names=_items(fields[0], bytes), keys=_items(fields[1], bytes), scope=_text(fields[2]))
    raise CodecError("the meta part is no record's")


def _unpacked(packed: bytes) -> object:
    try:
        return _msgpack.unpackb(packed, strict_map_key=True, use_list=False, unicode_errors="surrogatepass")
    except (ValueError, TypeError, OverflowError, RecursionError, _msgpack.UnpackException) as error:
        raise CodecError(f"the meta part is not msgpack: {type(error).__name__}") from error


def _entry(fields: list[object], body: bytes) -> Entry:
    status, headers, born, lifetime, swr, sie, must, no_cache, vary, tags, positions, own, length = fields
    if _whole(length) != len(body):
        raise CodecError(f"body of {len(body)} bytes, not {length}")
    return new_entry(
        status=_status(status),
        headers=_pairs(headers, bytes, bytes),
        body=body,
        born=_number(born),
        lifetime=_number(lifetime),
        stale_while_revalidate=_number(swr),
        stale_if_error=_number(sie),
        must_revalidate=_flag(must),
        no_cache=_flag(no_cache),
        vary=_selecting(vary),
        tags=_pairs(tags, str, str),
        positions=_positions(positions),
        own_etag=_flag(own),
    )


def _is_list(value: object) -> TypeGuard[tuple[object, ...]]:
    return type(value) is tuple


def _items(value: object, kind: type[T]) -> tuple[T, ...]:
    if not _is_list(value):
        raise CodecError(f"{type(value).__name__} is no list")
    for each in value:
        if type(each) is not kind:
            raise CodecError(f"{type(each).__name__} is no {kind.__name__}")
    return cast(tuple[T, ...], value)


def _lists(value: object) -> tuple[tuple[object, ...], ...]:
    return cast(tuple[tuple[object, ...], ...], _items(value, tuple))


A = TypeVar("A")
B = TypeVar("B")


def _pairs(value: object, first: type[A], second: type[B]) -> tuple[tuple[A, B], ...]:
    # As they were unpacked, once all are seen to be what they are to be: a hit waits for this.
    for each in _lists(value):
        if len(each) != 2:
            raise CodecError("not a pair")
        if type(each[0]) is not first or type(each[1]) is not second:
            raise CodecError(f"not a {first.__name__} and a {second.__name__}")
    return cast(tuple[tuple[A, B], ...], value)


def _selecting(value: object) -> tuple[tuple[bytes, bytes | None], ...]:
    for each in _lists(value):
        if len(each) != 2 or type(each[0]) is not bytes or (each[1] is not None and type(each[1]) is not bytes):
            raise CodecError("no field of a request")
    return cast(tuple[tuple[bytes, bytes | None], ...], value)


def _positions(value: object) -> tuple[tuple[str, int], ...]:
    pairs = _pairs(value, str, int)
    for _, position in pairs:
        if position < 0:
            raise CodecError(f"{position} is no position")
    return pairs


def _text(value: object) -> str:
    if type(value) is not str:
        raise CodecError(f"{type(value).__name__} is no text")
    return value


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise CodecError(f"{type(value).__name__} is no whole number")
    return value


def _status(value: object) -> int:
    status = _whole(value)
    if not 100 <= status <= 999:
        raise CodecError(f"{status} is no status")
    return status


def _number(value: object) -> float:
    if type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not float or not isfinite(value):
        raise CodecError(f"{type(value).__name__} is no number")
    return value


def _flag(value: object) -> bool:
    if type(value) is not bool:
        raise CodecError(f"{type(value).__name__} is no flag")
    return value
