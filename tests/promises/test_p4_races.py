"""P4: a response that was on its way when its tag was purged is not served afterwards, and a server out of memory
brings nothing back."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis as Client

from tests.driver import User, call
from tests.services import RedisServer, Valkey
from tidegate import RoutePolicy, Settings, Tidegate
from tidegate.middleware.core.records import Entry
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.guard import GuardedStore
from tidegate.middleware.stores.redis import RedisStore
from tidegate.middleware.stores.tiered import in_front_of

ANN = User("acme", "ann")
FILLS = 400
TOGETHER = 20
_Client: Any = Client


class Race:
    """Workers on one Redis, each with stack and store of its own, before one slow app that says what it saw."""

    def __init__(self, url: str, workers: int) -> None:
        self.chance = random.Random(7)
        self.truth = [1] * FILLS
        self.collapsed = 0
        self.late: list[tuple[int, int, int]] = []
        """What was older than a purge that its own worker had made before it was asked for."""
        policies = [RoutePolicy(route="/clients/{client}", ttl=600, share="tenant", tags=("client:{client}",))]
        settings = Settings.of({"store": {"url": url, "budget": 10.0}})
        self.tides = [Tidegate(settings, policies=policies, registry=CollectorRegistry()) for _ in range(workers)]
        self.stacks = [tide(self._app) for tide in self.tides]

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(self.chance.uniform(0, 0.003))
        body = b"%d" % self.truth[int(scope["path"].rpartition("/")[2])]
        await asyncio.sleep(self.chance.uniform(0, 0.003))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await asyncio.sleep(self.chance.uniform(0, 0.001))
        await send({"type": "http.response.body", "body": body})

    async def ask(self, worker: int, client: int) -> tuple[int, bool]:
        """Version and whether it was a hit."""
        answer = await call(self.stacks[worker], f"/clients/{client}", user=ANN)
        self.collapsed += "collapsed" in (answer.header("cache-status") or "")
        return int(answer.body), answer.hit

    async def fill(self, client: int) -> None:
        """Requests that one run of the app may answer, and a purge at any moment of it. One more request after every
        second one: what that stores would hide what the others left behind."""
        workers = range(len(self.tides))
        asking = [asyncio.create_task(self.ask(self.chance.choice(workers), client)) for _ in range(4)]
        await asyncio.sleep(self.chance.uniform(0, 0.012))
        self.truth[client] += 1
        purging = self.chance.choice(workers)
        purge = await self.tides[purging].purge(f"client:{client}", tenant="acme")
        assert purge.state == "done"
        if client % 2:
            version, _ = await self.ask(purging, client)
            if version != self.truth[client]:
                self.late.append((client, version, self.truth[client]))
        await asyncio.gather(*asking)

    async def run(self, url: str) -> tuple[list[tuple[int, int, int]], int]:
        """All fills. Returns what is older than the truth in the end (worker, client, version), and how many hits were
        among those answers."""
        for tide in self.tides:
            await tide.start()
        client = _Client.from_url(url, socket_timeout=None)
        try:
            for first in range(0, FILLS, TOGETHER):
                await asyncio.gather(*(self.fill(number) for number in range(first, first + TOGETHER)))
            # All pushes are here when this answer is, and worked off a pass later.
            await client.ping()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            old: list[tuple[int, int, int]] = []
            hits = 0
            for worker in range(len(self.tides)):
                for number in range(FILLS):
                    version, hit = await self.ask(worker, number)
                    hits += hit
                    if version != self.truth[number]:
                        old.append((worker, number, version))
            return old, hits
        finally:
            await client.aclose()
            for tide in self.tides:
                await tide.aclose()


@pytest.mark.parametrize("workers", [1, 2])
def test_no_fill_that_races_a_purge_comes_back(workers: int, valkey: Valkey) -> None:
    """400 fills, several requests waiting for each, one purge into each."""
    race = Race(valkey.url, workers)
    old, hits = asyncio.run(race.run(valkey.url))
    print(f"{hits} hits among {FILLS * workers} answers in the end, {race.collapsed} answers from another's run")
    assert not old
    assert not race.late
    assert hits >= FILLS * workers * 0.3
    assert race.collapsed >= 100


POLICIES = ["noeviction", "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"]
SCOPE = "tenant:acme"


def _entry(number: int, position: int) -> Entry:
    return Entry(
        status=200,
        headers=(),
        body=b"%8d" % number * 2500,
        born=0.0,
        lifetime=1e12,
        tags=((SCOPE, f"client:{number}"),),
        positions=((SCOPE, position),),
    )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("start", ["start_valkey", "start_redis"])
def test_a_server_out_of_memory_takes_purges_and_brings_nothing_back(
    start: str, policy: str, request: pytest.FixtureRequest
) -> None:
    """Twice as much is written as there is room for; every fourth record is purged at once, and written again as a fill
    would that began before the purge."""
    starting: Callable[..., RedisServer] = request.getfixturevalue(start)
    server = starting(options={"maxmemory": "8mb", "maxmemory-policy": policy})

    async def run() -> None:
        metrics = Metrics.of(CollectorRegistry())
        far = in_front_of(RedisStore(server.url, metrics=metrics), max_bytes=1 << 20, metrics=metrics)
        store = GuardedStore(far, budget=10.0, metrics=metrics)
        await store.start()
        client = _Client.from_url(server.url, socket_timeout=None)
        refused, purged = 0, list[int]()
        try:
            for number in range(800):
                positions = (await far.get(b"none", (SCOPE,))).positions
                assert positions is not None
                refused += not await far.put(b"%d" % number, _entry(number, positions[SCOPE]), retain=600.0 + number)
                if number % 4 == 0:
                    purge = await store.purge({SCOPE: [f"client:{number}"]})
                    assert purge.state == "done" or (await store.get(b"%d" % number)).record is None
                    purged.append(number)
                    await far.put(b"%d" % number, _entry(number, positions[SCOPE]), retain=600.0 + number)
            evicted = (await client.info("stats"))["evicted_keys"]
            found = [number for number in range(800) if (await store.get(b"%d" % number)).record is not None]
            print(f"{policy}: {evicted} evicted, {refused} refused, {len(found)} found, {len(purged)} purged")
            assert store.stats().extra["purges_pending"] == 0
            assert not set(found) & set(purged)
            assert len(found) >= 50
            assert (refused if policy == "noeviction" else evicted) >= 200
        finally:
            await client.aclose()
            await store.aclose()

    asyncio.run(run())
