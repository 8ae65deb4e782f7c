"""The memory store: stored responses and the purge ledger of one process.

Every call finishes without suspending, in time that does not grow with the number of entries. Coherence (P4) holds
within the process only: several workers each have their own store, and a purge in one is unknown to the others.
"""

import asyncio
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Final, Protocol

from tidegate.errors import Problems
from tidegate.middleware.core.softening import softened
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.affected import Affected, Tally
from tidegate.middleware.stores.base import Entry, Lookup, Purge, Record, StoreStats, Target
from tidegate.middleware.stores.fair import Fair, owner_of
from tidegate.middleware.stores.interning import Interning
from tidegate.middleware.stores.ledger import Ledger

__all__ = ["MemoryStore", "size_of"]

MIB: Final = 1024 * 1024

_LOOKED_THROUGH: Final = 500
"""Records that `affected` looks at before others have their turn."""

_LOOKED_AT: Final = 4
"""Rows in which, for each record that must go, one is looked for that nobody can be served any more."""

# What CPython 3.11 takes beyond the bytes themselves. A record: its row and its place in the dictionary 145, the Entry
# and its numbers 185, the objects of key and body 66, tuples. A pair: 80 in its tuple, and its two parts' objects.
# Parts that entries share are counted for each: the estimate is rather too high. A test holds it to tracemalloc.
_RECORD: Final = 450
_PAIR: Final = 140


def size_of(key: bytes, record: Record) -> int:
    """Bytes of memory that a record under this key takes, estimated from its parts."""
    size = _RECORD + len(key)
    if not isinstance(record, Entry):
        return size + sum(len(name) + _PAIR for name in (*record.names, *record.keys))
    pairs = len(record.headers) + len(record.vary) + len(record.tags) + len(record.positions)
    size += len(record.body) + _PAIR * pairs
    for name, value in record.headers:
        size += len(name) + len(value)
    for scope, tag in record.tags:
        size += len(scope) + len(tag)
    for field, wanted in record.vary:
        size += len(field) + len(wanted or b"")
    return size


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

    def positions(self, scopes: Sequence[str]) -> dict[str, int]:
        """Where each scope stands."""
        ...


class MemoryStore:
    """When it is full, the tenant that takes the most gives up what it used least recently.

    So a flood by one tenant pushes out its own records and nobody else's, while a tenant may have the whole store as
    long as nobody else wants it: see `Fair`. What nobody can be served any more, because its time is over or it was
    purged, goes first.

    One store may be used from several threads, each with an event loop of its own: a lock, which nobody holds for
    longer than one step takes, keeps its counts right.

    max_bytes: memory for records, as `size_of` estimates it.
    max_entries: records.
    max_entry_bytes: a larger record is refused; default an eighth of `max_bytes`, so that one record cannot push out
        everybody else's.
    max_stamps, max_scopes: purged tags remembered in one scope, and scopes; see `Ledger`.
    judge: says instead of such a ledger which entries are void, for a store in front of another.
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
        judge: Judge | None = None,
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
        self._lock = Lock()
        self._interning = Interning()
        self._ledger = judge if judge is not None else Ledger(max_stamps=max_stamps, max_scopes=max_scopes)
        self._evictions = 0
        self._rejected = 0
        self._written = 0
        """How often a row was given to a record."""
        self._empty()
        limits = (metrics or Metrics.of()).limits
        self._limit_evicted = limits.labels("memory-evicted")
        self._limit_tenant = limits.labels("memory-tenant-share")
        self._limit_entry = limits.labels("memory-entry-bytes")
        self._limit_stamps = limits.labels("memory-stamps")
        self._limit_together = limits.labels("memory-purged-together")

    def _empty(self) -> None:
        """No records. What is known of each stands in columns: an object for each would take twice the memory, and
        the garbage collector would visit it.
        """
        self._rows: dict[bytes, int] = {}
        self._free: list[int] = []
        self._keys: list[bytes] = []
        self._records: list[Record | None] = []
        """None where a row is free."""
        self._sizes, self._expires = array("Q"), array("d")
        self._valid_at = array("Q")
        """The ledger's last stamp when the record was last found valid."""
        self._fair = Fair(max_bytes=self._max_bytes, max_entries=self._max_entries)
        self._used = self._fair.used
        self._bytes = 0
        self._written += 1
        self._swept = 0
        """Where to look next for what nobody can be served any more."""

    async def start(self) -> None:
        """Nothing to connect to."""

    async def aclose(self) -> None:
        """Let go of all records. The ledger stays: a record put later must still lose to an earlier purge."""
        with self._lock:
            self._empty()
            self._interning.clear()

    async def get(self, key: bytes, scopes: Sequence[str] = ()) -> Lookup:
        """The record, if it is there, alive and newer than every purge of its tags, and the scopes' positions."""
        return Lookup(self.peek(key), self._ledger.positions(scopes))

    def peek(self, key: bytes) -> Record | None:
        """As `get`, without positions.

        Without the lock, which would cost as much as all the rest: what was read is what it was read as if no row was
        given to another record meanwhile.
        """
        written = self._written
        row = self._rows.get(key)
        if row is None:
            return None
        try:
            record = self._records[row]
            if (
                self._valid_at[row] == self._ledger.stamp
                and self._expires[row] > self._clock()
                and self._written == written
            ):
                self._used[row] = 1
                return record
        except IndexError:  # another thread has emptied the store
            return None
        return self._looked_at(key)

    def _looked_at(self, key: bytes) -> Record | None:
        """As `peek`, where there is something to do: a purge since the record was last looked at, or its end."""
        with self._lock:
            row = self._rows.get(key)
            if row is None:
                return None
            if self._expires[row] <= self._clock() or not self._is_valid(row):
                self._drop(row)
                return None
            self._used[row] = 1
            return self._records[row]

    def positions(self, scopes: Sequence[str]) -> Mapping[str, int]:
        """Where these scopes stand in the ledger."""
        return self._ledger.positions(scopes)

    async def put(self, key: bytes, record: Record, *, retain: float) -> bool:
        """Keep a record for `retain` seconds. False if it is too large, already purged, or not to be kept at all."""
        return self.keep(key, record, retain=retain)

    def keep(self, key: bytes, record: Record, *, retain: float, since: int | None = None) -> bool:
        """As `put`. since: the judge's stamp when the record was found valid; None: now."""
        size = size_of(key, record)
        lock = self._lock
        lock.acquire()  # `with` takes twice as long
        try:
            ledger = self._ledger
            if since is None:
                since = ledger.stamp
            if size > self._max_entry_bytes:
                self._rejected += 1
                self._limit_entry.inc()
                return False
            if retain <= 0:
                return False
            if isinstance(record, Entry):
                if not ledger.allows(record, since):
                    return False
                if ledger.aimed and (at := ledger.softened(record)) is not None:
                    record = softened(record, at)
                self._interning.share(record)
            rows = self._rows
            known = rows.get(key)
            if known is not None:
                self._drop(known)
            now = self._clock()
            self._write(key, record, size, now + retain, since)
            while self._bytes > self._max_bytes or len(rows) > self._max_entries:
                self._make_room(now)
            return True
        finally:
            lock.release()

    def _write(self, key: bytes, record: Record, size: int, expires: float, since: int) -> None:
        """Put a record into a free row."""
        self._written += 1
        if self._free:
            row = self._free.pop()
            self._keys[row], self._records[row] = key, record
            self._sizes[row], self._expires[row], self._valid_at[row] = size, expires, since
        else:
            row = len(self._keys)
            self._keys.append(key)
            self._records.append(record)
            self._sizes.append(size)
            self._expires.append(expires)
            self._valid_at.append(since)
        self._rows[key] = row
        self._bytes += size
        self._fair.add(row, owner_of(record), size)

    def _make_room(self, now: float) -> None:
        """Let go of one record: one that nobody can be served where one is met, else the largest owner's."""
        row = self._met_useless(now)
        if row is None:
            row = self._fair.victim()
            self._evictions += 1
            self._limit_evicted.inc()
            if len(self._fair) > 1:
                self._limit_tenant.inc()
        self._drop(row)

    def _met_useless(self, now: float) -> int | None:
        """A row with what expired or was purged, among the next few. Whoever asks for nothing any more drops nothing by
        asking, and others are not to make room for that.
        """
        records, expires, valid_at, stamp = self._records, self._expires, self._valid_at, self._ledger.stamp
        rows, row = len(records), self._swept
        for _ in range(_LOOKED_AT):
            row = row + 1 if row + 1 < rows else 0
            over = expires[row] <= now or (valid_at[row] != stamp and not self._is_valid(row))
            if over and records[row] is not None:
                break
        else:
            self._swept = row
            return None
        self._swept = row
        return row

    def _is_valid(self, row: int) -> bool:
        """Whether the record is newer than every purge of its tags; looked up once after each purge."""
        record, stamp = self._records[row], self._ledger.stamp
        if self._valid_at[row] != stamp:
            if isinstance(record, Entry):
                if not self._ledger.allows(record, self._valid_at[row]):
                    return False
                if self._ledger.aimed and (at := self._ledger.softened(record)) is not None:
                    self._written += 1
                    self._records[row] = softened(record, at)
            self._valid_at[row] = stamp
        return True

    async def delete(self, key: bytes) -> None:
        """Forget a record."""
        self.drop(key)

    def drop(self, key: bytes) -> None:
        """As `delete`."""
        with self._lock:
            row = self._rows.get(key)
            if row is not None:
                self._drop(row)

    async def purge(self, tags: Mapping[str, Sequence[Target]]) -> Purge:
        """Stamp the tags. Records that carry them go when they are next asked for, when room is wanted, or by age."""
        with self._lock:
            ledger = self._ledger
            forgotten, together = ledger.forgotten, ledger.together
            ledger.purge(tags, self._clock())
            forgotten, together = ledger.forgotten - forgotten, ledger.together - together
        if forgotten:
            self._limit_stamps.inc(forgotten)
        if together:
            self._limit_together.inc(together)
        return Purge("done", sum(map(len, tags.values())))

    async def affected(self, tags: Mapping[str, Sequence[Target]]) -> Affected:
        """What a purge of these would take, counted exactly; other work goes on meanwhile."""
        tally, keys = Tally(tags), list(self._rows)
        for start in range(0, len(keys), _LOOKED_THROUGH):
            with self._lock:
                now = self._clock()
                for key in keys[start : start + _LOOKED_THROUGH]:
                    row = self._rows.get(key)
                    if row is None or self._expires[row] <= now:
                        continue
                    tally.looked_at += 1
                    record = self._records[row]
                    concerned = isinstance(record, Entry) and tally.concerns(record)
                    if isinstance(record, Entry) and concerned and self._ledger.allows(record, self._valid_at[row]):
                        tally.count(record)
            await asyncio.sleep(0)
        return tally.told()

    def stats(self) -> StoreStats:
        """Counts as they stand; expired and purged records count until they are dropped."""
        with self._lock:
            return StoreStats(
                entries=len(self._rows),
                bytes=self._bytes,
                evictions=self._evictions,
                rejected=self._rejected,
                extra={
                    "tenants": len(self._fair),
                    "scopes": len(self._ledger),
                    "stamps_forgotten": self._ledger.forgotten,
                },
            )

    def _drop(self, row: int) -> None:
        size = self._sizes[row]
        del self._rows[self._keys[row]]
        self._keys[row], self._records[row] = b"", None
        self._free.append(row)
        self._bytes -= size
        self._fair.remove(row, size)


def _check(**limits: int) -> None:
    problems = Problems("memory store")
    for name, value in limits.items():
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            problems.add(name, value, "is not a limit", "give a whole number above 0")
    problems.raise_if_any()
