"""Parts of a stored response: which bytes a Range asks for, and whether If-Range lets it (RFC 9110 13.1.5, 14).

Only the unit `bytes`. What cannot be read, asks for too many parts, or for parts that lie in each other, is as if it
were not there: the whole response is always a right answer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import xxhash

from tidegate.middleware.core.message import field_values, list_members, parse_date, single_value
from tidegate.middleware.core.targeted import TARGETED
from tidegate.middleware.core.validators import strong_match

__all__ = ["MAX_RANGES", "Partial", "Span", "allows_range", "partial", "spans_of"]

Pairs = Sequence[tuple[bytes, bytes]]
Span = tuple[int, int]
"""First byte, and the one after the last."""

MAX_RANGES: Final = 16
"""Parts in one answer; who asks for more gets the whole (RFC 9110 14.2, 17.15)."""

_ONE: Final = re.compile(rb"([0-9]{0,18})-([0-9]{0,18})\Z")
_WHOLE_ONLY: Final = frozenset({b"content-length", b"content-range", b"content-type"})
_FRESHNESS: Final = frozenset({b"cache-control", b"expires", *TARGETED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """Status, header fields and body of an answer to a Range."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def spans_of(value: bytes, length: int) -> list[Span] | None:
    """What of a representation of `length` bytes a Range asks for, in its order; None: answer with the whole.

    Empty: nothing that is asked for is there (416).
    """
    unit, equals, given = value.partition(b"=")
    if not equals or unit.strip(b" \t").lower() != b"bytes":
        return None
    asked = list(list_members([given]))
    if not asked or len(asked) > MAX_RANGES:
        return None
    spans: list[Span] = []
    for each in asked:
        found = _ONE.match(each)
        if found is None or each == b"-":
            return None
        first, last = found.groups()
        if not first:
            if not length and int(last):
                return None  # satisfied by nothing at all, which no 206 can say
            span = (max(0, length - int(last)), length)
        else:
            if last and int(last) < int(first):
                return None
            span = (int(first), min(int(last) + 1, length) if last else length)
        if span[0] < span[1]:
            spans.append(span)
    ordered = sorted(spans)
    if any(one[1] > other[0] for one, other in pairwise(ordered)):
        return None
    return spans


def allows_range(request: Pairs, headers: Pairs, *, born: float) -> bool:
    """Whether the response with these fields is the one that If-Range names, if it names any (RFC 9110 13.1.5).

    born: seconds at which the response had age 0, for one without a Date. A date names it only if it was made a second
    or more after its Last-Modified: else another may have been made in that same second (RFC 9110 8.8.2.2).
    """
    if not any(name == b"if-range" for name, _ in request):
        return True
    named = single_value(request, b"if-range")
    if named is None:
        return False
    if named.startswith((b'"', b"W/")):
        etag = single_value(headers, b"etag")
        return etag is not None and strong_match(named, etag)
    modified = single_value(headers, b"last-modified")
    since, made = parse_date(modified), parse_date(single_value(headers, b"date"))
    return named == modified and since is not None and (born if made is None else made) >= since + 1


def partial(request: Pairs, headers: Pairs, body: bytes, *, born: float) -> Partial | None:
    """The answer to a GET with a Range, from a whole 200; None: the whole is the answer. born: as `allows_range`."""
    asked = single_value(request, b"range")
    if asked is None or not allows_range(request, headers, born=born):
        return None
    if any(value.strip().lower() == b"none" for value in field_values(headers, b"accept-ranges")):
        return None
    spans = spans_of(asked, len(body))
    if spans is None:
        return None
    if not spans:
        # Nor for how long: that was said of the whole, and a cache further out would answer with this for as long.
        kept = [pair for pair in headers if pair[0] not in _FRESHNESS and not pair[0].startswith(b"content-")]
        total = [(b"content-range", b"bytes */%d" % len(body)), (b"content-length", b"0")]
        return Partial(status=416, headers=[*kept, *total], body=b"")
    kept = [pair for pair in headers if pair[0] not in _WHOLE_ONLY]
    kind = field_values(headers, b"content-type")
    if len(spans) == 1:
        first, end = spans[0]
        part = body[first:end]
        kept += [(b"content-type", value) for value in kind]
        kept += [(b"content-range", _content_range(spans[0], body)), (b"content-length", b"%d" % len(part))]
        return Partial(status=206, headers=kept, body=part)
    boundary, joined = _multipart(spans, kind[0] if kind else None, body)
    kept += [
        (b"content-type", b"multipart/byteranges; boundary=" + boundary),
        (b"content-length", b"%d" % len(joined)),
    ]
    return Partial(status=206, headers=kept, body=joined)


def _content_range(span: Span, body: bytes) -> bytes:
    return b"bytes %d-%d/%d" % (span[0], span[1] - 1, len(body))


def _multipart(spans: Sequence[Span], kind: bytes | None, body: bytes) -> tuple[bytes, bytes]:
    """The boundary and the content of multipart/byteranges (RFC 9110 14.6)."""
    boundary = xxhash.xxh3_128_hexdigest(body).encode("ascii")
    while boundary in body:
        boundary = xxhash.xxh3_128_hexdigest(boundary).encode("ascii")
    parts: list[bytes] = []
    for span in spans:
        parts.append(b"--" + boundary)
        if kind is not None:
            parts.append(b"content-type: " + kind)
        parts += [b"content-range: " + _content_range(span, body), b"", body[span[0] : span[1]]]
    return boundary, b"\r\n".join([*parts, b"--" + boundary + b"--", b""])
