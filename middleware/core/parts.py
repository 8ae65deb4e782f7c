"""Parts of a response that came as 206: what may be answered with one, what it lacks, and which two make one.

RFC 9111 3.3 (a part answers a request for what lies wholly in it) and 3.4, RFC 9110 15.3.7.3 (two are joined only if
both carry the same strong ETag). Only single parts in bytes of a known complete length.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from tidegate.middleware.core.message import field_values, single_value
from tidegate.middleware.core.ranges import Partial, allows_range, spans_of
from tidegate.middleware.core.validators import CONDITIONAL_HEADERS, strong_match, weak_match

__all__ = ["Lack", "Place", "completes", "cut", "is_another", "joined", "lack_of", "place_of", "whole_headers"]

Pairs = Sequence[tuple[bytes, bytes]]

_CONTENT_RANGE: Final = re.compile(rb"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})\Z", re.IGNORECASE)
_PLACED: Final = frozenset({b"content-length", b"content-range"})
_TYPE: Final = b"content-type"
_SAME: Final = (b"content-encoding", _TYPE)


class Place(NamedTuple):
    """Where a part lies: its first byte, the one after its last, and how long the whole is."""

    first: int
    end: int
    total: int


class Lack(NamedTuple):
    """What a part lacks of the whole: where that lies, the Range that asks for it, and the ETag of its version."""

    place: Place
    asked: bytes
    etag: bytes


def place_of(headers: Pairs, length: int | None = None) -> Place | None:
    """What Content-Range says; None if it says nothing that can be relied on.

    length: bytes that came. Where they are fewer than was said, the others are not there.
    """
    found = _CONTENT_RANGE.match(single_value(headers, b"content-range") or b"")
    # Several parts have a frame of their own round each, and say where they lie in there (RFC 9110 15.3.7.2).
    framed = any(value.strip().lower().startswith(b"multipart/byteranges") for value in field_values(headers, _TYPE))
    if found is None or framed:
        return None
    first, last, total = (int(number) for number in found.groups())
    if last < first or last >= total or (length is not None and not 0 < length <= last + 1 - first):
        return None
    return Place(first, last + 1 if length is None else first + length, total)


def cut(request: Pairs, headers: Pairs, body: bytes, *, came_for: bytes | None, born: float) -> Partial | None:
    """The answer to a GET with a Range, from a stored part; None: only the app can answer.

    came_for: the Range that the part was the answer to; None: it was joined. To the same Range it is the answer again,
        as it came.
    born: as `allows_range`.
    """
    asked, place = single_value(request, b"range"), place_of(headers, len(body))
    conditional = any(name in CONDITIONAL_HEADERS and name != b"if-range" for name, _ in request)
    if asked is None or place is None or conditional or not allows_range(request, headers, born=born):
        return None
    if asked == came_for:
        return Partial(status=206, headers=list(headers), body=body)
    spans = spans_of(asked, place.total)
    if spans is None or len(spans) != 1:
        return None
    ((first, end),) = spans
    told = place_of(headers)
    if told is not None and place.first <= first < place.end < end <= told.end and asked.rstrip().endswith(b"-"):
        # Wholly in what the app said that it sent, and of that this much came: to an open end it may be given, as a
        # server may give some of a range and leave it to the client to ask for more (RFC 9110 14.2).
        end = place.end
    if first < place.first or end > place.end:
        return None
    part = body[first - place.first : end - place.first]
    return Partial(status=206, headers=_placed(headers, Place(first, end, place.total)), body=part)


def joined(old: Pairs, old_body: bytes, new: Pairs, new_body: bytes) -> tuple[Pairs, bytes] | None:
    """Two parts of one representation as one, with the fields of the newer; None: they are not, or there is a gap.

    Where both have a byte it must be the same: an app whose strong ETag stays while its bytes change is not believed.
    """
    one, other = _exact(old, old_body), _exact(new, new_body)
    tags = single_value(old, b"etag"), single_value(new, b"etag")
    if one is None or other is None or one.total != other.total or one.first > other.end or other.first > one.end:
        return None
    if tags[0] is None or tags[1] is None or not strong_match(tags[0], tags[1]):
        return None
    if any(field_values(old, name) != field_values(new, name) for name in _SAME):
        return None
    common = max(one.first, other.first), min(one.end, other.end)
    if (
        old_body[common[0] - one.first : common[1] - one.first]
        != new_body[common[0] - other.first : common[1] - other.first]
    ):
        return None
    before, after = old_body[: max(0, other.first - one.first)], old_body[max(0, other.end - one.first) :]
    place = Place(min(one.first, other.first), max(one.end, other.end), one.total)
    return _placed(new, place), before + new_body + (after if one.end > other.end else b"")


def _exact(headers: Pairs, body: bytes) -> Place | None:
    """Where a part lies of which everything came that was said to come. Of another nobody knows which end it lacks."""
    place = place_of(headers, len(body))
    return place if place == place_of(headers) else None


def lack_of(headers: Pairs, body: bytes) -> Lack | None:
    """What to ask for, to make this part the whole; None: it lies in the middle, or nothing could be joined to it.

    Not without a Content-Length: what an app sends with one it states of the rest too, and a client is told the length
    of the whole before the rest is there.
    """
    place, etag = _exact(headers, body), single_value(headers, b"etag")
    if (
        place is None
        or etag is None
        or not strong_match(etag, etag)
        or single_value(headers, b"content-length") is None
    ):
        return None
    if place.first == 0 and place.end < place.total:
        return Lack(Place(place.end, place.total, place.total), b"bytes=%d-" % place.end, etag)
    if place.first > 0 and place.end == place.total:
        return Lack(Place(0, place.first, place.total), b"bytes=0-%d" % (place.first - 1), etag)
    return None


def completes(part: Pairs, lack: Lack, rest: Pairs) -> bool:
    """Whether a 206 with these fields is exactly what the part lacks, of the same version (RFC 9110 15.3.7.3)."""
    place, etag = place_of(rest), single_value(rest, b"etag")
    if place is None or place != lack.place or etag is None or not strong_match(etag, lack.etag):
        return False
    if single_value(rest, b"content-length") != b"%d" % (place.end - place.first):
        return False
    return all(field_values(part, name) == field_values(rest, name) for name in _SAME)


def is_another(part: Pairs, whole: Pairs, length: int) -> bool:
    """Whether a part is certainly not of the whole response with these fields and this many bytes."""
    place = place_of(part)
    for name in (b"etag", b"last-modified"):
        one, other = single_value(part, name), single_value(whole, name)
        if one is not None and other is not None:
            return not weak_match(one, other)
    return place is not None and place.total != length


def whole_headers(headers: Pairs, total: int) -> Pairs:
    """The fields of the 200 that a part is which lacks nothing (RFC 9111 3.4)."""
    return [*(pair for pair in headers if pair[0] not in _PLACED), (b"content-length", b"%d" % total)]


def _placed(headers: Pairs, place: Place) -> list[tuple[bytes, bytes]]:
    kept = [pair for pair in headers if pair[0] not in _PLACED]
    kept.append((b"content-range", b"bytes %d-%d/%d" % (place.first, place.end - 1, place.total)))
    kept.append((b"content-length", b"%d" % (place.end - place.first)))
    return kept
