"""Purges that the store has not accepted yet: kept, bounded, and asked by every look-up in between."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from tidegate.middleware.core.records import PUBLIC_SCOPE, WHOLE_SCOPE, Aim, Entry, Target, bytes_of

__all__ = ["PendingPurges", "concerns"]

MOST_BYTES: Final = 16 * 1024 * 1024
"""Of all names, so that 10,000 tags may have 1.6 KiB each."""

_Tags = Mapping[str, Collection[Target]]


class PendingPurges:
    """Tags by scope, each with the number of the request that asked for it last.

    Above `limit` tags, or `most_bytes` of their names, a scope's tags become one purge of the whole scope; above as
    many scopes, everything becomes one purge of the public scope, in which every entry has its own URI's tag: too much
    is purged then, never too little.

    overflow: called each time that happens.

    Purges may be added from any thread; the rest is for the event loop's.
    """

    def __init__(self, *, limit: int, overflow: Callable[[], None], most_bytes: int = MOST_BYTES) -> None:
        self._limit = limit
        self._most_bytes = most_bytes
        self._bytes = 0
        self._overflow = overflow
        self._number = 0
        self.count = 0
        """Tags that are kept; an attribute, because every hit asks."""
        self._aimed = False
        """Whether an Aim may be among them."""
        self._scopes: OrderedDict[str, dict[Target, int]] = OrderedDict()
        self._changing = threading.Lock()
        self._watching: dict[int, list[_Tags]] = {}

    def __len__(self) -> int:
        return self.count

    @property
    def asked(self) -> int:
        """How many purges were asked for so far."""
        return self._number

    def add(self, tags: Mapping[str, Sequence[Target]]) -> int:
        """Keep a purge; returns its number, for `done`.

        Raises:
            TypeError: if a target is none. Nothing is kept then: no store would ever accept it, nor what waits with it.
        """
        for targets in tags.values():
            for target in targets:
                if not isinstance(target, str | Aim):  # pyright: ignore[reportUnnecessaryIsInstance]
                    raise TypeError(f"purge: {target!r} is no tag; give its name as str")
        with self._changing:
            self._number += 1
            for scope, names in tags.items():
                self._aimed = self._aimed or any(isinstance(name, Aim) for name in names)
                kept = self._scopes.setdefault(scope, {})
                before = len(kept)
                for name in [WHOLE_SCOPE] if WHOLE_SCOPE in kept else names:
                    if name not in kept:
                        self._bytes += bytes_of(scope, name)
                    kept[name] = self._number
                self.count += len(kept) - before
                if not kept:
                    del self._scopes[scope]
                elif self._is_too_much():
                    self._collapse(scope)
            return self._number

    def _is_too_much(self) -> bool:
        return self.count > self._limit or self._bytes > self._most_bytes

    def _collapse(self, scope: str) -> None:
        self._overflow()
        self.count -= len(self._scopes[scope]) - 1
        self._bytes -= sum(bytes_of(scope, name) for name in self._scopes[scope]) - bytes_of(scope, WHOLE_SCOPE)
        self._scopes[scope] = {WHOLE_SCOPE: self._number}
        if self._is_too_much():
            self._scopes = OrderedDict({PUBLIC_SCOPE: {WHOLE_SCOPE: self._number}})
            self.count, self._bytes = 1, bytes_of(PUBLIC_SCOPE, WHOLE_SCOPE)

    def batch(self, size: int) -> tuple[dict[str, list[Target]], int]:
        """Up to `size` tags, first of scopes that were not taken lately, and the number to call `done` with."""
        tags: dict[str, list[Target]] = {}
        with self._changing:
            for scope, names in self._scopes.items():
                if size <= 0:
                    break
                tags[scope] = list(names)[:size]
                size -= len(tags[scope])
            for scope in tags:
                self._scopes.move_to_end(scope)  # who is not taken is not to keep the others waiting
            return tags, self._number

    def done(self, tags: Mapping[str, Sequence[Target]], number: int) -> None:
        """The store has accepted these; what was asked for again after `number` stays."""
        with self._changing:
            for accepted in self._watching.values():
                accepted.append(tags)
            for scope, names in tags.items():
                kept = self._scopes.get(scope, {})
                for name in set(names):
                    if kept.get(name, number + 1) <= number:
                        del kept[name]
                        self.count -= 1
                        self._bytes -= bytes_of(scope, name)
                if not kept:
                    self._scopes.pop(scope, None)
            self._aimed = self._aimed and bool(self._scopes)

    def concern(self, entry: Entry) -> bool:
        """Whether one of them would purge this entry; a soft one too: how stale it will be is not known yet."""
        return concerns(self._scopes, entry, aimed=self._aimed)

    @contextmanager
    def watched(self) -> Generator[Sequence[_Tags]]:
        """What is accepted in the meantime of the purges that are pending now."""
        accepted: list[_Tags] = []
        self._watching[id(accepted)] = accepted
        try:
            yield accepted
        finally:
            del self._watching[id(accepted)]


def concerns(purged: _Tags, entry: Entry, *, aimed: bool = True) -> bool:
    """Whether a purge of these, by scope, voids this entry or makes it stale. aimed: an Aim may be among them."""
    if any(tag in purged.get(scope, ()) for scope, tag in entry.tags):
        return True
    held = [scope for scope, _ in entry.positions]
    if any(WHOLE_SCOPE in purged.get(scope, ()) for scope in held):
        return True
    return aimed and any(
        isinstance(target, Aim) and target.hits(scope, entry)
        for scope in dict.fromkeys([*held, *(scope for scope, _ in entry.tags)])
        for target in tuple(purged.get(scope, ()))  # at once: other threads may add some
    )
