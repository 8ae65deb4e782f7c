"""The short way of a look-up says what the long one does, fails as it does, and is gone by."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from tests.middleware.stores.guarding import TAGGED, errors, operations
from tests.middleware.stores.support import ACME, SCOPES, entry, eventually, new_metrics, positions, write
from tests.services import RedisServer
from tidegate.middleware.core.records import PUBLIC_SCOPE, Aim, Entry, Record, Variants
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.base import Lookup
from tidegate.middleware.stores.guard import GuardedStore
from tidegate.middleware.stores.redis import RedisStore

UNKNOWN = Lookup(None, None)


class Told(RedisStore):
    """A store that counts what it told in the short way."""

    def __init__(self, url: str, *, metrics: Metrics) -> None:
        super().__init__(url, metrics=metrics)
        self.short = 0
        told = self.told

        def counted(key: bytes, scopes: Sequence[str], about: Any, reply: Any) -> Lookup | None:
            found = told(key, scopes, about, reply)
            self.short += found is not None
            return found

        self.told = counted


def guarding(url: str, body: Callable[[GuardedStore, Told, Metrics], Awaitable[None]], *, budget: float = 20.0) -> None:
    async def run() -> None:
        metrics = new_metrics()
        store = Told(url, metrics=metrics)
        guard = GuardedStore(store, metrics=metrics, budget=budget)
        try:
            await body(guard, store, metrics)
        finally:
            await guard.aclose()

    asyncio.run(run())


async def known(guard: GuardedStore, key: bytes, record: Record) -> None:
    """Write it, and see it twice: then it is asked for in the short way."""
    await write(guard, key, record)
    for _ in range(2):
        assert (await guard.get(key, SCOPES)).record == record


def test_the_short_way_says_what_the_long_one_does_whatever_becomes_of_a_record(server: RedisServer) -> None:
    rng = random.Random(5)
    keys = [b"a", b"b", b"c"]
    tags = [(ACME, "one"), (ACME, "two"), (PUBLIC_SCOPE, "one")]

    async def body(guard: GuardedStore, store: Told, metrics: Metrics) -> None:
        other = RedisStore(server.url, metrics=new_metrics())

        async def change() -> None:
            key, what = rng.choice(keys), rng.randrange(10)
            if what < 5:
                now = await positions(store) if rng.random() < 0.8 else ((ACME, 0), (PUBLIC_SCOPE, 0))
                chosen = tuple(rng.sample(tags, rng.randrange(3)))
                bytes_of_body = rng.choice((b"x" * 500, b"y" * 500, b"longer" * 100, b"large" * 20_000))
                made: Record = entry(bytes_of_body, tags=chosen, positions=now, born=4e9, lifetime=3600.0)
                await store.put(key, made, retain=60)
            elif what == 5:
                await store.put(key, Variants(names=(b"accept",)), retain=60)
            elif what == 6:
                await store.delete(key)
            else:
                scope, tag = rng.choice(tags)
                await store.purge({scope: [rng.choice((tag, Aim((tag,), soft=True), Aim(("one", "two")), ""))]})

        told: set[str] = set()
        try:
            for _ in range(150):
                await change()
                for key in keys * 2:
                    found = await guard.get(key, SCOPES)
                    fresh = RedisStore(server.url, metrics=new_metrics())
                    fresh._servers = other._servers
                    fresh._reading._servers = other._servers
                    assert found == await fresh.get(key, SCOPES)
                    told.add(f"{type(found.record).__name__} {found.softened}")
        finally:
            await other.aclose()
        assert {"Entry False", "Entry True", "Variants False", "NoneType False"} <= told
        assert store.short > 300
        assert errors(metrics) == 0

    guarding(server.url, body)


def test_a_server_that_is_silent_costs_the_budget_and_opens_the_circuit(start_valkey: Callable[..., Any]) -> None:
    server = start_valkey()

    async def body(guard: GuardedStore, store: Told, metrics: Metrics) -> None:
        async def again() -> bool:
            return (await guard.get(b"key", SCOPES)).record == TAGGED

        await write(guard, b"key", TAGGED)
        await eventually(again, "it is a hit", 20.0)
        await eventually(again, "it is one in the short way", 20.0)
        await asyncio.to_thread(server.suspend)
        while guard.breaker.state == "closed":
            assert await guard.get(b"key", SCOPES) == UNKNOWN
        assert operations(metrics, "get", "timeout") >= 1
        assert errors(metrics) >= 5
        await asyncio.to_thread(server.resume)
        await eventually(again, "it is a hit again", 20.0)

    guarding(server.url, body, budget=0.1)


def test_a_refusal_is_a_miss_and_counted(server: RedisServer) -> None:
    server.command_reply("ACL", "SETUSER", "reader", "reset", "on", ">x", "~*", "&*", "+@all")

    async def body(guard: GuardedStore, store: Told, metrics: Metrics) -> None:
        await known(guard, b"key", TAGGED)
        assert store.short
        await asyncio.to_thread(server.command_reply, "ACL", "SETUSER", "reader", "-mget")
        assert await guard.get(b"key", SCOPES) == UNKNOWN
        assert errors(metrics) == operations(metrics, "get", "error") == 1
        await asyncio.to_thread(server.command_reply, "ACL", "SETUSER", "reader", "+mget")
        assert (await guard.get(b"key", SCOPES)).record == TAGGED

    guarding(f"redis://reader:x@{server.host}:{server.port}/0", body)


def test_what_is_no_stamp_is_a_miss_and_counted(server: RedisServer) -> None:
    async def body(guard: GuardedStore, store: Told, metrics: Metrics) -> None:
        await known(guard, b"key", TAGGED)
        name = store._names.position(ACME)
        await store._servers.call(name, b"SET", name, b"nonsense")
        assert await guard.get(b"key", SCOPES) == UNKNOWN
        assert errors(metrics) == 1

    guarding(server.url, body)


def test_a_purge_that_is_asked_for_while_the_answer_is_on_its_way_holds(server: RedisServer) -> None:
    async def body(guard: GuardedStore, store: Told, metrics: Metrics) -> None:
        await guard.start()
        await known(guard, b"key", TAGGED)
        asked = asyncio.ensure_future(guard.get(b"key", SCOPES))
        await asyncio.sleep(0)
        guard.purge_soon({ACME: ["client:42"]})
        assert (await asked).record is None

        async def made() -> bool:
            return not guard.stats().extra["purges_pending"]

        await eventually(made, "the purge is made", 20.0)
        assert (await guard.get(b"key", SCOPES)).record is None

    guarding(server.url, body)


def test_a_caller_that_leaves_is_no_evidence_and_shifts_nobodys_answer(server: RedisServer) -> None:
    async def body(guard: GuardedStore, store: Told, metrics: Metrics) -> None:
        records = {b"%d" % number: replace(TAGGED, body=b"%d" % number) for number in range(10)}
        for key, record in records.items():
            await known(guard, key, record)
        rng, short = random.Random(3), store.short
        for turn in range(100):
            tasks = {asyncio.ensure_future(guard.get(key, SCOPES)): key for key in records}
            for _ in range(turn % 4):
                await asyncio.sleep(0)
            left = set(rng.sample(list(tasks), 4))
            for task in left:
                task.cancel()
            await asyncio.wait(tasks)
            for task in tasks.keys() - left:
                found = task.result().record
                assert isinstance(found, Entry)
                assert found.body == tasks[task]
        assert store.short >= short + 600
        assert errors(metrics) == 0
        assert guard.breaker.state == "closed"

    guarding(server.url, body)
