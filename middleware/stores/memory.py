"""The memory store: stored responses and the purge ledger of one process.

Every call finishes without suspending, in time that does not grow with the number of entries. Coherence (P4) holds
within the process only: several workers each have their own store, and a purge in one is unknown to the others.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from tidegate.errors import Problems
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.base import Entry, Lookup, Purge, Record, StoreStats
from tidegate.middleware.stores.fair import Fair, Slot, owner_of
from tidegate.middleware.stores.ledger import Ledger

__all__ = ["MemoryStore", "size_of"]

MIB: Final = 1024 * 1024

# What CPython 3.11 takes beyond the bytes themselves: a bytes object 33, a tuple 40 and 8 an item, an Entry and its
# numbers, the slot, its place in the dictionary and in its owner's OrderedDict. Measured with tracemalloc; a test holds
# them to it.
_RECORD: Final = 600
_PAIR: Final = 130


def size_of(key: bytes, record: Record) -> int:
    """Bytes of memory that a record under this key takes, estimated from its parts."""
    size = _RECORD + len(key)
    if not isinstance(record, Entry):
        return size + sum(len(name) + _PAIR for name in (*record.names, *record.keys))
    size += len(record.body)
    for name, value in record.headers:
        size += len(name) + len(value) + _PAIR
    for field, wanted in record.vary:
        size += len(field) + len(wanted or b"") + _PAIR
    for scope, tag in record.tags:
        size += len(scope) + len(tag) + _PAIR
    return size + _PAIR * len(record.positions)


class MemoryStore:
    """When it is full, the tenant that takes the most gives up what it used least recently.

    So a flood by one tenant pushes out its own records and nobody else's, while a tenant may have the whole store as
    long as nobody else wants it: see `Fair`.

    max_bytes: memory for records, as `size_of` estimates it.
    max_entries: records.
    max_entry_bytes: a larger record is refused; default an eighth of `max_bytes`, so that one record cannot push out
        everybody else's.
    max_stamps, max_scopes: purged tags remembered in one scope, and scopes; see `Ledger`.
    clock: wall-clock seconds.

    Raises:
        ConfigError: if a limit is not a whole number above 0.
    """

    local: bool = True

    def __init__(
        self,
        *,
        max_bytes: int = 64 * MIB,
        max_entries: int = 100_000,
        max_entry_bytes: int | None = None,
        max_stamps: int = 10_000,
        max_scopes: int = 10_000,
        clock: Callable[[], float] = time.time,
        metrics: Metrics | None = None,
    ) -> None:
        if max_entry_bytes is None:
            max_entry_bytes = max(1, max_bytes // 8)
        _check(
            max_bytes=max_bytes,
            max_entries=max_entries,
            max_entry_bytes=max_entry_bytes,
            max_stamps=max_stamps,
            max_scopes=max_scopes,
        )
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._max_entry_bytes = max_entry_bytes
        self._clock = clock
        self._slots: dict[bytes, Slot] = {}
        self._fair = Fair(max_bytes=max_bytes, max_entries=max_entries)
        self._bytes = 0
        self._evictions = 0
        self._rejected = 0
        self._ledger = Ledger(max_stamps=max_stamps, max_scopes=max_scopes)
        limits = (metrics or Metrics.of()).limits
        self._limit_evicted = limits.labels("memory-evicted")
        self._limit_tenant = limits.labels("memory-tenant-share")
        self._limit_entry = limits.labels("memory-entry-bytes")
        self._limit_stamps = limits.labels("memory-stamps")

    async def start(self) -> None:
        """Nothing to connect to."""

    async def aclose(self) -> None:
        """Let go of all records. The ledger stays: a record put later must still lose to an earlier purge."""
        self._slots.clear()
        self._fair.clear()
        self._bytes = 0

    async def get(self, key: bytes, scopes: Sequence[str] = ()) -> Lookup:
        """The record, if it is there, alive and newer than every purge of its tags, and the scopes' positions."""
        return Lookup(self.peek(key), self._ledger.positions(scopes))

    def peek(self, key: bytes) -> Record | None:
        """As `get`, without positions."""
        slot = self._slots.get(key)
        if slot is None:
            return None
        if slot.expires <= self._clock():
            self._drop(key)
            return None
        record, stamp = slot.record, self._ledger.stamp
        if slot.valid_at != stamp:
            if isinstance(record, Entry) and not self._ledger.allows(record):
                self._drop(key)
                return None
            slot.valid_at = stamp
        slot.owner.records.move_to_end(key)
        return record

    def positions(self, scopes: Sequence[str]) -> Mapping[str, int]:
        """Where these scopes stand in the ledger."""
        return self._ledger.positions(scopes)

    async def put(self, key: bytes, record: Record, *, retain: float) -> bool:
        """Keep a record for `retain` seconds. False if it is too large, already purged, or not to be kept at all."""
        return self.keep(key, record, retain=retain)

    def keep(self, key: bytes, record: Record, *, retain: float) -> bool:
        """As `put`."""
        size = size_of(key, record)
        if size > self._max_entry_bytes:
            self._rejected += 1
            self._limit_entry.inc()
            return False
        if retain <= 0 or (isinstance(record, Entry) and not self._ledger.allows(record)):
            return False
        self._drop(key)
        now = self._clock()
        owner = self._fair.owner(owner_of(record))
        self._slots[key] = slot = Slot(record, size, now + retain, self._ledger.stamp, owner)
        self._fair.add(key, slot)
        self._bytes += size
        while self._bytes > self._max_bytes or len(self._slots) > self._max_entries:
            self._make_room(now)
        return True

    def _make_room(self, now: float) -> None:
        """Let go of one record: an expired one where one is met, else the largest owner's least recently used."""
        key = self._fair.met_expired(now)
        if key is None:
            key = self._fair.victim()
            self._evictions += 1
            self._limit_evicted.inc()
            if len(self._fair) > 1:
                self._limit_tenant.inc()
        self._drop(key)

    async def delete(self, key: bytes) -> None:
        """Forget a record."""
        self._drop(key)

    async def purge(self, tags: Mapping[str, Sequence[str]]) -> Purge:
        """Stamp the tags. Records that carry them go when they are next asked for, or by age."""
        before = self._ledger.forgotten
        self._ledger.purge(tags)
        if self._ledger.forgotten != before:
            self._limit_stamps.inc(self._ledger.forgotten - before)
        return Purge("done", sum(map(len, tags.values())))

    def stats(self) -> StoreStats:
        """Counts as they stand; expired and purged records count until they are dropped."""
        return StoreStats(
            entries=len(self._slots),
            bytes=self._bytes,
            evictions=self._evictions,
            rejected=self._rejected,
            extra={"tenants": len(self._fair), "scopes": len(self._ledger), "stamps_forgotten": self._ledger.forgotten},
        )

    def _drop(self, key: bytes) -> None:
        slot = self._slots.pop(key, None)
        if slot is not None:
            self._bytes -= slot.size
            self._fair.remove(key, slot)


def _check(**limits: int) -> None:
    problems = Problems("memory store")
    for name, value in limits.items():
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            problems.add(name, value, "is not a limit", "give a whole number above 0")
    problems.raise_if_any()
