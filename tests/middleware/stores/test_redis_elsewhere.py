"""One address, and behind it another server than before: all connections go over to it, whichever noticed."""

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis as Client

from tests.middleware.stores.support import ACME, entry, eventually, new_metrics
from tests.services import Redis, RedisServer
from tests.services.swallowing import SwallowingProxy
from tidegate.addresses import Address
from tidegate.errors import StoreError
from tidegate.middleware.stores.redis import RedisStore
from tidegate.middleware.stores.redis_servers import Many, OneServer, Way
from tidegate.middleware.stores.tiered import TieredStore, in_front_of

OLD = entry(b"old", tags=((ACME, "it"),))
NEW = entry(b"new", tags=((ACME, "it"),))


async def _put(server: RedisServer, record: Any) -> None:
    store = RedisStore(server.url, metrics=new_metrics())
    try:
        await store.put(b"key", record, retain=600)
    finally:
        await store.aclose()


@pytest.mark.parametrize("noticed_by", ["who hears of purges", "who asks for records"])
def test_a_connection_that_leads_elsewhere_takes_the_others_along(
    redis_server: RedisServer, start_redis: Any, noticed_by: str
) -> None:
    """Else memory would be filled from one server and follow the purges of the other."""
    heir: Redis = start_redis()

    async def run() -> None:
        metrics = new_metrics()
        await _put(redis_server, OLD)
        await _put(heir, NEW)
        clients: list[Any] = [Client.from_url(one.url) for one in (redis_server, heir)]
        async with SwallowingProxy(redis_server.port) as proxy:
            far = RedisStore(f"redis://127.0.0.1:{proxy.port}/0", metrics=metrics)
            store: Any = in_front_of(far, max_bytes=1 << 20, metrics=metrics)
            assert isinstance(store, TieredStore)
            await store.start()
            try:

                async def old() -> bool:
                    await store.get(b"key")
                    return store.peek(b"key") == OLD

                await eventually(old, "it serves from memory what the first server has", 30.0)
                proxy._target = heir.port
                links = await clients[0].client_list()
                hearing = [one["id"] for one in links if "t" in one["flags"]]
                asking = [one["id"] for one in links if one["cmd"] == "mget"]
                for link in hearing if noticed_by == "who hears of purges" else asking:
                    await clients[0].client_kill_filter(_id=link)

                async def new() -> bool:
                    try:
                        found = await store.get(b"key")
                    except StoreError:  # on its way
                        return False
                    return found.record == NEW and store.peek(b"key") == NEW

                await eventually(new, "it serves from memory what the second server has", 30.0)
                await far.purge({ACME: ["it"]})
                assert (await clients[1].exists(*far.purged_names({ACME: ["it"]}))) == 1

                async def followed() -> bool:
                    return any("t" in one["flags"] for one in await clients[1].client_list())

                await eventually(followed, "it follows the second server's purges", 30.0)
            finally:
                await store.aclose()
                for client in clients:
                    await client.aclose()

    asyncio.run(run())


@pytest.mark.parametrize("meanwhile", ["while it is greeted", "while another attempt ends"])
def test_a_connection_that_was_being_made_when_another_server_took_its_place_is_not_used(
    redis_server: RedisServer, start_redis: Any, meanwhile: str
) -> None:
    """The Sentinels say so once; whoever is on the way to the old master then would stay with it."""
    heir: Redis = start_redis()
    halfway, go_on = asyncio.Event(), asyncio.Event()
    ports = [redis_server.port]

    async def wait() -> None:
        halfway.set()
        await go_on.wait()

    async def connect() -> Any:
        if len(ports) > 1 and meanwhile == "while another attempt ends" and ports.pop(0):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await wait()
                raise
        return await Way.of(Address.of(f"redis://127.0.0.1:{ports[0]}")).connect()

    async def greet(_connection: Any) -> None:
        if meanwhile == "while it is greeted":
            await wait()

    async def run() -> None:
        clients: list[Any] = [Client.from_url(one.url) for one in (redis_server, heir)]
        for client, name in zip(clients, ("old", "new"), strict=True):
            await client.set("who", name)
            await client.aclose()
        if meanwhile == "while another attempt ends":
            ports.insert(0, redis_server.port)
        server = OneServer(connect, Many(most=100, crowded=int, connected=int), greet)
        found: list[bytes | None] = []

        async def read() -> bool:
            try:
                found.extend(await server.read([b"who"]))
            except StoreError:
                return False
            return True

        try:
            asked = asyncio.create_task(read())
            await halfway.wait()
            ports[:] = [heir.port]
            server.moved("the Sentinels have made another one the master")
            go_on.set()
            await asked
            await eventually(read, "it has come to the new master", 30.0)
        finally:
            await server.aclose()
        assert set(found) == {b"new"}

    asyncio.run(run())
