"""The purge ledger of one process: when each tag was last purged, and whether an entry is older than that.

Every purge gets a stamp, higher than all before. A fill notes the position that the ledger had before the app was
asked; an entry is valid iff no stamp of its tags, nor its scopes' floor, is above the position that it carries.
Both limits err towards a miss: where a stamp is let go, a floor rises to it, and entries filled before it die.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from sys import getsizeof
from typing import Final, Protocol

from tidegate.middleware.stores.base import WHOLE_SCOPE, Aim, Entry, Target

__all__ = ["MAX_TOGETHER", "Judge", "Ledger"]

MAX_TOGETHER: Final = 16
"""Combinations remembered of one first tag; beyond, the oldest becomes a purge of that tag alone."""

MAX_BYTES: Final = 32 * 1024 * 1024
"""That stamps may take together: there are scopes, times tags in each, and a tag may be as long as a URL."""

_SCOPES_PART: Final = 8
"""One scope may take one part in so many, so that one tenant's flood costs others nothing."""

# What CPython 3.11 takes for a stamp beyond its tag, and for an aim beyond its tags.
_STAMP: Final = 130
_AIM: Final = 400

_STOOD: Final = 4096
"""Sets of scopes whose positions are remembered, about 0.3 KiB each."""

_LONGEST: Final = 512
"""Characters of the names of such: a client may choose some of a tenant's."""

_NEVER: Final = 0
"""Stamp of a tag that was never purged. Positions are never below it, the first stamp is above it."""


class Judge(Protocol):
    """Which entries are void. `stamp` rises whenever that may have changed."""

    stamp: int
    forgotten: int
    together: int
    aimed: bool
    """Whether `softened` need be asked at all."""

    def __len__(self) -> int: ...

    def allows(self, entry: Entry, since: int = 0) -> bool:
        """Whether an entry that was valid when `stamp` was `since` still is."""
        ...

    def softened(self, entry: Entry) -> float | None:
        """When a soft purge made an entry stale that is allowed, in wall-clock seconds; None: there was none."""
        ...

    def purge(self, tags: Mapping[str, Sequence[Target]], now: float) -> None:
        """Void the entries with these tags, by scope, or what an Aim says."""
        ...

    def positions(self, scopes: Sequence[str]) -> Mapping[str, int]:
        """Where each scope stands."""
        ...


class _More:
    """A tag's stamp where more was asked for than to void what carries it: `hard` is that, `aims` the rest, oldest
    first, each with its stamp and the time. Those that a later hard purge covers are gone.
    """

    __slots__ = ("aims", "hard", "weight")

    def __init__(self, hard: int) -> None:
        self.hard = hard
        self.weight = 0
        """Bytes that the aims take, roughly."""
        self.aims: OrderedDict[Aim, tuple[int, float]] = OrderedDict()

    def add(self, aim: Aim, stamp: int, now: float) -> int:
        """Remember an aim; returns how many were let go."""
        if aim not in self.aims:
            self.weight += _weight(aim)
        self.aims[aim] = (stamp, now)
        self.aims.move_to_end(aim)
        together = [known for known in self.aims if len(known.tags) > 1]
        surplus = together[: max(0, len(together) - MAX_TOGETHER)]
        for known in surplus:
            self.hard = max(self.hard, self.aims.pop(known)[0])
            self.weight -= _weight(known)
        return len(surplus)

    def above(self, position: int, scope: str, entry: Entry) -> int:
        """The highest stamp that voids this entry, if there is one above its position."""
        void = [at for aim, (at, _) in self.aims.items() if at > position and not aim.soft and aim.hits(scope, entry)]
        return max(self.hard, *void, _NEVER)

    @property
    def newest(self) -> int:
        """The highest stamp."""
        return max(self.hard, *(stamp for stamp, _ in self.aims.values()), _NEVER)


class _Scope:
    """Stamps of one scope, oldest first; `last` is the newest, `floor` stands for all that were let go, `bytes` is what
    they take."""

    __slots__ = ("bytes", "floor", "last", "stamps")

    def __init__(self) -> None:
        self.bytes = 0
        self.floor = _NEVER
        self.last = _NEVER
        self.stamps: OrderedDict[str, int | _More] = OrderedDict()


class Ledger:
    """Stamps by scope and tag, bounded.

    max_stamps: tags remembered in one scope; above it the scope's floor rises, so that a tenant that purges a flood
        of tags loses its own entries and nobody else's.
    max_scopes: scopes remembered; above it the floor of all scopes rises to the last stamp of the one let go.
    max_bytes: of all stamps, one scope an eighth of that at most; above it the scope that has not purged for longest
        loses its own, as above `max_stamps`.
    """

    def __init__(self, *, max_stamps: int, max_scopes: int, max_bytes: int = MAX_BYTES) -> None:
        self.stamp = _NEVER
        """The last stamp given, in whichever scope."""
        self.forgotten = 0
        """Stamps let go because of a limit."""
        self.together = 0
        """Combinations that became purges of one tag because of a limit."""
        self.aimed = False
        """Whether an Aim was ever asked for: who never does pays nothing for them."""
        self._max_stamps = max_stamps
        self._max_scopes = max_scopes
        self._max_bytes = max_bytes
        self._floor = _NEVER
        self._scopes: OrderedDict[str, _Scope] = OrderedDict()
        self._stamped: OrderedDict[str, _Scope] = OrderedDict()
        """Those that have stamps; who has not purged for longest comes first."""
        self.bytes = 0
        """That the stamps take, roughly."""
        self._stood: dict[tuple[str, ...], dict[str, int]] = {}
        """Positions that were asked for since the last purge was done."""

    def __len__(self) -> int:
        return len(self._scopes)

    def purge(self, tags: Mapping[str, Sequence[Target]], now: float) -> None:
        """Stamp these, given by scope, all with one new stamp. now: wall-clock seconds."""
        self.stamp = stamp = self.stamp + 1
        for name, targets in tags.items():
            scope = self._scopes.get(name)
            if scope is None:
                scope = self._scopes[name] = _Scope()
            self._scopes.move_to_end(name)
            scope.last = stamp
            if WHOLE_SCOPE in targets:
                scope.floor = stamp
                self._clear(name, scope)
                continue
            before = scope.bytes
            for target in targets:
                self._stamp(scope, target, stamp, now)
            while scope.stamps and (
                len(scope.stamps) > self._max_stamps or scope.bytes > self._max_bytes // _SCOPES_PART
            ):
                tag, let_go = scope.stamps.popitem(last=False)
                scope.bytes -= _weight_of(tag, let_go)
                scope.floor = max(scope.floor, let_go if isinstance(let_go, int) else let_go.newest)
                self.forgotten += 1
            self.bytes += scope.bytes - before
            if scope.stamps:
                self._stamped[name] = scope
                self._stamped.move_to_end(name)
            else:
                self._stamped.pop(name, None)
        while self.bytes > self._max_bytes:
            name, scope = next(iter(self._stamped.items()))
            scope.floor = scope.last
            self.forgotten += len(scope.stamps)
            self._clear(name, scope)
        while len(self._scopes) > self._max_scopes:
            name, scope = self._scopes.popitem(last=False)
            self._floor = max(self._floor, scope.last)
            self._clear(name, scope)
            self.forgotten += 1
        self._stood = {}  # who is finding some out in another thread, of this purge half, keeps them in the old one

    def _stamp(self, scope: _Scope, target: Target, stamp: int, now: float) -> None:
        tag = target.tags[0] if isinstance(target, Aim) else target
        known = scope.stamps.get(tag)
        if known is not None:
            scope.bytes -= _weight_of(tag, known)
        if isinstance(target, Aim):
            self._aim(scope, target, stamp, now)
        else:
            scope.stamps[tag] = stamp
        scope.stamps.move_to_end(tag)
        scope.bytes += _weight_of(tag, scope.stamps[tag])

    def _aim(self, scope: _Scope, aim: Aim, stamp: int, now: float) -> None:
        self.aimed = True
        first = aim.tags[0]
        more = scope.stamps.get(first, _NEVER)
        if isinstance(more, int):
            if more == stamp:
                return  # the same purge voids what carries it
            more = scope.stamps[first] = _More(more)
        self.together += more.add(aim, stamp, now)

    def _clear(self, name: str, scope: _Scope) -> None:
        """Let all its stamps go."""
        self.bytes -= scope.bytes
        scope.bytes = 0
        scope.stamps.clear()
        self._stamped.pop(name, None)

    def positions(self, scopes: Sequence[str]) -> Mapping[str, int]:
        """Where each scope stands: its last stamp, or the floor of all where that is higher."""
        stood, asked = self._stood, tuple(scopes)
        found = stood.get(asked)
        if found is None:
            found = {}
            for name in asked:
                scope = self._scopes.get(name)
                found[name] = self._floor if scope is None else max(scope.last, self._floor)
            if sum(map(len, asked)) <= _LONGEST:
                if len(stood) >= _STOOD:
                    stood.clear()
                stood[asked] = found
        return found

    def allows(self, entry: Entry, since: int = 0) -> bool:
        """Whether an entry is newer than every purge that voids it. since: tells no more than its positions."""
        scopes, floor, held = self._scopes, self._floor, entry.positions
        for name, position in held:
            if position < floor:
                return False
            scope = scopes.get(name)
            if scope is not None and position < scope.last:
                return self._allows_tags(entry)
        # Nothing was purged since the positions were read, which of most entries that are looked at they were just now.
        for name, _ in entry.tags:
            for known, _ in held:
                if known == name:
                    break
            else:
                return False
        return True

    def _allows_tags(self, entry: Entry) -> bool:
        """As `allows`, where something of its scopes was purged since the positions were read."""
        positions = dict(entry.positions)
        for name, position in positions.items():
            scope = self._scopes.get(name)
            if position < self._floor or (scope is not None and position < scope.floor):
                return False
        for name, tag in entry.tags:
            position = positions.get(name, -1)
            scope = self._scopes.get(name)
            stamp = _NEVER if scope is None else scope.stamps.get(tag, _NEVER)
            if isinstance(stamp, _More):
                stamp = stamp.above(position, name, entry)
            if position < stamp or position < _NEVER:
                return False
        return True

    def softened(self, entry: Entry) -> float | None:
        """When the last soft purge was that made an entry stale which is not void; None: there was none."""
        positions = dict(entry.positions)
        times = [
            time
            for name, tag in (*entry.tags, *((name, WHOLE_SCOPE) for name in positions))
            if (scope := self._scopes.get(name)) is not None and isinstance(more := scope.stamps.get(tag), _More)
            for aim, (stamp, time) in more.aims.items()
            if aim.soft and stamp > positions.get(name, -1) and aim.hits(name, entry)
        ]
        return max(times, default=None)


def _weight(aim: Aim) -> int:
    """Bytes that it takes, roughly."""
    return _AIM + sum(map(getsizeof, aim.tags))


def _weight_of(tag: str, stamp: int | _More) -> int:
    """Bytes that a tag and its stamp take, roughly."""
    return _STAMP + getsizeof(tag) + (stamp.weight if isinstance(stamp, _More) else 0)
