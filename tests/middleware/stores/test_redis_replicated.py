"""The store on servers that stand in for each other: Sentinels name another master, slots of a cluster move."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

import pytest

from tests.middleware.stores.support import ACME, entry, eventually, new_metrics, positions
from tests.services import RedisCluster, RedisServer, SentinelTrio, free_port, wait_until
from tidegate.errors import StoreError
from tidegate.middleware.core.records import Entry
from tidegate.middleware.stores.redis import RedisStore


@pytest.fixture
def trio() -> Iterator[SentinelTrio]:
    """One to break: a master is given up after a second."""
    with SentinelTrio(down_after=1.0) as started:
        yield started


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    """One to break."""
    with RedisCluster() as started:
        yield started


def with_store(url: str, body: Callable[[RedisStore], Awaitable[None]]) -> None:
    async def run() -> None:
        store = RedisStore(url, metrics=new_metrics())
        try:
            await body(store)
        finally:
            await store.aclose()

    asyncio.run(run())


async def serves(store: RedisStore, key: bytes) -> bool:
    """Whether a record of now, with a tag, can be stored and got."""
    try:
        made = entry(key, tags=((ACME, "it"),), positions=await positions(store))
        return await store.put(key, made, retain=60) and (await store.get(key)).record == made
    except StoreError:
        return False


async def stored(store: RedisStore, keys: list[bytes]) -> int:
    """How many of these are hits; what fails is none."""
    found = await asyncio.gather(*[store.get(key) for key in keys], return_exceptions=True)
    for one in found:
        assert not isinstance(one, BaseException) or isinstance(one, StoreError)
    return sum(not isinstance(one, BaseException) and isinstance(one.record, Entry) for one in found)


@pytest.mark.parametrize("how", ["killed", "suspended"])
def test_a_store_goes_over_to_the_master_that_the_sentinels_name_next(trio: SentinelTrio, how: str) -> None:
    async def body(store: RedisStore) -> None:
        async def works() -> bool:
            return await serves(store, b"key")

        await eventually(works, "records are stored and got", 20.0)
        await asyncio.to_thread(trio.sentinels[0].kill)  # the first that is asked
        await asyncio.to_thread(trio.master.kill if how == "killed" else trio.master.suspend)

        async def replaced() -> bool:
            # Its own word, not only ours: the records lie on the server that was the replica.
            try:
                told = await asyncio.to_thread(trio.replica.command_reply, "INFO", "replication")
            except OSError:  # Sentinels cut everybody's connections to whom they promote
                return False
            return b"role:master" in told and await serves(store, b"key")

        await eventually(replaced, "the replica is the master, and the store is on it", 60.0)
        assert int(trio.replica.command_reply("DBSIZE")) > 0
        assert (await store.purge({ACME: ["it"]})).state == "done"
        assert (await store.get(b"key")).record is None

    with_store(trio.url, body)


def test_a_master_that_is_none_any_more_is_left_when_it_refuses_a_write(sentinels: SentinelTrio) -> None:
    """The Sentinels have changed their mind and the connection to the old one is still there."""

    async def body(store: RedisStore) -> None:
        async def works() -> bool:
            return await serves(store, b"key")

        await eventually(works, "records are stored and got", 20.0)
        # Not told to the Sentinels: they go on naming it, it says itself that it is no master, and nobody serves.
        sentinels.master.command_reply("CONFIG", "SET", "min-replicas-to-write", "0")
        sentinels.master.command_reply("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(StoreError):
            await store.put(b"key", entry(), retain=60)

        async def refused() -> bool:
            try:
                await store.get(b"key")
            except StoreError as error:
                return "is not the master of main" in str(error)
            return False

        try:
            await eventually(refused, "nothing is read from who is no master", 20.0)
        finally:
            sentinels.master.command_reply("REPLICAOF", "NO", "ONE")
        await eventually(works, "records are stored and got again", 30.0)

    with_store(sentinels.url, body)


def test_who_has_no_sentinel_or_no_such_service_is_told(sentinels: SentinelTrio) -> None:
    async def told(url: str) -> str:
        store = RedisStore(url, metrics=new_metrics())
        try:
            with pytest.raises(StoreError) as caught:
                await store.get(b"key")
            return str(caught.value)
        finally:
            await store.aclose()

    port = free_port()
    nobody = asyncio.run(told(f"redis+sentinel://127.0.0.1:{port}/main"))
    assert f"no Sentinel names the master of main: Error 111 connecting to 127.0.0.1:{port}" in nobody
    assert "it knows no other" in asyncio.run(told(sentinels.url.replace("/main/", "/other/")))


def test_records_of_all_slots_are_served_while_slots_move_and_after_a_master_is_lost(cluster: RedisCluster) -> None:
    keys = [b"%d" % number for number in range(200)]

    async def filled(store: RedisStore) -> bool:
        with suppress(StoreError):
            made = entry(tags=((ACME, "it"),), positions=await positions(store))
            await asyncio.gather(*[store.put(key, made, retain=600) for key in keys], return_exceptions=True)
        return await stored(store, keys) == 200

    async def body(store: RedisStore) -> None:
        async def full() -> bool:
            return await filled(store)

        await eventually(full, "all are stored", 60.0)
        sizes = [int(one.command_reply("DBSIZE")) for one in cluster.masters]
        assert min(sizes) > 30, "they are spread over the masters"

        home = await asyncio.to_thread(move_a_slot, cluster, store, keys[0])
        assert await serves(store, keys[0]), "a slot that is on its way is followed"
        assert int(home.command_reply("DBSIZE")) > 0
        await asyncio.to_thread(finish_moving, cluster)
        assert await serves(store, keys[0]), "a slot that has moved is found"
        assert await stored(store, keys) == 200

        lost, heir = cluster.masters[1], cluster.replicas[1]
        counted = lost.command_reply("DBSIZE")
        wait_until(lambda: heir.command_reply("DBSIZE") == counted, 30, "the replica has what its master has")
        await asyncio.to_thread(lost.kill)

        async def most() -> bool:
            return await stored(store, keys) >= 100

        async def whole() -> bool:
            return await stored(store, keys) == 200

        await eventually(most, "the others serve on", 20.0)
        await eventually(whole, "the replica has taken the slots over, with what lay in them", 60.0)
        await eventually(full, "all are stored anew", 60.0)
        assert (await store.purge({ACME: ["it"]})).state == "done"
        assert await stored(store, keys) == 0

    moving: list[tuple[RedisServer, RedisServer, int]] = []

    def move_a_slot(cluster: RedisCluster, store: RedisStore, key: bytes) -> RedisServer:
        """Begin to move the record's slot, empty, to another master, which is returned."""
        name = store._names.record(key).decode()
        slot = int(cluster.servers[0].command_reply("CLUSTER", "KEYSLOT", name))
        (source,) = [one for one in cluster.masters if _counts(one, slot)]
        target = next(one for one in cluster.masters if one is not source)
        source.command_reply("DEL", name)
        ids = {one: one.command_reply("CLUSTER", "MYID").decode() for one in (source, target)}
        target.command_reply("CLUSTER", "SETSLOT", str(slot), "IMPORTING", ids[source])
        source.command_reply("CLUSTER", "SETSLOT", str(slot), "MIGRATING", ids[target])
        moving.append((source, target, slot))
        return target

    def finish_moving(cluster: RedisCluster) -> None:
        ((source, target, slot),) = moving
        assert int(target.command_reply("CLUSTER", "COUNTKEYSINSLOT", str(slot))) == 1, "the record went there"
        name = target.command_reply("CLUSTER", "MYID").decode()
        for one in (target, source):
            one.command_reply("CLUSTER", "SETSLOT", str(slot), "NODE", name)
        wait_until(lambda: not _counts(source, slot), 10, "the slot has moved")

    with_store(cluster.url, body)


def _counts(server: RedisServer, slot: int) -> bool:
    return int(server.command_reply("CLUSTER", "COUNTKEYSINSLOT", str(slot))) > 0
