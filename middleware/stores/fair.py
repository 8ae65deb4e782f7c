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

The most is taken to within a part in 32. Among those who take that, the one that wants the room goes first, where it
takes more than an even share: owners of one size would else take turns, and at each record it would have to be found
out anew who is ahead by one. Where one record is a larger part of what it has they do take turns: of more owners than
there is room for, who came last would else get nothing in, however long ago the others were there.

A step costs the same however many records there are. With the number of owners it grows as its logarithm, and only
where another one comes to take the most.
"""

from array import array
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

__all__ = ["Fair", "Owner"]

_SPARED: Final = 64
"""Records in use that are passed over for one that is not. Where all are in use it matters little which one goes, and
it is to be found in bounded time."""

_SLACK: Final = 1 + 1 / 64
"""An owner that grows is filed again when it has grown by so much, not at each record."""

_NEAR: Final = 1 - 1 / 32
"""Who takes so much of what the largest does counts as the largest."""

_MANY: Final = 32
"""Records of which one is no larger part than that."""


class Owner:
    """A tenant or the public: how many records it has, what they weigh, and the one that is looked at next.

    ticket: the number under which it is filed.
    most_bytes, most_count: the bytes and records up to which it takes no more than the bound that it is filed with.
    """

    __slots__ = ("bytes", "count", "hand", "most_bytes", "most_count", "name", "ticket")

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self.bytes = 0
        self.hand = 0
        self.most_bytes = self.most_count = 0
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
        self._filed: list[tuple[float, int, Owner]] = []
        """A heap of (-bound, ticket, owner): nobody takes more than his bound. One with another ticket than its owner's
        is out of date."""
        self._ticket = 0
        self._last = Owner("")
        """Who had a record more last: who wants the room."""

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
        self._last = owner
        if taken > owner.most_bytes or count > owner.most_count:
            self._grown(owner)

    def grow(self, name: str, size: int) -> None:
        """A record of an owner takes so much more, or less."""
        owner = self._owners[name]
        owner.bytes += size
        self._last = owner
        if owner.bytes > owner.most_bytes:
            self._grown(owner)

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

    def _takes(self, owner: Owner) -> float:
        """Its part of the bytes or of the records, whichever is more."""
        of_bytes, of_records = owner.bytes / self._max_bytes, owner.count / self._max_entries
        return of_bytes if of_bytes > of_records else of_records

    def _largest(self) -> Owner:
        """The owner that is to give way. There is one above the even share whenever a limit is passed: else nobody's
        parts would come to more than the whole.
        """
        filed, owners, last = self._filed, len(self._owners), self._last
        if owners == 1 and last.count:
            return last
        wants = self._takes(last) if last.count > _MANY else 0.0
        even = 1 / owners
        while True:
            bound, ticket, owner = filed[0]
            if ticket != owner.ticket:
                heappop(filed)
                continue
            near = -bound * _NEAR
            if wants > even and wants >= near:
                return last
            takes = self._takes(owner)
            if takes > even and takes >= near and owner.count > _MANY:
                return owner
            # Below the even share it is not to be met again before it has grown, or there are many more owners.
            bound, less = -bound, takes if takes >= even else (takes + even) / 2
            if less >= bound:
                return owner
            self._bind(owner, less)
            heapreplace(filed, (-less, ticket, owner))

    def _grown(self, owner: Owner) -> None:
        """It takes more than its bound."""
        takes, even = self._takes(owner), 1 / len(self._owners)
        bound = takes * _SLACK if takes > even else even
        self._bind(owner, bound)
        self._ticket = owner.ticket = self._ticket + 1
        heappush(self._filed, (-bound, owner.ticket, owner))
        if len(self._filed) > 2 * len(self._owners) + 64:
            # At least half are out of date, and go at once.
            self._filed = [each for each in self._filed if each[1] == each[2].ticket]
            heapify(self._filed)

    def _bind(self, owner: Owner, bound: float) -> None:
        owner.most_bytes, owner.most_count = int(bound * self._max_bytes), int(bound * self._max_entries)
