"""One object for equal parts of many entries: most header fields of an app's responses are the same ones.

Without it half of what a small entry takes are copies: names of fields, their pairs with common values, tags that
the users of one URL share, and the positions of one tenant's entries.
"""

from typing import Any, Final

from tidegate.middleware.stores.base import Entry

__all__ = ["Interning"]

_REMEMBERED: Final = 4096
"""Parts of a kind. When there are more all are forgotten, and those in use are remembered again as they come; so what
occurs only once needs no telling apart from what recurs."""

_LONGEST: Final = 128
"""Characters of what is remembered: long values seldom recur, and all that is remembered is to stay near a MiB."""

_OWN: Final = frozenset({b"date", b"etag", b"last-modified", b"set-cookie"})
"""Fields whose values are mostly one entry's own: looked for, as the others, and not remembered."""

_Seen = dict[Any, Any]

# An entry is frozen against changes of what it says. To put equal parts in the place of others is none. By the slots:
# `object.__setattr__` takes twice as long.
_set_headers = Entry.__dict__["headers"].__set__
_set_positions = Entry.__dict__["positions"].__set__
_set_tags = Entry.__dict__["tags"].__set__
_set_vary = Entry.__dict__["vary"].__set__


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
        get = fields.get
        _set_headers(entry, tuple([get(pair) or _learnt(fields, pair) for pair in entry.headers]))
        if entry.vary:
            _set_vary(entry, tuple([get(pair) or _learnt(fields, pair) for pair in entry.vary]))
        tags, positions = entry.tags, entry.positions
        if tags:
            # All of one URL's entries have the same; most entries have no other tag.
            known = names.get(tags)
            if known is not None:
                _set_tags(entry, known)
            elif len(tags) > 1:
                _set_tags(entry, tuple([names.get(pair) or _learnt(names, pair) for pair in tags]))
            elif sum([len(tag) for _, tag in tags]) <= _LONGEST:
                names[tags] = tags
        known = names.get(positions)
        if known is not None:
            _set_positions(entry, known)
        elif sum([len(scope) for scope, _ in positions]) <= _LONGEST:
            names[positions] = positions


def _learnt(seen: _Seen, pair: tuple[Any, Any]) -> tuple[Any, Any]:
    """A pair that was not seen before, with the name that was; remembered, but where it will hardly come again."""
    name, value = pair
    if len(name) > _LONGEST:
        return pair
    pair = (seen.setdefault(name, name), value)
    if name not in _OWN and (value is None or len(value) <= _LONGEST):
        seen[pair] = pair
    return pair
