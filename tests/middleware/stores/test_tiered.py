"""A memory in front of Redis: hits that ask nobody; no order of purge, push, load and loss lets an old one through."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.middleware.stores.support import (
    ACME,
    SCOPES,
    entry,
    eventually,
    gone,
    hears,
    new_metrics,
    positions,
    two_processes,
    write,
)
from tests.services import RedisServer
from tidegate.middleware.core.records import PUBLIC_SCOPE, WHOLE_SCOPE, Entry, Variants
from tidegate.middleware.stores.base import Aim, Lookup, Purge, StoreStats, Target
from tidegate.middleware.stores.memory import MemoryStore
from tidegate.middleware.stores.pushes import Pushes
from tidegate.middleware.stores.redis import RedisStore
from tidegate.middleware.stores.tiered import DROPPED, TieredStore, in_front_of

TAGGED = entry(tags=((ACME, "client:42"), (PUBLIC_SCOPE, "uri:/a")))


async def known(store: TieredStore, key: bytes, record: Entry = TAGGED) -> None:
    """Write a record through one store, and see it in its memory after it was read once."""
    await write(store, key, record)
    assert (await store.get(key)).record == record
    assert store.peek(key) == record


def test_what_was_read_once_is_answered_from_memory(server: RedisServer) -> None:
    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        await known(one, b"key")
        assert other.peek(b"key") is None, "nobody has asked there"
        assert (await other.get(b"key", SCOPES)).record == TAGGED
        read = (await client.info("stats"))["total_commands_processed"]
        assert [other.peek(b"key") for _ in range(1000)] == [TAGGED] * 1000
        assert (await client.info("stats"))["total_commands_processed"] - read < 100, "hits ask nobody"
        assert other.stats().entries == 1

    two_processes(server.url, body, beside=server.url)


@pytest.mark.parametrize("flush", ["FLUSHALL", "FLUSHDB ASYNC"])
def test_what_was_on_its_way_since_before_a_purge_stays_out_though_the_server_was_emptied(
    server: RedisServer, flush: str
) -> None:
    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        before = await positions(one)
        await other.purge({ACME: ["client:42"]})
        await client.execute_command(*flush.split())
        await other.purge({PUBLIC_SCOPE: ["another"]})  # it is not by what purges leave that this is told
        await one.put(b"late", replace(TAGGED, positions=before), retain=60.0)

        async def refused() -> bool:
            return (await one.get(b"late")).record is None

        await eventually(refused, "it is not given for long", 30.0)

    two_processes(server.url, body, beside=server.url)


def test_that_another_database_was_emptied_costs_only_what_is_in_memory(server: RedisServer) -> None:
    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        async def stands() -> bool:
            return bool(await client.exists("tidegate:h"))

        await eventually(stands, "what tells that it was not emptied", 20.0)
        await other.purge({PUBLIC_SCOPE: ["anything"]})
        tagged = replace(TAGGED, positions=await positions(one))
        await known(one, b"key", tagged)
        made = await positions(one)
        await client.execute_command("SELECT", "5")
        await client.execute_command("FLUSHDB")
        await gone(one, b"key")
        assert (await one.get(b"key")).record == tagged
        for _ in range(3):  # one behind the other, as what it asks because of the flush
            assert await positions(one) == made, "nothing was purged"

    two_processes(server.url, body, beside=server.url)


@pytest.mark.parametrize(
    "purged",
    [{ACME: ["client:42"]}, {PUBLIC_SCOPE: ["other", "uri:/a"]}, {ACME: [WHOLE_SCOPE]}, {ACME: [Aim(("client:42",))]}],
    ids=str,
)
def test_a_purge_reaches_every_memory_and_the_own_at_once(
    server: RedisServer, purged: Mapping[str, Sequence[Target]]
) -> None:
    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        for turn in range(20):
            key = b"%d" % turn
            record = entry(tags=TAGGED.tags, positions=await positions(one))
            await known(one, key, record)
            assert (await other.get(key)).record == record
            assert other.peek(key) == record
            pending = asyncio.ensure_future(one.purge(purged))
            await asyncio.sleep(0)
            assert one.peek(key) is None, "from the moment that it is asked for"
            assert (await pending).state == "done"
            await gone(other, key)
            assert (await other.get(key)).record is None
            assert (await one.get(key)).record is None

    two_processes(server.url, body, beside=server.url)


@pytest.mark.parametrize("aim", [Aim(("client:42",), soft=True), Aim(("client:42", "list"))], ids=["soft", "together"])
def test_an_aimed_purge_reaches_every_memory_and_memory_keeps_nothing_that_is_stale(
    server: RedisServer, aim: Aim
) -> None:
    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        old = entry(b"old", tags=((ACME, "client:42"), (ACME, "list")), born=time.time(), lifetime=3600.0)
        await known(one, b"key", old)
        await known(one, b"list", replace(old, tags=((ACME, "list"),)))
        for store in (one, other):
            assert (await store.get(b"key")).record == old
            assert store.peek(b"key") == old
        assert (await one.purge({ACME: [aim]})).state == "done"
        await gone(other, b"key")
        for store in (one, other):
            found = await store.get(b"key")
            assert found.softened == aim.soft
            assert (found.record is None) != aim.soft
            assert store.peek(b"key") is None
            assert (await store.get(b"list")).record is not None
        new = replace(old, body=b"new", positions=await positions(one))
        await write(one, b"key", new)
        assert (await other.get(b"key")).record == new, "as soon as it is replaced"
        assert other.peek(b"key") == new

    two_processes(server.url, body, beside=server.url)


def test_a_purge_of_others_leaves_what_is_not_theirs(server: RedisServer) -> None:
    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        await known(one, b"key")
        for purged in ({ACME: ["client:7"]}, {"tenant:zorg": ["client:42", WHOLE_SCOPE]}, {PUBLIC_SCOPE: ["uri:/b"]}):
            await other.purge(purged)
            heard = one._pushes.stamp
            await other.purge(purged)

            async def heard_again(before: int = heard) -> bool:
                return one._pushes.stamp > before

            await eventually(heard_again, "the purge is heard", 20.0)
            assert one.peek(b"key") == TAGGED

    two_processes(server.url, body, beside=server.url)


def test_what_is_only_forgotten_for_its_age_voids_nothing_here(server: RedisServer) -> None:
    """In a ledger that is full every purge lets a stamp go: if that were heard, no memory would keep anything."""

    async def run() -> None:
        metrics = new_metrics()
        far = RedisStore(server.url, metrics=metrics, max_stamps=5)
        store: Any = in_front_of(far, max_bytes=1 << 20, metrics=metrics)
        await store.start()
        try:
            await hears(store)
            for number in range(10):
                await store.purge({ACME: [f"tag:{number}"]})
            await known(store, b"key", entry(tags=TAGGED.tags, positions=await positions(store)))
            held = 0
            for number in range(10, 14):
                before = store._pushes.stamp
                await far.purge({ACME: [f"tag:{number}"]})

                async def heard(before: int = before) -> bool:
                    return bool(store._pushes.stamp > before)

                await eventually(heard, "the purge is heard", 20.0)
                held += store.peek(b"key") is not None
            assert held == 4
        finally:
            await store.aclose()

    asyncio.run(run())


def test_nothing_is_answered_from_memory_while_purges_cannot_be_heard(server: RedisServer) -> None:
    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        for _ in range(5):
            await known(one, b"key", entry(positions=await positions(one)))
            for link in await client.client_list():
                if "t" in link["flags"]:
                    await client.client_kill_filter(_id=link["id"])
            await gone(one, b"key")
            await hears(one)
            assert one.peek(b"key") is None, "everything was voided before it hears again"

    two_processes(server.url, body, beside=server.url)


def test_when_the_server_hangs_memory_answers_nothing_within_a_second(
    start_server: Callable[..., RedisServer],
) -> None:
    server = start_server()

    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        await known(one, b"key")
        server.suspend()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await gone(one, b"key")
        took = loop.time() - began
        server.resume()
        print(f"{took:.2f} s")

    two_processes(server.url, body, beside=server.url)


def test_what_is_replaced_or_forgotten_here_is_not_answered(server: RedisServer) -> None:
    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        await known(one, b"key")
        newer = entry(b"newer", tags=TAGGED.tags)
        await one.put(b"key", newer, retain=60.0)
        assert one.peek(b"key") is None
        assert (await one.get(b"key")).record == newer == one.peek(b"key")
        await one.delete(b"key")
        assert one.peek(b"key") is None
        names = Variants(names=(b"accept",))
        await one.put(b"vary", names, retain=60.0)
        assert (await one.get(b"vary")).record == names == one.peek(b"vary")

    two_processes(server.url, body, beside=server.url)


# --- every order of events in one load, which no server can be made to show ------------


class Slow:
    """A shared store whose answer is decided at once and comes when it is told to."""

    local = False

    def __init__(self) -> None:
        self.record: Entry | None = TAGGED
        self.answers = asyncio.Event()
        self.purges = asyncio.Event()
        self.purges.set()

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...

    async def get(self, key: bytes, scopes: Sequence[str] = ()) -> Lookup:
        record = self.record
        await self.answers.wait()
        return Lookup(record, {})

    async def put(self, key: bytes, record: Any, *, retain: float) -> bool:
        return True

    async def delete(self, key: bytes) -> None: ...

    async def purge(self, tags: Mapping[str, Sequence[Target]]) -> Purge:
        await self.purges.wait()
        return Purge("done", 1)

    def stats(self) -> StoreStats:
        return StoreStats()

    def stamp_names(self, entry: Entry) -> list[bytes]:
        return [f"{scope}:{tag}".encode() for scope, tag in entry.tags]

    async def settled(self, tags: Mapping[str, Sequence[Target]]) -> bool | None:
        return None

    def purged_names(self, tags: Mapping[str, Sequence[Target]]) -> list[bytes]:
        return [f"{scope}:{tag}".encode() for scope, names in tags.items() for tag in names]


class Hearing:
    until = float("inf")

    def start(self) -> None: ...

    async def aclose(self) -> None: ...


NAME = f"{ACME}:client:42".encode()


async def nothing(store: TieredStore, pushes: Pushes) -> None: ...


async def pushed(store: TieredStore, pushes: Pushes) -> None:
    pushes.changed([NAME])


async def pushed_other(store: TieredStore, pushes: Pushes) -> None:
    pushes.changed([b"another"])


async def voided(store: TieredStore, pushes: Pushes) -> None:
    pushes.void()


async def purged_here(store: TieredStore, pushes: Pushes) -> None:
    await store.purge({ACME: ["client:42"]})


async def deleted(store: TieredStore, pushes: Pushes) -> None:
    await store.delete(b"key")


async def replaced(store: TieredStore, pushes: Pushes) -> None:
    await store.put(b"key", TAGGED, retain=1.0)


async def replaced_among_many(store: TieredStore, pushes: Pushes) -> None:
    await store.put(b"key", TAGGED, retain=1.0)
    for number in range(DROPPED + 1):
        await store.put(b"%d" % number, TAGGED, retain=1.0)


async def deaf(store: TieredStore, pushes: Pushes) -> None:
    store._hearing.until = 0.0


async def many(store: TieredStore, pushes: Pushes) -> None:
    pushes.changed([NAME])
    for number in range(20):
        pushes.changed([b"%d" % number])


@pytest.mark.parametrize(
    ("event", "kept"),
    [
        (nothing, True),
        (pushed_other, True),
        (pushed, False),
        (voided, False),
        (purged_here, False),
        (deleted, False),
        (replaced, False),
        (replaced_among_many, False),
        (deaf, False),
        (many, False),
    ],
)
def test_a_load_that_is_overtaken_is_not_kept(
    event: Callable[[TieredStore, Pushes], Awaitable[None]], kept: bool
) -> None:
    async def run() -> None:
        for loads in (1, 2):  # two that overlap, the event between their beginnings
            far = Slow()
            pushes = Pushes(far.stamp_names, max_names=10)
            store = TieredStore(far, MemoryStore(judge=pushes, metrics=new_metrics()), pushes, Hearing())
            first = asyncio.ensure_future(store.get(b"key"))
            await asyncio.sleep(0)
            await event(store, pushes)
            if loads == 2:
                far.record = None
                second = asyncio.ensure_future(store.get(b"key"))
                await asyncio.sleep(0)
            far.answers.set()
            assert (await first).record == TAGGED, "who asked before gets what there was"
            assert (store.peek(b"key") is not None) is kept
            if loads == 2:
                assert (await second).record is None
            for after in (pushed, voided, deaf):
                await store.get(b"key")
                await after(store, pushes)
                assert store.peek(b"key") is None

    asyncio.run(run())


def test_what_was_judged_while_a_purge_of_this_process_was_on_its_way_is_not_kept() -> None:
    """Its push may come later than both replies: what this process knows itself must do."""

    async def run() -> None:
        far = Slow()
        far.purges.clear()
        pushes = Pushes(far.stamp_names)
        store = TieredStore(far, MemoryStore(judge=pushes, metrics=new_metrics()), pushes, Hearing())
        purge = asyncio.ensure_future(store.purge({ACME: ["client:42"]}))
        await asyncio.sleep(0)
        load = asyncio.ensure_future(store.get(b"key"))
        await asyncio.sleep(0)
        far.purges.set()
        assert (await purge).state == "done"
        far.answers.set()
        await load
        assert store.peek(b"key") is None

    asyncio.run(run())


def test_what_is_replaced_while_something_is_always_being_loaded_fills_no_memory() -> None:
    async def run() -> None:
        far = Slow()
        pushes = Pushes(far.stamp_names)
        store = TieredStore(far, MemoryStore(judge=pushes, metrics=new_metrics()), pushes, Hearing())
        load = asyncio.ensure_future(store.get(b"key"))
        await asyncio.sleep(0)
        for number in range(3 * DROPPED):
            await store.put(b"%d" % number, TAGGED, retain=1.0)
        assert len(store._dropped) <= DROPPED
        later = asyncio.ensure_future(store.get(b"later"))
        await asyncio.sleep(0)
        far.answers.set()
        await asyncio.gather(load, later)
        assert store.peek(b"later") == TAGGED, "what began after all that is kept"

    asyncio.run(run())
