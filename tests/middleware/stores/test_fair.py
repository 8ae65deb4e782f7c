"""P6: one tenant's flood takes nothing from another, and a tenant alone may use the whole store."""

import asyncio
import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.middleware.stores.support import entry, new_metrics
from tidegate.middleware.core.records import PUBLIC_SCOPE, Entry, Variants
from tidegate.middleware.stores.fair import Fair
from tidegate.middleware.stores.memory import MemoryStore

ENTRIES = 1000


def made_for(tenant: str, body: bytes = b"body") -> Entry:
    """As a cache layer stores it: with a position for the tenant's scope and for the public one."""
    return entry(body, positions=((f"tenant:{tenant}", 0), (PUBLIC_SCOPE, 0)))


async def ratio_of_b(store: MemoryStore, *, flood: int, body: bytes = b"body") -> float:
    """Hit ratio of tenant b's 8,000 requests, more for some than for others of 400 URLs (its even share is 500), with
    `flood` new ones of a's after each.
    """
    chance = random.Random(7)
    urls = [int(400 * chance.random() ** 2) for _ in range(8000)]
    hits = flooded = 0
    for at, url in enumerate(urls):
        if at % 100 == 0:
            await asyncio.sleep(0)
        key = b"b:%d" % url
        if (await store.get(key)).record is not None:
            hits += 1
        else:
            await store.put(key, made_for("b"), retain=600)
        for _ in range(flood):
            flooded += 1
            await store.put(b"a:%d" % flooded, made_for("a", body), retain=600)
    assert not flood or flooded >= 20 * ENTRIES or body != b"body"
    return hits / len(urls)


def test_a_flood_of_twenty_times_the_store_costs_another_tenant_less_than_a_point_of_its_hit_ratio() -> None:
    metrics = new_metrics()
    alone = asyncio.run(ratio_of_b(MemoryStore(max_entries=ENTRIES, metrics=new_metrics()), flood=0))
    flooded = asyncio.run(ratio_of_b(MemoryStore(max_entries=ENTRIES, metrics=metrics), flood=3))
    print(f"\nhit ratio alone {alone:.4f}, under the flood {flooded:.4f}")
    assert alone > 0.9
    assert flooded >= alone - 0.01
    assert metrics.limits.labels("memory-tenant-share")._value.get() > 10 * ENTRIES


def test_without_shares_the_same_flood_would_cost_it_its_hits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above would not tell of a flood that is too small."""
    monkeypatch.setattr("tidegate.middleware.stores.memory.owner_of", lambda _record: PUBLIC_SCOPE)
    alone = asyncio.run(ratio_of_b(MemoryStore(max_entries=ENTRIES, metrics=new_metrics()), flood=0))
    flooded = asyncio.run(ratio_of_b(MemoryStore(max_entries=ENTRIES, metrics=new_metrics()), flood=3))
    print(f"\nwithout shares: alone {alone:.4f}, under the flood {flooded:.4f}")
    assert flooded < alone - 0.05


def test_a_flood_of_large_bodies_is_no_way_round_it() -> None:
    store = MemoryStore(max_bytes=2_000_000, metrics=new_metrics())
    alone = asyncio.run(ratio_of_b(MemoryStore(max_bytes=2_000_000, metrics=new_metrics()), flood=0))
    flooded = asyncio.run(ratio_of_b(store, flood=1, body=bytes(40_000)))
    assert flooded >= alone - 0.01


def test_a_tenant_alone_may_use_the_whole_store_and_gives_way_to_those_who_come() -> None:
    async def body() -> None:
        store = MemoryStore(max_entries=100, metrics=new_metrics())
        for number in range(150):
            await store.put(b"a:%d" % number, made_for("a"), retain=600)
        assert store.stats().entries == 100
        for number in range(50):
            await store.put(b"b:%d" % number, made_for("b"), retain=600)
        kept = [(await store.get(b"b:%d" % number)).record is not None for number in range(50)]
        assert sum(kept) >= 100 // 2 * 8 // 9
        assert store.stats().entries == 100
        assert store.stats().extra["tenants"] == 2

    asyncio.run(body())


def test_what_a_url_varies_by_counts_as_the_tenants_that_it_is_stored_for() -> None:
    async def body() -> None:
        store = MemoryStore(max_entries=100, metrics=new_metrics())
        for number in range(40):
            await store.put(b"p:%d" % number, entry(positions=((PUBLIC_SCOPE, 0),)), retain=600)
        for number in range(1000):
            await store.put(b"v:%d" % number, Variants(names=(b"accept",), scope="tenant:a"), retain=600)
        assert all([(await store.get(b"p:%d" % number)).record is not None for number in range(40)])

    asyncio.run(body())


def test_what_nobody_can_be_served_any_more_makes_room_first() -> None:
    async def body() -> None:
        now = 1_700_000_000.0
        store = MemoryStore(max_entries=100, clock=lambda: now, metrics=new_metrics())
        for number in range(50):
            await store.put(b"idle:%d" % number, made_for("idle"), retain=10)
        for number in range(50):
            await store.put(b"busy:%d" % number, made_for("busy"), retain=600)
        now += 11
        for number in range(50, 95):
            await store.put(b"busy:%d" % number, made_for("busy"), retain=600)
        kept = sum([(await store.get(b"busy:%d" % number)).record is not None for number in range(95)])
        assert kept >= 70

    asyncio.run(body())


STEPS = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 30), st.sampled_from([1, 50, 900])), max_size=150)


@given(STEPS)
def test_whoever_takes_less_than_eight_ninths_of_an_even_share_loses_nothing_to_others(
    steps: list[tuple[str, int, int]],
) -> None:
    """Against a plain count of what each has: nothing of a small owner's is gone when another has put a record."""

    async def body() -> None:
        limit = 24
        store = MemoryStore(max_entries=limit, max_bytes=24_000, max_entry_bytes=5_000, metrics=new_metrics())
        for tenant, number, size in steps:
            before = {name: set(owner.records) for name, owner in store._fair._owners.items()}
            weighed = {name: owner.bytes for name, owner in store._fair._owners.items()}
            await store.put(f"{tenant}:{number}".encode(), made_for(tenant, bytes(size)), retain=600)
            owners = store._fair._owners
            even = 1 / len(before.keys() | {f"tenant:{tenant}"})
            for name, had in before.items():
                share = max(len(had) / limit, weighed[name] / 24_000)
                if name != f"tenant:{tenant}" and share < even * 8 / 9:
                    assert set(owners[name].records) == had
            assert sum(len(owner.records) for owner in owners.values()) == store.stats().entries == len(store._slots)
            assert sum(owner.bytes for owner in owners.values()) == store.stats().bytes
            assert (store.stats().entries or 0) <= limit
            assert (store.stats().bytes or 0) <= 24_000
        for key in list(store._slots):
            await store.delete(key)
        assert (len(store._fair), store._fair._taken, store._fair._ranks) == (0, 0, {})

    asyncio.run(body())


def test_what_shares_cost_in_memory_is_small_for_each_record() -> None:
    """Beyond the record itself: dictionary, place in the owner's order, and the slot."""
    count = 10_000

    async def body() -> float:
        store = MemoryStore(max_bytes=10**9, metrics=new_metrics())
        record = made_for("a")
        keys = [b"%020d" % number for number in range(count)]
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for at, key in enumerate(keys):
            await store.put(key, record, retain=60)
            if at % 500 == 0:
                await asyncio.sleep(0)
        taken = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        return taken / count

    each = asyncio.run(body())
    print(f"\n{each:.0f} bytes of the store for each record, beyond key and record")
    assert each < 400


def test_an_owner_without_records_is_none() -> None:
    fair = Fair(max_bytes=100, max_entries=10)
    fair.owner("tenant:a")
    assert len(fair) == 0
