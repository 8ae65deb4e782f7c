"""Validation, renewal and parts through a real server: two workers' caches over one Redis or Valkey."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest

from tests.driver import Answer, call
from tests.middleware.layers.test_parts import Ranged
from tests.middleware.layers.test_validation import ANN, Clock, Conditional
from tests.middleware.stores.conftest import SERVERS
from tests.middleware.stores.support import new_metrics
from tidegate.middleware.core.breaker import BreakerSettings
from tidegate.middleware.layers.breaker import BreakerLayer
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.stores.redis import RedisStore

Get = Callable[..., Awaitable[Answer]]


@pytest.fixture(params=list(SERVERS))
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(SERVERS[request.param]).url)


def run(url: str, app: Any, story: Callable[[Get, Get], Awaitable[Any]], **options: Any) -> Any:
    """Let a story ask two workers, `get(seconds later, *headers, **of call)`, whose caches share server and clock."""
    clock, namespace = Clock(), f"validation-{uuid4().hex[:8]}"

    def worker(store: RedisStore) -> Get:
        layer = CacheLayer(app, store=store, clock=clock, metrics=new_metrics(), **options)

        async def get(later: float = 0.0, *headers: tuple[str, str], **of: Any) -> Answer:
            clock.now += later
            return await call(layer, headers=headers, **{"user": ANN, **of})

        return get

    async def main() -> Any:
        stores = [RedisStore(url, namespace=namespace, metrics=new_metrics()) for _ in range(2)]
        try:
            return await story(*(worker(store) for store in stores))
        finally:
            for store in stores:
                await store.aclose()

    return asyncio.run(main())


def test_what_one_worker_renewed_with_304_is_fresh_for_the_other(url: str) -> None:
    app = Conditional(("etag", '"a"'), ("cache-control", "max-age=60"), ("x", "old"), x="new")

    async def story(one: Get, other: Get) -> list[Answer]:
        return [await one(), await other(), await other(61), await one(30), await one(0, ("if-none-match", '"a"'))]

    _, hit, renewed, again, confirmed = run(url, app, story)
    assert (hit.hit, hit.header("x")) == (True, "old")
    assert renewed.header("cache-status") == "Tidegate; fwd=stale; fwd-status=304; stored"
    assert (again.hit, again.header("x"), again.header("age"), again.body) == (True, "new", "30", b"one")
    assert confirmed.status == 304
    assert len(app.asked) == 2


def test_a_head_that_tells_of_another_representation_ends_what_the_other_worker_would_serve(url: str) -> None:
    app = Conditional(("etag", '"a"'), ("cache-control", "max-age=60"))

    async def story(one: Get, other: Get) -> list[Answer]:
        first, hit = await one(), await other()
        app.headers["etag"], app.body = '"b"', b"other"
        return [first, hit, await one(61, method="HEAD"), await other()]

    _, hit, _, after = run(url, app, story)
    assert hit.hit
    assert (after.hit, after.body) == (False, b"other")


def test_a_stale_response_stands_in_for_a_failing_app_and_for_an_open_breaker(url: str) -> None:
    app = Conditional(("etag", '"a"'), ("cache-control", "max-age=60, stale-if-error=600"))
    guarded = BreakerLayer(app, settings=BreakerSettings(consecutive=2, open_for=3600), metrics=new_metrics())

    async def story(one: Get, other: Get) -> list[Answer]:
        first = await one()
        app.status = 500
        return [first, *[await worker(61) for worker in (one, other, one, other)]]

    _, *stood_in = run(url, guarded, story)
    assert [answer.status for answer in stood_in] == [200] * 4
    assert {answer.body for answer in stood_in} == {b"one"}
    assert all("detail=stale-if-error" in (answer.header("cache-status") or "") for answer in stood_in)
    assert len(app.asked) == 3, "the breaker is open: the app is left alone"


def test_where_the_app_forbids_it_nothing_stale_stands_in_for_an_open_breaker(url: str) -> None:
    app = Conditional(("etag", '"a"'), ("cache-control", "max-age=60, stale-if-error=600, must-revalidate"))
    guarded = BreakerLayer(app, settings=BreakerSettings(consecutive=1, open_for=3600), metrics=new_metrics())

    async def story(one: Get, other: Get) -> list[Answer]:
        first, hit = await one(), await other()
        app.status = 500
        return [first, hit, await one(61), await other(61)]

    _, hit, failed, refused = run(url, guarded, story)
    assert hit.hit
    assert (failed.status, refused.status) == (500, 503)
    assert len(app.asked) == 2


def test_parts_that_two_workers_asked_for_are_joined_to_the_whole(url: str) -> None:
    app = Ranged()

    async def story(one: Get, other: Get) -> list[Answer]:
        return [
            await one(0, ("range", "bytes=0-5")),
            await other(0, ("range", "bytes=1-3")),
            await other(0, ("range", "bytes=6-9")),
            await one(),
        ]

    first, inside, _, whole = run(url, app, story)
    assert (first.status, first.body) == (206, b"012345")
    assert (inside.status, inside.body, inside.hit) == (206, b"123", True)
    assert (whole.status, whole.body, whole.hit) == (200, app.whole, True)
    assert app.calls == 2
