"""What a store in memory knows of another store's purges: the names that were told to have changed, numbered.

A record is good iff none of its names was told after the number that stood when its loading began: then the other store
had judged it by what it knew at that moment, or later. So a purge that overtakes a load, or is told while two loads of
one key overlap, loses nothing. Bounded: where a name is let go, a floor rises to its number, and what was loaded before
is loaded again.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

from tidegate.middleware.core.records import Entry, Target

__all__ = ["Pushes"]


class Pushes:
    """names_of: the names of the keys whose change may void an entry. max_names: remembered. bites: called for each
    that is let go beyond it.
    """

    def __init__(
        self,
        names_of: Callable[[Entry], Iterable[bytes]],
        *,
        max_names: int = 100_000,
        bites: Callable[[], object] = lambda: None,
    ) -> None:
        self.stamp = 0
        """The last number given."""
        self.aimed = False
        self.together = 0
        """None: combinations are the other store's."""
        self.forgotten = 0
        """Names let go because of the limit."""
        self._names_of = names_of
        self._max_names = max_names
        self._bites = bites
        self._floor = 0
        self._names: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return 1

    def changed(self, names: Iterable[bytes]) -> None:
        """These changed."""
        self.stamp += 1
        known = self._names
        for name in names:
            known[name] = self.stamp
            known.move_to_end(name)
        while len(known) > self._max_names:
            self._floor = max(self._floor, known.popitem(last=False)[1])
            self.forgotten += 1
            self._bites()

    def void(self) -> None:
        """Everything may have changed."""
        self.stamp += 1
        self._floor = self.stamp
        self._names.clear()

    def allows(self, entry: Entry, since: int = 0) -> bool:
        """Whether an entry that was loaded from `since` on is untouched."""
        if since < self._floor:
            return False
        told = self._names.get
        return all(told(name, 0) <= since for name in self._names_of(entry))

    def softened(self, entry: Entry) -> float | None:
        """Never: what changed is loaded again, and the other store says what it is now."""
        return None

    def purge(self, tags: Mapping[str, Sequence[Target]], now: float) -> None:
        """Nothing is purged here: see `changed`."""
        raise NotImplementedError(f"purge the other store of {tags}")

    def positions(self, scopes: Sequence[str]) -> dict[str, int]:
        """None that another store would understand."""
        raise NotImplementedError(f"ask the other store for {scopes}")
