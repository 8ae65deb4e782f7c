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
    Asks,
    Entry,
    Keeps,
    KeepsAlike,
    Lookup,
    MayKeepAlike,
    Peeks,
    Purge,
    ReadsOnlyError,
    Reconnects,
    Record,
    Store,
    StoreStats,
    Target,
    Waiting,
)
from tidegate.middleware.stores.meters import Meter
from tidegate.middleware.stores.pending import concerns
from tidegate.middleware.stores.purges import Purges
from tidegate.middleware.stores.quick import UNKNOWN, Quick
from tidegate.middleware.stores.stepping import Deadlines
from tidegate.middleware.stores.writes import Writes

__all__ = ["STORE_BREAKER", "GuardedStore"]

STORE_BREAKER: Final = BreakerSettings(consecutive=5, failure_rate=0.5, window=5.0, minimum=20, open_for=1.0)
"""A probe costs one request its budget at most, so it may come every second."""

ATTEMPT: Final = 0.5
"""Seconds that one background write may take: nobody waits for it, but a hung one holds up the rest."""

T = TypeVar("T")


class GuardedStore:
    """A Store round another one, which may be remote.

    budget: seconds that one delete or first attempt at a purge may take, and all look-ups of one request together.
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
        self._get = Meter(self._metrics, name, "get")
        self._put = Meter(self._metrics, name, "put")
        self._delete = Meter(self._metrics, name, "delete")
        self._purges = Purges(
            inner,
            name=name,
            budget=budget,
            limit=max_pending,
            avoids=lambda: self._breaker.state == "open",
            metrics=self._metrics,
            clock=clock,
        )
        self._pending = self._purges.pending
        self._quick = None
        if isinstance(inner, Asks):
            self._quick = Quick(
                inner,
                breaker=self._breaker,
                meter=self._get,
                budget=budget,
                pending=self._pending,
                longer=self._get_for,
                clock=clock,
            )
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
        try:
            await self._inner.start()
        except Exception as error:  # noqa: BLE001 - P5; counted
            self._metrics.fail(self._name, error)
        self._purges.start()

    async def aclose(self) -> None:
        """Finish pending writes and purges within `drain` seconds, say what was left, and close the store inside."""
        self._purges.work_off()
        self._purges.closed = self._closed = True
        deadline = asyncio.get_running_loop().time() + self._drain
        await _until(deadline, self._writes.drained())
        await _until(deadline, self._purges.drained())
        if lost := await self._writes.close():
            self._metrics.fail(self._name, StoreError(f"{lost} writes dropped at shutdown"))
        if lost := await self._purges.close():
            self._metrics.fail(self._name, StoreError(f"purges of {lost} tags lost at shutdown"))
        try:
            async with asyncio.timeout(ATTEMPT):
                await self._inner.aclose()
        except Exception as error:  # noqa: BLE001 - P5; counted
            self._metrics.fail(self._name, error)

    async def get(self, key: bytes, scopes: Sequence[str] = ()) -> Lookup:
        """What the store inside says within the budget; else a miss without positions."""
        return await self.get_for(_Once(), key, scopes)

    def get_for(self, who: Waiting, key: bytes, scopes: Sequence[str] = ()) -> Coroutine[Any, Any, Lookup]:
        """As `get`; all look-ups of one request share the budget."""
        if self._quick is not None and not self._pending.count:
            begun = self._quick.begin(who, key, scopes)
            if begun is not None:
                return begun
        return self._get_for(who, key, scopes)

    async def _get_for(self, who: Waiting, key: bytes, scopes: Sequence[str]) -> Lookup:
        if self._inner.local:
            try:
                found = await self._inner.get(key, scopes)
            except Exception as error:  # noqa: BLE001 - P5; counted
                self._metrics.fail(self._name, error)
                return UNKNOWN
        elif not self._pending.count:
            found = await self._look_up(who, key, scopes)
        else:
            with self._pending.watched() as accepted:
                found = await self._look_up(who, key, scopes)
            # The store may have read this before a purge that it has accepted meanwhile, and answered after it.
            if isinstance(found.record, Entry) and any(concerns(purged, found.record) for purged in accepted):
                return Lookup(None, found.positions)
        if self._pending and isinstance(found.record, Entry) and self._pending.concern(found.record):
            return Lookup(None, found.positions)
        return found

    async def _look_up(self, who: Waiting, key: bytes, scopes: Sequence[str]) -> Lookup:
        """Ask the store inside, for as long as `who` may still wait."""
        left = self._budget
        if who.waited:
            left = int((left - who.waited) * 1000) / 1000  # whole milliseconds: those that end together share a timer
            if left <= 0:
                self._get.failed(TimeoutError(), self._budget)
                return UNKNOWN
        began, whole = self._clock(), left == self._budget
        try:
            # What another look-up has left may be too little for any store.
            return await self._attempt(self._get, left, self._inner.get, (key, scopes), UNKNOWN, telling=whole)
        finally:
            who.waited += self._clock() - began

    def peek(self, key: bytes) -> Record | None:
        """What the store inside has at hand, and no pending purge concerns."""
        peek = self._peek
        if peek is None:
            return None
        try:
            record = peek(key)
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

    def alike(self) -> KeepsAlike | None:
        """The store inside, where it is in this process and is such a one."""
        return self._here.alike() if isinstance(self._here, MayKeepAlike) else None

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
        await self._attempt(self._delete, self._budget, self._inner.delete, (key,), None, telling=False)

    async def purge(self, tags: Mapping[str, Sequence[Target]]) -> Purge:
        """Purge now if the store answers within the budget; else keep the purge, refuse its tags, and go on trying:
        see `Purges`.
        """
        return await self._purges.purge(tags)

    def purges_asked(self) -> int:
        """How many purges this process has asked for so far."""
        return self._pending.asked

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
        """Refuse these tags from now on, and purge them as soon as the store can. Never waits; for any thread."""
        self._purges.soon(tags)

    def stats(self) -> StoreStats:
        """Of the store inside, and how much waits here."""
        inner = self._inner.stats()
        extra = {"writes_waiting": len(self._writes), "purges_pending": len(self._pending)}
        return replace(inner, extra={**inner.extra, **extra})

    async def _attempt(
        self,
        meter: Meter,
        budget: float,
        call: Callable[..., Coroutine[Any, Any, T]],
        args: tuple[Any, ...],
        missed: T,
        *,
        telling: bool = True,
    ) -> T:
        """The call's result, or `missed` if the breaker refuses it, it fails, or is not done within the budget.

        telling: that it is late is a failure of the store, as the breaker counts them.
        """
        ticket = self._breaker.admit()
        if ticket is None:
            self._rejected()
            meter.rejected()
            return missed
        started = self._clock()
        try:
            result = await self._deadlines.within(budget, call(*args))
        except Exception as error:  # noqa: BLE001 - P5; counted
            if isinstance(error, TimeoutError) and not telling:
                self._breaker.abandon(ticket)
            else:
                # Who refuses a write has answered: look-ups are none the worse for it.
                self._breaker.report(ticket, failed=not isinstance(error, ReadsOnlyError))
            meter.failed(error, budget)
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

        # Many writes at once may be late, on a lane of their own, where look-ups are not; those speak for themselves.
        await self._attempt(self._put, ATTEMPT, put, (), False, telling=False)


class _Once:
    """Who looks up one thing."""

    __slots__ = ("waited",)

    def __init__(self) -> None:
        self.waited = 0.0


async def _until(deadline: float, waiting: Coroutine[Any, Any, object]) -> None:
    try:
        async with asyncio.timeout_at(deadline):
            await waiting
    except TimeoutError:
        return  # the caller says what is left
