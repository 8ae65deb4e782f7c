"""What only the Redis store does: names, limits, policy, two processes' stores on one server, garbage."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis as Client

from tests.middleware.stores.support import ACME, SCOPES, entry, eventually, found, new_metrics, positions, write
from tests.services import RedisServer
from tidegate.errors import ConfigError, StoreError
from tidegate.middleware.core.records import PUBLIC_SCOPE, WHOLE_SCOPE
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.redis import RedisStore

Start = Callable[..., RedisServer]


def with_store(url: str, body: Callable[[RedisStore, Any], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        client: Any = Client.from_url(url)
        store = RedisStore(url, **{"metrics": new_metrics()} | options)
        try:
            await body(store, client)
        finally:
            await store.aclose()
            await client.aclose()

    asyncio.run(run())


def errors(metrics: Metrics, component: str) -> float:
    return metrics.errors.labels(component)._value.get()


TAGGED = entry(tags=((ACME, "client:42"), (PUBLIC_SCOPE, "uri:/acme")))


def test_nothing_of_a_tenant_can_be_read_in_the_names(server: RedisServer) -> None:
    async def names(store: RedisStore, client: Any) -> set[bytes]:
        await write(store, b"\x00key", TAGGED)
        await store.purge({ACME: ["client:42"], PUBLIC_SCOPE: ["uri:/acme"]})
        members = [m for key in await client.keys("*:i:*") for m in await client.zrange(key, 0, -1)]
        told = [name for _, fields in await client.xrange("tidegate:p") for name in fields[b"n"].split()]
        assert len(told) == 2
        return {*await client.keys("*"), *members, *told}

    seen: list[set[bytes]] = []

    async def look(store: RedisStore, client: Any) -> None:
        seen.append(await names(store, client))

    for key in (b"", b"one", b"two"):
        server.flush()
        with_store(server.url, look, naming_key=key)
    assert all(len(names) == 11 for names in seen)
    assert not [n for n in set().union(*seen) if any(word in n for word in (b"acme", b"client:", b"uri"))]
    stamps = [{name for name in names if b":e:" not in name and not name.endswith((b":p", b":n"))} for names in seen]
    assert not stamps[0] & stamps[1]
    assert not stamps[1] & stamps[2], "without the naming key nobody can tell a tenant by its name"


def test_a_purge_in_one_process_is_seen_in_another(server: RedisServer) -> None:
    async def body(store: RedisStore, client: Any) -> None:
        other = RedisStore(server.url, metrics=new_metrics())
        await write(store, b"key", TAGGED)
        assert await found(other, b"key") == TAGGED
        await other.purge({ACME: ["client:42"]})
        assert await found(store, b"key") is None
        await other.aclose()

    with_store(server.url, body)


def test_stamps_never_expire_and_only_grow(server: RedisServer) -> None:
    async def body(store: RedisStore, client: Any) -> None:
        read: list[int] = []
        for number in range(21):
            await store.purge({ACME: [f"tag:{number}", WHOLE_SCOPE][: 1 + number % 2]})
            read.append(dict(await positions(store))[ACME])
        assert read == sorted(set(read))
        await write(store, b"key", entry(positions=await positions(store)))
        lives = {key: await client.pttl(key) for key in await client.keys("*")}
        assert {key for key, life in lives.items() if life == -1} == {key for key in lives if b":e:" not in key}
        assert len(lives) > 3

    with_store(server.url, body)


def test_a_clock_that_went_back_still_gives_a_higher_stamp(server: RedisServer) -> None:
    async def body(store: RedisStore, client: Any) -> None:
        await store.purge({ACME: ["client:42"]})
        (key,) = await client.keys("*:s:*")
        ahead = 4_000_000_000_000_000  # the year 2096, in microseconds
        await client.set(key, ahead)
        await write(store, b"key", entry(tags=((ACME, "client:42"),), positions=await positions(store)))
        await store.purge({ACME: ["client:42"]})
        assert dict(await positions(store))[ACME] == ahead + 1
        assert await found(store, b"key") is None

    with_store(server.url, body)


def test_stamps_in_the_server_stay_near_the_limit_and_older_than_the_longest_life_go(server: RedisServer) -> None:
    async def count(client: Any) -> int:
        return len(await client.keys("*:g:*"))

    async def limited(store: RedisStore, client: Any) -> None:
        for number in range(30):
            await store.purge({ACME: [f"{number}:{part}" for part in range(10)]})
        assert await count(client) <= 20 + 1

    with_store(server.url, limited, max_stamps=20)
    server.flush()

    async def aged(store: RedisStore, client: Any) -> None:
        old = entry(tags=((ACME, "a"),), positions=await positions(store))
        await store.purge({ACME: ["a", "b", "c"]})

        async def trimmed() -> bool:
            await store.purge({ACME: ["d"]})
            return await count(client) == 1  # the tag just purged

        await eventually(trimmed, "old stamps are let go")
        await store.put(b"old", old, retain=60)
        assert await found(store, b"old") is None, "the floor stands for the stamp that is gone"

    with_store(server.url, aged, max_retain=0.05)


def test_no_record_is_kept_longer_than_the_longest_life(server: RedisServer) -> None:
    async def body(store: RedisStore, client: Any) -> None:
        await store.put(b"key", entry(), retain=1e9)
        (key,) = await client.keys("*:e:*")
        assert 0 < await client.pttl(key) <= 60_000

    with_store(server.url, body, max_retain=60.0)


@pytest.mark.parametrize("garbage", [b"", b"\x01", b"garbage" * 100, b"\x80\x04\x95pickle", b"\x01\xff\xff\xff\xff"])
def test_garbage_under_a_records_key_is_a_counted_miss(server: RedisServer, garbage: bytes) -> None:
    metrics = new_metrics()

    async def body(store: RedisStore, client: Any) -> None:
        await write(store, b"key", entry())
        (key,) = await client.keys("*:e:*")
        await client.set(key, garbage)
        lookup = await store.get(b"key", SCOPES)
        assert lookup.record is None
        assert lookup.positions == dict.fromkeys(SCOPES, 0)

    with_store(server.url, body, metrics=metrics)
    assert errors(metrics, "redis-codec") == 1


def test_a_stamp_that_is_none_is_a_store_error_not_a_hit(server: RedisServer) -> None:
    async def body(store: RedisStore, client: Any) -> None:
        await write(store, b"key", TAGGED)
        await store.purge({ACME: ["other"]})
        for key in await client.keys("*:s:*"):
            await client.set(key, b"nonsense")
        with pytest.raises(StoreError, match="no stamp"):
            await store.get(b"key", SCOPES)

    with_store(server.url, body)


def test_a_server_without_memory_refuses_writes_but_takes_purges_and_answers(start_server: Start) -> None:
    server = start_server(options={"maxmemory": "6mb", "maxmemory-policy": "noeviction"})
    metrics = new_metrics()

    async def body(store: RedisStore, client: Any) -> None:
        kept: list[bytes] = []
        refused = 0
        for number in range(200):
            key = b"%d" % number
            if await store.put(key, entry(bytes(100_000), tags=((ACME, "it"),)), retain=60):
                kept.append(key)
            else:
                refused += 1
        assert refused == 200 - len(kept) > 0 < len(kept)
        assert await found(store, kept[0]) is not None
        assert (await store.purge({ACME: ["it"]})).state == "done"
        assert await found(store, kept[0]) is None
        assert store.stats().rejected == refused

    with_store(server.url, body, metrics=metrics)
    assert metrics.limits.labels("redis-memory")._value.get() > 0


def test_a_record_that_is_too_large_is_counted(server: RedisServer) -> None:
    metrics = new_metrics()

    async def body(store: RedisStore, client: Any) -> None:
        for size, kept in ((5_000, True), (20_000, False)):
            assert await store.put(b"key", entry(bytes(size)), retain=60) is kept

    with_store(server.url, body, metrics=metrics, max_entry_bytes=10_000)
    assert metrics.limits.labels("redis-entry-bytes")._value.get() == 1


def test_calls_beyond_those_that_may_wait_are_refused_and_counted(start_server: Start) -> None:
    server, metrics = start_server(), new_metrics()

    async def body(store: RedisStore, client: Any) -> None:
        await store.get(b"key", SCOPES)
        await asyncio.to_thread(server.suspend)
        waiting = [asyncio.create_task(store.get(b"key", SCOPES)) for _ in range(3)]
        await asyncio.sleep(0)
        for _ in range(2):
            with pytest.raises(StoreError, match="3 calls wait already"):
                await store.get(b"key", SCOPES)
        await asyncio.to_thread(server.resume)
        assert [lookup.record for lookup in await asyncio.gather(*waiting)] == [None] * 3

    with_store(server.url, body, metrics=metrics, max_waiting=3)
    assert metrics.limits.labels("redis-waiting")._value.get() == 2


@pytest.mark.parametrize(
    ("policy", "reported"), [("noeviction", 0), ("volatile-lru", 0), ("allkeys-lru", 1), ("allkeys-random", 1)]
)
def test_a_policy_that_may_evict_stamps_is_reported_at_start(start_server: Start, policy: str, reported: int) -> None:
    server = start_server(options={"maxmemory-policy": policy})
    metrics = new_metrics()

    async def body(store: RedisStore, client: Any) -> None:
        await store.start()

        async def checked() -> bool:
            return store.checked

        await eventually(checked, "the policy is looked at")

    with_store(server.url, body, metrics=metrics)
    assert errors(metrics, "redis-policy") == reported


def test_start_returns_at_once_although_nobody_listens() -> None:
    metrics = new_metrics()

    async def body(store: RedisStore, client: Any) -> None:
        async with asyncio.timeout(0.05):
            await store.start()

        async def told() -> bool:
            return errors(metrics, "redis-check") == 1

        await eventually(told, "the failure is counted")
        with pytest.raises(StoreError, match="Connect call failed"):
            await store.get(b"key")

    with_store("redis://127.0.0.1:1/0", body, metrics=metrics)


def test_bytes_read_and_written_are_counted(server: RedisServer) -> None:
    metrics = new_metrics()

    def counted(direction: str) -> float:
        return metrics.store_bytes.labels(direction)._value.get()

    async def body(store: RedisStore, client: Any) -> None:
        for size in (1_000, 200_000):
            before = counted("read"), counted("written")
            assert await store.put(b"key", entry(bytes(size)), retain=60)
            for _ in range(3):
                assert await found(store, b"key") is not None
            written = counted("written") - before[1]
            assert size < written < size + 300
            assert counted("read") - before[0] == 3 * written

    with_store(server.url, body, metrics=metrics)


def test_options_that_cannot_be_used_are_all_reported() -> None:
    with pytest.raises(ConfigError) as caught:
        RedisStore("http://nowhere", namespace="a b", naming_key=bytes(65), max_retain=0, max_stamps=0)
    assert [problem.path for problem in caught.value.problems] == [
        "url",
        "namespace",
        "naming_key",
        "max_retain",
        "max_stamps",
    ]


def test_a_store_that_was_closed_starts_and_closes_again_on_another_event_loop(server: RedisServer) -> None:
    server.flush()
    store = RedisStore(server.url, metrics=new_metrics())

    async def life(expected: Any) -> None:
        await store.start()

        async def checked() -> bool:
            return store.checked

        await eventually(checked, "the policy was looked at")
        assert await found(store, b"key") == expected
        await write(store, b"key", TAGGED)
        await store.aclose()
        left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert left == []

    for expected in (None, TAGGED):
        asyncio.run(life(expected))


def test_a_record_that_was_asked_for_before_and_its_stamps_are_one_command(server: RedisServer) -> None:
    async def body(store: RedisStore, client: Any) -> None:
        async def commands() -> int:
            return int((await client.info("commandstats"))["cmdstat_mget"]["calls"])

        await write(store, b"key", TAGGED)
        assert (await store.get(b"key", SCOPES)).record == TAGGED
        before = await commands()
        for _ in range(10):
            assert (await store.get(b"key", SCOPES)).record == TAGGED
        assert await commands() == before + 10
        await store.purge({ACME: ["client:42"]})
        lookup = await store.get(b"key", SCOPES)
        assert lookup.record is None
        assert lookup.positions is not None
        assert lookup.positions[ACME] > 0 == lookup.positions[PUBLIC_SCOPE]
        assert await commands() == before + 11

    with_store(server.url, body)


def test_a_record_that_depends_on_other_tags_than_the_last_one_is_judged_by_its_own(server: RedisServer) -> None:
    async def body(store: RedisStore, client: Any) -> None:
        await write(store, b"key", TAGGED)
        await store.purge({ACME: ["client:7"]})
        for tags, hit in ((((ACME, "client:7"),), False), ((), True), (TAGGED.tags, True), (((ACME, "x"),), True)):
            await store.put(b"key", entry(tags=tags), retain=60)
            assert ((await store.get(b"key", SCOPES)).record is not None) is hit, tags

    with_store(server.url, body)
