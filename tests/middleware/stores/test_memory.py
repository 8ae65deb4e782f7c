"""The memory store's limits and costs."""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Awaitable, Callable

import pytest

from tests.middleware.stores.support import ACME, entry, found, new_metrics
from tidegate.errors import ConfigError
from tidegate.middleware.core.records import PUBLIC_SCOPE, WHOLE_SCOPE, Variants
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.memory import MemoryStore, size_of


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def limit(metrics: Metrics, name: str) -> float:
    return metrics.limits.labels(name)._value.get()


def run(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(body())  # type: ignore[arg-type]


def test_the_least_recently_used_record_goes_first_and_is_counted() -> None:
    metrics = new_metrics()

    async def body() -> None:
        store = MemoryStore(max_entries=3, metrics=metrics)
        for key in (b"a", b"b", b"c"):
            await store.put(key, entry(), retain=60)
        await store.get(b"a")
        await store.put(b"d", entry(), retain=60)
        assert [await found(store, key) is not None for key in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
        assert store.stats().evictions == 1

    run(body)
    assert limit(metrics, "memory-evicted") == 1


def test_the_bytes_kept_never_exceed_the_limit() -> None:
    async def body() -> None:
        store = MemoryStore(max_bytes=100_000, metrics=new_metrics())
        for number in range(200):
            await store.put(b"%d" % (number % 50), entry(bytes(number * 37 % 5000)), retain=60)
            assert (store.stats().bytes or 0) <= 100_000
        kept = [key for number in range(50) if await found(store, key := b"%d" % number) is not None]
        assert 10 < len(kept) == store.stats().entries
        for key in kept:
            await store.delete(key)
        assert (store.stats().bytes, store.stats().entries) == (0, 0)

    run(body)


def test_a_record_expires_when_its_seconds_are_over_and_gives_its_bytes_back() -> None:
    async def body() -> None:
        clock = Clock()
        store = MemoryStore(clock=clock, metrics=new_metrics())
        await store.put(b"key", entry(), retain=10)
        clock.now += 9.9
        assert await found(store, b"key") is not None
        clock.now += 0.1
        assert await found(store, b"key") is None
        assert store.stats().bytes == 0

    run(body)


@pytest.mark.parametrize("headers", [0, 5, 20])
def test_the_estimate_of_a_records_size_is_near_what_it_takes(headers: int) -> None:
    """Within a third, whatever its headers: it is what bounds the process' memory."""
    count = 500

    def fresh(number: int) -> bytes:
        return b"%016d" % number

    async def body() -> None:
        store = MemoryStore(metrics=new_metrics())
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(count):
            made = entry(
                fresh(number) * 2,
                headers=tuple((b"name-%d" % part + fresh(number), fresh(number)) for part in range(headers)),
                tags=((PUBLIC_SCOPE, f"uri:{number}"),),
                positions=((PUBLIC_SCOPE, number * 10**12),),
                born=1e9 + number,
                lifetime=60.0 + number,
            )
            assert await store.put(fresh(number), made, retain=60)
        taken = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        estimated = store.stats().bytes or 0
        assert taken * 2 / 3 < estimated < taken * 4 / 3, (taken / count, estimated / count)

    gc.collect()  # and with it Python's own lists of free tuples and floats, which tracemalloc does not see
    run(body)


def test_a_large_record_is_refused_before_it_pushes_out_others() -> None:
    metrics = new_metrics()

    async def body() -> None:
        store = MemoryStore(max_bytes=80_000, metrics=metrics)
        await store.put(b"small", entry(), retain=60)
        assert not await store.put(b"large", entry(bytes(20_000)), retain=60)
        assert await found(store, b"small") is not None
        assert store.stats().rejected == 1

    run(body)
    assert limit(metrics, "memory-entry-bytes") == 1


def test_scopes_let_go_because_of_the_limit_bring_nothing_back_and_are_counted() -> None:
    metrics = new_metrics()

    async def body() -> None:
        store = MemoryStore(max_scopes=5, metrics=metrics)
        old = entry(tags=((ACME, "it"),))
        await store.purge({ACME: ["it"]})
        for number in range(20):
            await store.purge({f"tenant:{number}": ["it"]})
        assert not await store.put(b"old", old, retain=60)
        positions = (await store.get(b"", (ACME, PUBLIC_SCOPE))).positions
        assert positions is not None
        assert await store.put(b"new", entry(tags=old.tags, positions=tuple(positions.items())), retain=60)
        assert await found(store, b"new") is not None

    run(body)
    assert limit(metrics, "memory-stamps") == 16


def test_the_cost_of_hit_fill_and_purge_does_not_grow_with_the_number_of_entries() -> None:
    """Best of many short rounds at 1,000 and at 100,000 entries; ten times is what a scan would exceed by far."""

    async def cost(entries: int) -> list[float]:
        store = MemoryStore(max_bytes=10**9, max_entries=entries, metrics=new_metrics())
        record = entry(b"x", tags=((PUBLIC_SCOPE, "uri"),))
        for number in range(entries):
            await store.put(b"%d" % number, record, retain=60)
            if number % 5000 == 0:
                await asyncio.sleep(0)
        best = [1.0] * 3

        async def hit(number: int) -> None:
            assert (await store.get(b"%d" % number)).record is not None

        async def fill(number: int) -> None:
            await store.put(b"new:%d" % number, record, retain=60)

        async def purge(number: int) -> None:
            await store.purge({"tenant:other": ["tag", WHOLE_SCOPE if number % 2 else "other"]})

        for at in range(20):
            for which, action in enumerate((hit, fill, purge)):
                began = time.perf_counter()
                for number in range(20):
                    await action(entries - 1 - at * 20 - number)
                best[which] = min(best[which], time.perf_counter() - began)
        return best

    small, large = asyncio.run(cost(1000)), asyncio.run(cost(100_000))
    for name, one, other in zip(("hit", "fill", "purge"), small, large, strict=True):
        assert other < one * 10, f"{name}: {one * 50_000:.2f} us at 1,000 entries, {other * 50_000:.2f} us at 100,000"


def test_limits_that_are_none_are_all_reported() -> None:
    with pytest.raises(ConfigError) as caught:
        MemoryStore(max_bytes=0, max_entries=-1, max_stamps=True, metrics=new_metrics())
    assert [problem.path for problem in caught.value.problems] == ["max_bytes", "max_entries", "max_stamps"]


def test_a_variants_record_is_weighed_too() -> None:
    assert size_of(b"key", Variants(names=(b"accept", b"cookie"))) > 12
