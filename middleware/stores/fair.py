"""Who gives way when the memory store is full: the owner that takes the most of it.

An owner is a tenant, or the public. What it takes is the larger of its part of the bytes and its part of the records
(dominant resource fairness, Ghodsi et al. 2011), so that neither many small records nor a few large ones get by.
Guaranteed: while the store is full, an owner that takes less than 8/9 of an even share (one part in as many as there
are owners) loses nothing to others. An owner alone may have it all: room that nobody wants is not kept free, as a
fixed quota would. Users of a tenant share what is the tenant's.
Not guaranteed: that an owner above its even share keeps more than that; nor anything between the users of one tenant.

Every step is O(1), in records and in owners: owners stand in ranks by what they take, eight ranks an octave, and the
highest rank with somebody in it is the highest bit of a number.
"""

from collections import OrderedDict
from typing import Final

from tidegate.middleware.stores.base import PUBLIC_SCOPE, Entry, Record

__all__ = ["Fair", "Owner", "Slot", "owner_of"]

_BITS: Final = 3
"""Of a number's digits after the first that its rank keeps: 2 ** 3 ranks an octave, each at most 1/8 wide."""


class Owner:
    """A tenant or the public, its records (least recently used first), and what they take."""

    __slots__ = ("bytes", "name", "rank", "records")

    def __init__(self, name: str) -> None:
        self.name = name
        self.records: OrderedDict[bytes, Slot] = OrderedDict()
        self.bytes = 0
        self.rank = 0


class Slot:
    """A record, what it weighs, when it goes, the ledger's last stamp when it was last found valid, and whose it is."""

    __slots__ = ("expires", "owner", "record", "size", "valid_at")

    def __init__(self, record: Record, size: int, expires: float, valid_at: int, owner: Owner) -> None:
        self.record = record
        self.size = size
        self.expires = expires
        self.valid_at = valid_at
        self.owner = owner


def owner_of(record: Record) -> str:
    """The scope of a record's own tags: the tenant it is stored for, or the public."""
    if not isinstance(record, Entry):
        return record.scope
    for scope, _ in record.positions:
        if scope != PUBLIC_SCOPE:
            return scope
    return PUBLIC_SCOPE


class Fair:
    """Owners by what they take of a store with these limits."""

    def __init__(self, *, max_bytes: int, max_entries: int) -> None:
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._owners: OrderedDict[str, Owner] = OrderedDict()
        self._ranks: dict[int, OrderedDict[str, Owner]] = {}
        self._taken = 0
        """Bit r is set where rank r has an owner in it."""

    def __len__(self) -> int:
        return len(self._owners)

    def clear(self) -> None:
        """Forget everybody."""
        self._owners.clear()
        self._ranks.clear()
        self._taken = 0

    def owner(self, name: str) -> Owner:
        """The owner of this name; it counts as one from its first record on."""
        return self._owners.get(name) or Owner(name)

    def add(self, key: bytes, slot: Slot) -> None:
        """An owner has one record more."""
        owner = slot.owner
        owner.records[key] = slot
        owner.bytes += slot.size
        self._owners[owner.name] = owner
        self._place(owner)

    def remove(self, key: bytes, slot: Slot) -> None:
        """An owner has one record less; without any it is forgotten."""
        owner = slot.owner
        del owner.records[key]
        owner.bytes -= slot.size
        self._place(owner)
        if not owner.records:
            del self._owners[owner.name]

    def victim(self) -> bytes:
        """The key of the record that is to go: of the owner that takes the most, the least recently used."""
        owner = next(iter(self._ranks[self._taken.bit_length() - 1].values()))
        return next(iter(owner.records))

    def met_expired(self, now: float) -> bytes | None:
        """The next owner's least recently used record if its time is over: owners that ask for nothing any more drop
        nothing by asking, and others are not to make room for what nobody can be served.
        """
        name, owner = next(iter(self._owners.items()))
        self._owners.move_to_end(name)
        key, slot = next(iter(owner.records.items()))
        return key if slot.expires <= now else None

    def _place(self, owner: Owner) -> None:
        taken = max(owner.bytes * self._max_entries, len(owner.records) * self._max_bytes)
        rank = _rank(taken) if taken else 0
        if rank == owner.rank:
            return
        if owner.rank:
            left = self._ranks[owner.rank]
            del left[owner.name]
            if not left:
                del self._ranks[owner.rank]
                self._taken ^= 1 << owner.rank
        owner.rank = rank
        if rank:
            if rank not in self._ranks:
                self._ranks[rank] = OrderedDict()
                self._taken |= 1 << rank
            self._ranks[rank][owner.name] = owner


def _rank(taken: int) -> int:
    """Rises with what is taken, eight steps an octave; above 0."""
    octave = taken.bit_length()
    return (octave << _BITS) + ((taken << _BITS >> octave - 1) & (1 << _BITS) - 1)
