"""A purge says whether a replica has it, and who asks for records does not wait for that."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.middleware.stores.support import ACME, entry, eventually, new_metrics, positions, write
from tests.services import RedisCluster, RedisServer, SentinelTrio, wait_until
from tidegate.errors import StoreError
from tidegate.middleware.core.records import Entry
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores import redis_replicas
from tidegate.middleware.stores.guard import GuardedStore
from tidegate.middleware.stores.redis import RedisStore


def count(metrics: Metrics, outcome: str) -> float:
    return float(metrics.purges.labels(outcome)._value.get())


def test_a_server_without_replicas_says_nothing_of_durability(server: RedisServer) -> None:
    async def run() -> None:
        metrics = new_metrics()
        store = GuardedStore(RedisStore(server.url, metrics=metrics), budget=2.0, metrics=metrics)
        try:
            for _ in range(3):
                assert (await store.purge({ACME: ["it"]})).durable is None
            assert count(metrics, "done") == 3
        finally:
            await store.aclose()

    asyncio.run(run())


def test_a_replica_that_hangs_makes_a_purge_not_durable_and_holds_up_nobody(
    sentinels: SentinelTrio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is told when the budget is over, or at once where it was so a moment ago."""

    async def run() -> None:
        metrics = new_metrics()
        far = RedisStore(sentinels.url, metrics=metrics)
        store = GuardedStore(far, budget=0.5, metrics=metrics)

        async def durable() -> bool:
            purge = await store.purge({ACME: ["it"], "tenant:zorg": ["it"]})
            return purge.durable is True

        try:
            await eventually(durable, "a replica has it", 30.0)
            made = entry(tags=((ACME, "it"),), positions=await positions(store))
            await write(store, b"key", made)
            monkeypatch.setattr(redis_replicas, "REACHED_WITHIN", 20.0)
            sentinels.replica.suspend()
            settling = asyncio.ensure_future(far.settled({ACME: ["it"]}))
            await far.purge({"tenant:zorg": ["it"]})
            for _ in range(20):
                assert (await far.get(b"key")).record == made
            assert not settling.done(), "while somebody waits for the replica"
            purge = await store.purge({ACME: ["other"]})
            assert (purge.state, purge.durable) == ("done", False)
            assert count(metrics, "not-durable") == 1
            sentinels.replica.resume()
            assert await settling is True
            await eventually(durable, "a replica has it again", 30.0)
        finally:
            sentinels.replica.resume()
            await store.aclose()

    asyncio.run(run())


def test_who_was_told_no_is_told_so_at_once_for_a_while(
    sentinels: SentinelTrio, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        far = RedisStore(sentinels.url, metrics=new_metrics())

        async def durable() -> bool:
            return await far.settled({ACME: ["it"]}) is True

        try:
            await eventually(durable, "a replica has it", 30.0)
            monkeypatch.setattr(redis_replicas, "_BELIEVED_FOR", 600.0)
            sentinels.replica.suspend()
            assert await far.settled({ACME: ["it"]}) is False
            monkeypatch.setattr(redis_replicas, "REACHED_WITHIN", 20.0)
            monkeypatch.setattr(redis_replicas, "_BELIEVED_FOR", 0.0)
            assert await far.settled({ACME: ["it"]}) is False
            servers: Any = far._servers
            assert servers._lanes.replicas._background.at_work, "the replica is still being asked"
        finally:
            sentinels.replica.resume()
            await far.aclose()

    asyncio.run(run())


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    """One to break."""
    with RedisCluster() as started:
        yield started


def test_a_cluster_s_heir_is_told_of_the_purges_that_it_lacks_before_it_is_asked(cluster: RedisCluster) -> None:
    async def run() -> None:
        metrics = new_metrics()
        store = RedisStore(cluster.url, metrics=metrics)
        try:

            async def up() -> bool:
                try:
                    return await store.settled({ACME: ["it"]}) is True
                except StoreError:
                    return False

            await eventually(up, "the cluster answers and replicates", 30.0)
            made = entry(tags=((ACME, "it"),), positions=await positions(store))
            keys = [b"%d" % number for number in range(60)]
            for key in keys:
                await store.put(key, made, retain=600)
            await store.purge({ACME: ["it"]})
            assert await store.settled({ACME: ["it"]}) is True
            (stamp,) = store.purged_names({ACME: ["it"]})
            place = next(i for i, one in enumerate(cluster.masters) if _has(one, stamp))
            await asyncio.to_thread(take_over, cluster, place, stamp)
            hits = 0

            async def found_again() -> bool:
                nonlocal hits
                for key in keys:
                    try:
                        found = (await store.get(key)).record
                    except StoreError:
                        return False
                    assert found is None
                    hits += 1
                return True

            await eventually(found_again, "the heir is asked", 60.0)
            assert hits >= 60
            assert count(metrics, "reissued") == 1
            fresh = entry(tags=((ACME, "it"),), positions=await positions(store))
            await write(store, b"fresh", fresh)
            assert isinstance((await store.get(b"fresh")).record, Entry)
        finally:
            await store.aclose()

    def take_over(cluster: RedisCluster, place: int, stamp: bytes) -> None:
        """The replica becomes master, and lacks the stamp as if it had never heard of it. Nobody asks meanwhile."""
        heir = cluster.replicas[place]
        wait_until(lambda: _has(heir, stamp), 20, "the replica has it")
        cluster.masters[place].kill()
        heir.command_reply("CLUSTER", "FAILOVER", "TAKEOVER")
        wait_until(lambda: b"role:master" in heir.command_reply("INFO", "replication"), 20, "the heir is master")
        assert heir.command_reply("DEL", stamp.decode()) == b"1"

    asyncio.run(run())


def _has(server: RedisServer, name: bytes) -> bool:
    return (
        name.decode() in server.command_reply("EVAL", "return table.concat(redis.call('KEYS','*'),' ')", "0").decode()
    )
