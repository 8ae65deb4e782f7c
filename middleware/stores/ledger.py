"""The purge ledger of one process: when each tag was last purged, and whether an entry is older than that.

Every purge gets a stamp, higher than all before. A fill notes the position that the ledger had before the app was
asked; an entry is valid iff no stamp of its tags, nor its scopes' floor, is above the position that it carries.
Both limits err towards a miss: where a stamp is let go, a floor rises to it, and entries filled before it die.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

from tidegate.middleware.stores.base import WHOLE_SCOPE, Entry

__all__ = ["Ledger"]

_NEVER: Final = 0
"""Stamp of a tag that was never purged. Positions are never below it, the first stamp is above it."""


class _Scope:
    """Stamps of one scope, oldest first; `last` is the newest, `floor` stands for all that were let go."""

    __slots__ = ("floor", "last", "stamps")

    def __init__(self) -> None:
        self.floor = _NEVER
        self.last = _NEVER
        self.stamps: OrderedDict[str, int] = OrderedDict()


class Ledger:
    """Stamps by scope and tag, bounded.

    max_stamps: tags remembered in one scope; above it the scope's floor rises, so that a tenant that purges a flood
        of tags loses its own entries and nobody else's.
    max_scopes: scopes remembered; above it the floor of all scopes rises to the last stamp of the one let go.
    """

    def __init__(self, *, max_stamps: int, max_scopes: int) -> None:
        self.stamp = _NEVER
        """The last stamp given, in whichever scope."""
        self.forgotten = 0
        """Stamps let go because of a limit."""
        self._max_stamps = max_stamps
        self._max_scopes = max_scopes
        self._floor = _NEVER
        self._scopes: OrderedDict[str, _Scope] = OrderedDict()

    def __len__(self) -> int:
        return len(self._scopes)

    def purge(self, tags: Mapping[str, Sequence[str]]) -> None:
        """Stamp these tags, given by scope, all with one new stamp."""
        self.stamp = stamp = self.stamp + 1
        for name, purged in tags.items():
            scope = self._scopes.get(name)
            if scope is None:
                scope = self._scopes[name] = _Scope()
            self._scopes.move_to_end(name)
            scope.last = stamp
            for tag in purged:
                if tag == WHOLE_SCOPE:
                    scope.floor = stamp
                    scope.stamps.clear()
                    break
                scope.stamps[tag] = stamp
                scope.stamps.move_to_end(tag)
            while len(scope.stamps) > self._max_stamps:
                scope.floor = max(scope.floor, scope.stamps.popitem(last=False)[1])
                self.forgotten += 1
        while len(self._scopes) > self._max_scopes:
            self._floor = max(self._floor, self._scopes.popitem(last=False)[1].last)
            self.forgotten += 1

    def positions(self, scopes: Sequence[str]) -> dict[str, int]:
        """Where each scope stands: its last stamp, or the floor of all where that is higher."""
        found: dict[str, int] = {}
        for name in scopes:
            scope = self._scopes.get(name)
            found[name] = self._floor if scope is None else max(scope.last, self._floor)
        return found

    def allows(self, entry: Entry, since: int = 0) -> bool:
        """Whether an entry is newer than every purge that concerns it. since: tells no more than its positions."""
        positions, scopes, floor = dict(entry.positions), self._scopes, self._floor
        purged = False
        for name, position in positions.items():
            if position < floor:
                return False
            scope = scopes.get(name)
            if scope is not None and position < scope.last:
                if position < scope.floor:
                    return False
                purged = True
        for name, tag in entry.tags:
            if positions.get(name, -1) < _NEVER:
                return False
            if purged:  # since the positions were read, which of most entries that are looked at they were just now
                scope = scopes.get(name)
                if scope is not None and positions[name] < scope.stamps.get(tag, _NEVER):
                    return False
        return True
