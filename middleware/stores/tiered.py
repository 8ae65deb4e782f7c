"""A memory in front of Redis: hits that ask nobody, and still honour every purge (P4).

`peek` answers from this process's memory while the connection that hears of purges is live; `get` always asks Redis,
and what it finds is kept here. A record is only ever kept after Redis has judged it by its stamps, with the number that
the last push had before that began, so no order of purge, push and reply lets an old one through (`pushes`).

Guaranteed: a `peek` that begins 50 ms after a purge returned done anywhere gives nothing older, as long as the network
brings the push by then; from one second after the connection went silent it gives nothing at all; a purge by this
process is honoured at once.
Not guaranteed: that a record which another process replaced without a purge is seen before `KEEP` seconds are over;
until then the old one is served as far as it is fresh. A failover may lose a purge that was not replicated, until the
process that made it has made it again (`redis_recent`): before its own memory is used again.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, Protocol

from tidegate.errors import StoreError
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.affected import Affected, Affects
from tidegate.middleware.stores.background import Background
from tidegate.middleware.stores.base import Entry, Lookup, Purge, Reconnects, Record, Settles, Store, StoreStats, Target
from tidegate.middleware.stores.memory import MemoryStore
from tidegate.middleware.stores.pushes import Pushes
from tidegate.middleware.stores.redis import RedisStore
from tidegate.middleware.stores.tracking import Tracking
from tidegate.middleware.stores.tracking_channel import Masters
from tidegate.middleware.stores.tracking_cluster import ASKED, ClusterTracking
from tidegate.middleware.stores.tracking_stream import Fallback, Streaming

__all__ = ["KEEP", "TieredStore", "in_front_of"]

KEEP: Final = 60.0
"""Seconds that a record is kept at most before Redis is asked again."""

DROPPED: Final = 4_096
"""Keys that are remembered as replaced while something is being loaded, which in a busy process is always."""


_TRIES: Final = 20
_TRY: Final = 1.0


class Hears(Protocol):
    """What follows the purges: see `tracking`."""

    @property
    def until(self) -> float: ...

    def start(self) -> None: ...

    async def aclose(self) -> None: ...


class Told(Store, Settles, Affects, Reconnects, Protocol):
    """The store behind: a Store that names the keys by which it judges."""

    def stamp_names(self, entry: Entry) -> Sequence[bytes]:
        """Of the keys whose change may void the entry."""
        ...

    def purged_names(self, tags: Mapping[str, Sequence[Target]]) -> Sequence[bytes]:
        """Of the keys that a purge of these tags changes."""
        ...


class TieredStore:
    """Two stores as one.

    far: the store that all processes share.
    near: this process's memory, judged by `pushes`.
    hearing: follows the keys of `far`, and tells `pushes`.
    """

    local: bool = False

    def __init__(self, far: Told, near: MemoryStore, pushes: Pushes, hearing: Hears) -> None:
        self._far = far
        self._near = near
        self._pushes = pushes
        self._hearing = hearing
        self._clock = time.monotonic
        self._dropped: dict[bytes, int] = {}
        self._dropped_all = 0
        """As if every key had been replaced then."""
        self._loads = 0

    async def start(self) -> None:
        """Start both, and hear of purges from soon on."""
        await self._far.start()
        self._hearing.start()

    async def aclose(self) -> None:
        """Close both."""
        await self._hearing.aclose()
        await self._near.aclose()
        await self._far.aclose()

    def peek(self, key: bytes) -> Record | None:
        """The record from this process's memory, if it has it and knows of all purges."""
        return self._near.peek(key) if self._clock() < self._hearing.until else None

    async def get(self, key: bytes, scopes: Sequence[str] = ()) -> Lookup:
        """What the shared store says.

        Raises:
            StoreError: if it cannot answer.
        """
        since = self._pushes.stamp
        self._loads += 1
        try:
            found = await self._far.get(key, scopes)
        finally:
            self._loads -= 1
            dropped = max(self._dropped.get(key, 0), self._dropped_all)
            if not self._loads:
                self._dropped.clear()
        record = found.record
        # What a soft purge made stale is not kept: it is replaced soon, and nothing tells of that.
        keeps = dropped <= since and not found.softened
        if record is not None and keeps and self._clock() < self._hearing.until:
            self._near.keep(key, record, retain=KEEP, since=since)
        return found

    async def put(self, key: bytes, record: Record, *, retain: float) -> bool:
        """Keep a record in the shared store.

        Raises:
            StoreError: if it cannot answer.
        """
        self._drop(key)
        try:
            return await self._far.put(key, record, retain=retain)
        finally:
            self._drop(key)

    async def delete(self, key: bytes) -> None:
        """Forget a record, here and in the shared store.

        Raises:
            StoreError: if it cannot answer.
        """
        self._drop(key)
        try:
            await self._far.delete(key)
        finally:
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        """Forget it here, and what is being loaded."""
        self._near.drop(key)
        if self._loads:
            self._pushes.changed(())
            if len(self._dropped) >= DROPPED:
                self._dropped.clear()
                self._dropped_all = self._pushes.stamp
            self._dropped[key] = self._pushes.stamp

    async def purge(self, tags: Mapping[str, Sequence[Target]]) -> Purge:
        """Purge in the shared store; here it holds from the beginning.

        Raises:
            StoreError: if it cannot answer.
        """
        names = self._far.purged_names(tags)
        self._pushes.changed(names)
        try:
            return await self._far.purge(tags)
        finally:
            self._pushes.changed(names)  # what was loaded meanwhile may have been judged before the purge

    async def settled(self, tags: Mapping[str, Sequence[Target]]) -> bool | None:
        """What the shared store says of its replicas.

        Raises:
            StoreError: if it cannot answer.
        """
        return await self._far.settled(tags)

    async def affected(self, tags: Mapping[str, Sequence[Target]]) -> Affected:
        """What the shared store says of a purge of these, and how much of it is in this process's memory.

        Raises:
            StoreError: if it cannot answer.
        """
        near = await self._near.affected(tags)
        return replace(await self._far.affected(tags), in_memory=near.entries)

    def when_connected(self, told: Callable[[], object]) -> None:
        """As the shared store."""
        self._far.when_connected(told)

    def stats(self) -> StoreStats:
        """Entries and bytes of this process's memory, and what the shared store says."""
        near, far = self._near.stats(), self._far.stats()
        return StoreStats(
            entries=near.entries,
            bytes=near.bytes,
            evictions=near.evictions,
            rejected=far.rejected,
            extra={**far.extra, "near_live": float(self._clock() < self._hearing.until)},
        )


def in_front_of(far: RedisStore, *, max_bytes: int, metrics: Metrics) -> TieredStore:
    """This store with a memory in front of it.

    max_bytes: of the memory.
    """
    keeping_out = Background()

    def emptied() -> None:
        if not keeping_out.at_work:
            keeping_out.begin(_purge_all(far, metrics), "tidegate-emptied")

    pushes = Pushes(far.stamp_names, bites=metrics.limits.labels("pushes").inc)
    near = MemoryStore(max_bytes=max_bytes, judge=pushes, metrics=metrics)
    return TieredStore(far, near, pushes, _hearing(far, pushes, metrics, emptied))


async def _purge_all(far: RedisStore, metrics: Metrics) -> None:
    """Keep out what was on its way when the server was emptied: see `RedisStore.emptied`."""
    for _ in range(_TRIES):
        try:
            async with asyncio.timeout(_TRY):
                await far.emptied()
        except (StoreError, TimeoutError) as error:
            metrics.fail("store", error if str(error) else StoreError(f"redis: no answer within {_TRY:g} s"))
            await asyncio.sleep(_TRY / 4)
        else:
            return


def _hearing(far: RedisStore, pushes: Pushes, metrics: Metrics, emptied: Callable[[], object]) -> Hears:
    """What follows the purges there."""

    def failed(error: Exception) -> None:
        metrics.fail("tracking", error)

    def used(transport: str, is_used: bool) -> None:
        metrics.hearing.labels(transport).set(is_used)

    if far.dial is not None:
        hears = partial(Tracking, changed=pushes.changed, void=pushes.void, flushed=emptied)
        reads = partial(Streaming, changed=pushes.changed, void=pushes.void, flushed=emptied)
        follow, stream = partial(hears, far.dial, prefix=far.stamp_prefix), partial(reads, far.dial, prefix=far.stream)
        either = Fallback(follow, stream, failed=failed, used=used)
        far.elsewhere(either.renew)
        return either
    assert far.cluster is not None  # several servers

    def lost(error: Exception) -> None:
        failed(error)
        all_masters.look(str(error))  # whoever cannot be reached may have lost its slots

    masters = Masters(
        prefix=far.stamp_prefix,
        channel=far.stream,
        changed=pushes.changed,
        void=pushes.void,
        failed=lost,
        asks=ASKED,
        used=used,
        flushed=emptied,
    )
    all_masters = ClusterTracking(far.cluster, masters.follow, pushes.void)
    return all_masters
