"""The memory store: stored responses and the purge ledger of one process.

Every call finishes without suspending, in time that does not grow with the number of entries. Coherence (P4) holds
within the process only: several workers each have their own store, and a purge in one is unknown to the others.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Final

from prometheus_client import Counter

from tidegate.errors import Problems
from tidegate.middleware.core.softening import softened
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.affected import Affected, Tally
from tidegate.middleware.stores.base import Entry, Lookup, Purge, Record, StoreStats, Target
from tidegate.middleware.stores.ledger import Judge, Ledger
from tidegate.middleware.stores.moulds import Mould, mould_of
from tidegate.middleware.stores.packing import Held, opened, packed, row_of, taken_by
from tidegate.middleware.stores.pressing import size_of
from tidegate.middleware.stores.rows import ROW, Rows

__all__ = ["MemoryStore", "size_of"]

_LOOKED_THROUGH: Final = 500
"""Records that `affected` looks at before others have their turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limits:
    """Counts how often each limit bit."""

    entry: Counter
    stamps: Counter
    together: Counter


class MemoryStore(Rows):
    """When it is full, the tenant that takes the most gives up what it used least recently.

    So a flood by one tenant pushes out its own records and nobody else's, while a tenant may have the whole store as
    long as nobody else wants it: see `Fair`. What nobody can be served any more, because its time is over or it was
    purged, goes first.

    One store may be used from several threads, each with an event loop of its own: a lock, which nobody holds for
    longer than one step takes, keeps its counts right.

    max_bytes: memory for records, as it is estimated. What entries have in common may take a sixteenth of that besides,
        and entries that were asked for lately an eighth: 4096 of them at most, mostly of half a KiB to one and their
        bodies once more, where these are of no more than 4 KiB.
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
        metrics = metrics or Metrics.of()
        super().__init__(
            max_bytes=max_bytes,
            max_entries=max_entries,
            max_entry_bytes=max_entry_bytes,
            judge=judge if judge is not None else Ledger(max_stamps=max_stamps, max_scopes=max_scopes),
            metrics=metrics,
        )
        self._clock = clock
        self._lock = Lock()
        self._rejected = 0
        limits = metrics.limits
        self._limits = _Limits(
            entry=limits.labels("memory-entry-bytes"),
            stamps=limits.labels("memory-stamps"),
            together=limits.labels("memory-purged-together"),
        )

    async def start(self) -> None:
        """Nothing to connect to."""

    async def aclose(self) -> None:
        """Let go of all records. The ledger stays: a record put later must still lose to an earlier purge."""
        with self._lock:
            self._forms.close()
            self._empty()

    async def get(self, key: bytes, scopes: Sequence[str] = ()) -> Lookup:
        """The record, if it is there, alive and newer than every purge of its tags, and the scopes' positions."""
        return Lookup(self.peek(key), self._ledger.positions(scopes))

    def peek(self, key: bytes) -> Record | None:
        """As `get`, without positions.

        Without the lock, which would cost as much as all the rest: what is held as it is served is never another
        record's, and void from the moment on in which the ledger's stamp rises.
        """
        held = self._held.get(key)
        if type(held) is Held:
            clock = self._clock
            if held.valid_at == self._ledger.stamp and held.expires > clock():
                try:
                    self._used[held.row] = 1
                except IndexError:  # another thread has emptied the store
                    return None
                return held.record
        elif held is None:
            return None
        return self._looked_at(key)

    def _looked_at(self, key: bytes) -> Record | None:
        """As `peek`, where there is something to do: an entry that is packed, a purge since the record was last looked
        at, or its end.
        """
        lock = self._lock
        lock.acquire()  # as in `keep`
        try:
            held = self._held.get(key)
            if held is None:
                return None
            parts = None if isinstance(held, Held) else opened(held)
            row = row_of(held) if parts is None else parts[0]
            if self._expires[row] <= self._clock():
                self._drop(key)
                return None
            if self._valid_at[row] != self._ledger.stamp:
                if not self._is_valid(key, row):
                    self._drop(key)
                    return None
                if self._held[key] is not held:  # it was made stale
                    held = self._held[key]
                    assert not isinstance(held, Held)
                    parts = opened(held)
            self._used[row] = 1
            if isinstance(held, Held):
                record = held.record
                held.valid_at = self._valid_at[row]
            else:
                assert parts is not None
                record = self._warmed(key, held, parts)
            while self._bytes > self._max_bytes:  # what was made stale may take more
                self._make_room(self._clock())
            return record
        finally:
            lock.release()

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
                self._limits.entry.inc()
                return False
            while self._bytes > self._max_bytes or len(self._held) > self._max_entries:
                self._make_room(now)
            return True
        finally:
            lock.release()

    def alike(self) -> "MemoryStore":
        """Itself."""
        return self

    def mould(self, key: bytes, entry: Entry, positions: Mapping[str, int]) -> Mould | None:
        """See `KeepsAlike`."""
        with self._lock:
            held = self._held.get(key)
            if held is None or isinstance(held, Held) or self._ledger.positions(tuple(positions)) != positions:
                return None
            if self._record(held) != entry:
                return None
            return mould_of(self._form(opened(held)[1]), positions, self._ledger.stamp)

    def keep_alike(
        self, mould: Mould, key: bytes, end: bytes, etag: bytes, body: bytes, born: float, retain: float,
        digest: bytes | None = None,
    ) -> bool:  # fmt: skip
        """See `KeepsAlike`."""
        own = mould.own(end, etag, digest)
        if retain <= 0 or own is None:
            return False
        form, size = mould.form, ROW + len(key) + taken_by(len(own), len(body))
        if size > self._max_entry_bytes:
            return False
        lock = self._lock
        lock.acquire()
        try:
            if mould.stamp != self._ledger.stamp or not form.shared:
                return False
            form.rows += 1
            now = self._clock()
            row = self._row_for(key, form.owner, size, now + retain, mould.stamp)
            self._held[key] = packed(row, form.number, born, own, body)
            while self._bytes > self._max_bytes or len(self._held) > self._max_entries:
                self._make_room(now)
            return True
        finally:
            lock.release()

    async def delete(self, key: bytes) -> None:
        """Forget a record."""
        self.drop(key)

    def drop(self, key: bytes) -> None:
        """As `delete`."""
        with self._lock:
            if key in self._held:
                self._drop(key)

    async def purge(self, tags: Mapping[str, Sequence[Target]]) -> Purge:
        """Stamp the tags. Records that carry them go when they are next asked for, when room is wanted, or by age."""
        with self._lock:
            ledger = self._ledger
            forgotten, together = ledger.forgotten, ledger.together
            ledger.purge(tags, self._clock())
            forgotten, together = ledger.forgotten - forgotten, ledger.together - together
        if forgotten:
            self._limits.stamps.inc(forgotten)
        if together:
            self._limits.together.inc(together)
        return Purge("done", sum(map(len, tags.values())))

    async def affected(self, tags: Mapping[str, Sequence[Target]]) -> Affected:
        """What a purge of these would take, counted exactly; other work goes on meanwhile."""
        tally, keys = Tally(tags), list(self._held)
        for start in range(0, len(keys), _LOOKED_THROUGH):
            with self._lock:
                now = self._clock()
                for key in keys[start : start + _LOOKED_THROUGH]:
                    held = self._held.get(key)
                    if held is None or self._expires[row := row_of(held)] <= now:
                        continue
                    tally.looked_at += 1
                    record = self._record(held)
                    concerned = isinstance(record, Entry) and tally.concerns(record)
                    if isinstance(record, Entry) and concerned and self._ledger.allows(record, self._valid_at[row]):
                        tally.count(record)
            await asyncio.sleep(0)
        return tally.told()

    def stats(self) -> StoreStats:
        """Counts as they stand; expired and purged records count until they are dropped."""
        with self._lock:
            return StoreStats(
                entries=len(self._held), bytes=self._bytes, evictions=self._evictions, rejected=self._rejected,
                extra={"tenants": len(self._fair), "scopes": len(self._ledger),
                       "stamps_forgotten": self._ledger.forgotten},
            )  # fmt: skip


def _check(**limits: int) -> None:
    problems = Problems("memory store")
    for name, value in limits.items():
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            problems.add(name, value, "is not a limit", "give a whole number above 0")
    problems.raise_if_any()
