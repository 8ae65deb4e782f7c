"""A dry run counts what a purge would take, shows a few, and changes nothing."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tests.middleware.stores.support import ACME, Open, entry, found, new_metrics, positions, write
from tests.services import RedisServer
from tidegate.errors import StoreError
from tidegate.middleware.core.records import PUBLIC_SCOPE, WHOLE_SCOPE, Variants
from tidegate.middleware.stores import redis_looking
from tidegate.middleware.stores.affected import SAMPLE, Affected, Affects
from tidegate.middleware.stores.base import Aim, Store
from tidegate.middleware.stores.guard import GuardedStore
from tidegate.middleware.stores.redis import RedisStore
from tidegate.middleware.stores.tiered import in_front_of

TARGETS: list[tuple[str, Any, int]] = [
    (ACME, "list", 30),
    (ACME, Aim(("list",), soft=True), 30),
    (ACME, Aim(("list", "odd")), 15),
    (ACME, Aim(("odd", "even")), 0),
    (PUBLIC_SCOPE, "list", 0),
    (ACME, "client:7", 1),
    (ACME, WHOLE_SCOPE, 31),
    (PUBLIC_SCOPE, WHOLE_SCOPE, 32),
]


def on(open_store: Open, body: Callable[[Any], Awaitable[None]]) -> None:
    async def run() -> None:
        store = open_store()
        await store.start()
        try:
            await body(store)
        finally:
            await store.aclose()

    asyncio.run(run())


async def filled(store: Store) -> None:
    """Thirty of a tenant and two others; one that was purged, one whose time is over, and what is no response."""
    at = await positions(store)
    for number in range(30):
        tags = ((ACME, "list"), (ACME, f"client:{number}"), (ACME, "odd" if number % 2 else "even"))
        await write(store, b"list-%d" % number, entry(b"x" * 100, tags=tags, positions=at, born=time.time() - 5))
    await write(store, b"plain", entry(tags=((ACME, "plain"),), positions=at))
    await write(store, b"public", entry(tags=((PUBLIC_SCOPE, "u"),), positions=((PUBLIC_SCOPE, 0),)))
    await write(store, b"gone", entry(tags=((ACME, "list"), (ACME, "gone")), positions=at))
    await write(store, b"names", Variants(names=(b"accept",)))
    await store.purge({ACME: ["gone"]})


def test_it_counts_what_the_purge_would_take_and_changes_nothing(open_store: Open) -> None:
    async def body(store: Any) -> None:
        await filled(store)
        assert isinstance(store, Affects)
        for scope, target, count in TARGETS:
            told = await store.affected({scope: [target]})
            assert (told.entries, told.exact) == (count, True), target
            assert told.looked_at >= 32
            assert len(told.sample) == min(count, SAMPLE)
        (one,) = (await store.affected({ACME: ["client:7"]})).sample
        assert (one.status, one.size, one.tags) == (200, 100, ((ACME, "list"), (ACME, "client:7"), (ACME, "odd")))
        assert 5 <= one.age < 600
        assert (await store.affected({ACME: ["list", "client:7"], PUBLIC_SCOPE: ["u"]})).entries == 31
        for number in range(30):
            assert await found(store, b"list-%d" % number) is not None

    on(open_store, body)


def test_of_more_than_it_looks_at_it_says_at_least(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        store = RedisStore(server.url, metrics=new_metrics())
        try:
            await filled(store)
            monkeypatch.setattr(redis_looking, "_AT_ONCE", 10)
            monkeypatch.setattr(redis_looking, "LOOKED_AT", 20)
            told = await store.affected({PUBLIC_SCOPE: [WHOLE_SCOPE]})
            assert not told.exact
            assert told.looked_at == 20
            assert 15 <= told.entries <= 20
            monkeypatch.setattr(redis_looking, "LOOKED_AT", 10_000)
            monkeypatch.setattr(redis_looking, "LOOK_FOR", 60.0)
            large = entry(bytes(100_000), tags=((ACME, "list"),), positions=await positions(store))
            await write(store, b"large", large)
            told = await store.affected({ACME: ["list"]})
            assert (told.entries, told.exact) == (30, False), "large ones are not looked into"
        finally:
            await store.aclose()

    asyncio.run(run())


def test_a_store_with_a_memory_in_front_says_what_is_in_it(server: RedisServer) -> None:
    async def run() -> None:
        metrics = new_metrics()
        inner = in_front_of(RedisStore(server.url, metrics=metrics), max_bytes=1 << 20, metrics=metrics)
        store = GuardedStore(inner, metrics=metrics, budget=5.0)
        await store.start()
        try:
            at = await positions(inner)
            for number in range(4):
                await inner.put(b"%d" % number, entry(tags=((ACME, "list"),), positions=at), retain=60)
            for number in range(2):
                while inner.stats().extra["near_live"] != 1.0 or store.peek(b"%d" % number) is None:
                    await store.get(b"%d" % number)
            told = await store.affected({ACME: ["list"]})
            assert (told.entries, told.in_memory) == (4, 2)
        finally:
            await store.aclose()

    asyncio.run(run())


def test_a_server_that_is_away_is_told_as_nothing_known() -> None:
    async def run() -> None:
        metrics = new_metrics()
        store = GuardedStore(RedisStore("redis://127.0.0.1:1/0", metrics=metrics), metrics=metrics)
        try:
            told = await store.affected({ACME: ["list"]})
            assert (told.entries, told.exact, told.looked_at) == (0, False, 0)
            assert metrics.errors.labels("store")._value.get() == 1
        finally:
            await store.aclose()

    asyncio.run(run())


async def none_of_ours() -> AsyncIterator[list[bytes]]:
    while True:
        await asyncio.sleep(0)
        yield []


async def silent() -> AsyncIterator[list[bytes]]:
    await asyncio.Event().wait()
    yield []


@pytest.mark.parametrize("names", [none_of_ours, silent])
def test_it_ends_in_time_where_no_record_is_found_and_fails_where_nobody_answers(
    names: Callable[[], AsyncIterator[list[bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_looking, "LOOK_FOR", 0.05)

    async def nothing(*_: object) -> Any:
        raise AssertionError("there is nothing to read")

    async def look() -> Affected:
        async with asyncio.timeout(20.0):
            looking = redis_looking.look_through
            return await looking(names(), {ACME: ["a"]}, read=nothing, opened=lambda *_: None, stands=nothing)

    if names is silent:
        with pytest.raises(StoreError, match=r"no answer within 0\.05 s"):
            asyncio.run(look())
    else:
        assert asyncio.run(look()) == Affected(exact=False)
