"""Stands between the layers and a store that may fail (P5): deadline, circuit breaker, background writes, kept purges.

Guaranteed: no method raises but for the caller's own cancellation; a call takes at most its budget, and microseconds
while the breaker is open; a lost look-up is a miss after which nothing is stored; a purge is never lost silently while
the process lives. Each failure is one count in `tidegate_errors_total{component=<name>}` and at most one log line a
second.
Not guaranteed: that a write is kept (a full queue drops it, and says so in `tidegate_limits_total`); that a purge that
is still pending when the process ends is made (`aclose` tries, counts and logs what is left).
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from tidegate.errors import StoreError
from tidegate.middleware.breaker import Breaker, report_to
from tidegate.middleware.core.breaker import BreakerSettings
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.affected import Affected, Affects
from tidegate.middleware.stores.base import (
    Entry,
    Keeps,
    Lookup,
    Peeks,
    Purge,
    ReadsOnlyError,
    Reconnects,
    Record,
    Settles,
    Store,
    StoreStats,
    Target,
)
from tidegate.middleware.stores.pending import PendingPurges, concerns
from tidegate.middleware.stores.stepping import Deadlines
from tidegate.middleware.stores.writes import Writes

__all__ = ["STORE_BREAKER", "GuardedStore"]

STORE_BREAKER: Final = BreakerSettings(consecutive=5, failure_rate=0.5, window=5.0, minimum=20, open_for=1.0)
"""A probe costs one request its budget at most, so it may come every second."""

UNKNOWN: Final = Lookup(None, None)
"""The answer of a store that could not tell."""

RETRY_PURGES: Final = 0.25
"""Seconds between attempts to make the pending purges: four in the second within which they are due (P4)."""

ATTEMPT: Final = 0.5
"""Seconds that one background write or purge may take: nobody waits for it, but a hung one holds up the rest."""

PURGE_BATCH: Final = 500
"""Tags in one attempt: a script of a few milliseconds."""

_DURABLE: Final = {True: "durable", False: "not-durable", None: "done"}
_OUTCOMES: Final = (*_DURABLE.values(), "pending")

T = TypeVar("T")


class GuardedStore:
    """A Store round another one, which may be remote.

    budget: seconds that one look-up, delete or first attempt at a purge may take (a request that looks up a variant
        makes two look-ups).
    settings: when the breaker opens.
    max_writes, max_write_bytes: writes that may wait in the background; beyond either, new ones are dropped.
    max_pending: tags of purges that may wait for the store; beyond, they grow into purges of whole scopes.
    drain: seconds that `aclose` may spend on pending writes and purges.
    name: component in metrics and logs.
    """

    def __init__(
        self,
        inner: Store,
        *,
        name: str = "store",
        budget: float = 0.050,
        settings: BreakerSettings = STORE_BREAKER,
        max_writes: int = 1000,
        max_write_bytes: int = 32 * 1024 * 1024,
        max_pending: int = 10_000,
        drain: float = 1.0,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner = inner
        self._peek = inner.peek if isinstance(inner, Peeks) else None
        self._settles = inner if isinstance(inner, Settles) else None
        self._here = inner if isinstance(inner, Keeps) and inner.local else None
        self._name = name
        self._budget = budget
        self._drain = drain
        self._deadlines = Deadlines()
        self._clock = clock
        self._metrics = metrics if metrics is not None else Metrics.of()
        self._breaker = Breaker(settings, clock=clock, on_change=report_to(self._metrics, name))
        if isinstance(inner, Reconnects):
            # Else the connection could be back, and the next probe be a whole interval away.
            inner.when_connected(self._breaker.probe_now)
        self._rejected = self._metrics.breaker_rejected.labels(name).inc
        self._get = _Meter(self._metrics, name, "get")
        self._put = _Meter(self._metrics, name, "put")
        self._delete = _Meter(self._metrics, name, "delete")
        self._purge = _Meter(self._metrics, name, "purge")
        self._purges = {name: self._metrics.purges.labels(name).inc for name in _OUTCOMES}
        self._pending = PendingPurges(
            limit=max_pending, overflow=self._metrics.limits.labels("store-pending-purges").inc
        )
        self._lane: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writes = Writes(
            self._write,
            max_writes=max_writes,
            max_bytes=max_write_bytes,
            dropped=self._metrics.limits.labels("store-writes").inc,
        )
        self._closed = False

    @property
    def local(self) -> bool:
        """As the store inside: its calls are passed on as they are."""
        return self._inner.local

    @property
    def breaker(self) -> Breaker:
        """For `doctor` and tests."""
        return self._breaker

    async def start(self) -> None:
        """Start the store inside, which connects in the background. May be called again after `aclose`."""
        self._closed = False
        self._loop = asyncio.get_running_loop()
        try:
            await self._inner.start()
        except Exception as error:  # noqa: BLE001 - P5; counted
            self._metrics.fail(self._name, error)
        self._work_off()

    async def aclose(self) -> None:
        """Finish pending writes and purges within `drain` seconds, say what was left, and close the store inside."""
        self._work_off()
        self._closed = True
        deadline = asyncio.get_running_loop().time() + self._drain
        await _until(deadline, self._writes.drained())
        if self._lane is not None:
            await _until(deadline, asyncio.wait([self._lane]))
        if lost := await self._writes.close():
            self._metrics.fail(self._name, StoreError(f"{lost} writes dropped at shutdown"))
        if self._lane is not None:
            self._lane.cancel()
        if self._pending:
            self._metrics.fail(self._name, StoreError(f"purges of {len(self._pending)} tags lost at shutdown"))
        try:
            async with asyncio.timeout(ATTEMPT):
                await self._inner.aclose()
        except Exception as error:  # noqa: BLE001 - P5; counted
            self._metrics.fail(self._name, error)

    async def get(self, key: bytes, scopes: Sequence[str] = ()) -> Lookup:
        """What the store inside says within the budget; else a miss without positions."""
        if self._inner.local:
            try:
                found = await self._inner.get(key, scopes)
            except Exception as error:  # noqa: BLE001 - P5; counted
                self._metrics.fail(self._name, error)
                return UNKNOWN
        elif not self._pending.count:
            found = await self._attempt(self._get, self._budget, self._inner.get, (key, scopes), UNKNOWN)
        else:
            with self._pending.watched() as accepted:
                found = await self._attempt(self._get, self._budget, self._inner.get, (key, scopes), UNKNOWN)
            # The store may have read this before a purge that it has accepted meanwhile, and answered after it.
            if isinstance(found.record, Entry) and any(concerns(purged, found.record) for purged in accepted):
                return Lookup(None, found.positions)
        if self._pending and isinstance(found.record, Entry) and self._pending.concern(found.record):
            return Lookup(None, found.positions)
        return found

    def peek(self, key: bytes) -> Record | None:
        """What the store inside has at hand, and no pending purge concerns."""
        if self._peek is None:
            return None
        try:
            record = self._peek(key)
        except Exception as error:  # noqa: BLE001 - P5; counted
            self._metrics.fail(self._name, error)
            return None
        if self._pending.count and isinstance(record, Entry) and self._pending.concern(record):
            return None
        return record

    def positions(self, scopes: Sequence[str]) -> Mapping[str, int] | None:
        """Those of a store inside that is in this process; else None."""
        if self._here is None:
            return None
        try:
            return self._here.positions(scopes)
        except Exception as error:  # noqa: BLE001 - P5; counted
            self._metrics.fail(self._name, error)
            return None

    def keep(self, key: bytes, record: Record, *, retain: float) -> bool:
        """As `put`, in a store that is in this process."""
        if self._here is None:
            return False
        try:
            return self._here.keep(key, record, retain=retain)
        except Exception as error:  # noqa: BLE001 - P5; counted
            self._metrics.fail(self._name, error)
            return False

    async def put(self, key: bytes, record: Record, *, retain: float) -> bool:
        """Take a record for writing. A remote store gets it in the background: True means taken, not kept."""
        if self._inner.local:
            try:
                return await self._inner.put(key, record, retain=retain)
            except Exception as error:  # noqa: BLE001 - P5; counted
                self._metrics.fail(self._name, error)
                return False
        return not self._closed and self._writes.add(key, record, retain)

    async def delete(self, key: bytes) -> None:
        """Forget a record, in the store and among the writes that wait."""
        self._writes.forget(key)
        await self._attempt(self._delete, self._budget, self._inner.delete, (key,), None)

    async def purge(self, tags: Mapping[str, Sequence[Target]]) -> Purge:
        """Purge now if the store answers within the budget; else keep the purge, refuse its tags, and go on trying.

        What is left of the budget is spent to learn whether a replica has it too.

        A purge does not ask the breaker, which may be about to close. While it is open the attempt is left to the
        background, so that the writer does not wait for it.
        """
        count = sum(map(len, tags.values()))
        # Kept before it is tried: a caller that is cancelled halfway has still asked for it.
        number = self._pending.add(tags)
        began = self._clock()
        try:
            if self._breaker.state != "open" and await self._purge_now(tags, self._budget):
                self._pending.done(tags, number)
                durable = await self._settled(tags, self._budget - (self._clock() - began))
                self._purges[_DURABLE[durable]]()
                return Purge("done", count, durable)
        finally:
            self._work_off()
        self._purges["pending"]()
        return Purge("pending", count, False if self._settles is not None else None)

    async def _settled(self, tags: Mapping[str, Sequence[Target]], left: float) -> bool | None:
        """Whether a replica has a purge that was done, as far as that can be known in the time that is left."""
        if self._settles is None:
            return None
        try:
            return await self._deadlines.within(max(left, 0.001), self._settles.settled(tags))
        except (StoreError, TimeoutError):
            return False

    async def affected(self, tags: Mapping[str, Sequence[Target]]) -> Affected:
        """What a purge of these would take, as the store inside says; nothing known where it cannot."""
        if not isinstance(self._inner, Affects):
            return Affected()
        try:
            return await self._inner.affected(tags)
        except Exception as error:  # noqa: BLE001 - P5; counted
            self._metrics.fail(self._name, error)
            return Affected()

    def purge_soon(self, tags: Mapping[str, Sequence[Target]]) -> None:
        """Refuse these tags from now on, and purge them as soon as the store can. Never waits; for any thread.

        Before `start` the purge is only kept: who is not started serves nobody yet.
        """
        self._pending.add(tags)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._work_off)

    def _work_off(self) -> None:
        if self._inner.local:
            self._purge_here()
        if self._pending and self._lane is None and not self._closed:
            self._lane = asyncio.get_running_loop().create_task(self._retry_purges(), name="tidegate-purges")

    def _purge_here(self) -> None:
        """Make the pending purges in a store that never waits: without a task, which a loop that ends would leave."""
        while self._pending:
            tags, number = self._pending.batch(PURGE_BATCH)
            try:
                self._inner.purge(tags).send(None)
            except StopIteration:
                self._pending.done(tags, number)
            except Exception as error:  # noqa: BLE001 - P5; counted, and the purge is kept
                self._failed(self._purge, error, 0.0)
                return
            else:
                return  # it waits after all: a task may

    def stats(self) -> StoreStats:
        """Of the store inside, and how much waits here."""
        inner = self._inner.stats()
        extra = {"writes_waiting": len(self._writes), "purges_pending": len(self._pending)}
        return replace(inner, extra={**inner.extra, **extra})

    async def _attempt(
        self,
        meter: "_Meter",
        budget: float,
        call: Callable[..., Coroutine[Any, Any, T]],
        args: tuple[Any, ...],
        missed: T,
    ) -> T:
        """The call's result, or `missed` if the breaker refuses it, it fails, or is not done within the budget."""
        ticket = self._breaker.admit()
        if ticket is None:
            self._rejected()
            meter.rejected()
            return missed
        started = self._clock()
        try:
            result = await self._deadlines.within(budget, call(*args))
        except Exception as error:  # noqa: BLE001 - P5; counted
            # Who refuses a write has answered: look-ups are none the worse for it.
            self._breaker.report(ticket, failed=not isinstance(error, ReadsOnlyError))
            self._failed(meter, error, budget)
            return missed
        except BaseException:
            self._breaker.abandon(ticket)
            raise
        self._breaker.report(ticket, failed=False)
        meter.ok()
        meter.observe(self._clock() - started)
        return result

    async def _write(self, key: bytes, record: Record, retain: float) -> None:
        def put() -> Coroutine[Any, Any, bool]:
            return self._inner.put(key, record, retain=retain)

        await self._attempt(self._put, ATTEMPT, put, (), False)

    async def _purge_now(self, tags: Mapping[str, Sequence[Target]], budget: float) -> bool:
        started = self._clock()
        try:
            await self._deadlines.within(budget, self._inner.purge(tags))
        except Exception as error:  # noqa: BLE001 - P5; counted, and the purge is kept
            self._failed(self._purge, error, budget)
            return False
        self._purge.ok()
        self._purge.observe(self._clock() - started)
        return True

    async def _retry_purges(self) -> None:
        try:
            while self._pending:
                tags, number = self._pending.batch(PURGE_BATCH)
                if await self._purge_now(tags, ATTEMPT):
                    self._pending.done(tags, number)
                else:
                    await asyncio.sleep(RETRY_PURGES)
        finally:
            self._lane = None

    def _failed(self, meter: "_Meter", error: Exception, budget: float) -> None:
        if isinstance(error, TimeoutError):
            meter.timeout()
            error = StoreError(f"{meter.operation}: no answer within {budget * 1000:g} ms")
        else:
            meter.error()
        self._metrics.fail(self._name, error)


async def _until(deadline: float, waiting: Coroutine[Any, Any, object]) -> None:
    try:
        async with asyncio.timeout_at(deadline):
            await waiting
    except TimeoutError:
        return  # the caller says what is left


class _Meter:
    """Metrics of one operation of one store, bound once."""

    __slots__ = ("error", "observe", "ok", "operation", "rejected", "timeout")

    def __init__(self, metrics: Metrics, store: str, operation: str) -> None:
        counter = metrics.store_operations
        self.operation = operation
        self.ok = counter.labels(store, operation, "ok").inc
        self.error = counter.labels(store, operation, "error").inc
        self.timeout = counter.labels(store, operation, "timeout").inc
        self.rejected = counter.labels(store, operation, "rejected").inc
        self.observe = metrics.store_seconds.labels(store, operation).observe
