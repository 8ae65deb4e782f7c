"""The memory store's limits and costs."""

import asyncio
import gc
import random
import sys
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

from tests.bench.sizes import entry_of, key_of, new_store, taken_by
from tests.middleware.stores.support import ACME, entry, found, new_metrics
from tidegate.errors import ConfigError
from tidegate.middleware.core.records import PUBLIC_SCOPE, WHOLE_SCOPE, Aim, Entry, Variants
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.memory import MemoryStore, size_of
from tidegate.middleware.stores.packing import Held, opened, row_of
from tidegate.middleware.stores.rows import ROW


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def limit(metrics: Metrics, name: str) -> float:
    return metrics.limits.labels(name)._value.get()


def run(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(body())  # type: ignore[arg-type]


def test_the_least_recently_used_record_goes_first_and_is_counted() -> None:
    metrics = new_metrics()

    async def body() -> None:
        store = MemoryStore(max_entries=3, metrics=metrics)
        for key in (b"a", b"b", b"c"):
            await store.put(key, entry(), retain=60)
        await store.get(b"a")
        await store.put(b"d", entry(), retain=60)
        assert [await found(store, key) is not None for key in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
        assert store.stats().evictions == 1

    run(body)
    assert limit(metrics, "memory-evicted") == 1


def test_the_bytes_kept_never_exceed_the_limit() -> None:
    async def body() -> None:
        store = MemoryStore(max_bytes=100_000, metrics=new_metrics())
        for number in range(200):
            await store.put(b"%d" % (number % 50), entry(bytes(number * 37 % 5000)), retain=60)
            assert (store.stats().bytes or 0) <= 100_000
        kept = [key for number in range(50) if await found(store, key := b"%d" % number) is not None]
        assert 10 < len(kept) == store.stats().entries
        for key in kept:
            await store.delete(key)
        assert (store.stats().bytes, store.stats().entries) == (0, 0)

    run(body)


def test_a_record_expires_when_its_seconds_are_over_and_gives_its_bytes_back() -> None:
    async def body() -> None:
        clock = Clock()
        store = MemoryStore(clock=clock, metrics=new_metrics())
        await store.put(b"key", entry(), retain=10)
        clock.now += 9.9
        assert await found(store, b"key") is not None
        clock.now += 0.1
        assert await found(store, b"key") is None
        assert store.stats().bytes == 0

    run(body)


@pytest.mark.parametrize("headers", [0, 5, 20])
def test_the_estimate_of_a_records_size_is_near_what_it_takes(headers: int) -> None:
    """Within a third, whatever its headers: it is what bounds the process' memory."""
    count = 500

    def fresh(number: int) -> bytes:
        return b"%016d" % number

    async def body() -> None:
        store = MemoryStore(metrics=new_metrics())
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(count):
            made = entry(
                fresh(number) * 2,
                headers=tuple((b"name-%d" % part + fresh(number), fresh(number)) for part in range(headers)),
                tags=((PUBLIC_SCOPE, f"uri:{number}"),),
                positions=((PUBLIC_SCOPE, number * 10**12),),
                born=1e9 + number,
                lifetime=60.0 + number,
            )
            assert await store.put(fresh(number), made, retain=60)
        taken = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        estimated = store.stats().bytes or 0
        assert taken * 2 / 3 < estimated < taken * 4 / 3, (taken / count, estimated / count)

    gc.collect()  # and with it Python's own lists of free tuples and floats, which tracemalloc does not see
    run(body)


def test_a_large_record_is_refused_before_it_pushes_out_others() -> None:
    metrics = new_metrics()

    async def body() -> None:
        store = MemoryStore(max_bytes=80_000, metrics=metrics)
        await store.put(b"small", entry(), retain=60)
        assert not await store.put(b"large", entry(bytes(20_000)), retain=60)
        assert await found(store, b"small") is not None
        assert store.stats().rejected == 1

    run(body)
    assert limit(metrics, "memory-entry-bytes") == 1


def test_scopes_let_go_because_of_the_limit_bring_nothing_back_and_are_counted() -> None:
    metrics = new_metrics()

    async def body() -> None:
        store = MemoryStore(max_scopes=5, metrics=metrics)
        old = entry(tags=((ACME, "it"),))
        await store.purge({ACME: ["it"]})
        for number in range(20):
            await store.purge({f"tenant:{number}": ["it"]})
        assert not await store.put(b"old", old, retain=60)
        positions = (await store.get(b"", (ACME, PUBLIC_SCOPE))).positions
        assert positions is not None
        assert await store.put(b"new", entry(tags=old.tags, positions=tuple(positions.items())), retain=60)
        assert await found(store, b"new") is not None

    run(body)
    assert limit(metrics, "memory-stamps") == 16


def test_what_an_entry_takes_beyond_key_and_body_is_bounded() -> None:
    """`python -m tests.bench.sizes` measures 100,000 of 2 KiB."""
    taken = taken_by(10_000, body=64)
    print(
        f"\n{taken.entry:.0f} bytes an entry beyond key and body, "
        f"of which {taken.own:.0f} are characters of its own ETag and URI"
    )
    assert taken.own < taken.entry < 160


def test_stamps_let_go_because_of_the_limit_cost_their_tenant_its_older_entries_and_nobody_else() -> None:
    metrics = new_metrics()

    async def body() -> None:
        store = MemoryStore(max_stamps=5, metrics=metrics)
        positions = ((ACME, 0), (PUBLIC_SCOPE, 0))
        await store.put(b"older", entry(tags=((ACME, "never purged"),), positions=positions), retain=60)
        await store.put(b"other", entry(positions=(("tenant:other", 0), (PUBLIC_SCOPE, 0))), retain=60)
        for number in range(5):
            await store.purge({ACME: [f"tag {number}"]})
        assert await found(store, b"older") is not None
        assert limit(metrics, "memory-stamps") == 0
        await store.purge({ACME: ["one more"]})
        assert limit(metrics, "memory-stamps") == store.stats().extra["stamps_forgotten"] == 1
        assert await found(store, b"older") is None
        assert await found(store, b"other") is not None
        assert len(store._ledger._scopes[ACME].stamps) == 5

    run(body)


@pytest.mark.parametrize("warm", [False, True])
def test_a_row_that_changes_hands_while_it_is_looked_up_gives_nobody_anothers_record(warm: bool) -> None:
    """As another thread may do it in the middle of `peek`, which takes no lock."""
    store = MemoryStore(metrics=new_metrics())

    class Held(dict[bytes, Any]):
        def get(self, key: bytes, default: Any = None) -> Any:
            held = super().get(key, default)
            if key == b"mine" and held is not None:
                store._held = dict(self)
                asyncio.run(store.delete(b"mine"))
                assert store.keep(b"theirs", entry(b"theirs"), retain=60)
                assert row_of(store._held[b"theirs"]) == row_of(held)
            return held

    assert store.keep(b"mine", entry(b"mine"), retain=60)
    if warm:
        assert store.peek(b"mine") is not None
    store._held = Held(store._held)
    assert store.peek(b"mine") == (entry(b"mine") if warm else None)


def test_hit_fill_and_purge_take_as_many_steps_among_100_000_entries_as_among_1_000() -> None:
    """Counted are the lines that run; a tag that all entries carry is purged."""

    async def steps(entries: int) -> dict[str, int]:
        store, record = new_store(entries), entry_of(0, b"x")
        for number in range(entries):
            await store.put(key_of(number), record, retain=60)
            if number % 1000 == 0:
                await asyncio.sleep(0)
        (scope, tag), most = record.tags[1], dict.fromkeys(("hit", "fill", "purge", "after"), 0)
        for number in range(50):
            last = entries + number
            most["hit"] = max(most["hit"], await _lines(store.get(key_of(last - 1))))
            most["fill"] = max(most["fill"], await _lines(store.put(key_of(last), record, retain=60)))
        most["purge"] = await _lines(store.purge({scope: [tag]}))
        most["after"] = await _lines(store.get(key_of(last)))
        assert store.stats().entries == entries - 1
        return most

    few, many = asyncio.run(steps(1000)), asyncio.run(steps(100_000))
    print(f"\nlines: {few}")
    assert all(many[name] <= few[name] + 20 for name in few), (few, many)
    assert max(few.values()) < 250


async def _lines(call: Coroutine[Any, Any, object]) -> int:
    count = 0

    def counted(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return counted

    before = sys.gettrace()
    sys.settrace(counted)
    try:
        await call
    finally:
        sys.settrace(before)
    return count


def test_several_threads_leave_the_counts_right_and_never_get_anothers_record() -> None:
    """Each with an event loop of its own, on a few keys and rows that change hands all the time."""
    store = MemoryStore(max_entries=20, metrics=new_metrics())
    wrong: list[object] = []
    hits = [0] * 6

    async def body(seed: int) -> None:
        chance = random.Random(seed)
        for number in range(3000):
            if number % 100 == 0:
                await asyncio.sleep(0)
            key = b"%d" % chance.randrange(30)
            match chance.randrange(8):
                case 0 | 1 | 2:
                    tenant = f"tenant:{chance.randrange(3)}"
                    made = entry(key * chance.randrange(1, 50), positions=((tenant, 10**9), (PUBLIC_SCOPE, 10**9)))
                    await store.put(key, made, retain=60)
                case 3:
                    await store.delete(key)
                case 4:
                    await store.purge({"tenant:1": [WHOLE_SCOPE if chance.random() < 0.2 else "tag"]})
                case _:
                    got = (await store.get(key, (PUBLIC_SCOPE,))).record
                    if isinstance(got, Entry):
                        hits[seed] += 1
                        if got.body.replace(key, b""):
                            wrong.append((key, got))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(6) as pool:
            for done in [pool.submit(asyncio.run, body(seed)) for seed in range(6)]:
                done.result(timeout=60)
    finally:
        sys.setswitchinterval(before)
    assert not wrong
    assert min(hits) > 100
    kept = [(key, store._record(held), store._weighed(key, held)[2]) for key, held in store._held.items()]
    assert store.stats().entries == len(kept) == sum(count for count, _ in store._fair.owners().values()) <= 20
    assert (
        store.stats().bytes == sum(size for *_, size in kept) == sum(size for _, size in store._fair.owners().values())
    )
    for key, record, size in kept:
        assert isinstance(record, Entry)
        assert not record.body.replace(key, b"")
        assert 0 < size - len(key) - len(record.body) < size_of(key, record) - len(key) - len(record.body)
    assert sum(form.rows for form in store._forms._forms.values()) <= len(kept)
    assert len(store._free) + len(kept) == len(store._keys)


def test_an_entry_that_is_asked_for_again_is_not_put_together_anew_and_few_are_held_so() -> None:
    store = MemoryStore(max_bytes=5 * 16384, metrics=new_metrics())
    keys = [b"%d" % number for number in range(8)]
    for key in keys:
        assert store.keep(key, entry(key, tags=((ACME, key.decode()),)), retain=60)
    for _ in range(3):
        for key in keys:
            first = store.peek(key)
            assert store.peek(key) is first
            assert first == entry(key, tags=((ACME, key.decode()),))
            assert sum(isinstance(held, Held) for held in store._held.values()) == len(store._warm) <= 5
    for key in keys:
        store.drop(key)
    assert (len(store._warm), len(store._forms), store.stats().bytes) == (0, 0, 0)


def test_what_is_made_stale_is_weighed_anew_for_it_may_share_its_form_no_more() -> None:
    """There is room for the forms of some tenants only; those of entries that became stale are others."""
    room, tenants, each = 512 * 1024, 28, 54

    async def body() -> None:
        store = MemoryStore(max_bytes=room, metrics=new_metrics())
        keys = [(tenant, b"%d/%d" % (tenant, number)) for tenant in range(tenants) for number in range(each)]
        for tenant, key in keys:
            scopes = ((f"tenant:{tenant}", 0), (PUBLIC_SCOPE, 0))
            assert store.keep(key, entry(key, positions=scopes, lifetime=1e9), retain=600)
        before = store.stats()
        assert before.entries == len(keys)
        await store.purge({PUBLIC_SCOPE: [Aim((WHOLE_SCOPE,), soft=True)]})
        stale = [record for _, key in keys if (record := store.peek(key)) is not None]
        assert len(stale) > len(keys) / 4
        assert all(isinstance(record, Entry) and record.lifetime < 1e9 for record in stale)
        after, held = store.stats(), store._fair.owners().values()
        assert after.evictions > 0
        assert (before.bytes or 0) < (after.bytes or 0) <= room
        assert (after.entries, after.bytes) == tuple(map(sum, zip(*held, strict=True)))
        weighed = {key: store._weighed(key, lies) for key, lies in store._held.items()}
        forms = {key: form for key, (_, form, _) in weighed.items() if form is not None}
        assert any(not form.shared for form in forms.values())
        for key, lies in store._held.items():
            packed = lies.packed if isinstance(lies, Held) else lies
            assert packed is not None
            own = opened(packed)[3]
            weight = 0 if forms[key].shared else forms[key].weight
            assert weighed[key][2] == ROW + len(key) + len(own) + len(key) + weight
        assert after.bytes == sum(size for *_, size in weighed.values())

    run(body)


@pytest.mark.parametrize(("long", "body"), [(15_000, 0), (0, 4000)])
def test_entries_that_are_held_whole_take_no_more_than_an_eighth_of_the_store(long: int, body: int) -> None:
    room = 4 * 1024 * 1024
    store = MemoryStore(max_bytes=room, metrics=new_metrics())
    keys = [b"%d" % number for number in range(200)]
    gc.collect()
    tracemalloc.start()
    try:
        for key in keys:
            own = entry(key + bytes(body), headers=((b"content-type", b"text/plain"), (b"link", key + bytes(long))))
            assert store.keep(key, own, retain=60)
        del own
        packed, _ = tracemalloc.get_traced_memory()
        for key in keys:
            peeked = store.peek(key)
            assert isinstance(peeked, Entry)
            assert peeked.headers[1][1] == key + bytes(long)
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - packed
    finally:
        tracemalloc.stop()
    assert 5 < len(store._warm) < len(keys)
    assert taken < room / 8 * 1.2
    assert store._warm.bytes <= room / 8
    for key in keys:
        store.drop(key)
    assert (len(store._warm), store._warm.bytes) == (0, 0)
    tiny = MemoryStore(max_bytes=4096, max_entry_bytes=4096, metrics=new_metrics())
    assert tiny.keep(b"key", entry(b"body"), retain=60)
    assert tiny.peek(b"key") == tiny.peek(b"key") == entry(b"body")


def test_an_entry_that_is_held_whole_is_replaced_and_made_stale_as_others_are() -> None:
    async def body() -> None:
        store = MemoryStore(metrics=new_metrics())
        shared = 0
        for number in range(12):  # until their form is known to recur
            peeked, tag = number % 2 == 1, f"number:{number}"
            tagged = entry(b"old", tags=((ACME, tag),), lifetime=1e9)
            await store.put(b"key", tagged, retain=60)
            assert not peeked or store.peek(b"key") == tagged
            await store.purge({ACME: [Aim((tag,), soft=True)]})
            shared = max(shared, len(store._forms))
            softened = store.peek(b"key")
            assert isinstance(softened, Entry)
            assert softened.lifetime < 1e9
            assert replace(softened, lifetime=1e9, stale_while_revalidate=0.0) == tagged
        await store.put(b"key", entry(b"new"), retain=60)
        assert store.peek(b"key") == entry(b"new")
        assert shared > 0
        store.drop(b"key")
        assert (len(store._warm), len(store._forms)) == (0, 0)

    run(body)


def test_purges_beyond_what_32_bits_count_void_what_they_did_before() -> None:
    async def body() -> None:
        store = MemoryStore(metrics=new_metrics())
        store._ledger.stamp = 2**32 - 3
        stood = (ACME, store._ledger.stamp)
        for number in range(8):
            key = b"%d" % number
            assert store.keep(key, entry(tags=((ACME, f"tag:{number}"),), positions=(stood,)), retain=60)
            assert store.keep(key + b" lies", entry(tags=((ACME, f"tag:{number}"),), positions=(stood,)), retain=60)
            assert store.peek(key) is not None
            await store.purge({ACME: [f"tag:{number - 1}"]})
            assert store.peek(key) is not None
            assert store.peek(b"%d" % (number - 1)) is store.peek(b"%d lies" % (number - 1)) is None
        assert store._ledger.stamp > 2**32
        assert store._valid_at[row_of(store._held[key])] == store._ledger.stamp

    run(body)


def test_limits_that_are_none_are_all_reported() -> None:
    with pytest.raises(ConfigError) as caught:
        MemoryStore(max_bytes=0, max_entries=-1, max_stamps=True, metrics=new_metrics())
    assert [problem.path for problem in caught.value.problems] == ["max_bytes", "max_entries", "max_stamps"]


def test_a_variants_record_is_weighed_too() -> None:
    assert size_of(b"key", Variants(names=(b"accept", b"cookie"))) > 12
