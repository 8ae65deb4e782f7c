"""A memory in front of a cluster: it hears of purges on every master, and is silent while it cannot know whose slots
are whose."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from redis import Redis
from redis.crc import key_slot

from tests.middleware.stores.support import ACME, entry, eventually, gone, hears, new_metrics, two_processes
from tests.services import RedisCluster, RedisServer, wait_until
from tests.services.server import free_port
from tidegate.errors import StoreError
from tidegate.middleware.stores.redis import RedisStore
from tidegate.middleware.stores.tiered import TieredStore
from tidegate.middleware.stores.tracking import Tracking
from tidegate.middleware.stores.tracking_cluster import ClusterTracking, own_slots

TENANTS = [f"tenant:{number}" for number in range(12)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    """One to break, with a node more that has no slots yet."""
    with RedisCluster(spare=1) as started:
        yield started


async def known(store: TieredStore, key: bytes, scope: str = ACME, tag: str = "it") -> None:
    """A record of now is written through a store, and is in its memory."""

    async def there() -> bool:
        read = (await store.get(b"nothing-here", (scope,))).positions
        assert read is not None
        await store.put(key, entry(tags=((scope, tag),), positions=tuple(read.items())), retain=600)
        return (await store.get(key)).record is not None and store.peek(key) is not None

    await eventually(there, "it is in memory", 30.0)


def test_purges_on_every_master_are_heard(redis_cluster: RedisCluster) -> None:
    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        for tenant in TENANTS:
            await known(one, tenant.encode(), tenant)
        for tenant in TENANTS:
            assert one.peek(tenant.encode()) is not None
            assert (await other.purge({tenant: ["it"]})).state == "done"
            await gone(one, tenant.encode())
        assert min(await kept_by(redis_cluster)) > 0, "each master had a part of it"

    two_processes(redis_cluster.url, body, beside=redis_cluster.masters[0].url)


async def kept_by(cluster: RedisCluster) -> list[int]:
    return [int(await asyncio.to_thread(one.command_reply, "DBSIZE")) for one in cluster.masters]


def test_a_purge_on_a_node_that_has_just_got_the_slot_is_never_missed(cluster: RedisCluster) -> None:
    """The slot of a tenant goes to a node that had none, which nobody follows yet."""

    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        await known(one, b"key")
        name = one._far._names.position(ACME).decode()  # type: ignore[attr-defined]
        source, target, slot = await asyncio.to_thread(begin_to_move, cluster, name)

        async def silent() -> bool:
            return one.stats().extra["near_live"] == 0.0

        await eventually(silent, "a slot is on its way, and memory is silent", 30.0)
        with pytest.raises(StoreError):  # which makes it pending
            await other.purge({ACME: ["it"]})
        await asyncio.to_thread(finish_moving, source, target, slot)
        await hears(one)
        await known(one, b"key")
        assert (await other.purge({ACME: ["it"]})).state == "done"
        assert int(target.command_reply("CLUSTER", "COUNTKEYSINSLOT", str(slot))) > 0, "it was purged there"
        await gone(one, b"key")

    two_processes(cluster.url, body, beside=cluster.servers[0].url)


def test_a_purge_that_follows_a_slot_on_its_way_is_pending(cluster: RedisCluster) -> None:
    """It is made, but who follows the old node hears nothing of it."""

    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        far: Any = other._far
        await other.purge({"tenant:moves": ["it"]})
        source, target, slot = await asyncio.to_thread(
            begin_to_move, cluster, far._names.position("tenant:moves").decode()
        )
        try:
            keys = far._purging.words("tenant:moves", [("it", None)])[1:6]
            with Redis.from_url(target.url, single_connection_client=True) as there:
                for key in keys:  # all have arrived, else the script is sent away
                    there.execute_command("ASKING")
                    there.execute_command("ZADD", key, 1, "it") if b":i:" in key else there.set(key, "1")

                async def sent_back() -> bool:
                    """Not because the connection to a node without slots was let go of just then."""
                    with pytest.raises(StoreError) as caught:
                        await other.purge({"tenant:moves": ["it"]})
                    return "a slot is on its way" in str(caught.value)

                await eventually(sent_back, "the purge is made, and to be made again", 30.0)
                there.execute_command("ASKING")
                assert int(there.get(keys[-1])) > 1, "it was made there"
        finally:
            await asyncio.to_thread(finish_moving, source, target, slot)

    two_processes(cluster.url, body, beside=cluster.servers[0].url)


def test_a_replica_that_takes_over_is_followed_before_memory_answers_again(cluster: RedisCluster) -> None:
    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        lost, heir = cluster.masters[1], cluster.replicas[1]
        theirs = next(tenant for tenant in TENANTS if has(lost, slot_of(one, tenant)))
        await known(one, b"key", theirs)
        servers: Any = one._far.cluster  # type: ignore[attr-defined]
        look, told_later = servers._look, asyncio.get_running_loop().create_future()
        servers._look = lambda: told_later
        await asyncio.to_thread(lost.kill)

        async def purged() -> bool:
            with suppress(StoreError):
                return (await other.purge({theirs: ["it"]})).state == "done"
            return False

        await eventually(purged, "the replica has taken over, and a purge is made there", 60.0)
        assert b"role:master" in await asyncio.to_thread(heir.command_reply, "INFO", "replication")
        assert one.peek(b"key") is None, "who has not learned of it is silent"
        servers._look = look
        told_later.set_result(None)
        servers.renew("now it may know")
        await hears(one)
        assert one.peek(b"key") is None, "everything is void"
        for tenant in TENANTS:
            await known(one, tenant.encode(), tenant)
            assert (await other.purge({tenant: ["it"]})).state == "done"
            await gone(one, tenant.encode())

    two_processes(cluster.url, body, beside=cluster.servers[0].url)


def test_a_replica_that_takes_over_from_a_living_master_loses_no_purge(cluster: RedisCluster) -> None:
    """A purge that only the old master has had: who made it makes it again before anything is read from the new one."""
    ousted, heir = cluster.masters[2], cluster.replicas[2]

    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        theirs = next(tenant for tenant in TENANTS if has(ousted, slot_of(one, tenant)))
        await known(one, b"key", theirs, "last")
        ousted.command_reply("ACL", "SETUSER", "default", "-psync", "-sync")
        ousted.command_reply("CLIENT", "KILL", "TYPE", "replica")
        assert (await other.purge({theirs: ["last"]})).state == "done"
        await gone(one, b"key")
        stamp = other._far.purged_names({theirs: ["last"]})[0]
        assert (holds(ousted, stamp), holds(heir, stamp)) == (True, False)
        await asyncio.to_thread(heir.command_reply, "CLUSTER", "FAILOVER", "TAKEOVER")
        assert b"role:master" in await asyncio.to_thread(heir.command_reply, "INFO", "replication")
        address = (heir.host, heir.port)
        followed = other._far.cluster._slots  # type: ignore[attr-defined]

        async def moved() -> bool:
            with suppress(StoreError):
                assert (await other.get(b"key")).record is None, "it purged that"
                return followed[slot_of(other, theirs)] == address
            return False

        await eventually(moved, "it asks the one that took over", 60.0)
        assert holds(heir, stamp), "it was made again"

        async def hit_again() -> bool:
            with suppress(StoreError):
                for tenant in TENANTS:
                    await known(one, tenant.encode(), tenant)
                    assert (await other.purge({tenant: ["it"]})).state == "done"
                    await gone(one, tenant.encode())
                return True
            return False

        await eventually(hit_again, "all is answered from memory, and purged there", 60.0)
        assert (await one.get(b"key")).record is None, "nor does anybody else get it"

    try:
        two_processes(cluster.url, body, beside=cluster.servers[0].url)
    finally:
        ousted.command_reply("ACL", "SETUSER", "default", "+psync", "+sync")


def holds(replica: RedisServer, name: bytes) -> bool:
    """Whether it has this key, whoever has its slot."""
    with Redis.from_url(replica.url, single_connection_client=True) as there:
        there.execute_command("READONLY")
        return bool(there.exists(name))


def test_all_is_void_as_soon_as_slots_move_though_no_master_is_heard_yet() -> None:
    nobody = ("127.0.0.1", free_port())
    names = partial(Tracking, prefix=b"g", changed=lambda _: None, void=lambda: None, failed=lambda _: None)
    everything, half = {nobody: ((0, 16383),)}, {nobody: ((0, 8191),)}

    async def main() -> None:
        address = f"redis+cluster://{nobody[0]}:{nobody[1]}"
        cluster = RedisStore(address, metrics=new_metrics()).cluster
        assert cluster is not None
        voided = list[str]()
        tracking = ClusterTracking(cluster, names, lambda: voided.append("all"))
        tracking.start()
        try:
            told = cluster.topology_changed
            assert told is not None
            for topology, times in ((everything, 1), (everything, 1), (half, 2), (None, 2), (half, 2), (everything, 3)):
                told(topology)
                assert len(voided) == times
                assert not tracking.live
        finally:
            await tracking.aclose()
            await cluster.aclose()

    asyncio.run(main())


def slot_of(store: TieredStore, scope: str) -> int:
    names: Any = store._far._names  # type: ignore[attr-defined]
    return int(key_slot(names.position(scope)))


def begin_to_move(cluster: RedisCluster, name: str) -> tuple[RedisServer, RedisServer, int]:
    slot = int(cluster.servers[0].command_reply("CLUSTER", "KEYSLOT", name))
    (source,) = [one for one in cluster.masters if has(one, slot)]
    (target,) = cluster.spare
    # Nothing lies in it, so that every command of it is sent on.
    cluster.flush()
    ids = {one: one.command_reply("CLUSTER", "MYID").decode() for one in (source, target)}
    target.command_reply("CLUSTER", "SETSLOT", str(slot), "IMPORTING", ids[source])
    source.command_reply("CLUSTER", "SETSLOT", str(slot), "MIGRATING", ids[target])
    return source, target, slot


def finish_moving(source: RedisServer, target: RedisServer, slot: int) -> None:
    name = target.command_reply("CLUSTER", "MYID").decode()
    for one in (target, source):
        one.command_reply("CLUSTER", "SETSLOT", str(slot), "NODE", name)
    wait_until(lambda: not has(source, slot), 10, "the slot has moved")


def has(server: RedisServer, slot: int) -> bool:
    ranges = own_slots(server.command_reply("CLUSTER", "NODES"))
    return ranges is not None and any(first <= slot <= last for first, last in ranges)


def test_what_a_node_says_of_its_own_slots() -> None:
    other = b"b 127.0.0.1:2@3 master - 0 1 2 connected 5461-10922\n"
    mine = b"a 127.0.0.1:1@2,host myself,master - 0 0 1 connected"
    assert own_slots(other + mine + b" 7 0-5 8-20\n") == ((0, 5), (7, 20))
    assert own_slots(mine + b"\n" + other) == ()
    assert own_slots(mine + b" 0-5 [7->-b]\n") is None, "one is on its way from it"
    assert own_slots(mine + b" 0-5 [7-<-b]\n") == ((0, 5),), "one is on its way to it"
    assert own_slots(mine.replace(b"master", b"slave") + b"\n") is None
    assert own_slots(other) is None
