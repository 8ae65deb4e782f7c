"""Who gives way when the memory store is full: the owner that takes the most of it.

An owner is a tenant, or the public. What it takes is the larger of its part of the bytes and its part of the records
(dominant resource fairness, Ghodsi et al. 2011), so that neither many small records nor a few large ones get by.
Guaranteed (max-min fairness): an owner that takes no more than an even share, which is one part in as many as there
are owners with a record in the store, loses nothing to others, whatever they do. One that takes more loses to others
until it is down to its share, and at most the one record that stood across it. An owner alone may have it all: room
that nobody wants is not kept free, as a fixed quota would. Users of a tenant share what is the tenant's.
Not guaranteed: that an owner above its even share keeps more than that; nor anything between the users of one tenant.

Of one owner's records the one goes that was not asked for since the last time round (CLOCK, Corbató 1968): the same as
least recently used but for who of many used ones goes first, at a hit that moves nothing.

A step costs the same however many records there are, and grows with the logarithm of the number of owners.
"""

from array import array
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

__all__ = ["Fair", "Owner"]

_SPARED: Final = 64
"""Records in use that are passed over for one that is not. Where all are in use it matters little which one goes, and
it is to be found in bounded time."""

_SLACK: Final = 4
"""An owner that grows is filed again each time that it has grown by 1 / 2 ** 4, not at each record."""


class Owner:
    """A tenant or the public: how many records it has, what they weigh, and the one that is looked at next.

    bound, ticket: not less than what it takes, and the number under which it is filed with that.
    most_bytes, most_count: the bytes and records up to which it takes no more than its bound.
    """

    __slots__ = ("bound", "bytes", "count", "hand", "most_bytes", "most_count", "name", "ticket")

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self.bytes = 0
        self.hand = 0
        self.bound = self.most_bytes = self.most_count = 0
        self.ticket = -1


class Fair:
    """Whose the rows of a store with these limits are, and in which order each owner's would go.

    A row is a small number, given by the store. used: set to 1 at a row that is asked for.
    """

    def __init__(self, *, max_bytes: int, max_entries: int) -> None:
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self.used = bytearray()
        self._before, self._after = array("I"), array("I")
        """Of each row, its neighbours in the ring of its owner's rows."""
        self._owners: dict[str, Owner] = {}
        self._filed: list[tuple[int, int, Owner]] = []
        """A heap of (-bound, ticket, owner). One with another ticket than its owner's is out of date."""
        self._ticket = 0

    def __len__(self) -> int:
        return len(self._owners)

    def owners(self) -> dict[str, tuple[int, int]]:
        """Records and bytes of each owner."""
        return {name: (owner.count, owner.bytes) for name, owner in self._owners.items()}

    def more(self, rows: int) -> None:
        """There are so many rows more, which nobody has."""
        self.used.extend(bytes(rows))
        for neighbours in (self._before, self._after):
            neighbours.frombytes(bytes(rows * neighbours.itemsize))

    def add(self, row: int, name: str, size: int) -> None:
        """An owner has a record more, in this row, that was added or removed. It is the last to go."""
        owner = self._owners.get(name)
        if owner is None:
            owner = self._owners[name] = Owner(name)
        before, after, count = self._before, self._after, owner.count
        if count:
            hand = owner.hand
            last = before[hand]
            before[row], after[row] = last, hand
            after[last] = before[hand] = row
        else:
            owner.hand = before[row] = after[row] = row
        owner.count = count = count + 1
        owner.bytes = taken = owner.bytes + size
        if taken > owner.most_bytes or count > owner.most_count:
            takes = self._takes(owner)
            self._file(owner, takes + (takes >> _SLACK))

    def grow(self, name: str, size: int) -> None:
        """A record of an owner takes so much more, or less."""
        owner = self._owners[name]
        owner.bytes += size
        if owner.bytes > owner.most_bytes:
            takes = self._takes(owner)
            self._file(owner, takes + (takes >> _SLACK))

    def remove(self, row: int, name: str, size: int) -> None:
        """An owner has this record of its own less; without any it is forgotten."""
        owner = self._owners[name]
        self.used[row] = 0
        owner.count -= 1
        owner.bytes -= size
        if not owner.count:
            owner.ticket = -1
            del self._owners[owner.name]
            return
        before, after = self._before[row], self._after[row]
        self._after[before], self._before[after] = after, before
        if owner.hand == row:
            owner.hand = after

    def victim(self) -> int:
        """The row that is to go: of the owner that takes the most, one not used since it was last looked at."""
        owner = self._largest()
        row, used, after = owner.hand, self.used, self._after
        if used[row]:
            for _ in range(_SPARED):
                used[row] = 0
                row = after[row]
                if not used[row]:
                    break
            owner.hand = row
        return row

    def _takes(self, owner: Owner) -> int:
        """Its part of the bytes or of the records, whichever is more, times the product of both limits."""
        return max(owner.bytes * self._max_entries, owner.count * self._max_bytes)

    def _largest(self) -> Owner:
        """The owner that takes the most. Nobody takes more than his bound: who is filed with what he takes exactly, and
        before all others, is the one.
        """
        filed, max_bytes, max_entries = self._filed, self._max_bytes, self._max_entries
        while True:
            bound, ticket, owner = filed[0]
            if ticket != owner.ticket:
                heappop(filed)
                continue
            takes, other = owner.bytes * max_entries, owner.count * max_bytes  # as `_takes`, which a call would double
            if other > takes:
                takes = other
            if takes == -bound:
                return owner
            owner.bound, owner.most_bytes, owner.most_count = takes, takes // max_entries, takes // max_bytes
            heapreplace(filed, (-takes, ticket, owner))

    def _file(self, owner: Owner, bound: int) -> None:
        self._ticket += 1
        owner.ticket = self._ticket
        owner.bound, owner.most_bytes, owner.most_count = bound, bound // self._max_entries, bound // self._max_bytes
        if len(self._filed) > 2 * len(self._owners) + 64:
            # One owner's growth leaves entries behind that are out of date: half are, and go at once.
            self._filed = [(-each.bound, each.ticket, each) for each in self._owners.values()]
            heapify(self._filed)
        else:
            heappush(self._filed, (-bound, self._ticket, owner))
