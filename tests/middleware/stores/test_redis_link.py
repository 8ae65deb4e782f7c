"""The connection that many callers share: what becomes of their calls when they, the server or the connection go."""

import asyncio
import gc
import math
import random
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from redis.asyncio import Redis as Client
from redis.asyncio.connection import Connection

from tests.middleware.stores.support import ACME, SCOPES, entry, eventually, new_metrics, positions, write
from tests.services import RedisServer
from tests.services.swallowing import SwallowingProxy
from tidegate.errors import StoreError
from tidegate.middleware.core.records import Entry
from tidegate.middleware.stores.redis import RedisStore
from tidegate.middleware.stores.redis_calls import Call
from tidegate.middleware.stores.redis_link import MERGED, CrowdedError, Link, pack
from tidegate.middleware.stores.redis_servers import dial

Start = Callable[..., RedisServer]


def to(port: int) -> Callable[[], Awaitable[Any]]:
    options = {"host": "127.0.0.1", "port": port, "socket_timeout": None, "socket_connect_timeout": None}
    return lambda: dial(Connection, options)


def with_link(port: int, body: Callable[[Link], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        link = Link(to(port), **{"silence": 60.0} | options)
        try:
            await body(link)
        finally:
            await link.aclose()

    asyncio.run(run())


async def failed(asked: "asyncio.Future[Any]") -> str:
    with pytest.raises(StoreError) as caught:
        await asked
    return str(caught.value)


def test_five_thousand_cancelled_callers_shift_nobodys_reply(server: RedisServer) -> None:
    rng = random.Random(11)
    keys = [b"key:%d" % number for number in range(1000)]
    packed = [pack((b"MGET", key)) for key in keys]

    async def get(link: Link, number: int) -> bool:
        if number % 10 == 0:
            return bool(await link.call(b"GET", keys[number]) == b"value of %d" % number)
        if number % 10 == 1:
            return bool(await link.ask(packed[number]) == [b"value of %d" % number])
        return await link.read([keys[number]]) == [b"value of %d" % number]

    async def body(link: Link) -> None:
        for number, key in enumerate(keys):
            await link.call(b"SET", key, b"value of %d" % number)
        right = wrong = cancelled = 0
        for _ in range(200):
            tasks = [asyncio.ensure_future(get(link, rng.randrange(1000))) for _ in range(60)]
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            given_up = rng.sample(range(60), 25)
            for number in given_up:
                cancelled += tasks[number].cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            right += sum(outcome is True for outcome in outcomes)
            wrong += sum(outcome is False or isinstance(outcome, Exception) for outcome in outcomes)
        assert wrong == 0
        assert right >= 7000
        assert cancelled >= 4500
        assert link.connections == 1

        async def settled() -> bool:
            return link.waiting == 0

        await eventually(settled, "nobody is counted who has gone")

    with_link(server.port, body)


def test_what_was_sent_over_a_connection_that_dies_fails_at_once_and_later_calls_get_a_new_one(
    start_server: Start,
) -> None:
    server = start_server()

    async def body(link: Link) -> None:
        assert await link.call(b"SET", b"key", b"1") == b"OK"
        await asyncio.to_thread(server.suspend)
        asked = [link.read([b"key"]), *[link.call(b"GET", b"key") for _ in range(50)]]
        await asyncio.sleep(0)
        await asyncio.to_thread(server.kill)
        # Nothing else would end them: silence is borne for a minute.
        told = {await failed(one) for one in asked}
        assert len(told) == 1
        await asyncio.to_thread(server.start)

        async def back() -> bool:
            try:
                return await link.call(b"PING") == b"PONG"
            except StoreError:
                return False

        await eventually(back, "it is connected again", 20.0)
        assert link.connections == 2

    with_link(server.port, body)


def test_a_connection_that_the_server_cuts_is_made_anew_once_however_many_call(server: RedisServer) -> None:
    async def body(link: Link) -> None:
        async def get() -> list[bytes | None]:
            return await link.read([b"key"])

        await link.call(b"SET", b"key", b"1")
        for cut in range(1, 6):
            await asyncio.gather(*[get() for _ in range(100)])
            await asyncio.to_thread(server.command_reply, "CLIENT", "KILL", "TYPE", "normal")

            async def back() -> bool:
                replies = await asyncio.gather(*[get() for _ in range(100)], return_exceptions=True)
                return replies == [[b"1"]] * 100

            await eventually(back, "all are answered again", 20.0)
            assert link.connections == cut + 1

    with_link(server.port, body)


def test_a_connection_that_falls_silent_is_given_up(start_server: Start) -> None:
    server = start_server()

    async def body(link: Link) -> None:
        told: set[str] = set()

        async def answered() -> bool:
            try:
                return await link.call(b"PING") == b"PONG"
            except StoreError as error:
                told.add(str(error))
                return False

        await eventually(answered, "it is connected", 20.0)
        await asyncio.to_thread(server.suspend)

        async def noticed() -> bool:
            assert not await answered()
            return {"redis: no reply for 0.2 s", "redis: no connection within 0.3 s, login included"} <= told

        await eventually(noticed, "neither silence nor a server that accepts and says nothing is borne", 20.0)
        await asyncio.to_thread(server.resume)
        await eventually(answered, "it is connected again", 20.0)

    with_link(server.port, body, silence=0.2, handshake=0.3)


def test_of_a_way_on_which_no_login_is_quick_enough_it_is_said_that_none_is(server: RedisServer) -> None:
    async def run() -> None:
        async with SwallowingProxy(server.port) as proxy:
            proxy.delay = 0.6
            link = Link(to(proxy.port), handshake=0.3)
            try:
                for _ in range(3):
                    with pytest.raises(StoreError, match=r"^redis: no connection within 0\.3 s, login included$"):
                        await link.call(b"PING")
                proxy.delay = 0.0

                async def answered() -> bool:
                    with suppress(StoreError):
                        return await link.call(b"PING") == b"PONG"
                    return False

                await eventually(answered, "it is connected", 20.0)
            finally:
                await link.aclose()

    asyncio.run(run())


@pytest.mark.parametrize("error", [ConnectionRefusedError("refused"), AttributeError("refused by what is no Redis")])
def test_attempts_to_connect_are_few_and_ever_further_apart_and_calls_fail_meanwhile_without_one(
    error: Exception,
) -> None:
    attempts: list[float] = []

    async def refuse() -> Any:
        attempts.append(asyncio.get_running_loop().time())
        raise error

    async def run() -> None:
        link = Link(refuse)
        assert "refused" in await failed(link.call(b"PING"))
        calls = 0
        while len(attempts) < 6:
            with pytest.raises(StoreError, match="refused"):
                await link.call(b"PING")
            calls += 1
            await asyncio.sleep(0)
        await link.aclose()
        pauses = [later - earlier for earlier, later in pairwise(attempts)]
        assert all(pause >= 0.2 * least for pause, least in zip(pauses, (0.05, 0.1, 0.2, 0.4, 0.5), strict=True))
        assert calls > 5 * len(attempts)

    asyncio.run(run())


def test_more_than_may_wait_are_refused_and_counted(start_server: Start) -> None:
    server = start_server()
    refused: list[bool] = []

    async def body(link: Link) -> None:
        await link.call(b"PING")
        await asyncio.to_thread(server.suspend)
        asked = [link.call(b"PING") for _ in range(5)] + [link.read([b"key"]) for _ in range(5)]
        for one in asked[::2]:
            one.cancel()
        for _ in range(3):
            with pytest.raises(CrowdedError, match="10 calls wait already"):
                link.call(b"PING")
        assert len(refused) == 3
        await asyncio.to_thread(server.resume)
        assert await asyncio.gather(*asked[1::2]) == [b"PONG", b"PONG", [None], [None], [None]]
        assert await link.call(b"PING") == b"PONG"

    with_link(server.port, body, max_waiting=10, crowded=lambda: refused.append(True))


def test_what_was_given_up_is_not_held_for_a_server_that_takes_nothing(start_server: Start) -> None:
    server = start_server()
    megabyte = bytes(1 << 20)

    async def body(link: Link) -> None:
        await link.call(b"SET", b"key", b"there")
        await asyncio.to_thread(server.suspend)
        awaited = [link.call(b"SET", b"first", 16 * megabyte)]

        async def full() -> bool:
            return link._wire is not None and link._wire.full

        await eventually(full, "it takes nothing more", 20.0)
        for number in range(20):
            awaited += [link.call(b"ECHO", b"%d" % number)]
            reading = asyncio.ensure_future(link.read([b"key"]))
            for _ in range(4):
                link.call(b"SET", b"given up", megabyte).cancel()
                await asyncio.sleep(0)
            reading.cancel()
        held = [each for each in link._out if isinstance(each, Call) and len(each.packed()) > len(megabyte)]
        assert len(held) <= 40, "of 80"
        assert link.waiting >= len(awaited)
        await asyncio.to_thread(server.resume)
        assert (await asyncio.gather(*awaited))[1:] == [b"%d" % number for number in range(20)]
        assert await link.read([b"key"]) == [b"there"]
        assert link.waiting == 0

    with_link(server.port, body)


def test_closing_waits_for_no_reply_and_what_waited_fails(start_server: Start) -> None:
    server = start_server()

    async def body(link: Link) -> None:
        await link.call(b"PING")
        await asyncio.to_thread(server.suspend)
        sent = link.call(b"PING")
        await asyncio.sleep(0)
        asked = [sent, link.read([b"key"])]
        await link.aclose()
        for one in asked:
            assert "closed" in await failed(one)
        with pytest.raises(StoreError, match="closed"):
            link.call(b"PING")
        await asyncio.to_thread(server.resume)
        link.open()
        assert await link.call(b"PING") == b"PONG"

    with_link(server.port, body)


def test_closing_leaves_no_connection_to_a_server_that_takes_nothing(start_server: Start) -> None:
    server = start_server()

    async def body(link: Link) -> None:
        await link.call(b"PING")
        await asyncio.to_thread(server.suspend)
        asked = link.call(b"SET", b"key", bytes(32 << 20))
        await asyncio.sleep(0)
        await link.aclose()
        assert "closed" in await failed(asked)

    with_link(server.port, body)
    gc.collect()  # a transport that was never closed says so now, and the test fails


@pytest.mark.leaves_tasks("loops that end without closing the link are what it is about")
def test_a_second_event_loop_takes_over_from_one_that_has_ended_and_is_refused_beside_one_that_runs(
    server: RedisServer,
) -> None:
    link = Link(to(server.port))

    async def ask() -> bytes:
        reply: bytes = await link.call(b"PING")
        return reply

    assert [asyncio.run(ask()) for _ in range(3)] == [b"PONG"] * 3

    async def beside() -> None:
        await ask()
        told: list[str] = []

        def other() -> None:
            try:
                asyncio.run(ask())
            except StoreError as error:
                told.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        await asyncio.to_thread(thread.join)
        assert told
        assert "another event loop" in told[0]
        assert await ask() == b"PONG"
        await link.aclose()

    asyncio.run(beside())


def with_store(server: RedisServer, body: Callable[[RedisStore, Any], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        client: Any = Client.from_url(server.url)
        store = RedisStore(server.url, metrics=new_metrics(), **options)
        try:
            await body(store, client)
        finally:
            await store.aclose()
            await client.aclose()

    asyncio.run(run())


def test_look_ups_of_one_moment_are_few_commands_and_half_as_many_of_what_was_looked_up_before(
    server: RedisServer,
) -> None:
    async def body(store: RedisStore, client: Any) -> None:
        async def look() -> int:
            await client.config_resetstat()
            found = await asyncio.gather(*[store.get(b"%d" % number, SCOPES) for number in range(50)])
            assert [int(one.record.body) for one in found if isinstance(one.record, Entry)] == list(range(50))
            assert {frozenset((one.positions or {}).items()) for one in found} == {frozenset(at.items())}
            stats = await client.info("commandstats")
            assert "cmdstat_get" not in stats
            return int(stats["cmdstat_mget"]["calls"])

        await store.purge({ACME: ["another"]})
        at = dict(await positions(store))
        assert at[ACME] > 0
        for number in range(50):
            await write(store, b"%d" % number, entry(b"%d" % number))
        assert await look() == 2 * math.ceil(50 / MERGED), "records with positions, then stamps"
        assert await look() == math.ceil(50 / MERGED), "all of that together"

    with_store(server, body)


@pytest.mark.blocks_the_loop("tens of megabytes are packed and copied, which takes half a second where memory is slow")
def test_smaller_records_overtake_one_of_many_megabytes(server: RedisServer) -> None:
    large = entry(bytes(48 * 1024 * 1024))

    async def body(store: RedisStore, client: Any) -> None:
        await write(store, b"large", large)
        await write(store, b"small", entry(b"small"))
        asked = asyncio.ensure_future(store.get(b"large"))
        overtaking = 0
        while not asked.done():
            assert (await store.get(b"small")).record is not None
            overtaking += 1
        assert (await asked).record == large
        assert overtaking > 2, "behind it, one would be answered"

    with_store(server, body, max_entry_bytes=64 * 1024 * 1024)


def test_a_large_record_whose_halves_do_not_belong_together_is_a_miss(server: RedisServer) -> None:
    async def body(store: RedisStore, client: Any) -> None:
        await write(store, b"key", entry(b"1" * 100_000))
        (name,) = await client.keys("tidegate:e:*")
        (half,) = await client.keys("*:b:*")
        earlier = await client.get(half)
        await write(store, b"key", entry(b"2" * 100_000))
        await client.set(half, earlier)
        assert (await store.get(b"key")).record is None
        await write(store, b"key", entry(b"3" * 100_000))
        await client.delete(half)
        assert (await store.get(b"key")).record is None
        await write(store, b"key", entry(b"4" * 100_000))
        assert 0 < await client.pttl(half) <= await client.pttl(name) + 1000
        await store.delete(b"key")
        assert await client.keys("tidegate:[eb]:*") == []

    with_store(server, body)


def test_a_server_that_has_forgotten_the_script_is_told_it_again(server: RedisServer) -> None:
    async def body(store: RedisStore, client: Any) -> None:
        await store.purge({SCOPES[0]: ["a"]})
        await client.script_flush()
        assert (await store.purge({SCOPES[0]: ["a"]})).state == "done"

    with_store(server, body)
