"""Entity tags and conditional requests (RFC 9110 section 8.8 and 13)."""

from binascii import hexlify
from collections.abc import Iterable

from xxhash import xxh3_128_digest, xxh3_128_hexdigest

from tidegate.middleware.core.message import field_values, list_members, parse_date, single_value

__all__ = [
    "CONDITIONAL_HEADERS",
    "digest_and_etag",
    "is_not_modified",
    "make_etag",
    "not_modified_headers",
    "strong_match",
    "weak_match",
]

CONDITIONAL_HEADERS = frozenset(
    {b"if-none-match", b"if-modified-since", b"if-match", b"if-unmodified-since", b"if-range"}
)

_DROPPED_FROM_304 = frozenset(
    {b"content-length", b"content-encoding", b"content-language", b"content-type", b"content-range", b"last-modified"}
)


def make_etag(body: bytes, *, weak: bool = False) -> bytes:
    """A validator for these bytes: XXH3-128 of the body. Strong unless `weak` (a body inside a content coding).

    It is no secret and proves nothing about who may see the body: a match is only ever looked for after the request's
    own identity has been settled.
    """
    tag = f'"{xxh3_128_hexdigest(body)}"'.encode()  # to join bytes takes a third longer
    return b"W/" + tag if weak else tag


def digest_and_etag(body: bytes) -> tuple[bytes, bytes]:
    """The strong one, and before it the 16 bytes that its digits say."""
    digest = xxh3_128_digest(body)
    return digest, b'"%b"' % hexlify(digest)


def _opaque(tag: bytes) -> bytes:
    return tag[2:] if tag[:2] == b"W/" else tag


def weak_match(one: bytes, other: bytes) -> bool:
    """Weak comparison (RFC 9110 8.8.3.2)."""
    return _opaque(one) == _opaque(other)


def strong_match(one: bytes, other: bytes) -> bool:
    """Strong comparison: neither is weak, and they are the same."""
    return one == other and one[:2] != b"W/"


def is_not_modified(
    request: Iterable[tuple[bytes, bytes]], response: Iterable[tuple[bytes, bytes]], *, status: int = 200
) -> bool:
    """Whether a GET or HEAD with these fields is answered with 304 by a response with those (RFC 9110 13.2.2).

    If-None-Match decides alone when it is there; If-Modified-Since only otherwise, and only with two valid dates.
    """
    if status != 200:
        return False
    request, response = list(request), list(response)
    wanted = field_values(request, b"if-none-match")
    if wanted:
        etag = single_value(response, b"etag")
        return any(member == b"*" or (etag is not None and weak_match(member, etag)) for member in list_members(wanted))
    since = parse_date(single_value(request, b"if-modified-since"))
    modified = parse_date(single_value(response, b"last-modified"))
    return since is not None and modified is not None and modified <= since


def not_modified_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The fields of a 304 made from a 200: metadata stays, what describes the body goes (RFC 9110 15.4.5).

    Last-Modified stays only where there is no ETag to validate with. Never a Content-Length: servers refuse it.
    """
    kept = [pair for pair in headers if pair[0] not in _DROPPED_FROM_304]
    if not any(name == b"etag" for name, _ in kept):
        kept += [pair for pair in headers if pair[0] == b"last-modified"]
    return kept
