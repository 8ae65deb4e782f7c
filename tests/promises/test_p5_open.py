"""P5: whatever becomes of Redis, requests are answered, a write returns, and what it changed is not served again.

Each fault is a real server's, or on the way to one. Fifty callers make 1,000 requests before, during and after it.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from statistics import median

import pytest

from tests.promises.faults.judging import (
    BUDGET,
    NEIGHBOUR,
    Herd,
    during,
    first_requests,
    recovered,
    steps_until,
    warm,
    written,
)
from tests.promises.faults.kinds import ABSENT, FAILOVER, FAULTS, Fault, Place
from tests.promises.faults.stage import PAGES, LogLines, Stage, timed
from tests.services import SentinelTrio, Valkey

HANGS = next(fault for fault in FAULTS if fault.name == "hangs")


@pytest.fixture
def log() -> Iterator[LogLines]:
    handler, logger = LogLines(), logging.getLogger("tidegate")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_of_redis_costs_no_answer_little_time_and_no_purge(fault: Fault, log: LogLines) -> None:
    # Where Redis goes on answering, it is not about how soon it does on a busy machine.
    budget = 2.0 if fault.reads else BUDGET

    async def story() -> None:
        async with Place.of(fault) as place, Stage(place.url, place.direct, budget=budget) as stage:
            await warm(stage, f"{fault.name}: before")
            healthy = await stage.burst()
            herd, broken = await asyncio.to_thread(Herd, stage, place), time.monotonic()
            await asyncio.to_thread(fault.begin, place)
            await first_requests(stage, healthy)
            await written(stage, fault)
            await during(stage, fault, until=broken + fault.lasts)
            await asyncio.to_thread(fault.end, place)
            await recovered(stage, severed=fault.severs)
            await asyncio.to_thread(herd.bound, fault)
            await warm(stage, "after")
            fair(stage, log)
            told(fault, stage, log)

    asyncio.run(story())


def test_a_failover_costs_no_answer_and_no_purge(log: LogLines) -> None:
    async def story(trio: SentinelTrio) -> None:
        replica = trio.replica
        async with Stage(trio.url, replica.url) as stage:
            await warm(stage, "failover: before")
            healthy = await stage.burst()
            await asyncio.to_thread(trio.master.kill)
            await first_requests(stage, healthy)
            await written(stage, FAILOVER)
            await during(stage, FAILOVER, until=0.0)
            for page in ("7", "8"):
                assert await stage.lies_there(page) == 0, "the replica has what is to be purged"
            await steps_until(lambda: named(trio), "the Sentinels name the replica", 60.0)
            await recovered(stage)
            await warm(stage, "after")
            fair(stage, log)
            told(FAILOVER, stage, log)

    async def named(trio: SentinelTrio) -> bool:
        wanted = f"address={trio.replica.host}:{trio.replica.port},"
        told = [await asyncio.to_thread(one.command_reply, "INFO", "sentinel") for one in trio.sentinels]
        return all(wanted in each.decode() for each in told)

    with SentinelTrio(down_after=1.0) as trio:
        asyncio.run(story(trio))


def test_a_redis_that_is_not_there_yet_is_found_when_it_comes(log: LogLines) -> None:
    server = Valkey()

    async def story() -> None:
        async with Stage(server.url, server.url) as stage:
            absent = await stage.crowd(cold=5)
            print(f"{ABSENT}: {absent}")
            assert absent.hits == 0
            await asyncio.to_thread(server.start)

            async def stored() -> bool:
                return await stage.get(NEIGHBOUR)

            print(f"a hit after {await steps_until(stored, 'a hit'):.2f} s")
            await warm(stage, "after")
            fair(stage, log, written=False)

    try:
        asyncio.run(story())
    finally:
        server.kill()


def test_what_was_written_is_not_served_from_memory_and_soon_nothing_is() -> None:
    """The first thing that happens in the fault is a write; memory in front answers for what it did not concern."""

    async def story() -> None:
        async with Place.of(HANGS) as place, Stage(place.url, place.direct, memory=True) as stage:
            for attempt in range(5):
                await warm(stage, f"hangs, with memory, {attempt}: before")
                await asyncio.to_thread(place.server.suspend)
                late = asyncio.gather(*(timed(asyncio.sleep(BUDGET)) for _ in range(20)))
                took = await timed(stage.write("7"))
                delayed = median(await late)
                hits = sum([await stage.get(page) for page in range(PAGES)])
                stale = await stage.get("7")
                print(
                    f"a write took {1000 * took:.1f} ms, {1000 * delayed:.1f} ms would do; then {hits} hits in memory"
                )
                assert took <= 2 * delayed + 0.02
                assert stage.pending
                assert not stale

                async def deaf() -> bool:
                    return not await stage.get(NEIGHBOUR)

                gone = await steps_until(deaf, "memory gives nothing")
                print(f"nothing from memory after {gone:.2f} s")
                assert gone <= 1.2
                await asyncio.to_thread(place.server.resume)
                await steps_until(lambda: made(stage), "the purge is made")
                if hits >= PAGES / 2:  # the machine let us ask while memory knew
                    break
            else:
                pytest.fail("never a hit in memory")
            assert stage.old == []

    async def made(stage: Stage) -> bool:
        return not stage.pending

    asyncio.run(story())


def fair(stage: Stage, log: LogLines, *, written: bool = True) -> None:
    """Every answer was the right one, and the log has not been flooded."""
    assert stage.old == stage.mixed == []
    assert not written or stage.asked_again >= 60, "hardly anybody asked for what was written"
    print(f"{len(log.lines)} lines in the log, {stage.errors:g} errors counted")
    assert log.closest() > 0.9, f"more than a line a second: {log.lines}"


def told(fault: Fault, stage: Stage, log: LogLines) -> None:
    """What docs/failures.md says that one can see."""
    assert fault.says in log.text
    store = {} if fault.purge == "done" else {"store": "store"}
    assert stage.count(fault.counted.name, **store, **dict(fault.counted.labels)) > 0
