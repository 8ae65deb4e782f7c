"""P4 and P5 while somebody does with a Redis in use what administrators do: kills connections, pauses clients, empties
it, forgets scripts. Requests are answered, purges are made, nothing is served that was purged, and hits come back.
"""

import asyncio
import random

import pytest

from tests.promises.faults.judging import steps_until, warm
from tests.promises.faults.stage import PAGES, Stage
from tests.services import Valkey

READERS = 8
ASKED = 40
"""Requests between two acts, at least."""

PURGED = 4
"""Changes of a page between them."""

KILLED = [("CLIENT", "KILL", "TYPE", "normal")] * 8
PAUSED = [("CLIENT", "PAUSE", "300", "ALL")] * 2
UNWRITTEN = [("CLIENT", "PAUSE", "300", "WRITE")] * 2
EMPTIED = [("FLUSHALL",), ("FLUSHDB", "ASYNC")] * 4
FORGOTTEN = [("SCRIPT", "FLUSH")] * 8


class Traffic:
    """Readers, and one who changes pages and purges them."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.over = False
        self.asked = self.hits = self.purged = 0

    async def read(self) -> None:
        """Ask for pages, one after the other."""
        while not self.over:
            self.hits += await self.stage.get(random.randrange(PAGES))
            self.asked += 1
            await asyncio.sleep(0)

    async def write(self) -> None:
        """Change pages, in a request and outside of one."""
        while not self.over:
            page = str(random.randrange(PAGES))
            await (self.stage.write(page) if self.purged % 2 else self.stage.purge(page))
            self.purged += 1
            await asyncio.sleep(0.005)  # nothing is waited for: that many changes a second, not all that are possible

    async def goes_on(self) -> None:
        """Returns when enough were answered since now."""
        asked, purged = self.asked + ASKED, self.purged + PURGED

        async def enough() -> bool:
            return self.asked >= asked and self.purged >= purged

        await steps_until(enough, "requests are answered")


ACTS = {
    "connections killed": KILLED,
    "paused": PAUSED,
    "writes paused": UNWRITTEN,
    "emptied": EMPTIED,
    "scripts forgotten": FORGOTTEN,
}
PLAYS = [
    (name, memory) for name in ACTS for memory in (True, False) if memory or name != "emptied"
]  # else nobody hears


@pytest.mark.parametrize(("name", "memory"), PLAYS, ids=[f"{name}{', memory' * memory}" for name, memory in PLAYS])
def test_whatever_is_done_to_a_redis_in_use(valkey: Valkey, name: str, memory: bool) -> None:
    acts = ACTS[name]

    async def story() -> None:
        async with Stage(valkey.url, valkey.url, memory=memory) as stage:
            await warm(stage, "before")
            traffic = Traffic(stage)
            tasks = [asyncio.create_task(work()) for work in (*[traffic.read] * READERS, traffic.write)]
            for act in acts:
                await asyncio.to_thread(valkey.command_reply, *act)
                await traffic.goes_on()
            traffic.over = True
            await asyncio.gather(*tasks)
            print(f"{traffic.asked} asked, {traffic.hits} hits, {traffic.purged} purged, {stage.errors:g} errors")
            await steps_until(lambda: made(stage), "all purges are made")
            if acts is EMPTIED:
                # What was on its way may be served until all is purged because of it: for milliseconds.
                await steps_until(stands, "it is seen that it was emptied")
                stage.old.clear()
            await warm(stage, "after")
            for page in map(str, range(PAGES)):
                await stage.get(page)  # which looks whether it is old
                assert await stage.lies_there(page) in (None, stage.world.versions.get(page, 0)), "old in Redis"
            assert stage.old == stage.mixed == []
            assert traffic.purged >= PURGED * len(acts)

    async def made(stage: Stage) -> bool:
        return not stage.pending

    async def stands() -> bool:
        return await asyncio.to_thread(valkey.command_reply, "EXISTS", "tidegate:h") == b"1"

    asyncio.run(story())
