"""P5 where Redis is not gone but late: what a request waits altogether, connections that hang, purges to far away.

Real servers, behind a proxy that is late or swallows.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.middleware.stores.support import entry, new_metrics, write
from tests.promises.faults.judging import NEIGHBOUR, PROBE, SLACK, steps_until, warm
from tests.promises.faults.stage import Stage, World, timed
from tests.services import Redis, Valkey
from tests.services.swallowing import SwallowingProxy
from tidegate.middleware.stores.guard import GuardedStore
from tidegate.middleware.stores.redis import RedisStore


class Varying(World):
    """Each page in variants, so that who looks one up asks first which there are."""

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        async def varying(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"vary", b"accept-language")]}
            await send(message)

        await super().app(scope, receive, varying)


@pytest.mark.parametrize("silent", [False, True], ids=["as late", "silent"])
def test_a_request_for_a_variant_waits_for_one_budget_and_not_for_two(valkey: Valkey, silent: bool) -> None:
    budget, late = 1.0, 0.8

    async def story() -> None:
        async with (
            SwallowingProxy(valkey.port) as link,
            Stage(f"redis://127.0.0.1:{link.port}", valkey.url, world=Varying(), budget=budget) as stage,
        ):
            await warm(stage, "variants: before")
            link.delay = late
            beside = asyncio.create_task(timed(asyncio.sleep(budget)))
            asked = asyncio.create_task(timed(missed(stage)))
            if silent:
                await first_answered(link)
                link.silent = True
            took, delayed = await asked, await beside
            print(f"a request waited {took:.2f} s, where {budget:g} s took {delayed:.2f} s")
            # A deadline that the event loop was late for is prolonged by as much.
            assert took <= budget + 2 * (delayed - budget) + 0.4
            assert took >= late, "it has looked nothing up"
            assert stage.count("tidegate_store_operations_total", store="store", operation="get", result="timeout") == 1
            assert stage.tide.store.breaker.state == "closed"
            assert stage.mixed == []
            if not silent:
                link.delay = 0.0
                await warm(stage, "after")

    async def missed(stage: Stage) -> None:
        assert not await stage.get(NEIGHBOUR)

    async def first_answered(link: SwallowingProxy) -> None:
        passed = link.answers

        async def one() -> bool:
            return link.answers > passed

        await steps_until(one, "an answer")

    asyncio.run(story())


def test_a_connection_that_hangs_does_not_hold_up_the_next(redis_server: Redis) -> None:
    """The way to Redis is swallowed until nothing but attempts to connect is left; of these one has just begun."""

    async def story() -> None:
        async with (
            SwallowingProxy(redis_server.port) as link,
            # Longer than usual: that one probe is late on a busy machine is not what is looked at.
            Stage(f"redis://127.0.0.1:{link.port}", redis_server.url, budget=0.25) as stage,
        ):
            for _ in range(3):
                await warm(stage, "hanging connections: before")
                hit, kept = await hung(stage, link)
                print(f"a hit after {hit:.2f} s, a new page after {kept:.2f} s more, {link.connections} connections")
                if max(hit, kept) <= PROBE + SLACK:  # the machine let the one look-up that probed be in time
                    break
            else:
                pytest.fail("recovery takes longer than a probe interval")
            await warm(stage, "after")
            assert stage.mixed == []

    async def hung(stage: Stage, link: SwallowingProxy) -> tuple[float, float]:
        made = link.connections
        link.silent = True

        async def begun() -> bool:
            await stage.get(stage.cold())
            return link.connections > made

        async def hits() -> bool:
            return await stage.get(NEIGHBOUR)

        async def stored() -> bool:
            return await stage.get(new)

        await steps_until(begun, "the connections are given up")
        made = link.connections
        await steps_until(begun, "another is tried")
        link.forget()
        link.silent = False
        hit = await steps_until(hits, "a hit")
        new = stage.cold()
        return hit, await steps_until(stored, "a new page is stored")

    asyncio.run(story())


@pytest.mark.parametrize("anew", [False, True], ids=["connected", "connecting"])
def test_a_purge_is_made_at_a_server_that_is_far_away_and_does_not_know_the_script(
    start_valkey: Callable[..., Valkey], anew: bool
) -> None:
    server = start_valkey()

    async def story() -> None:
        async with (
            SwallowingProxy(server.port) as link,
            Stage(f"redis://127.0.0.1:{link.port}", server.url) as stage,
        ):
            await warm(stage, "far away: before")
            assert [await stage.lies_there(page) for page in ("7", "8")] == [0, 0], "nothing to purge"
            server.command_reply("SCRIPT", "FLUSH")
            link.delay = 0.7
            if anew:
                link.cut()
            waited = await timed(stage.write("7"))
            purge = await stage.purge("8")
            assert purge.state == "pending"
            assert not await stage.get("7")

            async def made() -> bool:
                return not stage.pending

            took = await steps_until(made, "the purges are made")
            print(f"a write took {1000 * waited:.0f} ms, its purge was made after {took:.2f} s")
            assert [await stage.lies_there(page) for page in ("7", "8")] == [None, None]
            link.delay = 0.0
            await warm(stage, "after")
            assert stage.old == stage.mixed == []
            assert stage.asked_again >= 1

    asyncio.run(story())


@pytest.mark.parametrize("kilobytes", [32, 400], ids=["many small", "few large"])
def test_what_is_stored_over_a_narrow_link_does_not_hold_up_what_is_looked_up(valkey: Valkey, kilobytes: int) -> None:
    """Two megabytes on their way to a server that gets half of that in a second over one connection."""

    async def story() -> None:
        async with SwallowingProxy(valkey.port) as link:
            store = GuardedStore(
                RedisStore(f"redis://127.0.0.1:{link.port}", metrics=new_metrics()), metrics=new_metrics(), budget=60.0
            )
            await write(store, b"known", entry(b"small"))
            await write(store, b"large", entry(bytes(kilobytes * 1024)))  # both ways are there
            link.rate = 1024 * 1024
            for number in range(2048 // kilobytes):
                assert await store.put(b"%d" % number, entry(bytes(kilobytes * 1024)), retain=60)

            async def written() -> bool:
                return (await direct.get(b"%d" % (2048 // kilobytes - 1))).record is not None

            direct = RedisStore(valkey.url, metrics=new_metrics())
            overtaking = 0
            while not await written():
                assert (await store.get(b"known")).record is not None
                overtaking += 1
            print(f"{overtaking} look-ups meanwhile")
            assert overtaking > 8
            await store.aclose()
            await direct.aclose()

    asyncio.run(story())


def test_what_is_deleted_while_it_is_on_its_way_over_a_narrow_link_does_not_come_after_that(valkey: Valkey) -> None:
    async def story() -> None:
        async with SwallowingProxy(valkey.port) as link:
            store = RedisStore(f"redis://127.0.0.1:{link.port}", metrics=new_metrics())
            for number, size in enumerate((32, 400)):
                key = b"%d" % number
                await write(store, key, entry(b"older"))
                assert (await store.get(key)).record is not None, "both ways are there"
                link.rate = 1024 * 1024
                writing = asyncio.create_task(store.put(key, entry(bytes(size * 1024)), retain=60))
                await asyncio.sleep(0)
                await store.delete(key)
                assert await writing
                assert (await store.get(key)).record is None
                link.rate = 0.0
            await store.aclose()

    asyncio.run(story())
