"""What every store does, whichever it is."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from tests.middleware.stores.support import ACME, SCOPES, Open, entry, eventually, found, hears, positions, write
from tidegate.middleware.core.records import PUBLIC_SCOPE, WHOLE_SCOPE, Entry, Record, Variants
from tidegate.middleware.stores.base import Purge, Store
from tidegate.middleware.stores.tiered import TieredStore

FULL = Entry(
    status=404,
    headers=((b"x", b""), (b"x", b"\xff\x00"), (b"etag", b'"1"')),
    body=bytes(range(256)) * 40,
    born=1_700_000_000.125,
    lifetime=0.0,
    stale_while_revalidate=30.0,
    stale_if_error=3600.0,
    must_revalidate=True,
    no_cache=True,
    vary=((b"accept", b"a, b"), (b"cookie", None)),
    tags=((PUBLIC_SCOPE, "uri:/caf\xe9"), (ACME, "client:42")),
    positions=((PUBLIC_SCOPE, 0), (ACME, 0)),
    own_etag=True,
)


def on(open_store: Open, body: Callable[[Store], Awaitable[None]], **limits: int) -> None:
    async def run() -> None:
        store = open_store(**limits)
        await store.start()
        try:
            if isinstance(store, TieredStore):
                await hears(store)
            await body(store)
        finally:
            await store.aclose()

    asyncio.run(run())


@pytest.mark.parametrize(
    "record", [FULL, entry(b""), Variants(names=(b"accept", b"cookie"))], ids=["full", "empty", "variants"]
)
def test_a_record_comes_back_as_it_was_put(open_store: Open, record: Record) -> None:
    async def body(store: Store) -> None:
        await write(store, b"key", record)
        assert await found(store, b"key") == record

    on(open_store, body)


def test_an_unknown_key_is_a_miss_that_tells_the_positions_asked_for(open_store: Open) -> None:
    async def body(store: Store) -> None:
        lookup = await store.get(b"unknown", SCOPES)
        assert lookup.record is None
        assert lookup.positions is not None
        assert set(lookup.positions) == set(SCOPES)
        assert (await store.get(b"unknown")).positions == {}

    on(open_store, body)


def test_a_later_record_takes_the_place_of_an_earlier_one(open_store: Open) -> None:
    async def body(store: Store) -> None:
        await write(store, b"key", entry(b"one"))
        await write(store, b"key", entry(b"two"))

    on(open_store, body)


def test_a_deleted_record_is_gone_and_deleting_nothing_is_no_error(open_store: Open) -> None:
    async def body(store: Store) -> None:
        await write(store, b"key", entry())
        await write(store, b"other", entry())
        await store.delete(b"key")
        await store.delete(b"key")
        assert await found(store, b"key") is None
        assert await found(store, b"other") is not None

    on(open_store, body)


def test_a_record_goes_when_its_time_is_over(open_store: Open) -> None:
    async def body(store: Store) -> None:
        await write(store, b"long", entry())
        for retain in (0.15, 0.6, 2.4):  # a slow machine may not see it in time
            with suppress(AssertionError):
                await write(store, b"short", entry(), retain=retain)
                break
        else:
            raise AssertionError("it was never seen")

        async def gone() -> bool:
            # A memory in front does not know how long the shared store keeps it, only how long it is fresh.
            return (await store.get(b"short")).record is None

        await eventually(gone, "the record has expired")
        assert await found(store, b"long") is not None

    on(open_store, body)


def test_a_record_that_is_too_large_is_not_kept(open_store: Open) -> None:
    async def body(store: Store) -> None:
        await store.put(b"large", entry(bytes(20_000)), retain=60)
        await write(store, b"small", entry())
        assert await found(store, b"large") is None
        assert store.stats().rejected == 1

    on(open_store, body, max_entry_bytes=10_000)


def test_a_purge_takes_what_carries_the_tag_and_leaves_the_rest(open_store: Open) -> None:
    async def body(store: Store) -> None:
        await write(store, b"42", entry(tags=((PUBLIC_SCOPE, "uri"), (ACME, "client:42"))))
        await write(store, b"43", entry(tags=((PUBLIC_SCOPE, "uri"), (ACME, "client:43"))))
        await write(store, b"public", entry(tags=((PUBLIC_SCOPE, "client:42"),)))
        assert await store.purge({ACME: ["client:42", "unheard-of"]}) == Purge("done", 2)
        assert await found(store, b"42") is None
        assert await found(store, b"43") is not None
        assert await found(store, b"public") is not None, "a tag of the same name in another scope"

    on(open_store, body)


def test_one_purge_reaches_several_scopes(open_store: Open) -> None:
    async def body(store: Store) -> None:
        await write(store, b"a", entry(tags=((PUBLIC_SCOPE, "a"),)))
        await write(store, b"b", entry(tags=((ACME, "b"),)))
        assert await store.purge({PUBLIC_SCOPE: ["a"], ACME: ["b"]}) == Purge("done", 2)
        assert await found(store, b"a") is None
        assert await found(store, b"b") is None

    on(open_store, body)


@pytest.mark.parametrize("earlier", [0, 1], ids=["the scope's first purge", "a later purge"])
def test_a_fill_that_raced_a_purge_does_not_bring_the_old_back(open_store: Open, earlier: int) -> None:
    async def body(store: Store) -> None:
        for _ in range(earlier):
            await store.purge({ACME: ["other"]})
        before = await positions(store)
        await store.purge({ACME: ["client:42"]})
        await store.put(b"stale", entry(tags=((ACME, "client:42"),), positions=before), retain=60)
        after = await positions(store)
        await write(store, b"fresh", entry(tags=((ACME, "client:42"),), positions=after))
        assert await found(store, b"stale") is None

    on(open_store, body)


def test_a_purge_of_a_whole_scope_takes_everything_filled_in_it_before(open_store: Open) -> None:
    async def body(store: Store) -> None:
        await write(store, b"tagged", entry(tags=((ACME, "client:42"),)))
        await write(store, b"untagged", entry())
        await write(store, b"elsewhere", entry(positions=((PUBLIC_SCOPE, 0),)))
        assert (await store.purge({ACME: [WHOLE_SCOPE]})).state == "done"
        assert await found(store, b"tagged") is None
        assert await found(store, b"untagged") is None
        assert await found(store, b"elsewhere") is not None
        await write(store, b"tagged", entry(tags=((ACME, "client:42"),), positions=await positions(store)))

    on(open_store, body)


def test_an_entry_with_a_tag_of_a_scope_without_a_position_is_not_served(open_store: Open) -> None:
    async def body(store: Store) -> None:
        await store.put(b"adrift", entry(tags=((ACME, "client:42"),), positions=((PUBLIC_SCOPE, 0),)), retain=60)
        await write(store, b"held", entry(tags=((ACME, "client:42"),)))
        assert await found(store, b"adrift") is None

    on(open_store, body)


def test_a_stamp_let_go_because_of_the_limit_brings_nothing_back(open_store: Open) -> None:
    async def body(store: Store) -> None:
        old = entry(tags=((ACME, "first"),), positions=await positions(store))
        bystander = replace(old, tags=((PUBLIC_SCOPE, "first"),), positions=((PUBLIC_SCOPE, 0),))
        await write(store, b"bystander", bystander)
        await store.purge({ACME: ["first"]})
        for number in range(60):
            await store.purge({ACME: [f"tag:{number}", f"more:{number}"]})
        await store.put(b"old", old, retain=60)
        assert await found(store, b"bystander") is not None, "another scope's entries stay"
        await write(store, b"new", replace(old, positions=await positions(store)))
        assert await found(store, b"old") is None

    on(open_store, body, max_stamps=10)


def test_no_fill_outlives_the_purges_that_it_raced(open_store: Open) -> None:
    """Values only grow; a purge follows each change. Nobody may read a value older than the last purge done."""
    rng = random.Random(7)

    async def body(store: Store) -> None:
        truth = 0
        settled = 0
        hits = wrong = 0

        async def reader() -> None:
            nonlocal hits, wrong
            for _ in range(100):
                key = b"key:%d" % rng.randrange(4)
                least = settled
                lookup = await store.get(key, (ACME,))
                if isinstance(lookup.record, Entry):
                    hits += 1
                    wrong += int(lookup.record.body) < least
                    await asyncio.sleep(0)
                    continue
                assert lookup.positions is not None
                body = b"%d" % truth
                await asyncio.sleep(rng.random() * 0.004)
                filled = entry(body, tags=((ACME, "it"),), positions=tuple(lookup.positions.items()))
                await store.put(key, filled, retain=60)

        async def writer() -> None:
            nonlocal truth, settled
            for _ in range(60):
                truth += 1
                made = truth
                assert (await store.purge({ACME: ["it"]})).state == "done"
                settled = max(settled, made)
                await asyncio.sleep(rng.random() * 0.006)

        await asyncio.gather(*[reader() for _ in range(4)], writer())
        assert wrong == 0
        assert hits > 10, "however crowded the machine is"

    on(open_store, body)


def test_cancelled_calls_confuse_no_later_ones(open_store: Open) -> None:
    async def body(store: Store) -> None:
        for number in range(10):
            await write(store, b"%d" % number, entry(b"%d" % number))
        rng = random.Random(3)

        async def ask(number: int) -> bool:
            record = await found(store, b"%d" % number)
            assert record is None or (isinstance(record, Entry) and record.body == b"%d" % number)
            return record is not None

        hits = 0
        for _ in range(20):
            tasks = [asyncio.create_task(ask(rng.randrange(10))) for _ in range(20)]
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            for task in rng.sample(tasks, 8):
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert not [o for o in outcomes if isinstance(o, Exception)]
            hits += outcomes.count(True)
        assert hits >= 20 * 12 * 0.9
        assert await ask(5)

    on(open_store, body)
