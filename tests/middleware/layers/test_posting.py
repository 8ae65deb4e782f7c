"""A POST's answer that says it is what a GET would get is kept for GET (RFC 9110 9.3.3), and no other is."""

import asyncio
from typing import Any

import pytest

from tests.driver import Origin, User, call
from tidegate.middleware.core.policy import Policies, RoutePolicy
from tidegate.middleware.layers.asgi import ContextResolver
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.stores.memory import MemoryStore

FRESH = [("cache-control", "max-age=60"), ("content-location", "/a")]


def layer_on(app: Any, *policies: RoutePolicy, store: Any = None, **options: Any) -> CacheLayer:
    resolver = ContextResolver(policies=Policies(policies))
    return CacheLayer(app, store=store or MemoryStore(), resolver=resolver, **{"share": "public", **options})


def served(said: list[tuple[str, str]], *, status: int = 200, query: str = "", **of: Any) -> bool:
    """Whether a GET after a POST with this answer is a hit."""

    async def story() -> bool:
        origin = Origin(b"made", headers=said, status=status)
        layer = layer_on(origin)
        sent = [("content-length", "3"), *of.pop("headers", ())]
        posted = await call(layer, "/a", method="POST", body=b"abc", headers=sent, query=query, **of)
        assert (posted.status, posted.body, origin.calls) == (status, b"made", 1)
        got = await call(layer, "/a", query=query)
        again = await call(layer, "/a", method="POST", body=b"abc", query=query)
        assert not again.hit
        assert origin.calls == (2 if got.hit else 3)
        assert got.body == b"made"
        return got.hit

    return asyncio.run(story())


@pytest.mark.parametrize("location", ["/a", "", "a", "http://example.test/a", "http://EXAMPLE.test/a", "./x/../a"])
@pytest.mark.parametrize("control", ["max-age=60", "s-maxage=60"])
def test_an_answer_with_its_own_lifetime_at_the_target_is_kept_for_get(location: str, control: str) -> None:
    assert served([("cache-control", control), ("content-location", location)])


def test_the_query_is_part_of_the_target() -> None:
    assert served([("cache-control", "max-age=60"), ("content-location", "/a?x=1")], query="x=1")
    assert not served([("cache-control", "max-age=60"), ("content-location", "/a?x=2")], query="x=1")
    assert not served(FRESH, query="x=1")


@pytest.mark.parametrize(
    ("headers", "of"),
    [
        ([("cache-control", "max-age=60")], {}),
        ([("cache-control", "max-age=60"), ("content-location", "/b")], {}),
        ([("cache-control", "max-age=60"), ("content-location", "https://example.test/a")], {}),
        ([("cache-control", "max-age=60"), ("content-location", "http://other.test/a")], {}),
        ([("cache-control", "max-age=60"), ("content-location", "http://[/a")], {}),
        ([*FRESH, ("content-location", "/a")], {}),
        ([("content-location", "/a"), ("last-modified", "Wed, 01 Jan 2020 00:00:00 GMT")], {}),
        ([*FRESH, ("set-cookie", "a=b")], {}),
        ([*FRESH, ("vary", "*")], {}),
        ([("cache-control", "no-store, max-age=60"), ("content-location", "/a")], {}),
        ([("cache-control", "private, max-age=60"), ("content-location", "/a")], {}),
        (FRESH, {"status": 201}),
        (FRESH, {"headers": [("cookie", "session=1")]}),
        (FRESH, {"headers": [("authorization", "Bearer x")]}),
        (FRESH, {"headers": [("cache-control", "no-store")]}),
    ],
)
def test_no_other_answer_is_kept(headers: list[tuple[str, str]], of: dict[str, Any]) -> None:
    assert not served(headers, **of)


def test_a_policys_ttl_makes_no_answer_to_a_post_fresh() -> None:
    async def story() -> None:
        origin = Origin(headers=[("content-location", "/a")])
        layer = layer_on(origin, RoutePolicy(route="/a", ttl=60, share="public"))
        await call(layer, "/a", method="POST")
        assert not (await call(layer, "/a")).hit
        assert (await call(layer, "/a")).hit

    asyncio.run(story())


def test_it_is_kept_for_those_who_share_a_get_with_the_sender_and_for_nobody_else() -> None:
    async def story() -> None:
        layer = layer_on(Origin(headers=FRESH), share="user")
        await call(layer, "/a", method="POST", user=User("acme", "ann"))
        assert not (await call(layer, "/a", user=User("acme", "bob"))).hit
        assert not (await call(layer, "/a", user=User("globex", "ann"))).hit
        assert (await call(layer, "/a", user=User("acme", "ann"))).hit

    asyncio.run(story())


def test_writes_to_other_resources_meanwhile_do_not_matter() -> None:
    async def story() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] == "/a" and scope["method"] == "POST":
                assert (await call(layer, "/b", method="POST")).status == 200
            await Origin(headers=FRESH if scope["path"] == "/a" else ())(scope, receive, send)

        layer = layer_on(app)
        answer = await call(layer, "/a", method="POST")
        assert answer.header("cache-status") == "Tidegate; fwd=method; stored"
        assert (await call(layer, "/a")).hit

    asyncio.run(story())


@pytest.mark.parametrize("slow", [True, False])
def test_a_write_that_ended_while_the_app_ran_wins(slow: bool) -> None:
    """The slow POST read what it answers before the other write changed it."""

    async def story() -> None:
        read, go_on = asyncio.Event(), asyncio.Event()
        versions = [b"old", b"new"]

        async def app(scope: Any, receive: Any, send: Any) -> None:
            body = versions[0] if scope["method"] == "POST" else versions[1]
            if scope["method"] == "POST" and slow:
                read.set()
                await go_on.wait()
            fresh = [(name.encode(), value.encode()) for name, value in FRESH] if scope["method"] != "PUT" else []
            await send({"type": "http.response.start", "status": 200, "headers": fresh})
            await send({"type": "http.response.body", "body": body})

        layer = layer_on(app)
        if not slow:
            assert (await call(layer, "/a", method="POST")).status == 200
            assert (await call(layer, "/a")).body == b"old"
            await call(layer, "/a", method="PUT")
        else:
            posting = asyncio.create_task(call(layer, "/a", method="POST"))
            await read.wait()
            await call(layer, "/a", method="PUT")
            go_on.set()
            await posting
        assert (await call(layer, "/a")).body == b"new"

    asyncio.run(story())


def test_on_a_store_that_others_share_nothing_is_kept_from_a_post() -> None:
    class Shared(MemoryStore):
        local = False

    async def story() -> None:
        layer = layer_on(Origin(headers=FRESH), store=Shared())
        await call(layer, "/a", method="POST")
        assert not (await call(layer, "/a")).hit
        assert (await call(layer, "/a")).hit

    asyncio.run(story())


def test_a_shut_gate_keeps_nothing_from_a_post_and_forwards_its_messages() -> None:
    async def story() -> None:
        shut = True
        layer = layer_on(Origin(headers=FRESH), gate=lambda _: not shut)
        answer = await call(layer, "/a", method="POST")
        assert answer.header("cache-status") is None
        shut = False
        assert not (await call(layer, "/a")).hit

    asyncio.run(story())
