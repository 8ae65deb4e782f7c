"""The fields of a response's start, read once: which of them decide something, and what about the rest.

Of thousands of responses of an app most have the same few heads, byte for byte but for the length of the body: `Heads`
remembers those, with whatever was concluded from them.
"""

import re
from array import array
from collections.abc import Iterable
from typing import Any, Final

from tidegate.middleware.core.message import HOP_BY_HOP
from tidegate.middleware.core.targeted import TARGETED

__all__ = ["MARKS", "Head", "Heads", "Pair", "read"]

Pair = tuple[bytes, bytes]

_VALUED: Final = frozenset({b"access-control-allow-origin", b"cache-control", b"vary"})
"""Response fields by whose values it is decided whether, how long and under which key a response is stored."""

_NAMED: Final = frozenset({b"expires", b"last-modified", b"etag", b"set-cookie"})
"""Those that decide by being there; the first two by their dates, where nothing else says how long it is fresh."""

_UNPLAIN: Final = HOP_BY_HOP | {b"age", b"cache-groups", b"cache-status", *TARGETED}
"""Those that are left to the general way. All others are stored and sent, and decide nothing."""

_SEEN: Final = frozenset({b"content-encoding", b"content-length", b"content-type", b"date"})
"""Those that say something else."""

_DECISIVE: Final = _VALUED | _NAMED | _UNPLAIN | _SEEN

MARKS: Final = {name: (name, b"") for name in _NAMED}
"""What stands for these in a shape."""

_BREAK: Final = re.compile(rb"[\r\n\x00]")

_REMEMBERED: Final = 1024
"""Heads, about 2 KiB each at most."""
_LONGEST: Final = 1024
"""Bytes of a head that is remembered."""


class Head:
    """What the fields of a response say.

    before, after: the lines before the first Content-Length and after it, names in lower case; without one, all of them
        are before. length: that line as it came, or None.
    shape: what decides whether the response is stored and how long: see `Misses.plan`.
    size: bytes of names and values, but for the length's. fit: nothing of them is malformed, and none is left to the
        general way. labelled: it has an ETag. coded: the body is inside a content coding. streams: it is an event
        stream. dated: it has a Date. plain: it is fit, and neither labelled nor a stream.
    plans: what follows of it for whoever remembers it, by route.
    """

    __slots__ = ("after", "before", "coded", "dated", "fit", "labelled", "length", "plain", "plans", "shape", "size",
                 "streams")  # fmt: skip

    def __init__(self) -> None:
        self.before: tuple[Pair, ...] = ()
        self.after: tuple[Pair, ...] = ()
        self.length: Pair | None = None
        self.shape: tuple[Pair, ...] = ()
        self.size = 0
        self.fit = True
        self.labelled = self.coded = self.streams = self.dated = self.plain = False
        self.plans: dict[str, Any] = {}


def read(lines: Iterable[Pair]) -> Head:
    """Read the fields of a response.

    Raises:
        AttributeError, TypeError, ValueError: if they are not pairs of bytes: some servers take what ASGI does not
            allow.
    """
    head = Head()
    given: list[Pair] = []
    shape: list[Pair] = []
    at = -1
    for cased, value in lines:
        name = cased.lower()
        if name in _DECISIVE:
            if name in _VALUED:
                shape.append((name, value))
            elif name in _NAMED:
                shape.append(MARKS[name])
                head.labelled = head.labelled or name == b"etag"
            elif name == b"content-length":
                if at < 0:
                    at = len(given)
                else:
                    head.fit = False
            elif name == b"content-encoding":
                head.coded = True
            elif name == b"content-type":
                head.streams = head.streams or b"event-stream" in value.lower()
            elif name == b"date":
                head.dated = True
            else:
                head.fit = False
        given.append((name, value))
    text = b"".join([part for pair in given for part in pair])
    head.fit = head.fit and _BREAK.search(text) is None
    head.plain = head.fit and not head.labelled and not head.streams
    head.size = len(text)
    head.shape = tuple(shape)
    if at < 0:
        head.before = tuple(given)
    else:
        head.length = name, value = given[at]
        head.size -= len(name) + len(value)
        head.before, head.after = tuple(given[:at]), tuple(given[at + 1 :])
    return head


class Heads:
    """Remembers the heads that it saw twice, by all of their lines but the length of the body."""

    def __init__(self) -> None:
        self._at = 0
        """Where the last response had its Content-Length: mostly all of an app's have it there."""
        self._last: tuple[list[Pair | None], Head] = ([], Head())
        """The lines of the last response with None for its Content-Length, and what they say; none has so few."""
        self._known: dict[tuple[Pair | None, ...], Head] = {}
        self._once = array("q", bytes(8 * _REMEMBERED))

    def of(self, lines: list[Pair]) -> tuple[Head, bytes] | None:
        """What the fields of a response say, and its Content-Length; None: it has none, or they cannot be read."""
        at = self._at
        if at >= len(lines):
            at = 0
        try:
            name, length = lines[at]
            if name != b"content-length":
                at = [cased.lower() for cased, _ in lines].index(b"content-length")
                self._at, length = at, lines[at][1]
            if type(length) is not bytes:
                return None
            rest: list[Pair | None] = [*lines]
            rest[at] = None
            last, head = self._last
            if rest == last:
                return head, length
            key = tuple(rest)
            known = self._known.get(key)
            if known is None:
                return self._read(lines, key), length
            self._last, head = (rest, known), known
        except (AttributeError, IndexError, TypeError, ValueError):
            return None
        return head, length

    def _read(self, lines: list[Pair], key: tuple[Pair | None, ...]) -> Head:
        head = read(lines)
        if not all(type(part) is bytes for pair in head.before + head.after for part in pair):
            raise TypeError("a buffer, which may be filled anew")
        # What occurs once, because it names the time or the request, is not to push out the others.
        mark = hash(key)
        at = mark % _REMEMBERED
        if self._once[at] != mark:
            self._once[at] = mark
        elif head.size <= _LONGEST:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = head
        return head
