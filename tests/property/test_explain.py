"""Law: an explanation says what the cache then does (P10): stored or not, for how long, for whom, served or not.

And asking for one changes nothing.
"""

import asyncio
from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from tests.driver import Answer, call, scope_of
from tidegate import CacheLayer, Identity, MemoryStore, RoutePolicy
from tidegate.middleware.core.explain import Explanation
from tidegate.middleware.core.policy import Policies
from tidegate.middleware.layers.asgi import ContextResolver
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.base import Entry

START = 1_790_000_000.0
LAST_MODIFIED = "Mon, 01 Jun 2026 00:00:00 GMT"

RESPONSE_CONTROL = st.sampled_from(
    [
        "", "", "max-age=60", "max-age=60, stale-while-revalidate=30", "max-age=60, stale-if-error=30", "max-age=0",
        "no-store", "no-cache", "private, max-age=60", "public, s-maxage=10", "max-age=60, must-revalidate",
        'private="x-mine", max-age=9', "must-understand, max-age=5", "max-age=oops", "no-cache, max-age=5",
    ]
)  # fmt: skip
RESPONSE_FIELDS = st.lists(
    st.sampled_from(
        [
            ("etag", '"one"'), ("last-modified", LAST_MODIFIED), ("vary", "accept-language"), ("vary", "*"),
            ("set-cookie", "a=b"), ("expires", "0"), ("cdn-cache-control", "max-age=7"), ("cache-groups", '"g"'),
            ("cdn-cache-control", "max-age=7, stale-while-revalidate=9"), ("x-mine", "secret"), ("age", "5"),
            ("age", "500"), ("content-range", "bytes 0-4/9"), ("content-range", "bytes 0-4/5"),
            ("date", LAST_MODIFIED), ("access-control-allow-origin", "http://a"),
            ("tidegate-cache-control", "private, max-age=7"),
        ]
    ),
    max_size=2,
    unique_by=lambda pair: pair[0],
)  # fmt: skip
REQUEST_FIELDS = st.lists(
    st.sampled_from(
        [
            ("cache-control", "no-cache"), ("cache-control", "no-store"), ("cache-control", "max-age=20"),
            ("cache-control", "min-fresh=30"), ("cache-control", "max-stale"), ("cache-control", "only-if-cached"),
            ("authorization", "Bearer abc"), ("cookie", "a=b"), ("accept-language", "de, en"), ("range", "bytes=0-1"),
            ("if-none-match", '"one"'), ("range", "bytes=0-4"), ("x-forwarded-host", "e"), ("origin", "http://a"),
            ("x-api-key", "k"), ("if-range", '"one"'), ("if-modified-since", LAST_MODIFIED), ("if-match", '"one"'),
            ("content-length", "3"), ("pragma", "no-cache"),
        ]
    ),
    max_size=2,
    unique_by=lambda pair: pair[0],
)  # fmt: skip
POLICY = st.none() | st.builds(
    RoutePolicy,
    route=st.just("/a"),
    ttl=st.sampled_from([None, 30.0]),
    share=st.sampled_from(["public", "tenant", "user"]),
    stale_while_revalidate=st.sampled_from([None, 20.0]),
    stale_if_error=st.sampled_from([None, 20.0]),
    tags=st.sampled_from([(), ("clients",)]),
    query=st.sampled_from([None, ("page",)]),
    vary=st.sampled_from([(), ("x-plan",)]),
    max_body=st.sampled_from([1024, 3]),
    mode=st.sampled_from(["serve", "serve", "serve", "off", "shadow"]),
)
IDENTITY = st.sampled_from([None, Identity("acme"), Identity("acme", "ann"), Identity("acme", "ann", "admin")])


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, Any]:
    control = draw(RESPONSE_CONTROL)
    return {
        "policy": draw(POLICY),
        "identity": draw(IDENTITY),
        "share": draw(st.sampled_from(["public", "tenant", "user"])),
        "open": draw(st.sampled_from([True, True, True, True, False])),
        "authorization": draw(st.sampled_from(["strict", "rfc9111"])),
        "method": draw(st.sampled_from(["GET", "GET", "GET", "GET", "HEAD", "POST", "OPTIONS"])),
        "status": draw(st.sampled_from([200, 200, 200, 206, 404, 206, 503, 304, 204])),
        "headers": [*([("cache-control", control)] if control else []), *draw(RESPONSE_FIELDS)],
        "length": draw(st.sampled_from(["right", "right", "none", "wrong"])),
        "tags": draw(st.sampled_from([0, 0, 1, 200])),
        "asked": [draw(REQUEST_FIELDS), draw(REQUEST_FIELDS)],
        "query": draw(st.sampled_from(["", "page=1", "page=1&utm=x"])),
        "later": draw(st.sampled_from([0, 5, 29, 31, 45, 61, 80, 200, 5000])),
    }


class Counting(MemoryStore):
    """Counts what it holds anew."""

    written = 0

    def _row_for(self, *of: Any) -> int:
        self.written += 1
        return super()._row_for(*of)


class World:
    """A cache over an app that answers as it was told, and a clock that stands still."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.now = START
        self.calls = 0
        metrics = Metrics(CollectorRegistry())
        self.store = Counting(metrics=metrics, clock=lambda: self.now)
        policies = Policies([given["policy"]] if given["policy"] is not None else [])
        self.layer = CacheLayer(
            self.app,
            store=self.store,
            gate=lambda _: given["open"],
            resolver=ContextResolver(identify=lambda _: given["identity"], policies=policies),
            share=given["share"],
            authorization=given["authorization"],
            metrics=metrics,
            clock=lambda: self.now,
        )

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        scope["tidegate"].tag(*(f"tag-{number}" for number in range(self.given["tags"])))
        length = {"right": [("content-length", "5")], "none": [], "wrong": [("content-length", "9")]}
        pairs = [(k.encode(), v.encode()) for k, v in (*self.given["headers"], *length[self.given["length"]])]
        await send({"type": "http.response.start", "status": self.given["status"], "headers": pairs})
        await send({"type": "http.response.body", "body": b"hello"})

    def scope(self, asked: list[tuple[str, str]]) -> dict[str, Any]:
        return scope_of("/a", method=self.given["method"], headers=asked, query=self.given["query"])

    async def explain(self, asked: list[tuple[str, str]], *, run: bool = True) -> Explanation:
        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        return await self.layer.explain(self.scope(asked), receive if run else None)

    def contents(self) -> dict[bytes, Any]:
        return {key: self.store._record(held) for key, held in self.store._held.items()}

    async def request(self, asked: list[tuple[str, str]]) -> tuple[Answer, str | None]:
        """The answer, and what the cache did."""
        scope = self.scope(asked)
        answer = await call(self.layer, scope=scope)
        refreshing = list(self.layer._refreshes._tasks.values())
        await asyncio.gather(*refreshing)
        return answer, scope["tidegate"].outcome


def hashed(world: World, key: bytes) -> str:
    return world.layer._config.shown_key(key)


PLAIN: dict[str, Any] = {
    "policy": None, "identity": Identity("acme", "ann"), "share": "user", "open": True, "authorization": "strict",
    "method": "GET", "status": 200, "headers": [], "length": "right", "tags": 1, "asked": [[], []], "query": "page=1",
    "later": 0,
}  # fmt: skip


@settings(max_examples=200)
@given(worlds())
def test_what_is_explained_is_what_happens(given: dict[str, Any]) -> None:
    asyncio.run(first_then_later(given, Counter()))


def test_what_is_explained_of_storable_responses_is_what_happens() -> None:
    seen = Counter[str]()
    answers = [
        "max-age=60", "max-age=60, stale-while-revalidate=30", "max-age=60, stale-if-error=30", "max-age=0", "no-cache",
        "private, max-age=60", "public, s-maxage=10", "max-age=60, must-revalidate", "no-store",
    ]  # fmt: skip
    wishes = [[], [("cache-control", "no-cache")], [("cache-control", "max-stale=100")], [("range", "bytes=0-1")]]

    for control, share, etag, later, wish in product(
        answers, ("public", "tenant", "user"), (False, True), (0, 65, 5000), wishes
    ):
        headers = [("cache-control", control), ("vary", "accept-language"), *([("etag", '"one"')] if etag else [])]
        given = PLAIN | {"headers": headers, "share": share, "later": later, "asked": [[], wish]}
        asyncio.run(first_then_later(given, seen))
    assert seen["stored"] > 400, seen
    assert seen["refused"] > 100, seen
    assert seen["hits"] > 100, seen
    assert seen["stale"] > 20, seen


async def first_then_later(given: dict[str, Any], seen: Counter[str]) -> None:
    world = World(given)
    first, later = given["asked"]
    await agrees_about_storing(world, first, seen)
    world.now += given["later"]
    await agrees_about_serving(world, later, seen)


async def agrees_about_storing(world: World, asked: list[tuple[str, str]], seen: Counter[str]) -> None:
    told = await world.explain(asked)
    assert world.contents() == {}, "explaining stores nothing"
    answer, outcome = await world.request(asked)
    kept = {} if outcome == "shadow" else {k: r for k, r in world.contents().items() if isinstance(r, Entry)}
    if told.stored is None:  # a POST is not run to be explained, and its answer could be kept
        assert (world.given["method"], kept) == ("POST", {})
    else:
        assert told.stored == bool(kept), (told, answer.headers)
    assert told.cache_status == answer.header("cache-status")
    assert told.found is None
    if not kept:
        seen["refused"] += 1
        assert any(step.because and step.source for step in told.steps), told
        return
    seen["stored"] += 1
    ((key, entry),) = kept.items()
    assert told.key is not None
    assert told.key.hash == hashed(world, key)
    policy, identity = world.given["policy"], world.given["identity"]
    assert told.share == told.key.share == (policy.share if policy is not None else world.given["share"])
    assert told.key.tenant == (identity.tenant if identity is not None and told.share != "public" else None)
    assert told.key.user == (identity.user if identity is not None and told.share == "user" else None)
    assert (told.lifetime, told.stale_while_revalidate, told.stale_if_error) == (
        entry.lifetime, entry.stale_while_revalidate, entry.stale_if_error,
    )  # fmt: skip
    assert told.tags == entry.tags
    # A part notes what it came for, too.
    assert {name for name, _ in told.key.vary} == {name.decode() for name, _ in entry.vary if name != b"range"}


async def agrees_about_serving(world: World, asked: list[tuple[str, str]], seen: Counter[str]) -> None:
    before, calls = world.store.written, world.calls
    aside = await world.explain(asked, run=False)
    assert world.calls == calls, "the app is not run unless it is asked for"
    told = await world.explain(asked)
    assert world.store.written == before, "explaining stores nothing"
    assert replace(aside, steps=()).found == replace(told, steps=()).found
    answer, outcome = await world.request(asked)
    assert told.served == (outcome == "hit" or (outcome == "stale" and told.found.serving == "while-revalidating"))  # type: ignore[union-attr]
    assert told.cache_status == answer.header("cache-status")
    if outcome in ("hit", "stale"):
        assert told.found is not None
        seen["hits"] += 1
        seen["stale"] += told.found.ttl < 0
        if answer.status != 416:
            assert answer.header("age") == str(told.found.age)
        assert f"ttl={told.found.ttl}" in (told.cache_status or "")
