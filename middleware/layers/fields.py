"""A response's fields as plain responses are read by: what each decides, remembered with the field.

Of thousands of responses most fields are the same few, byte for byte.
"""

import re
from typing import Final, NamedTuple

from tidegate.middleware.layers.straight import MARKS, NAMED, SHAPING, VALUED, Pair

__all__ = ["CODED", "LENGTH", "NOTHING", "SHAPES", "UNPLAIN", "Field", "Fields"]

NOTHING: Final = 0
"""It decides nothing."""
SHAPES: Final = 1
"""It is of the response's shape, see `Misses.plan`."""
LENGTH: Final = 2
"""It is the Content-Length, which `shape` has without white space."""
CODED: Final = 3
"""The body is inside a content coding."""
UNPLAIN: Final = 4
"""A response with it is not plain."""

_REMEMBERED: Final = 4096
"""Fields, 0.5 KiB each at most."""
_LONGEST: Final = 256
"""Bytes of a field that is remembered."""
_BREAK: Final = re.compile(rb"[\r\n\x00]")


class Field(NamedTuple):
    """One line. pair: with its name in lower case. shape: see SHAPES and LENGTH. size: bytes."""

    pair: Pair
    kind: int
    shape: Pair
    size: int


class Fields(dict[Pair, Field]):
    """Fields by their lines as the app gave them."""

    def __missing__(self, given: Pair) -> Field:
        name, value = given[0].lower(), given[1]
        pair = shape = (name, value)
        if _BREAK.search(name) or _BREAK.search(value):
            kind = UNPLAIN  # what ends a field on the wire
        elif name == b"content-length":
            kind, shape = LENGTH, (name, value.strip(b" \t"))
        elif name == b"content-encoding":
            kind = CODED
        elif name == b"content-type" and b"event-stream" in value.lower():
            kind = UNPLAIN  # whether it is for sharing is not told by the shape
        elif name in VALUED:
            kind = SHAPES
        elif name in NAMED and name != b"etag":
            kind, shape = SHAPES, MARKS[name]
        else:
            kind = UNPLAIN if name in SHAPING else NOTHING
        field = Field(pair, kind, shape, len(name) + len(value))
        if field.size <= _LONGEST:
            if len(self) >= _REMEMBERED:
                self.clear()
            self[given] = field
        return field
