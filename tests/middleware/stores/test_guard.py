"""The guard round a store that fails: deadlines, breaker, background writes."""

import asyncio
import logging
import time
from typing import Any

import pytest

from tests.middleware.stores.guarding import (
    PATIENT,
    Fault,
    Faulty,
    Held,
    bug,
    errors,
    guarding,
    hang,
    limited,
    no_fault,
    operations,
    refuse,
    slow,
)
from tests.middleware.stores.support import ACME, SCOPES, entry, eventually, found, write
from tidegate.middleware.core.breaker import BreakerSettings
from tidegate.middleware.core.records import Entry
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.base import Lookup, ReadsOnlyError
from tidegate.middleware.stores.guard import GuardedStore
from tidegate.middleware.stores.writes import AT_ONCE, BYTES_AT_ONCE


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
        assert 0.05 <= time.monotonic() - began < 2.0, "the store hangs for ever"

    guarding(body, budget=0.05)


class Request:
    """Who looks up several things."""

    waited = 0.0


def test_all_look_ups_of_one_request_share_its_budget() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        await write(guard, b"key", entry())

        request = Request()
        inner.fault = slow
        assert (await guard.get_for(request, b"key")).record is not None
        assert request.waited >= 0.001
        inner.fault = hang
        request.waited = 59.9
        began = time.monotonic()
        assert await guard.get_for(request, b"key", SCOPES) == Lookup(None, None)
        assert time.monotonic() - began < 20, "it had a budget of its own"
        asked = len(inner.calls)
        assert await guard.get_for(request, b"key", SCOPES) == Lookup(None, None)
        assert len(inner.calls) == asked, "nothing is left, and the store is asked all the same"
        assert operations(metrics, "get", "timeout") == errors(metrics) == 2
        inner.fault = no_fault
        assert (await guard.get_for(Request(), b"key")).record is not None, "another request has all of it"

    guarding(body, budget=60.0)


def test_a_look_up_that_had_what_another_had_left_is_no_evidence_against_the_store() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        inner.fault = hang
        for _ in range(5):
            request = Request()
            request.waited = 0.04
            await guard.get_for(request, b"key")
        assert operations(metrics, "get", "timeout") == 5
        assert guard.breaker.state == "closed"
        await guard.get(b"key")
        assert guard.breaker.state == "open"

    guarding(body, budget=0.05, settings=BreakerSettings(consecutive=1))


def test_writes_that_are_late_do_not_end_look_ups() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        await write(guard, b"key", entry())

        async def narrow() -> None:
            if inner.calls[-1] in ("put", "delete"):
                await hang()

        inner.fault = narrow
        await guard.delete(b"other")
        for number in range(10):
            assert await guard.put(b"%d" % number, entry(), retain=60)

        async def late() -> bool:
            return operations(metrics, "put", "timeout") == 10

        await eventually(late, "the writes are given up", 20.0)
        assert operations(metrics, "delete", "timeout") == 1
        assert guard.breaker.state == "closed"
        assert await found(guard, b"key") is not None
        inner.fault = no_fault

    guarding(body, settings=BreakerSettings(consecutive=1))


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


def test_a_store_that_takes_no_writes_is_read_all_the_same() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        await write(guard, b"key", entry())

        async def read_only() -> None:
            if inner.calls[-1] == "put":
                raise ReadsOnlyError("read only")

        inner.fault = read_only
        for number in range(10):
            await guard.put(b"%d" % number, entry(), retain=60)

        async def refused() -> bool:
            return errors(metrics) == operations(metrics, "put", "error") == 10

        await eventually(refused, "all are refused, and counted")
        assert guard.breaker.state == "closed"
        assert await found(guard, b"key") is not None

    guarding(body, settings=BreakerSettings(consecutive=3, open_for=60))


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


def test_writes_of_several_keys_are_on_their_way_together_and_those_of_one_key_keep_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tidegate.middleware.stores.guard.ATTEMPT", 60.0)

    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        held = inner.fault = Held()
        for number in range(100):
            await guard.put(b"%d" % number, entry(b"older"), retain=60)

        async def leave() -> bool:
            return held.came == AT_ONCE

        await eventually(leave, "many leave together")
        for number in range(100):
            await guard.put(b"%d" % number, entry(b"newer"), retain=60)
        assert guard.stats().extra["writes_waiting"] == 100
        inner.fault = no_fault
        held.let_go()

        async def newer() -> bool:
            kept = [await found(guard, b"%d" % number) for number in range(100)]
            return all(isinstance(record, Entry) and record.body == b"newer" for record in kept)

        await eventually(newer, "what was put last is kept")
        assert held.came == AT_ONCE

    guarding(body, budget=PATIENT)


def test_what_leaves_together_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate.middleware.stores.guard.ATTEMPT", 60.0)

    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        held = inner.fault = Held()
        for number in range(20):
            await guard.put(b"%d" % number, entry(bytes(BYTES_AT_ONCE // 4)), retain=60)

        async def leave() -> bool:
            return held.came > 0

        await eventually(leave, "some leave")
        assert held.came <= 4
        assert guard.stats().extra["writes_waiting"] == 20 - held.came
        inner.fault = no_fault
        held.let_go()

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


@pytest.mark.parametrize("passes", range(4))
def test_nor_from_those_that_are_about_to_leave(passes: int) -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        await guard.put(b"key", entry(), retain=60)
        for _ in range(passes):
            await asyncio.sleep(0)
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
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert errors(metrics) >= 3, "lost writes, a lost purge, and a store that did not close"

    guarding(hung)


def test_a_store_that_was_closed_and_started_again_takes_writes_and_retries_purges() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        await guard.start()
        await guard.aclose()
        await guard.start()
        assert await guard.put(b"key", entry(), retain=60)
        inner.fault = refuse
        assert (await guard.purge({ACME: ["client:42"]})).state == "pending"
        inner.fault = no_fault

        async def made() -> bool:
            return not guard.stats().extra["purges_pending"]

        await eventually(made, "the purge is made")

    guarding(body)


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
