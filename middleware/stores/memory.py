"""The memory store: stored responses and the purge ledger of one process.

Every call finishes without suspending, in time that does not grow with the number of entries. Coherence (P4) holds
within the process only: several workers each have their own store, and a purge in one is unknown to the others.
"""

import asyncio
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from math import inf
from threading import Lock
from typing import Final

from tidegate.errors import Problems
from tidegate.middleware.core.softening import softened
from tidegate.middleware.metrics import Metrics, counting
from tidegate.middleware.stores.affected import Affected, Tally
from tidegate.middleware.stores.base import Entry, Lookup, Purge, Record, StoreStats, Target, Variants
from tidegate.middleware.stores.fair import Fair
from tidegate.middleware.stores.ledger import Judge, Ledger
from tidegate.middleware.stores.pressing import Form, Forms, Warm, released, size_of

__all__ = ["MemoryStore", "size_of"]

_LOOKED_THROUGH: Final = 500
"""Records that `affected` looks at before others have their turn."""

_SWEPT: Final = 32
"""Rows that are looked through at once for what nobody can be served any more."""

_PAUSE: Final = 8
"""Records that must go from one such look that found nothing to the next."""

_ROW: Final = 260
"""Bytes of an entry's columns, its place in the dictionary (160), and the objects of key, body and own part (100)."""


class MemoryStore:
    """When it is full, the tenant that takes the most gives up what it used least recently.

    So a flood by one tenant pushes out its own records and nobody else's, while a tenant may have the whole store as
    long as nobody else wants it: see `Fair`. What nobody can be served any more, because its time is over or it was
    purged, goes first.

    One store may be used from several threads, each with an event loop of its own: a lock, which nobody holds for
    longer than one step takes, keeps its counts right.

    max_bytes: memory for records, as it is estimated. What entries have in common may take a sixteenth of that besides,
        and entries that were asked for lately an eighth: 4096 of them at most, mostly of half a KiB to one.
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
        max_bytes: int = 64 * 1024 * 1024,
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
        self._ledger = judge if judge is not None else Ledger(max_stamps=max_stamps, max_scopes=max_scopes)
        self._evictions = 0
        self._rejected = 0
        self._written = 0
        """How often a row was given to a record."""
        self._empty()
        limits = (metrics or Metrics.of()).limits
        self._count_evicted = counting(limits.labels("memory-evicted"))
        self._count_tenant = counting(limits.labels("memory-tenant-share"))
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
        self._records: list[Form | Record | None] = []
        """Of entries mostly the form alone; None where a row is free."""
        self._owns: list[bytes] = []
        self._bodies: list[bytes] = []
        self._born, self._expires = array("d"), array("d")
        self._sizes = array("I" if self._max_entry_bytes < 1 << 32 else "Q")
        self._forms = Forms(most=self._max_bytes // 16)
        self._warm = Warm(room=self._max_bytes)
        self._valid_at = array("Q")
        """The ledger's last stamp when the record was last found valid."""
        self._fair = Fair(max_bytes=self._max_bytes, max_entries=self._max_entries)
        self._used = self._fair.used
        self._bytes = 0
        self._written += 1
        self._swept = self._pause = 0
        """Where to look next for what nobody can be served any more, and after how many records that must go."""

    async def start(self) -> None:
        """Nothing to connect to."""

    async def aclose(self) -> None:
        """Let go of all records. The ledger stays: a record put later must still lose to an earlier purge."""
        with self._lock:
            self._empty()

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
                type(record) is not Form
                and self._valid_at[row] == self._ledger.stamp
                and self._expires[row] > self._clock()
                and self._written == written
            ):
                self._used[row] = 1
                return record  # type: ignore[return-value]  # no Form
        except IndexError:  # another thread has emptied the store
            return None
        return self._looked_at(key)

    def _looked_at(self, key: bytes) -> Record | None:
        """As `peek`, where there is something to do: an entry that is pressed, a purge since the record was last looked
        at, or its end.
        """
        with self._lock:
            row = self._rows.get(key)
            if row is None:
                return None
            if self._expires[row] <= self._clock() or not self._is_valid(row):
                self._drop(row)
                return None
            self._used[row] = 1
            form = self._records[row]
            if type(form) is not Form:
                return form  # type: ignore[return-value]  # no Form
            own = self._owns[row]
            entry = self._records[row] = released(form, own, self._bodies[row], self._born[row])
            for cold, of in self._warm.hold(row, form, own):
                self._records[cold] = of
            while self._bytes > self._max_bytes:  # what was made stale may take more
                self._make_room(self._clock())
            return entry

    def positions(self, scopes: Sequence[str]) -> Mapping[str, int]:
        """Where these scopes stand in the ledger."""
        return self._ledger.positions(scopes)

    async def put(self, key: bytes, record: Record, *, retain: float) -> bool:
        """Keep a record for `retain` seconds. False if it is too large, already purged, or not to be kept at all."""
        return self.keep(key, record, retain=retain)

    def keep(self, key: bytes, record: Record, *, retain: float, since: int | None = None) -> bool:
        """As `put`. since: the judge's stamp when the record was found valid; None: now."""
        lock = self._lock
        lock.acquire()  # `with` takes twice as long
        try:
            ledger = self._ledger
            if since is None:
                since = ledger.stamp
            if retain <= 0:
                return False
            if isinstance(record, Entry):
                if not ledger.allows(record, since):
                    return False
                if ledger.aimed and (at := ledger.softened(record)) is not None:
                    record = softened(record, at)
            now = self._clock()
            if not self._write(key, record, now + retain, since):
                self._rejected += 1
                self._limit_entry.inc()
                return False
            while self._bytes > self._max_bytes or len(self._rows) > self._max_entries:
                self._make_room(now)
            return True
        finally:
            lock.release()

    def _write(self, key: bytes, record: Record, expires: float, since: int) -> bool:
        """Put a record into a free row, instead of the one that is there; False if it is too large."""
        held: Form | Record = record
        if isinstance(record, Entry):
            body, born = record.body, record.born
            if len(body) > self._max_entry_bytes:
                return False
            held, own = self._forms.press(record)
            size = _ROW + len(key) + len(own) + len(body)
            if not held.shared:
                size += held.weight
            owner = held.owner
        else:
            body, own, born, owner, size = b"", b"", 0.0, record.scope, size_of(key, record)
        if size > self._max_entry_bytes:
            if type(held) is Form:
                self._forms.let_go(held)
            return False
        known = self._rows.get(key)
        if known is not None:
            self._drop(known)
        self._written += 1
        if self._free:
            row = self._free.pop()
        else:
            row = len(self._keys)
            for column in (self._keys, self._records, self._owns, self._bodies):
                column.append(b"")  # type: ignore[arg-type]
            for numbers in (self._born, self._sizes, self._expires, self._valid_at):
                numbers.append(0)
        self._keys[row], self._records[row], self._owns[row], self._bodies[row] = key, held, own, body
        self._born[row], self._sizes[row], self._expires[row], self._valid_at[row] = born, size, expires, since
        self._rows[key] = row
        self._bytes += size
        self._fair.add(row, owner, size)
        return True

    def _make_room(self, now: float) -> None:
        """Let go of one record of the largest owner, or of some that nobody can be served where they are met."""
        if self._pause:
            self._pause -= 1
        elif self._sweep(now):
            return
        self._drop(self._fair.victim())
        self._evictions += 1
        self._count_evicted()
        if len(self._fair) > 1:
            self._count_tenant()

    def _sweep(self, now: float) -> bool:
        """Let go of what expired or was purged, among the next few rows; returns whether there was any.

        Whoever asks for nothing any more drops nothing by asking, and others are not to make room for that.
        """
        records, expires, valid_at, stamp = self._records, self._expires, self._valid_at, self._ledger.stamp
        start = self._swept
        ends = expires[start : start + _SWEPT]
        stop = start + len(ends)
        self._swept, before = stop if stop < len(records) else 0, len(self._rows)
        if min(ends) <= now or valid_at[start:stop].count(stamp) < len(ends):
            for row in range(start, stop):
                if records[row] is None:
                    expires[row], valid_at[row] = inf, stamp  # not to be met again for nothing
                elif expires[row] <= now or (valid_at[row] != stamp and not self._is_valid(row)):
                    self._drop(row)
        found = len(self._rows) < before
        self._pause = 0 if found else _PAUSE
        return found

    def _is_valid(self, row: int) -> bool:
        """Whether the record is newer than every purge of its tags; looked up once after each purge."""
        stamp, ledger = self._ledger.stamp, self._ledger
        if self._valid_at[row] != stamp:
            record = self._record(row)
            if isinstance(record, Entry):
                if not ledger.allows(record, self._valid_at[row]):
                    return False
                if ledger.aimed and (at := ledger.softened(record)) is not None:
                    self._soften(row, softened(record, at))
            self._valid_at[row] = stamp
        return True

    def _record(self, row: int) -> Record | None:
        """The record of a row, whatever it is held as; None: there is none."""
        record = self._records[row]
        if type(record) is Form:
            return released(record, self._owns[row], self._bodies[row], self._born[row])
        return record  # type: ignore[return-value]  # no Form

    def _soften(self, row: int, entry: Entry) -> None:
        """Put an entry in the place of the one of which it was made. It may take more: it may have a form alone."""
        if type(form := self._warm.let_go(row) or self._records[row]) is Form:
            self._forms.let_go(form)
        self._written += 1
        held, own = self._records[row], self._owns[row] = self._forms.press(entry)
        size = _ROW + len(self._keys[row]) + len(own) + len(entry.body) + (0 if held.shared else held.weight)
        grown = size - self._sizes[row]
        self._sizes[row] += grown
        self._bytes += grown
        self._fair.grow(held.owner, grown)

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
                    record = self._record(row)
                    concerned = isinstance(record, Entry) and tally.concerns(record)
                    if isinstance(record, Entry) and concerned and self._ledger.allows(record, self._valid_at[row]):
                        tally.count(record)
            await asyncio.sleep(0)
        return tally.told()

    def stats(self) -> StoreStats:
        """Counts as they stand; expired and purged records count until they are dropped."""
        with self._lock:
            return StoreStats(
                entries=len(self._rows), bytes=self._bytes, evictions=self._evictions, rejected=self._rejected,
                extra={"tenants": len(self._fair), "scopes": len(self._ledger),
                       "stamps_forgotten": self._ledger.forgotten},
            )  # fmt: skip

    def _drop(self, row: int) -> None:
        records, keys = self._records, self._keys
        record = records[row]
        if type(record) is Entry:
            record = self._warm.let_go(row)
        if type(record) is Form:
            record.rows -= 1
            if not record.rows:
                self._forms.forget(record)
            owner = record.owner
        else:
            assert isinstance(record, Variants)
            owner = record.scope
        size = self._sizes[row]
        del self._rows[keys[row]]
        keys[row] = self._owns[row] = self._bodies[row] = b""
        records[row] = None
        self._free.append(row)
        self._bytes -= size
        self._fair.remove(row, owner, size)


def _check(**limits: int) -> None:
    problems = Problems("memory store")
    for name, value in limits.items():
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            problems.add(name, value, "is not a limit", "give a whole number above 0")
    problems.raise_if_any()
