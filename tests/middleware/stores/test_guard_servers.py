"""The guard over real servers that are killed, suspended, and left in the middle of a call."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.middleware.stores.guarding import (
    TAGGED,
    errors,
)
from tests.middleware.stores.support import ACME, SCOPES, entry, eventually, new_metrics, positions, write
from tests.services import RedisServer
from tidegate.middleware.core.breaker import BreakerSettings
from tidegate.middleware.stores.base import Lookup
from tidegate.middleware.stores.guard import GuardedStore
from tidegate.middleware.stores.redis import RedisStore

Start = Callable[..., RedisServer]


async def hit_ratio(guard: GuardedStore, rounds: int = 10) -> float:
    """Of 50 concurrent look-ups of known keys, each within its time."""
    hits = 0

    async def ask(number: int) -> bool:
        began = time.monotonic()
        record = (await guard.get(b"%d" % number, SCOPES)).record
        assert time.monotonic() - began < 3.0, "a look-up waited for the server and not for its budget"
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
        async def whole() -> bool:
            return await hit_ratio(guard, 1) == 1.0

        # Several goes: on a crowded machine a write may miss its deadline, and is then lost.
        for _ in range(10):
            with suppress(AssertionError):
                read = await positions(guard)
                for number in range(50):
                    await guard.put(
                        b"%d" % number, entry(tags=((ACME, f"client:{number}"),), positions=read), retain=60
                    )
                await eventually(whole, "all fifty are hits")
                return
        pytest.fail("fifty writes are never all made")

    async def story(guard: GuardedStore) -> None:
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

        await eventually(purged, "the purge is made and the breaker closed", seconds=20.0)
        if how == "suspended":
            assert await hit_ratio(guard) == 49 / 50, "all but the purged one are still there"
        await fill(guard)
        assert await hit_ratio(guard) > 0.95

    async def run() -> None:
        guard = GuardedStore(
            RedisStore(server.url, metrics=metrics),
            metrics=metrics,
            budget=0.25,
            settings=BreakerSettings(consecutive=5, open_for=0.2),
        )
        await guard.start()
        try:
            await story(guard)
        finally:
            await guard.aclose()

    asyncio.run(run())


def test_cancelled_look_ups_leave_a_guarded_server_usable(server: RedisServer) -> None:
    metrics = new_metrics()

    async def run() -> None:
        guard = GuardedStore(RedisStore(server.url, metrics=metrics), metrics=metrics, budget=2.0)
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


def test_an_event_loop_that_was_held_up_is_no_failure_of_the_server(server: RedisServer) -> None:
    metrics = new_metrics()

    async def run() -> None:
        guard = GuardedStore(RedisStore(server.url, metrics=metrics), metrics=metrics, budget=0.05)
        await write(guard, b"key", TAGGED)
        for _ in range(5):
            asked = asyncio.create_task(guard.get(b"key", SCOPES))
            await asyncio.sleep(0)
            time.sleep(0.12)  # noqa: ASYNC251 - some other code of the application, that blocks
            assert (await asked).record == TAGGED
        assert errors(metrics) == 0
        await guard.aclose()

    asyncio.run(run())
