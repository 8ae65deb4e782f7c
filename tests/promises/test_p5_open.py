"""P5: whatever becomes of Redis, requests are answered, a write returns, and what it changed is not served again.

Each fault is a real server's, or on the way to one. Fifty callers make 1,000 requests before, during and after it.
Times are compared with those of the bare app in the same crowd, so that a busy machine delays both.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from statistics import median

import pytest

from tests.promises.faults.kinds import FAULTS, Fault, Place
from tests.promises.faults.stage import CALLERS, LogLines, Stage, timed
from tidegate.errors import StoreError
from tidegate.middleware.stores.guard import STORE_BREAKER

BUDGET = 0.050
"""Seconds that a request waits for the store at most."""

OPEN = 0.001
"""Seconds that it waits while the breaker is open."""

PROBE = STORE_BREAKER.open_for
PURGED = 1.0
"""Seconds after the end of a fault by which a purge is made."""

STEP = 0.01
WRITTEN, PURGED_PAGE, NEIGHBOUR = "7", "8", "3"


@pytest.fixture
def log() -> Iterator[LogLines]:
    handler, logger = LogLines(), logging.getLogger("tidegate")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


async def steps_until(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = 30.0) -> float:
    """Seconds until the condition holds, counted in the steps that this process came to make: they stand still while
    the machine keeps it from running."""
    deadline, steps = time.monotonic() + seconds, 0
    while not await condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        await asyncio.sleep(STEP)
        steps += 1
    return steps * STEP


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_of_redis_costs_no_answer_little_time_and_no_purge(fault: Fault, log: LogLines) -> None:
    async def story() -> None:
        async with Place.of(fault) as place, Stage(place.url, place.direct) as stage:
            await warm(stage, f"{fault.name}: before")
            healthy = await stage.burst()
            broken, connected = time.monotonic(), connections(place)
            await asyncio.to_thread(fault.begin, place)
            await first_requests(stage, healthy)
            await written(stage, fault)
            await during(stage, fault, until=broken + fault.lasts)
            lasted = time.monotonic() - broken
            bound_connections(connections(place) - connected, lasted)
            await asyncio.to_thread(fault.end, place)
            await recovered(stage)
            await warm(stage, "after")
            assert stage.old == stage.mixed == []
            assert stage.asked_again >= 60, "hardly anybody asked for what was written"
            assert log.closest() > 0.9, f"more than a line a second: {log.lines}"

    asyncio.run(story())


async def warm(stage: Stage, when: str) -> None:
    """1,000 requests, nearly all of them hits in Redis."""

    async def filled() -> bool:
        return (await stage.crowd()).share >= 0.95

    await steps_until(filled, "hits")
    crowd = await stage.crowd()
    print(f"{when}: {crowd}")
    assert crowd.share >= 0.9


async def first_requests(stage: Stage, healthy: list[float]) -> None:
    """Fifty at once after the fault began, beside fifty to the bare app that wait for the budget first."""

    async def late() -> float:
        return await timed(asyncio.sleep(BUDGET)) + await stage.bare()

    beside = asyncio.gather(*(late() for _ in range(CALLERS)))
    burst = await stage.burst()
    delayed = await beside
    print(
        f"first requests: {shown(burst)}; bare, {1000 * BUDGET:g} ms late: {shown(delayed)}; before: {shown(healthy)}"
    )
    # The work of fifty misses comes on top, and a deadline that was missed by the loop is prolonged by as much.
    assert median(burst) <= median(delayed) + 2 * median(healthy) + 0.01
    assert max(burst) <= 2 * max(delayed) + 2 * max(healthy) + 0.01


async def written(stage: Stage, fault: Fault) -> None:
    """A page is changed by a request, another outside of one."""
    took = await timed(stage.write(WRITTEN))
    purge = await stage.purge(PURGED_PAGE)
    print(f"a write took {1000 * took:.1f} ms, a purge is {purge.state}, {stage.pending:g} tags wait")
    assert purge.state == fault.purge
    assert bool(stage.pending) == (fault.purge == "pending")


async def during(stage: Stage, fault: Fault, *, until: float) -> None:
    """1,000 requests, half of them for cold pages; then one after the other until the fault has lasted long enough."""
    crowd = await stage.crowd(cold=5)
    print(f"during: {crowd}")
    best = min([await above_bare(stage) for _ in range(5)])
    state = stage.tide.store.breaker.state
    print(f"one by one: {1000 * best:.3f} ms above bare, breaker {state}, {stage.errors():g} errors counted")
    if fault.reads:
        await reads(stage)
    else:
        assert state != "closed"
        assert best <= OPEN
        assert stage.errors() > 0
    if fault.purge == "pending":
        await kept_back(stage, fault)
    # To the worst moment: a probe has failed just now.
    while time.monotonic() < until or 0 < stage.tide.store.breaker.retry_after < 0.95 * PROBE:
        await stage.get(stage.cold())
        assert not await stage.get(WRITTEN) or fault.purge == "done"
        await asyncio.sleep(STEP)
    if fault.reads:
        await reads(stage)
    if fault.purge == "pending":
        await kept_back(stage, fault)


async def reads(stage: Stage) -> None:
    """Look-ups go on, but for a moment in which a better master is looked for."""

    async def hits() -> bool:
        return (await stage.crowd()).share >= 0.95

    await steps_until(hits, "look-ups go on", 3 * PROBE)


async def kept_back(stage: Stage, fault: Fault) -> None:
    """What is purged lies there still, and this process does not serve it."""
    assert stage.pending
    for page in (WRITTEN, PURGED_PAGE):
        assert not await stage.get(page)
        if fault.untouched:
            assert await stage.lies_there(page) == 0, "nothing to keep back"


async def above_bare(stage: Stage) -> float:
    """Seconds that a request for a cold page takes, alone, above one to the bare app."""
    bare, ours = list[float](), list[float]()
    for _ in range(40):
        bare.append(await stage.bare())
        ours.append(await timed(stage.get(stage.cold())))
    return median(ours) - median(bare)


async def recovered(stage: Stage) -> None:
    """Hits within a probe interval, purges made within a second: both looked at from outside."""

    async def hits() -> bool:
        return await stage.get(NEIGHBOUR) or await stage.get("4")

    async def purged() -> bool:
        try:
            return 0 not in [await stage.lies_there(page) for page in (WRITTEN, PURGED_PAGE)]
        except StoreError:
            return False

    began = time.monotonic()
    hit, made = await asyncio.gather(steps_until(hits, "a hit"), steps_until(purged, "the purges"))
    print(f"a hit after {hit:.2f} s, purges made after {made:.2f} s ({time.monotonic() - began:.2f} s by the clock)")
    assert hit <= PROBE + 0.3
    assert made <= PURGED + 0.3


def connections(place: Place) -> int:
    """How many were made to the server, or to the proxy."""
    return place.proxy.connections if place.proxy is not None else 0


def bound_connections(made: int, seconds: float) -> None:
    """A lost connection is tried again some times a second, not more."""
    print(f"{made} connections in {seconds:.1f} s")
    assert made <= 10 + 12 * seconds


def shown(times: list[float]) -> str:
    """In milliseconds."""
    return f"median {1000 * median(times):.1f}, longest {1000 * max(times):.1f} ms"
