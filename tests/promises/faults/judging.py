"""What P5 asks of each fault, piece by piece; figures are printed.

Times are compared with those of the bare app in the same crowd, or counted in what this process came to do, so that a
busy machine delays both sides.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Final

from tests.promises.faults.kinds import Fault, Place
from tests.promises.faults.stage import CALLERS, Stage, timed
from tidegate.errors import StoreError

__all__ = [
    "BUDGET",
    "NEIGHBOUR",
    "PROBE",
    "SLACK",
    "Herd",
    "during",
    "first_requests",
    "recovered",
    "shown",
    "steps_until",
    "warm",
    "written",
]

BUDGET: Final = 0.050
"""Seconds that a request waits for the store at most."""

OPEN: Final = 0.001
"""Seconds that it waits while the breaker is open."""

PROBE: Final = 1.0
"""Seconds between probes, within which it is seen that the store is back."""

RECONNECT: Final = 0.5
"""Seconds between attempts to connect, within which that is seen of a connection that was lost."""

PURGED: Final = 1.0
"""Seconds after the end of a fault by which a purge is made."""

STEP: Final = 0.01

SLACK: Final = 0.35
"""Seconds beside those, for what a busy machine does between."""

WRITTEN: Final = "7"
OUTSIDE: Final = "8"
NEIGHBOUR: Final = "3"


async def steps_until(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = 30.0) -> float:
    """Seconds until the condition holds; of a step that took long, because the machine let this process wait, only its
    first hundredths count."""
    began = last = time.monotonic()
    counted = 0.0
    while not await condition():
        await asyncio.sleep(STEP)
        now = time.monotonic()
        counted += min(now - last, 2 * STEP)
        last = now
        assert now - began < seconds, f"{what}: not within {seconds:g} s"
    return counted


async def warm(stage: Stage, when: str) -> None:
    """1,000 requests, nearly all of them hits in Redis."""

    async def filled() -> bool:
        crowd = await stage.crowd()
        if crowd.share >= 0.9:
            print(f"{when}: {crowd}")
        return crowd.share >= 0.9

    await steps_until(filled, "hits")


async def first_requests(stage: Stage, healthy: list[float]) -> None:
    """Fifty at once after the fault began, beside fifty to the bare app that wait for the budget first."""

    async def late() -> float:
        return await timed(asyncio.sleep(BUDGET)) + await stage.bare()

    beside = asyncio.gather(*(late() for _ in range(CALLERS)))
    burst = await stage.burst()
    delayed = await beside
    late_by = f"bare, {1000 * BUDGET:g} ms late: {shown(delayed)}"
    print(f"first requests: {shown(burst)}; {late_by}; before: {shown(healthy)}")
    # The work of fifty misses comes on top, and a deadline that was missed by the loop is prolonged by as much.
    assert median(burst) <= median(delayed) + 2 * median(healthy) + 0.01
    assert max(burst) <= 2 * max(delayed) + 2 * max(healthy) + 0.01


async def written(stage: Stage, fault: Fault) -> None:
    """A page is changed by a request, another outside of one."""
    took = await timed(stage.write(WRITTEN))
    purge = await stage.purge(OUTSIDE)
    print(f"a write took {1000 * took:.1f} ms, a purge is {purge.state}, {stage.pending:g} tags wait")
    assert purge.state == fault.purge
    assert bool(stage.pending) == (fault.purge == "pending")


async def during(stage: Stage, fault: Fault, *, until: float) -> None:
    """1,000 requests, half of them for cold pages; then one after the other until the fault has lasted long enough."""
    crowd = await stage.crowd(cold=5)
    print(f"during: {crowd}")
    best = min([await _above_bare(stage) for _ in range(5)])
    state = stage.tide.store.breaker.state
    print(f"one by one: {1000 * best:.3f} ms above bare, breaker {state}, {stage.errors:g} errors counted")
    if not fault.reads:
        assert state != "closed"
        assert best <= OPEN
        assert stage.errors > 0
    # To the worst moment: a probe has failed just now.
    while time.monotonic() < until or 0 < stage.tide.store.breaker.retry_after < 0.95 * PROBE:
        await stage.get(stage.cold())
        assert not await stage.get(WRITTEN) or fault.purge == "done"
        await asyncio.sleep(STEP)
    if fault.reads:
        await _reads(stage)
        assert stage.opened <= (fault.name == "read-only replica"), "refused writes are no reason to stop reading"
    if fault.purge == "pending":
        await _kept_back(stage, fault)


async def _reads(stage: Stage) -> None:
    """Look-ups go on, but for a moment in which a better master is looked for, every five seconds."""

    async def hits() -> bool:
        return (await stage.crowd(cold=5)).share >= 0.9

    await steps_until(hits, "look-ups go on")


async def _kept_back(stage: Stage, fault: Fault) -> None:
    """What is purged lies there still, could be looked up, and this process does not serve it."""
    assert stage.pending
    for page in (WRITTEN, OUTSIDE):
        assert not await stage.get(page)
        if fault.untouched:
            assert await stage.lies_there(page) == 0, "nothing to keep back"


async def _above_bare(stage: Stage) -> float:
    """Seconds that a request for a cold page takes, alone, above one to the bare app."""
    bare, ours = list[float](), list[float]()
    for _ in range(40):
        bare.append(await stage.bare())
        ours.append(await timed(stage.get(stage.cold())))
    return median(ours) - median(bare)


async def recovered(stage: Stage, *, severed: bool = False) -> None:
    """Hits within a probe interval, purges made within a second: both looked at from outside."""

    async def hits() -> bool:
        return await stage.get(NEIGHBOUR) or await stage.get("4")

    async def purged() -> bool:
        try:
            return 0 not in [await stage.lies_there(page) for page in (WRITTEN, OUTSIDE)]
        except StoreError:
            return False

    began = time.monotonic()
    hit, made = await asyncio.gather(steps_until(hits, "a hit"), steps_until(purged, "the purges"))
    print(f"a hit after {hit:.2f} s, purges made after {made:.2f} s ({time.monotonic() - began:.2f} s by the clock)")
    assert hit <= (RECONNECT if severed else PROBE) + SLACK
    assert made <= PURGED + SLACK


class Herd:
    """What the server has seen of connections and look-ups, through a fault and after it."""

    def __init__(self, stage: Stage, place: Place) -> None:
        self._stage = stage
        self._place = place
        self._began = time.monotonic()
        self._run, self._connections, self._reads = self._seen()
        self._looked = stage.looked

    def _seen(self) -> tuple[str, int, int]:
        place = self._place
        stats = place.tell("INFO", "commandstats").decode()
        reads = [line for line in stats.splitlines() if line.startswith("cmdstat_mget:calls=")]
        calls = int(reads[0].partition("=")[2].partition(",")[0]) if reads else 0
        return place.info("server", "run_id"), int(place.info("stats", "total_connections_received")), calls

    def bound(self, fault: Fault) -> None:
        """A lost connection is tried again some times a second, not more; while the store fails, look-ups are few."""
        seconds = time.monotonic() - self._began
        run, connections, reads = self._seen()
        if run == self._run:  # one that was started again has counted from its start
            connections, reads = connections - self._connections, reads - self._reads
        now = self._place.tell("CLIENT", "LIST").decode().count("user=app")
        looked = self._stage.looked - self._looked
        print(
            f"the server saw {connections} connections, {reads} look-ups, {looked} times two of them ours, {now} open"
        )
        assert connections <= 20 + 15 * seconds
        assert now <= 6
        if not fault.reads:
            assert reads <= 60 + 2 * looked + 4 * seconds


def shown(times: list[float]) -> str:
    """In milliseconds."""
    return f"median {1000 * median(times):.1f}, longest {1000 * max(times):.1f} ms"
