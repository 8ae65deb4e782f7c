"""A store that fails as it is told, in memory, and a guard round it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from tests.middleware.stores.support import ACME, entry, new_metrics
from tidegate.errors import StoreError
from tidegate.middleware.core.breaker import BreakerSettings
from tidegate.middleware.core.records import Record
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.base import Lookup, Purge, StoreStats, Target
from tidegate.middleware.stores.guard import GuardedStore
from tidegate.middleware.stores.memory import MemoryStore

Fault = Callable[[], Awaitable[None]]


PATIENT: Final = BreakerSettings(consecutive=1_000_000, failure_rate=1.0, minimum=1_000_000)


class Faulty:
    """A remote store in memory, whose calls first await `fault`."""

    local = False

    def __init__(self) -> None:
        self.inner = MemoryStore(metrics=new_metrics())
        self.fault: Fault = no_fault
        self.calls: list[str] = []

    async def _pass(self, call: str) -> None:
        self.calls.append(call)
        await self.fault()

    async def start(self) -> None:
        await self._pass("start")

    async def aclose(self) -> None:
        await self._pass("aclose")

    async def get(self, key: bytes, scopes: Sequence[str] = ()) -> Lookup:
        await self._pass("get")
        return await self.inner.get(key, scopes)

    async def put(self, key: bytes, record: Record, *, retain: float) -> bool:
        await self._pass("put")
        return await self.inner.put(key, record, retain=retain)

    async def delete(self, key: bytes) -> None:
        await self._pass("delete")
        await self.inner.delete(key)

    async def purge(self, tags: Mapping[str, Sequence[Target]]) -> Purge:
        await self._pass("purge")
        return await self.inner.purge(tags)

    def stats(self) -> StoreStats:
        return self.inner.stats()


async def no_fault() -> None: ...


class Held:
    """A fault: whoever comes waits until they are let go."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()
        self.came = 0

    async def __call__(self) -> None:
        self.came += 1
        await self._gone.wait()

    def let_go(self) -> None:
        self._gone.set()


async def slow() -> None:
    await asyncio.sleep(0.001)


async def hang() -> None:
    await asyncio.Event().wait()


async def refuse() -> None:
    raise StoreError("connection refused")


async def bug() -> None:
    raise ZeroDivisionError("a bug in the store")


def guarding(body: Callable[[GuardedStore, Faulty, Metrics], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        metrics, inner = new_metrics(), Faulty()
        guard = GuardedStore(inner, metrics=metrics, **{"drain": 0.2} | options)
        try:
            await body(guard, inner, metrics)
        finally:
            await guard.aclose()

    asyncio.run(run())


def errors(metrics: Metrics) -> float:
    return metrics.errors.labels("store")._value.get()


def operations(metrics: Metrics, operation: str, result: str) -> float:
    return metrics.store_operations.labels("store", operation, result)._value.get()


def limited(metrics: Metrics, limit: str) -> float:
    return metrics.limits.labels(limit)._value.get()


TAGGED: Final = entry(tags=((ACME, "client:42"),))
