"""What every store does with purges that are aimed: soft ones, and those of what carries several tags together."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.middleware.stores.support import ACME, Open, entry, found, positions, write
from tidegate.middleware.core.records import PUBLIC_SCOPE, WHOLE_SCOPE, Entry
from tidegate.middleware.core.reuse import judge_reuse
from tidegate.middleware.core.softening import SOFT_FOR
from tidegate.middleware.core.storing import RequestDirectives
from tidegate.middleware.stores.base import Aim, Store

SOFT = Aim(("it",), soft=True)
ALL_SOFT = Aim((WHOLE_SCOPE,), soft=True)


def on(open_store: Open, body: Callable[[Store], Awaitable[None]], **limits: int) -> None:
    async def run() -> None:
        store = open_store(**limits)
        await store.start()
        try:
            await body(store)
        finally:
            await store.aclose()

    asyncio.run(run())


async def fill(store: Store, key: bytes, *tags: str, scope: str = ACME, **of: Any) -> Entry:
    """Store an entry of now with these tags, and the positions of now."""
    named = tuple((scope, tag) for tag in tags)
    made = entry(key, tags=named, **{"positions": await positions(store), "born": time.time(), "lifetime": 3600.0} | of)
    await write(store, key, made)
    return made


def state(record: object, after: float = 0.0) -> str:
    """What the cache would do with it some seconds from now."""
    if not isinstance(record, Entry):
        return "miss"
    reuse = judge_reuse(record, RequestDirectives(), time.time() + after)
    return "hit" if reuse.fresh else "stale" if reuse.while_revalidating else "ask"


@pytest.mark.parametrize("aim", [SOFT, ALL_SOFT, Aim(("it", "too"), soft=True)], ids=["tag", "scope", "together"])
def test_a_soft_purge_makes_stale_what_a_hard_one_makes_void(open_store: Open, aim: Aim) -> None:
    async def body(store: Store) -> None:
        made = await fill(store, b"old", "it", "too")
        await fill(store, b"strict", "it", "too", must_revalidate=True)
        await fill(store, b"no-cache", "it", "too", no_cache=True)
        other = await fill(store, b"other", "another", scope=PUBLIC_SCOPE, positions=((PUBLIC_SCOPE, 0),))
        raced = replace(made, positions=await positions(store))
        assert (await store.purge({ACME: [aim]})).state == "done"
        softened = await found(store, b"old")
        assert isinstance(softened, Entry)
        assert softened.body == made.body
        assert state(softened) == "stale"
        assert state(softened, SOFT_FOR - 10) == "stale"
        assert state(softened, SOFT_FOR + 1) == "ask"
        assert state(await found(store, b"strict")) == "ask", "not to be served stale"
        assert state(await found(store, b"no-cache")) == "ask"
        assert await found(store, b"other") == other
        await store.put(b"raced", raced, retain=60)
        assert state(await found(store, b"raced")) in ("stale", "miss")
        await fill(store, b"new", "it", "too")
        assert state(await found(store, b"new")) == "hit"
        assert state(await found(store, b"old")) == "stale", "as before, whoever else is stored"

    on(open_store, body)


def test_what_a_soft_purge_made_stale_ends_by_its_own_window_and_never_later_than_without(open_store: Open) -> None:
    async def body(store: Store) -> None:
        await fill(store, b"window", "it", stale_while_revalidate=300.0)
        await fill(store, b"ends soon", "it", lifetime=10.0)
        over = await fill(store, b"over", "it", lifetime=0.0, stale_while_revalidate=1000.0)
        await store.purge({ACME: [SOFT]})
        assert [state(await found(store, b"window"), after) for after in (0, 290, 301)] == ["stale", "stale", "ask"]
        assert [state(await found(store, b"ends soon"), after) for after in (0, 11)] == ["stale", "ask"]
        assert await found(store, b"over") == over, "it was stale already"

    on(open_store, body)


@pytest.mark.parametrize("hard", ["it", WHOLE_SCOPE, Aim(("it", "too"))], ids=["tag", "scope", "together"])
def test_a_hard_purge_wins_over_soft_ones_before_and_after(open_store: Open, hard: Any) -> None:
    async def body(store: Store) -> None:
        await fill(store, b"first", "it", "too")
        await store.purge({ACME: [SOFT]})
        assert state(await found(store, b"first")) == "stale"
        await store.purge({ACME: [hard]})
        assert await found(store, b"first") is None
        await store.purge({ACME: [SOFT, ALL_SOFT]})
        assert await found(store, b"first") is None
        await fill(store, b"second", "it", "too")
        assert state(await found(store, b"second")) == "hit"
        await store.purge({ACME: [SOFT, hard]})
        assert await found(store, b"second") is None, "both in one"

    on(open_store, body)


def test_a_purge_of_tags_together_takes_what_carries_them_all(open_store: Open) -> None:
    async def body(store: Store) -> None:
        for key, tags in {
            b"ab": "ab",
            b"ba": "ba",
            b"abc": "abc",
            b"a": "a",
            b"b": "b",
            b"c": "c",
            b"bc": "bc",
        }.items():
            await fill(store, key, *tags)
        await fill(store, b"elsewhere", "a", "b", scope=PUBLIC_SCOPE)
        raced = entry(tags=((ACME, "b"), (ACME, "a")), positions=await positions(store))
        assert (await store.purge({ACME: [Aim(("b", "a"))]})).state == "done"
        await store.put(b"raced", raced, retain=60)
        gone = [key for key in (b"ab", b"ba", b"abc", b"raced") if await found(store, key) is None]
        kept = [key for key in (b"a", b"b", b"c", b"bc", b"elsewhere") if await found(store, key) is not None]
        assert gone == [b"ab", b"ba", b"abc", b"raced"]
        assert kept == [b"a", b"b", b"c", b"bc", b"elsewhere"]
        await fill(store, b"later", "a", "b")
        assert await found(store, b"later") is not None

    on(open_store, body)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_beyond_the_limit_more_is_purged_and_never_less(open_store: Open, soft: bool) -> None:
    async def body(store: Store) -> None:
        keys = [b"%d" % number for number in range(24)]
        bystander = await fill(store, b"bystander", "b00", "c")
        made: list[Entry] = []
        for number, key in enumerate(keys):
            made.append(await fill(store, key, "a", f"b{number:02}"))
            await store.purge({ACME: [Aim(("a", f"b{number:02}"), soft=soft)]})
        left = {state(await found(store, key)) for key in keys}
        assert left <= ({"miss", "stale"} if soft else {"miss"})
        assert await found(store, b"bystander") == bystander
        await fill(store, b"later", "a", "b00")
        assert state(await found(store, b"later")) == "hit"
        await store.purge({ACME: [f"tag:{number}" for number in range(40)]})  # so that the first tag's stamp is let go
        for key, old in zip(keys, made, strict=True):
            await store.put(key, old, retain=60)
        assert {state(await found(store, key)) for key in keys} <= ({"miss", "stale"} if soft else {"miss"})

    on(open_store, body, max_stamps=40)


def test_no_order_of_purges_and_fills_leaves_what_they_mean_to_take(open_store: Open) -> None:
    """Played beside a model that remembers every purge; what may be served, is."""
    chance = random.Random(11)

    async def body(store: Store) -> None:
        purges: list[tuple[int, Any]] = []
        filled: dict[bytes, tuple[int, set[str]]] = {}
        hits = misses = stale = 0
        for step in range(120):
            if chance.random() < 0.5:
                tags = set(chance.sample("abcd", chance.randint(1, 4)))
                key = b"%d" % chance.randrange(8)
                await fill(store, key, *sorted(tags))
                filled[key] = (step, tags)
            else:
                some = tuple(chance.sample("abcd", chance.choice((1, 2, 2, 3))))
                soft = chance.random() < 0.4
                target: Any = some[0] if len(some) == 1 and not soft else Aim(some, soft=soft)
                await store.purge({ACME: [target]})
                purges.append((step, target))
            for key, (at, tags) in filled.items():
                since = [target for when, target in purges if when > at and _hits(target, tags)]
                hard = any(isinstance(target, str) or not target.soft for target in since)
                wanted = "miss" if hard else "stale" if since else "hit"
                assert state(await found(store, key)) == wanted, (step, key, tags, since)
                hits, misses, stale = hits + (wanted == "hit"), misses + (wanted == "miss"), stale + (wanted == "stale")
        assert min(hits, misses, stale) > 50

    on(open_store, body)


def _hits(target: str | Aim, tags: set[str]) -> bool:
    return target in tags if isinstance(target, str) else tags.issuperset(target.tags)
