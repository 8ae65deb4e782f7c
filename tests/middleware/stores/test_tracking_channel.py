"""Where the masters of a cluster refuse CLIENT TRACKING, purges are heard on a channel: nothing old is served."""

import asyncio
import logging
from contextlib import ExitStack
from typing import Any

import pytest
from redis import Redis

from tests.middleware.stores.support import (
    ACME,
    deaf_url,
    entry,
    eventually,
    gone,
    hears,
    new_metrics,
    two_processes,
    write,
)
from tests.services import RedisCluster
from tidegate.middleware.core.records import WHOLE_SCOPE
from tidegate.middleware.stores.base import Aim, Target
from tidegate.middleware.stores.redis import RedisStore
from tidegate.middleware.stores.tiered import TieredStore, in_front_of

TENANTS = [f"tenant:{number}" for number in range(12)]


def run(cluster: RedisCluster, body: Any) -> Any:
    return two_processes(deaf_url(cluster), body, beside=cluster.masters[0].url)


async def known(store: TieredStore, key: bytes, scope: str) -> None:
    """A record of now is in this memory."""

    async def there() -> bool:
        read = (await store.get(b"nothing-here", (scope,))).positions
        assert read is not None
        made = entry(tags=((scope, "it"),), positions=tuple(read.items()))
        await write(store, key, made)
        return (await store.get(key)).record == made == store.peek(key)

    await eventually(there, "it is in memory", 30.0)


@pytest.mark.parametrize(
    "targets",
    [["it"], [WHOLE_SCOPE], [*map(str, range(40)), "it"], [Aim(("it",), soft=True)]],
    ids=["a tag", "a scope", "many tags", "a soft one"],
)
def test_a_purge_on_any_master_reaches_every_memory(redis_cluster: RedisCluster, targets: list[Target]) -> None:
    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        for tenant in TENANTS:
            await known(one, tenant.encode(), tenant)
            await known(other, tenant.encode(), tenant)
        for tenant in TENANTS:
            await known(one, tenant.encode(), tenant)  # the one before may have voided it
            assert (await other.purge({tenant: targets})).state == "done"
            assert other.peek(tenant.encode()) is None, "its own at once"
            await gone(one, tenant.encode())
        sizes = [int(await asyncio.to_thread(each.command_reply, "DBSIZE")) for each in redis_cluster.masters]
        assert min(sizes) > 0, "each master had a part of it"

    run(redis_cluster, body)


def test_a_purge_of_others_leaves_what_is_not_theirs(redis_cluster: RedisCluster) -> None:
    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        async def left() -> bool:
            await known(one, b"key", ACME)
            await known(one, b"other", "tenant:zorg")
            await other.purge({ACME: ["that"]})
            await other.purge({"tenant:zorg": ["it"]})
            await gone(one, b"other")
            return one.peek(b"key") is not None

        await eventually(left, "it is in memory still", 30.0)

    run(redis_cluster, body)


def test_it_is_said_once_and_a_metric_tells_what_is_used(
    redis_cluster: RedisCluster, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        pass

    with caplog.at_level(logging.WARNING, "tidegate"):
        metrics = run(redis_cluster, body)
    told = [record.getMessage() for record in caplog.records if "on a channel" in record.getMessage()]
    assert len(told) == 2, "once by each process"
    assert told[0].startswith("the server refuses CLIENT TRACKING: NOPERM")
    assert metrics.hearing.labels("channel")._value.get() == 1.0
    assert metrics.hearing.labels("tracking")._value.get() == 0.0


def test_nothing_is_answered_from_memory_while_one_master_cannot_be_heard(redis_cluster: RedisCluster) -> None:
    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        for master in redis_cluster.masters:
            await known(one, b"key", ACME)
            with Redis.from_url(master.url) as there:
                there.execute_command("CLIENT", "KILL", "TYPE", "PUBSUB")
            await gone(one, b"key")
            await hears(one)
            assert one.peek(b"key") is None, "everything was voided before it hears again"

    run(redis_cluster, body)


@pytest.mark.parametrize("less", ["-subscribe", "-publish"])
def test_who_may_neither_follow_keys_nor_use_a_channel_has_no_memory(redis_cluster: RedisCluster, less: str) -> None:
    url, metrics = deaf_url(redis_cluster, less), new_metrics()

    async def body() -> None:
        store = in_front_of(RedisStore(url, metrics=metrics), max_bytes=1 << 20, metrics=metrics)
        await store.start()
        try:

            async def refused() -> bool:
                return metrics.errors.labels("tracking")._value.get() >= len(redis_cluster.masters)

            await eventually(refused, "each master has refused, and it is counted", 30.0)
            await write(store, b"key", entry())
            assert (await store.get(b"key")).record is not None
            assert store.peek(b"key") is None
            assert store.stats().extra["near_live"] == 0.0
        finally:
            await store.aclose()

    asyncio.run(body())


def test_who_follows_the_keys_and_may_not_publish_purges_all_the_same(redis_cluster: RedisCluster) -> None:
    with ExitStack() as stack:
        for server in redis_cluster.servers:
            server.command_reply("ACL", "SETUSER", "mute", "reset", "on", ">x", "~*", "+@all", "-publish")
            stack.callback(server.command_reply, "ACL", "DELUSER", "mute")

        async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
            await known(one, b"key", ACME)
            assert (await other.purge({ACME: ["it"]})).state == "done"
            await gone(one, b"key")

        url = redis_cluster.url.replace("://", "://mute:x@")
        two_processes(url, body, beside=redis_cluster.masters[0].url)
