"""Which cache directives count for us: RFC 9213's targeted fields, else Cache-Control.

The first of `Tidegate-Cache-Control` and `CDN-Cache-Control` that is a valid, non-empty dictionary of structured fields
(RFC 9651) decides alone: Cache-Control, Expires and Pragma are then not looked at. One that is not valid is as if it
were not there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

import http_sf

from tidegate.middleware.core.message import directives, field_values

__all__ = ["TARGETED", "Control", "control_of"]

Pairs = Sequence[tuple[bytes, bytes]]

TARGETED: Final = (b"tidegate-cache-control", b"cdn-cache-control")
"""Fields that are meant for a cache like this one, the most specific first (RFC 9213 2.2)."""

_NUMBERED: Final = frozenset({"max-age", "s-maxage", "stale-while-revalidate", "stale-if-error"})


@dataclass(frozen=True, slots=True)
class Control:
    """Cache directives, as `message.directives` gives them, and the targeted field that they are from, if any."""

    directives: Mapping[bytes, bytes | None]
    targeted: bytes | None = None


def control_of(headers: Pairs) -> Control:
    """The directives of a response that count here (RFC 9213 2.2)."""
    for name, _ in headers:
        if name in TARGETED:
            return _targeted(headers)
    return Control(directives(field_values(headers, b"cache-control")))


def _targeted(headers: Pairs) -> Control:
    for name in TARGETED:
        found = _dictionary(b", ".join(field_values(headers, name)))
        if found:
            return Control(found, name)
    return Control(directives(field_values(headers, b"cache-control")))


def _dictionary(value: bytes) -> dict[bytes, bytes | None] | None:
    """The directives of a targeted field; None if it is not valid. A value of the wrong type makes it invalid."""
    try:
        members = cast(Mapping[str, tuple[object, object]], http_sf.parse(value, tltype="dictionary"))
    except ValueError:
        return None
    found: dict[bytes, bytes | None] = {}
    for name, member in members.items():
        item = member[0]
        if name in _NUMBERED:
            if type(item) is not int or item < 0:
                return None
            found[name.encode()] = b"%d" % item
        elif item is False:
            continue
        elif item is True or isinstance(item, list):
            found[name.encode()] = None
        else:
            found[name.encode()] = str(item).encode("utf-8", "replace")
    return found
