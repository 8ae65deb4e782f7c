"""The guard round a store that fails: in process with stores that fail in every way, then on real servers."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import pytest

from tests.middleware.stores.support import ACME, SCOPES, entry, eventually, found, new_metrics, positions, write
from tests.services import RedisServer
from tidegate.errors import StoreError
from tidegate.middleware.core.breaker import BreakerSettings
from tidegate.middleware.core.records import PUBLIC_SCOPE, WHOLE_SCOPE, Entry, Record
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.base import Lookup, Purge, StoreStats
from tidegate.middleware.stores.guard import GuardedStore
from tidegate.middleware.stores.memory import MemoryStore
from tidegate.middleware.stores.redis import RedisStore

Start = Callable[..., RedisServer]
Fault = Callable[[], Awaitable[None]]

PATIENT: Final = BreakerSettings(consecutive=1_000_000, failure_rate=1.0, minimum=1_000_000)
"""Never opens."""


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

    async def purge(self, tags: Mapping[str, Sequence[str]]) -> Purge:
        await self._pass("purge")
        return await self.inner.purge(tags)

    def stats(self) -> StoreStats:
        return self.inner.stats()


async def no_fault() -> None: ...


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


@pytest.mark.parametrize(
    ("fault", "result"), [(refuse, "error"), (bug, "error"), (hang, "timeout")], ids=["refuses", "bug", "hangs"]
)
def test_a_failed_look_up_is_a_miss_after_which_nothing_is_stored(fault: Fault, result: str) -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        await write(guard, b"key", entry())
        inner.fault = fault
        assert await guard.get(b"key", SCOPES) == Lookup(None, None)
        await guard.delete(b"key")
        assert errors(metrics) == 2
        assert operations(metrics, "get", result) == operations(metrics, "delete", result) == 1
        inner.fault = no_fault
        assert await found(guard, b"key") is not None

    guarding(body)


def test_a_call_is_cut_off_at_its_budget() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        inner.fault = hang
        began = time.monotonic()
        assert await guard.get(b"key") == Lookup(None, None)
        assert 0.05 <= time.monotonic() - began < 0.2

    guarding(body, budget=0.05)


def test_while_the_breaker_is_open_the_store_is_not_asked_and_a_call_costs_microseconds() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        inner.fault = refuse
        for _ in range(3):
            await guard.get(b"key")
        asked = len(inner.calls)
        began = time.perf_counter()
        for _ in range(1000):
            assert await guard.get(b"key", SCOPES) == Lookup(None, None)
        assert (time.perf_counter() - began) / 1000 < 0.0005
        assert len(inner.calls) == asked
        assert operations(metrics, "get", "rejected") == 1000
        assert metrics.breaker_rejected.labels("store")._value.get() == 1000
        assert metrics.breaker_state.labels("store")._value.get() == 2

    guarding(body, settings=BreakerSettings(consecutive=3, open_for=60))


def test_one_probe_finds_that_the_store_is_back_and_the_rest_do_not_wait_for_it() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        await write(guard, b"key", entry())
        inner.fault = refuse
        for _ in range(3):
            await guard.get(b"key")
        inner.fault = slow
        inner.calls.clear()

        async def back() -> bool:
            return any(lookup.record for lookup in await asyncio.gather(*[guard.get(b"key") for _ in range(100)]))

        await eventually(back, "a probe got through")
        assert inner.calls == ["get"]
        assert guard.breaker.state == "closed"

    guarding(body, settings=BreakerSettings(consecutive=3, open_for=0.05))


def test_a_cancelled_call_is_cancelled_and_is_no_evidence() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        inner.fault = hang
        for _ in range(20):
            task = asyncio.create_task(guard.get(b"key"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert guard.breaker.state == "closed"
        assert errors(metrics) == 0

    guarding(body, budget=5.0, settings=BreakerSettings(consecutive=2))


def test_a_thousand_failures_are_counted_one_by_one_and_logged_at_most_once_a_second(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        inner.fault = refuse
        for _ in range(1000):
            await guard.get(b"key")
        assert errors(metrics) == 1000

    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "tidegate"):
        guarding(body, settings=PATIENT)
    assert 1 <= len(caplog.records) <= 1 + (time.monotonic() - began)


def test_a_write_waits_for_nobody_and_lands_in_the_background() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        gate = asyncio.Event()

        async def wait() -> None:
            await gate.wait()

        inner.fault = wait
        assert await guard.put(b"key", entry(), retain=60)
        inner.fault = no_fault
        assert guard.stats().extra["writes_waiting"] == 1
        gate.set()

        async def there() -> bool:
            return await found(guard, b"key") is not None

        await eventually(there, "the write lands")

    guarding(body)


def test_a_full_queue_drops_new_writes_and_counts_them() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        taken = [await guard.put(b"%d" % number, entry(), retain=60) for number in range(8)]
        assert taken == [True] * 5 + [False] * 3
        assert limited(metrics, "store-writes") == 3
        assert await guard.put(b"0", entry(b"newer"), retain=60), "a newer write of a waiting key takes its place"

        async def there() -> bool:
            kept = [await found(guard, b"%d" % number) for number in range(5)]
            return isinstance(kept[0], Entry) and kept[0].body == b"newer" and None not in kept

        await eventually(there, "what was taken is written")

    guarding(body, max_writes=5)


def test_waiting_writes_are_bounded_in_bytes_too() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        taken = [await guard.put(b"%d" % number, entry(bytes(10_000)), retain=60) for number in range(5)]
        assert taken == [True] * 2 + [False] * 3
        assert limited(metrics, "store-writes") == 3

    guarding(body, max_write_bytes=25_000)


def test_a_deleted_record_does_not_come_back_from_the_waiting_writes() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        await guard.put(b"key", entry(), retain=60)
        await guard.delete(b"key")
        await write(guard, b"other", entry())
        assert await found(guard, b"key") is None

    guarding(body)


def test_closing_writes_what_waits_and_says_what_it_could_not() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        for number in range(50):
            await guard.put(b"%d" % number, entry(), retain=60)
        await guard.aclose()
        assert inner.inner.stats().entries == 50
        assert errors(metrics) == 0
        assert not await guard.put(b"late", entry(), retain=60)

    guarding(body)

    async def hung(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        inner.fault = hang
        for number in range(5):
            await guard.put(b"%d" % number, entry(), retain=60)
        await guard.purge({ACME: ["client:42"]})
        began = time.monotonic()
        await guard.aclose()
        assert time.monotonic() - began < 2.0
        assert inner.calls[-1] == "aclose"
        assert errors(metrics) >= 3, "lost writes, a lost purge, and a store that did not close"

    guarding(hung)


@pytest.mark.parametrize("fault", [refuse, hang], ids=["refuses", "hangs"])
def test_a_purge_that_fails_is_pending_refuses_its_tags_and_is_made_when_the_store_is_back(fault: Fault) -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        await write(guard, b"42", TAGGED)
        await write(guard, b"43", entry(tags=((ACME, "client:43"),)))
        inner.fault = fault
        assert await guard.purge({ACME: ["client:42"]}) == Purge("pending", 1)

        async def readable() -> None:
            if inner.calls[-1] == "purge":
                await refuse()

        inner.fault = readable
        assert await guard.get(b"42", SCOPES) == Lookup(None, dict.fromkeys(SCOPES, 0))
        assert await found(guard, b"43") is not None, "other tags are served"
        assert await found(inner, b"42") is not None, "the store itself does not know yet"
        inner.fault = no_fault

        async def made() -> bool:
            return await found(inner, b"42") is None

        await eventually(made, "the purge is made within a second of the store's return", seconds=1.0)
        assert guard.stats().extra["purges_pending"] == 0
        await write(guard, b"42", entry(tags=TAGGED.tags, positions=await positions(guard)))

    guarding(body, settings=PATIENT)


def test_a_purge_does_not_wait_while_the_breaker_is_open_but_is_made_before_it_closes() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        await write(guard, b"42", TAGGED)
        inner.fault = refuse
        await guard.get(b"42")
        assert guard.breaker.state == "open"
        inner.fault = slow
        assert (await guard.purge({ACME: ["client:42"]})).state == "pending"

        async def made() -> bool:
            return await found(inner, b"42") is None

        await eventually(made, "the purge is made outside the breaker")
        assert guard.breaker.state == "open"

    guarding(body, settings=BreakerSettings(consecutive=1, open_for=60))


def test_a_purge_whose_caller_is_cancelled_is_made_all_the_same() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        await write(guard, b"42", TAGGED)
        inner.fault = hang
        task = asyncio.create_task(guard.purge({ACME: ["client:42"]}))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        inner.fault = no_fault

        async def made() -> bool:
            return await found(inner, b"42") is None

        await eventually(made, "the purge is made")

    guarding(body, budget=5.0)


def test_while_a_purge_is_on_its_way_its_tags_are_not_served() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        await write(guard, b"42", TAGGED)
        inner.fault = hang
        task = asyncio.create_task(guard.purge({ACME: [WHOLE_SCOPE]}))
        await asyncio.sleep(0)
        inner.fault = no_fault
        assert await found(guard, b"42") is None
        await task

    guarding(body)


def test_too_many_pending_tags_become_a_purge_of_the_scope_and_too_many_scopes_one_of_everything() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        await write(guard, b"unnamed", entry(tags=((ACME, "never named"),)))
        await write(guard, b"public", entry(positions=((PUBLIC_SCOPE, 0),)))
        inner.fault = refuse
        for number in range(20):
            await guard.purge({ACME: [f"client:{number}"]})
        inner.fault = no_fault
        assert guard.stats().extra["purges_pending"] <= 10
        assert limited(metrics, "store-pending-purges") > 0
        assert await found(guard, b"unnamed") is None
        assert await found(guard, b"public") is not None
        inner.fault = refuse
        for number in range(20):
            await guard.purge({f"tenant:{number}": ["client"]})
        inner.fault = no_fault
        assert guard.stats().extra["purges_pending"] <= 10
        assert await found(guard, b"public") is None

        async def made() -> bool:
            return not guard.stats().extra["purges_pending"]

        await eventually(made, "the purges are made")
        assert await found(inner, b"public") is None

    guarding(body, settings=PATIENT, max_pending=10)


def test_a_tag_purged_again_while_an_attempt_is_under_way_stays_pending() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        gate = asyncio.Event()

        async def wait() -> None:
            await gate.wait()

        inner.fault = wait
        first = asyncio.create_task(guard.purge({ACME: ["client:42"]}))
        await asyncio.sleep(0)
        inner.fault = refuse
        assert (await guard.purge({ACME: ["client:42"]})).state == "pending"
        gate.set()
        assert (await first).state == "done"
        assert guard.stats().extra["purges_pending"] == 1

    guarding(body, settings=PATIENT, budget=5.0)


def test_a_store_that_fails_to_start_or_to_close_stops_nobody() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        inner.fault = bug
        await guard.start()
        await guard.aclose()
        assert errors(metrics) == 2

    guarding(body)


def test_a_store_that_answers_at_once_is_asked_without_a_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        await write(guard, b"key", entry())
        loop = asyncio.get_running_loop()

        def no_timer(*_: object, **__: object) -> Any:
            raise AssertionError("a timer was armed")

        monkeypatch.setattr(loop, "call_at", no_timer)
        assert await found(guard, b"key") is not None
        monkeypatch.undo()

    guarding(body)


# --- real servers -----------------------------------------------------------


async def hit_ratio(guard: GuardedStore, rounds: int = 10) -> float:
    """Of 50 concurrent look-ups of known keys, each within its time."""
    hits = 0

    async def ask(number: int) -> bool:
        began = time.monotonic()
        record = (await guard.get(b"%d" % number, SCOPES)).record
        assert time.monotonic() - began < 0.5, "a look-up took longer than any budget"
        return record is not None

    for _ in range(rounds):
        hits += sum(await asyncio.gather(*[ask(number) for number in range(50)]))
    return hits / (50 * rounds)


@pytest.mark.parametrize("how", ["killed", "suspended"])
def test_hits_before_and_after_a_servers_fault_and_no_error_during_it(start_server: Start, how: str) -> None:
    """Killed and started again (empty), or stopped by a signal so that it accepts and stays silent, then resumed."""
    server = start_server()
    metrics = new_metrics()

    async def fill(guard: GuardedStore) -> None:
        read = await positions(guard)
        for number in range(50):
            await guard.put(b"%d" % number, entry(tags=((ACME, f"client:{number}"),), positions=read), retain=60)

        async def whole() -> bool:
            return await hit_ratio(guard, 1) == 1.0

        await eventually(whole, "all fifty are hits")

    async def run() -> None:
        guard = GuardedStore(
            RedisStore(server.url, metrics=metrics),
            metrics=metrics,
            budget=0.25,
            settings=BreakerSettings(consecutive=5, open_for=0.2),
        )
        await guard.start()
        await fill(guard)
        assert await hit_ratio(guard) > 0.95

        await asyncio.to_thread(server.kill if how == "killed" else server.suspend)
        assert await hit_ratio(guard) == 0.0
        assert (await guard.purge({ACME: ["client:7"]})).state == "pending"
        assert not (await guard.get(b"7", SCOPES)).record
        assert errors(metrics) > 0

        await asyncio.to_thread(server.start if how == "killed" else server.resume)

        async def purged() -> bool:
            await hit_ratio(guard, 1)
            return not guard.stats().extra["purges_pending"] and guard.breaker.state == "closed"

        await eventually(purged, "the purge is made and the breaker closed", seconds=3.0)
        if how == "suspended":
            assert await hit_ratio(guard) == 49 / 50, "all but the purged one are still there"
        await fill(guard)
        assert await hit_ratio(guard) > 0.95
        await guard.aclose()

    asyncio.run(run())


def test_cancelled_look_ups_leave_a_guarded_server_usable(server: RedisServer) -> None:
    metrics = new_metrics()

    async def run() -> None:
        guard = GuardedStore(RedisStore(server.url, metrics=metrics, max_connections=10), metrics=metrics, budget=2.0)
        await write(guard, b"key", TAGGED)
        for turn in range(100):
            tasks = [asyncio.create_task(guard.get(b"key", SCOPES)) for _ in range(20)]
            for _ in range(turn % 7):
                await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(outcome, Lookup) and outcome.record == TAGGED for outcome in outcomes[1::2])
        assert errors(metrics) == 0
        assert guard.breaker.state == "closed"
        await guard.aclose()

    asyncio.run(run())
