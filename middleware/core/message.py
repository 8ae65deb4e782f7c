"""Reading header fields: lists, Cache-Control directives, dates, and what is never stored.

Headers are ordered pairs of bytes with names in lower case, as ASGI gives them; several lines of one field are one
list (RFC 9110 5.3).
"""

import re
from calendar import timegm
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

__all__ = [
    "HOP_BY_HOP",
    "delta_seconds",
    "directives",
    "field_values",
    "format_date",
    "list_members",
    "lowered",
    "parse_date",
    "single_value",
    "storable_headers",
    "vary_names",
]

HeaderPairs = Iterable[tuple[bytes, bytes]]

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields about one connection: never stored (RFC 9111 3.1, RFC 9110 7.6.1)."""

DELTA_MAX: Final = 2**31
"""What a delta-seconds too large to hold stands for (RFC 9111 1.2.2)."""

_OWS: Final = b" \t"
_LISTED: Final = frozenset({b"no-cache", b"private"})
_TOKEN: Final = re.compile(rb"[!#$%&'+.^_`|~0-9a-z-]+\Z")
_CLOCK: Final = re.compile(r"([0-9]{2}):([0-9]{2}):([0-9]{2})\Z")
_FIFTY_YEARS: Final = 50 * 365.2425 * 86_400
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_LONG_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def lowered(headers: HeaderPairs) -> tuple[tuple[bytes, bytes], ...]:
    """An application's fields as they are read here: ASGI wants names in lower case, and Django keeps their case."""
    return tuple([(name.lower(), value) for name, value in headers])


def field_values(headers: HeaderPairs, name: bytes) -> list[bytes]:
    """All lines of a field, in order."""
    return [value for field, value in headers if field == name]


def single_value(headers: HeaderPairs, name: bytes) -> bytes | None:
    """The field's value if it stands exactly once; a field sent twice says nothing that can be trusted."""
    found = field_values(headers, name)
    return found[0].strip(_OWS) if len(found) == 1 else None


def list_members(values: Iterable[bytes]) -> Iterator[bytes]:
    """Members of a comma-separated list over several lines; commas inside quoted strings do not split.

    A quote that is never closed opens no string: what stands behind it would be hidden, a `no-store` too.
    """
    for value in values:
        if b'"' not in value:
            for plain in value.split(b","):
                member = plain.strip(_OWS)
                if member:
                    yield member
            continue
        yield from _quoted_members(value)


def _quoted_members(value: bytes) -> Iterator[bytes]:
    start, quoted, escaped = 0, False, False
    for at, byte in enumerate(value):
        if escaped:
            escaped = False
        elif quoted and byte == 0x5C:
            escaped = True
        elif byte == 0x22:
            quoted = not quoted
        elif byte == 0x2C and not quoted:
            member = value[start:at].strip(_OWS)
            if member:
                yield member
            start = at + 1
    for rest in value[start:].split(b",") if quoted else (value[start:],):
        member = rest.strip(_OWS)
        if member:
            yield member


def vary_names(headers: HeaderPairs) -> list[bytes] | None:
    """The request fields that Vary names, in lower case; None if no other request can be told to select the response.

    That is where `*` stands among them (RFC 9110 12.5.5), or what is no field name: nobody knows what that was to mean.
    """
    names = [member.lower() for member in list_members(field_values(headers, b"vary"))]
    return names if all(_TOKEN.match(name) for name in names) else None


def directives(values: Iterable[bytes]) -> dict[bytes, bytes | None]:
    """Cache-Control directives: names in lower case, arguments without their quotes (RFC 9111 5.2).

    A directive that stands twice keeps its first argument, but no-cache and private without an argument win over ones
    with field names, and of several with field names all names count: the stricter reading.
    """
    found: dict[bytes, bytes | None] = {}
    for member in list_members(values):
        name, equals, argument = member.partition(b"=")
        name = name.strip(_OWS).lower()
        value = _unquote(argument.strip(_OWS)) if equals else None
        known = found.get(name)
        if name not in found or (value is None and name in _LISTED):
            found[name] = value
        elif name in _LISTED and known:
            found[name] = known + b", " + value if value else value
    return found


def _unquote(value: bytes) -> bytes:
    if len(value) >= 2 and value[:1] == b'"' and value[-1:] == b'"':
        return value[1:-1].replace(b'\\"', b'"')
    return value


def delta_seconds(value: bytes | None) -> int | None:
    """A delta-seconds, or None where there is no such number (RFC 9111 1.2.2). Only ASCII digits count."""
    if not value or not value.isdigit():
        return None
    return min(int(value.lstrip(b"0")[:12] or b"0"), DELTA_MAX)


def seconds_of(found: Mapping[bytes, bytes | None], name: bytes) -> int | None:
    """The directive's seconds; 0 if it is there without a usable number (stale is the safe reading, RFC 9111 4.2.1)."""
    if name not in found:
        return None
    seconds = delta_seconds(found[name])
    return 0 if seconds is None else seconds


def parse_date(value: bytes | None, *, now: float | None = None) -> int | None:
    """An HTTP-date in any of its three forms as seconds since 1970, or None (RFC 9110 5.6.7).

    now: a year of two digits is read as one at most 50 years from then; None: from 1970 to 2069.
    """
    if value is None:
        return None
    # Names in another case are read as they are meant, though nobody should send them.
    parts = value.decode("latin-1").strip().title().split(" ")
    try:
        if len(parts) == 6 and parts[0][:-1] in _DAYS and parts[0][-1] == "," and parts[5] == "Gmt":
            return _stamp(parts[3], parts[2], parts[1], parts[4])
        if len(parts) == 4 and parts[0][:-1] in _LONG_DAYS and parts[3] == "Gmt":
            day, month, year = parts[1].split("-")
            return _in_century(year, month, day, parts[2], now)
        if parts[0] in _DAYS and len([part for part in parts if part]) == 5:
            _, month, day, clock, year = [part for part in parts if part]
            return _stamp(year, month, day.zfill(2), clock)
    except (ValueError, IndexError):
        return None
    return None


def _in_century(two_digits: str, month: str, day: str, clock: str, now: float | None) -> int:
    if len(two_digits) != 2:
        raise ValueError(two_digits)
    if now is None:
        return _stamp(("19" if int(two_digits) >= 70 else "20") + two_digits, month, day, clock)
    century = datetime.fromtimestamp(now, UTC).year // 100
    stamp = _stamp(f"{century:02}{two_digits}", month, day, clock)
    return stamp if stamp <= now + _FIFTY_YEARS else _stamp(f"{century - 1:02}{two_digits}", month, day, clock)


def _stamp(year: str, month: str, day: str, clock: str) -> int:
    found = _CLOCK.match(clock)
    if len(year) != 4 or len(day) != 2 or found is None or not (year + day).isdigit():
        raise ValueError(year)
    hour, minute, second = found.groups()
    moment = datetime(
        int(year), _MONTHS.index(month) + 1, int(day), int(hour), int(minute), min(int(second), 59), tzinfo=UTC
    )
    return timegm(moment.utctimetuple())


def format_date(seconds: float) -> bytes:
    """An IMF-fixdate (RFC 9110 5.6.7)."""
    at = datetime.fromtimestamp(int(seconds), UTC)
    day, month = _DAYS[at.weekday()], _MONTHS[at.month - 1]
    return f"{day}, {at.day:02} {month} {at.year} {at.hour:02}:{at.minute:02}:{at.second:02} GMT".encode("ascii")


def storable_headers(headers: HeaderPairs) -> tuple[tuple[bytes, bytes], ...]:
    """The fields of a response that may be stored: no hop-by-hop ones, none that Connection names (RFC 9111 3.1).

    Names are made lower case; Set-Cookie cannot occur, because a response with one is not stored. Age is dropped:
    it is counted into the entry's birth.
    """
    pairs = [(name.lower(), value) for name, value in headers]
    named = {member.lower() for member in list_members(field_values(pairs, b"connection"))}
    dropped = HOP_BY_HOP | named | {b"age", b"set-cookie", b"cache-status"}
    return tuple(pair for pair in pairs if pair[0] not in dropped)
