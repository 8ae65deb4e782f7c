"""Purges that the store does not accept at once."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.middleware.stores.guarding import (
    PATIENT,
    TAGGED,
    Fault,
    Faulty,
    guarding,
    hang,
    limited,
    no_fault,
    refuse,
    slow,
)
from tests.middleware.stores.support import ACME, SCOPES, entry, eventually, found, new_metrics, positions, write
from tests.services import RedisServer
from tidegate.middleware.core.breaker import BreakerSettings
from tidegate.middleware.core.records import PUBLIC_SCOPE, WHOLE_SCOPE
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.base import Lookup, Purge, Target
from tidegate.middleware.stores.guard import GuardedStore
from tidegate.middleware.stores.memory import MemoryStore
from tidegate.middleware.stores.pending import PendingPurges
from tidegate.middleware.stores.purges import BATCH, HANGS, Purges
from tidegate.middleware.stores.redis import RedisStore


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


def test_after_one_purge_has_waited_in_vain_the_next_does_not_wait_until_one_is_made() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        released = asyncio.Event()

        async def held() -> None:
            await released.wait()

        inner.fault = held
        began = time.monotonic()
        purges = [await guard.purge({ACME: [f"client:{number}"]}) for number in range(20)]
        assert time.monotonic() - began < 10, "each has waited for the budget"
        assert {purge.state for purge in purges} == {"pending"}
        released.set()

        async def made() -> bool:
            return guard.stats().extra["purges_pending"] == 0

        await eventually(made, "all are made", 20.0)
        assert (await guard.purge({ACME: ["client:42"]})).state == "done"

    guarding(body, budget=1.0)


def test_a_purge_that_takes_longer_than_an_attempt_begins_anew_is_made() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        await write(guard, b"42", TAGGED)

        async def far() -> None:
            await asyncio.sleep(1.2 * HANGS)

        inner.fault = far
        assert (await guard.purge({ACME: ["client:42"]})).state == "pending"

        async def accepted() -> bool:
            return guard.stats().extra["purges_pending"] == 0

        await eventually(accepted, "it is made", 20.0)
        inner.fault = no_fault
        assert await found(guard, b"42") is None

    guarding(body)


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


def test_pending_tags_with_long_names_become_a_purge_of_the_scope_and_then_of_everything() -> None:
    overflows: list[int] = []
    pending = PendingPurges(limit=1000, most_bytes=10_000, overflow=lambda: overflows.append(1))
    for number in range(100):
        pending.add({ACME: [f"{number:01000}"]})
        assert sum(len(str(name)) for names in pending._scopes.values() for name in names) <= 10_000
    assert pending._scopes[ACME].keys() == {WHOLE_SCOPE}
    assert (len(pending), len(overflows)) == (1, 1)
    made, number = pending.batch(10)
    pending.done(made, number)
    assert (len(pending), pending._bytes) == (0, 0)
    for number in range(100):
        pending.add({f"tenant:{number:01000}": ["it"]})
    assert pending._scopes[PUBLIC_SCOPE].keys() == {WHOLE_SCOPE}
    assert sum(map(len, pending._scopes)) <= 10_000
    while pending:
        pending.done(*pending.batch(3))
    assert pending._bytes == 0


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


def test_a_purge_that_is_asked_for_without_waiting_refuses_at_once_from_any_thread() -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        await guard.start()
        await write(guard, b"42", TAGGED)

        async def readable() -> None:
            if inner.calls[-1] == "purge":
                await refuse()

        inner.fault = readable
        await asyncio.to_thread(guard.purge_soon, {ACME: ["client:42"]})
        assert (await guard.get(b"42", SCOPES)).record is None
        assert (await inner.get(b"42", SCOPES)).record == TAGGED
        inner.fault = no_fault

        async def made() -> bool:
            return (await inner.get(b"42", SCOPES)).record is None

        await eventually(made, "the purge is made", 20)

    guarding(body)


def test_in_memory_it_is_made_without_a_task_and_before_the_start_it_is_kept() -> None:
    async def body() -> None:
        inner = MemoryStore(metrics=new_metrics())
        guard = GuardedStore(inner, metrics=new_metrics())
        before = (await inner.get(b"", [ACME])).positions
        guard.purge_soon({ACME: ["client:42"]})
        assert (await inner.get(b"", [ACME])).positions == before
        await guard.start()
        after = (await inner.get(b"", [ACME])).positions
        assert after != before
        guard.purge_soon({ACME: ["client:42"]})
        await asyncio.sleep(0)
        assert (await inner.get(b"", [ACME])).positions != after
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await guard.aclose()

    asyncio.run(body())


@pytest.mark.parametrize(
    ("tags", "void"),
    [({ACME: ["client:42"]}, [True, False]), ({PUBLIC_SCOPE: [WHOLE_SCOPE]}, [True, True])],
    ids=["a tag", "everything"],
)
def test_an_answer_read_before_a_pending_purge_and_heard_after_it_was_accepted_is_not_served(
    tags: dict[str, list[str]], void: list[bool]
) -> None:
    async def body(guard: GuardedStore, inner: Faulty, metrics: Metrics) -> None:
        await write(guard, b"42", TAGGED)
        await write(guard, b"43", entry(tags=((ACME, "client:43"),)))
        heard = asyncio.Event()
        read = inner.inner.get

        async def late(key: bytes, scopes: Sequence[str] = ()) -> Lookup:
            answer = await read(key, scopes)
            await heard.wait()
            return answer

        inner.inner.get = late  # type: ignore[method-assign]
        guard.purge_soon(tags)
        looks = [asyncio.create_task(guard.get(key, SCOPES)) for key in (b"42", b"43")]
        await asyncio.sleep(0)  # both have read
        await guard.start()

        async def accepted() -> bool:
            return guard.stats().extra["purges_pending"] == 0

        await eventually(accepted, "the purge is accepted", seconds=20.0)
        heard.set()
        assert [(await look).record is None for look in looks] == void
        assert not guard._pending._watching

    guarding(body, budget=30.0, settings=PATIENT)


@pytest.mark.parametrize("wrong", [["client:43"], 42, b"client:43", None])
def test_a_purge_of_what_is_no_tag_is_refused_and_no_other_is_the_worse_for_it(wrong: object) -> None:
    async def body(guard: GuardedStore, inner: Faulty, _metrics: Metrics) -> None:
        await write(guard, b"42", TAGGED)
        inner.fault = refuse
        assert (await guard.purge({PUBLIC_SCOPE: ["elsewhere"]})).state == "pending"
        with pytest.raises(TypeError, match="is no tag"):
            await guard.purge({ACME: ["client:42", wrong]})  # type: ignore[list-item]
        with pytest.raises(TypeError, match="is no tag"):
            guard.purge_soon({ACME: ["client:42", wrong]})  # type: ignore[list-item]
        assert guard.stats().extra["purges_pending"] == 1
        inner.fault = no_fault
        assert await guard.purge({ACME: ["client:42"]}) == Purge("done", 1)
        assert await found(guard, b"42") is None

        async def made() -> bool:
            return guard.stats().extra["purges_pending"] == 0

        await eventually(made, "nothing is pending")

    guarding(body)


class Parted(Faulty):
    """A store of which one part fails: each scope lies on a server of its own."""

    lost: Fault = staticmethod(no_fault)

    async def purge(self, tags: Mapping[str, Sequence[Target]]) -> Purge:
        for scope, targets in tags.items():
            if scope == "tenant:lost":
                await self.lost()
            await self.inner.purge({scope: targets})
        return Purge("done", sum(map(len, tags.values())))


@pytest.mark.parametrize("fault", [refuse, hang], ids=["refuses", "hangs"])
@pytest.mark.parametrize("lost", [1, 2 * BATCH])
def test_a_scope_that_the_store_does_not_take_holds_up_no_other(fault: Fault, lost: int) -> None:
    async def run() -> None:
        inner = Parted()
        inner.lost = fault
        guard = GuardedStore(inner, settings=PATIENT, metrics=new_metrics())
        await guard.start()
        await write(guard, b"42", TAGGED)
        tags = {"tenant:lost": [str(number) for number in range(lost)], ACME: ["client:42"]}
        assert (await guard.purge(tags)).state == "pending"

        async def all_but_the_lost() -> bool:
            return guard.stats().extra["purges_pending"] == lost

        await eventually(all_but_the_lost, "the purge of the other scope is made", 20.0)
        assert await found(inner, b"42") is None
        inner.lost = no_fault

        async def none() -> bool:
            return guard.stats().extra["purges_pending"] == 0

        await eventually(none, "the rest is made too", 20.0)
        await guard.aclose()

    asyncio.run(run())


def elsewhere(guard: GuardedStore, purged: list[Purge]) -> threading.Thread:
    """Code of an application in a thread of its own, which purges in an event loop of its own."""

    def run() -> None:
        purged.append(asyncio.run(guard.purge({ACME: ["client:42"]})))

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_purge_from_another_event_loop_is_made_in_the_one_that_the_store_answers_in(valkey: RedisServer) -> None:
    async def run() -> None:
        guard = GuardedStore(RedisStore(valkey.url, metrics=new_metrics()), budget=5.0, metrics=new_metrics())
        await guard.start()
        await write(guard, b"42", TAGGED)
        purged: list[Purge] = []
        thread = elsewhere(guard, purged)
        await asyncio.to_thread(thread.join)
        assert [purge.state for purge in purged] == ["done"]
        assert await found(guard, b"42") is None
        await guard.aclose()

    asyncio.run(run())


@pytest.mark.blocks_the_loop("a loop that is held up is what it is about")
def test_a_purge_from_another_event_loop_does_not_wait_for_one_that_is_held_up_and_is_made_later() -> None:
    async def run() -> None:
        inner, metrics = Faulty(), new_metrics()
        guard = GuardedStore(inner, metrics=metrics)
        await guard.start()
        await write(guard, b"42", TAGGED)
        purged: list[Purge] = []
        elsewhere(guard, purged).join()  # on purpose: the loop does nothing meanwhile
        assert [purge.state for purge in purged] == ["pending"]
        assert await found(guard, b"42") is None, "refused from the moment that it was asked for"

        async def made() -> bool:
            return guard.stats().extra["purges_pending"] == 0 and await found(inner, b"42") is None

        await eventually(made, "it is made", 20.0)
        await guard.aclose()
        counted = {outcome: metrics.purges.labels(outcome)._value.get() for outcome in ("pending", "done")}
        assert counted == {"pending": 1, "done": 0}, "once, as its caller was told"

    asyncio.run(run())


def at_home(guard: GuardedStore) -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    """Start it in an event loop that runs in a thread of its own."""
    home = asyncio.new_event_loop()
    home.run_until_complete(guard.start())
    thread = threading.Thread(target=home.run_forever)
    thread.start()
    return home, thread


def test_a_purge_whose_home_loop_stops_just_then_is_made_where_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inner = Faulty()
    guard = GuardedStore(inner, metrics=new_metrics())
    home, thread = at_home(guard)
    real = Purges._home

    def stopping(self: Purges) -> asyncio.AbstractEventLoop | None:
        found = real(self)
        if found is not None:
            found.call_soon_threadsafe(found.stop)
            thread.join()
        return found

    async def run() -> None:
        assert (await guard.purge({ACME: ["client:42"]})).state == "pending"

        async def made() -> bool:
            return guard.stats().extra["purges_pending"] == 0 and "purge" in inner.calls

        await eventually(made, "it is made", 20.0)

    monkeypatch.setattr(Purges, "_home", stopping)
    asyncio.run(run())
    home.run_until_complete(asyncio.sleep(0))  # only now it comes to what it was asked for
    home.run_until_complete(asyncio.sleep(0))
    home.close()


def test_a_purge_whose_home_loop_is_closed_just_then_is_made_where_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inner = Faulty()
    purges = GuardedStore(inner, metrics=new_metrics())
    home, thread = at_home(purges)
    real = Purges._home

    def closing(self: Purges) -> asyncio.AbstractEventLoop | None:
        found = real(self)
        if found is not None:
            found.call_soon_threadsafe(found.stop)
            thread.join()
            found.close()
        return found

    monkeypatch.setattr(Purges, "_home", closing)
    assert asyncio.run(purges.purge({ACME: ["client:42"]})).state == "done"
    assert home.is_closed()


_FORKED = """
import asyncio, os
from tests.middleware.stores.guarding import Faulty, no_fault, refuse
from tests.middleware.stores.support import ACME, eventually, new_metrics
from tidegate.middleware.stores.guard import GuardedStore

inner = Faulty()
inner.fault = refuse
guard = GuardedStore(inner, metrics=new_metrics())

async def none():
    return guard.stats().extra["purges_pending"] == 0

async def well_again():
    await guard.start()
    inner.fault = no_fault
    await eventually(none, "all is made", 20.0)
    print(os.getpid() == parent, "made", flush=True)

async def run():
    await guard.start()
    assert (await guard.purge({ACME: ["client:42"]})).state == "pending"
    if not (child := os.fork()):
        asyncio.events._set_running_loop(None)
        asyncio.run(well_again())
        os._exit(0)
    await asyncio.to_thread(os.waitpid, child, 0)
    await well_again()

parent = os.getpid()
asyncio.run(run())
"""


def test_after_a_fork_each_process_makes_the_purges_that_were_pending() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORKED],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.splitlines() == ["False made", "True made"], done.stderr
