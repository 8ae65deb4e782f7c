"""One object for equal parts of many entries: most header fields of an app's responses are the same ones.

Without it half of what a small entry takes are copies: names of fields, their pairs with common values, tags that
the users of one URL share, and the positions of one tenant's entries.
"""

from typing import Any, Final

from tidegate.middleware.stores.base import Entry

__all__ = ["Interning"]

_REMEMBERED: Final = 4096
"""Parts of a kind. When there are more all are forgotten, and those in use are remembered again as they come; so what
occurs only once, such as ETags, needs no telling apart from what recurs."""

_LONGEST: Final = 128
"""Characters of what is remembered: long values seldom recur, and all that is remembered is to stay near a MiB."""

_Seen = dict[Any, Any]

_put = object.__setattr__
"""An entry is frozen against changes of what it says. To put equal parts in the place of others is none."""


class Interning:
    """Remembers the last parts that it saw, and gives an entry those in place of its own."""

    def __init__(self) -> None:
        # Apart, because b"a" and "a" have one hash: they would be compared, which Python's -b warns of.
        self._fields: _Seen = {}
        self._names: _Seen = {}

    def clear(self) -> None:
        """Forget all parts; entries that have them keep them."""
        self._fields.clear()
        self._names.clear()

    def share(self, entry: Entry) -> None:
        """Put remembered parts in the place of equal ones. An entry is a value: nobody can tell before from after."""
        fields, names = self._fields, self._names
        if len(fields) > _REMEMBERED:
            fields.clear()
        if len(names) > _REMEMBERED:
            names.clear()
        headers = tuple(map(fields.get, entry.headers))
        _put(entry, "headers", headers if None not in headers else _kept(fields, entry.headers))
        if entry.vary:
            _put(entry, "vary", _kept(fields, entry.vary))
        if entry.tags:
            tags = tuple(map(names.get, entry.tags))
            _put(entry, "tags", tags if None not in tags else _kept(names, entry.tags))
        positions = names.get(entry.positions)
        if positions is not None:
            _put(entry, "positions", positions)
        elif sum(len(scope) for scope, _ in entry.positions) <= _LONGEST:
            names[entry.positions] = entry.positions


def _kept(seen: _Seen, pairs: tuple[tuple[Any, Any], ...]) -> tuple[tuple[Any, Any], ...]:
    """The pairs, those that were seen before shared, and the others' names; all but long ones are remembered."""
    kept: list[tuple[Any, Any]] = []
    for pair in pairs:
        known = seen.get(pair)
        if known is None:
            name, value = known = pair
            if len(name) <= _LONGEST:
                known = (seen.setdefault(name, name), value)
                if value is None or len(value) <= _LONGEST:
                    seen[known] = known
        kept.append(known)
    return tuple(kept)
