"""`scope["tidegate"].explain()` tells a handler what becomes of its response; Cache-Status names the key on request."""

import asyncio
import re
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.driver import call, scope_of
from tidegate import CacheLayer, Identity, MemoryStore, RoutePolicy, Settings, TelemetryLayer, Tidegate
from tidegate.middleware.core.explain import Explanation
from tidegate.middleware.core.policy import Policies
from tidegate.middleware.layers.asgi import ContextResolver
from tidegate.middleware.metrics import Metrics

ANN = Identity("acme", "ann")
FRESH = ("cache-control", "max-age=60")


class Curious:
    """An app that asks what becomes of its response: before it, and after its last message."""

    def __init__(self, headers: list[tuple[str, str]], status: int = 200) -> None:
        self.headers = [(name.encode(), value.encode()) for name, value in headers]
        self.status = status
        self.before: Explanation
        self.after: Explanation

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope["tidegate"].tag("client:42")
        self.before = scope["tidegate"].explain()
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": b"hello"})
        self.after = scope["tidegate"].explain()


def layer_over(
    app: Any, *, identity: Identity | None = ANN, policy: RoutePolicy | None = None, **more: Any
) -> CacheLayer:
    metrics = Metrics(CollectorRegistry())
    policies = Policies([policy] if policy is not None else [])
    resolver = ContextResolver(identify=lambda _: identity, policies=policies)
    return CacheLayer(app, store=MemoryStore(metrics=metrics), resolver=resolver, metrics=metrics, **more)


def test_before_the_response_the_requests_side_is_told() -> None:
    app = Curious([FRESH])
    asyncio.run(call(layer_over(app, policy=RoutePolicy(route="/", ttl=30, share="tenant", tags=("all",)))))
    told = app.before
    assert (told.method, told.url, told.route, told.stored, told.share) == (
        "GET",
        "http://example.test/",
        "/",
        None,
        "tenant",
    )
    assert told.key is not None
    assert (told.key.tenant, told.key.user) == ("acme", None)
    assert ("tenant:acme", "all") in told.tags
    assert ("tenant:acme", "client:42") in told.tags
    assert "a plain 200 would be stored for 30 s" in [step.found for step in told.steps]


def test_after_the_response_both_sides_are_told() -> None:
    app = Curious([FRESH])
    asyncio.run(call(layer_over(app, policy=RoutePolicy(route="/", ttl=30))))
    assert (app.after.stored, app.after.lifetime, app.after.rule) == (True, 60.0, "max-age")
    assert app.after.key == app.before.key


def test_a_response_that_is_not_stored_says_why_and_what_to_do() -> None:
    app = Curious([FRESH, ("set-cookie", "a=b")])
    asyncio.run(call(layer_over(app)))
    assert app.after.stored is False
    (step,) = [step for step in app.after.steps if step.about == "response"]
    assert step.found == "may not be stored: Set-Cookie"
    assert step.fix


@pytest.mark.parametrize(
    ("of", "asked", "words"),
    [
        ({"method": "HEAD"}, {}, "HEAD has no body"),
        (
            {},
            {"policy": RoutePolicy(route="/", ttl=9, max_body=3), "more": ("content-length", "5")},
            "max_body (3 bytes)",
        ),
        ({}, {"more": ("x-large", "x" * 40_000)}, "header fields are longer than 32768 bytes"),
    ],
)
def test_a_response_that_may_be_stored_and_is_not_says_why(of: Any, asked: Any, words: str) -> None:
    asked = dict(asked)
    app = Curious([FRESH, *([asked.pop("more")] if "more" in asked else [])])
    asyncio.run(call(layer_over(app, **asked), **of))
    assert app.after.stored is False
    assert any(words in step.because for step in app.after.steps)


def test_a_posts_answer_that_is_kept_for_get_says_so_and_one_that_is_not_too() -> None:
    app = Curious([FRESH, ("content-location", "/")])
    asyncio.run(call(layer_over(app), method="POST"))
    assert (app.before.stored, app.after.stored, app.after.lifetime) == (None, True, 60.0)
    assert "is kept for GET for 60 s, if it comes whole" in [step.found for step in app.after.steps]
    assert app.after.purges
    for headers, status in (([FRESH], 200), ([FRESH, ("content-location", "/")], 404)):
        app = Curious(headers, status)
        asyncio.run(call(layer_over(app), method="POST"))
        assert (app.before.stored, app.after.stored) == (None, False)
        assert "is not kept for GET" in [step.found for step in app.after.steps]
    app = Curious([])
    asyncio.run(call(layer_over(app, identity=None), method="POST"))
    assert (app.before.stored, app.after.stored) == (False, False)


def test_a_request_that_goes_past_the_cache_says_why() -> None:
    app = Curious([FRESH])
    asyncio.run(call(layer_over(app, identity=None)))
    assert app.before == app.after
    assert app.before.stored is False
    assert "nobody is known" in app.before.steps[0].because


def test_an_unsafe_request_says_what_it_purges() -> None:
    app = Curious([])
    policy = RoutePolicy(route="/", invalidates=("clients",))
    asyncio.run(call(layer_over(app, policy=policy), method="PUT"))
    assert set(app.before.purges) >= {("tenant:acme", "clients"), ("public", "clients")}
    assert any(tag.startswith("uri:") for _, tag in app.before.purges)


def test_without_a_cache_or_with_a_shut_one_that_is_what_is_told(tmp_path: Any) -> None:
    app = Curious([FRESH])
    asyncio.run(call(TelemetryLayer(app, metrics=Metrics(CollectorRegistry()))))
    assert "no cache has seen this request" in app.before.steps[0].found

    flags = tmp_path / "flags.json"
    flags.write_text('{"version": 1, "flags": {}}')
    settings = Settings.of({"flags": {"provider": "local", "file": str(flags), "stops": str(tmp_path / "stops.json")}})
    tide = Tidegate(settings, identify=lambda _: ANN, registry=CollectorRegistry())

    async def drive() -> None:
        await call(tide(app))
        await tide.aclose()

    asyncio.run(drive())
    assert "the cache is shut" in app.before.steps[0].found
    assert "tidegate flags status tidegate.cache" in app.before.steps[0].fix
    assert not any(layer.open for layer in app.before.layers)


def test_when_the_request_is_over_its_context_holds_nothing_of_it() -> None:
    contexts: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        contexts.append(scope["tidegate"])
        await Curious([FRESH])(scope, receive, send)

    for method in ("GET", "PUT"):
        asyncio.run(call(layer_over(app), method=method))
        assert contexts[-1].explainer is None
        assert contexts[-1].explain().identity == ANN


# --- the key in Cache-Status -------------------------------------------------------


def key_in(status: str | None) -> str | None:
    found = re.search(r'; key="([0-9a-f]+)"$', status or "")
    return found[1] if found else None


def statuses(layer: Any, times: int = 2, **of: Any) -> list[str | None]:
    async def drive() -> list[str | None]:
        return [(await call(layer, **of)).header("cache-status") for _ in range(times)]

    return asyncio.run(drive())


def test_no_key_is_named_unless_it_is_asked_for() -> None:
    assert [key_in(status) for status in statuses(layer_over(Curious([FRESH])))] == [None, None]
    assert not any("key" in (status or "") for status in statuses(layer_over(Curious([FRESH]))))


@pytest.mark.parametrize("vary", [[], [("vary", "accept-language")]])
def test_miss_and_hit_name_the_key_that_an_explanation_names(vary: list[tuple[str, str]]) -> None:
    app = Curious([FRESH, *vary])
    layer = layer_over(app, show_key=True)
    miss, hit = statuses(layer, headers=[("accept-language", "de")])
    assert miss is not None
    assert hit is not None
    assert "; hit; ttl=" in hit
    assert "; stored; key=" in miss
    assert app.after.key is not None
    assert key_in(miss) == key_in(hit) == app.after.key.hash


def test_the_key_of_a_refused_response_is_named_too_and_a_bypass_has_none() -> None:
    refused = statuses(layer_over(Curious([("cache-control", "no-store")]), show_key=True), 1)[0]
    assert key_in(refused) is not None
    assert statuses(layer_over(Curious([]), identity=None, show_key=True), 1) == [
        "Tidegate; fwd=bypass; detail=no-identity"
    ]


def test_the_key_differs_by_whom_it_is_for_and_by_secret_and_names_nobody() -> None:
    def key(identity: Identity, naming_key: bytes = b"one") -> str | None:
        return key_in(
            statuses(layer_over(Curious([FRESH]), identity=identity, show_key=True, naming_key=naming_key), 1)[0]
        )

    keys = {
        key(ANN),
        key(Identity("acme", "bob")),
        key(Identity("globex", "ann")),
        key(Identity("acme", "ann", "admin")),
    }
    assert len(keys) == 4
    assert None not in keys
    assert key(ANN) == key(ANN)
    assert key(ANN) != key(ANN, b"two")
    # Without a naming key the secret is the layer's own: who can guess the names cannot make the hash.
    assert key(ANN, b"") != key(ANN, b"")


def test_the_hash_is_no_way_to_the_key_in_the_store() -> None:
    layer = layer_over(Curious([FRESH]), show_key=True, naming_key=b"one")
    (status,) = statuses(layer, 1)
    (stored,) = layer._config.store._held  # type: ignore[attr-defined]
    assert key_in(status) not in (None, stored.hex(), stored.hex()[:20])


class Told:
    """A public cache whose clock stands still: what it says of a request, and what it then does."""

    def __init__(self, app: Any) -> None:
        self.now = 1_790_000_000.0
        self.calls = 0
        self.app = app
        self.layer = layer_over(self._counted, identity=None, share="public", clock=lambda: self.now)

    async def _counted(self, *of: Any) -> None:
        self.calls += 1
        await self.app(*of)

    async def get(self, *headers: tuple[str, str]) -> tuple[Explanation, str | None, int]:
        """The explanation without a run, what Cache-Status then says, and how often the app was asked."""
        told = await self.layer.explain(scope_of(headers=headers))
        before = self.calls
        answer = await call(self.layer, headers=headers)
        return told, answer.header("cache-status"), self.calls - before


def test_printed_it_reads_as_on_the_command_line_and_keeps_credentials_to_itself() -> None:
    app = Curious([FRESH])
    asyncio.run(call(layer_over(app, policy=RoutePolicy(route="/", ttl=30)), query="page=1&token=s3cret"))
    lines = str(app.after).splitlines()
    assert lines[0] == "GET http://example.test/?page=1&token=*** as acme/ann"
    assert "  stored: yes, fresh for 60 s, for the user" in lines
    assert "why" in lines
    assert f"{app.after}" == str(app.after) == "\n".join(lines)
    assert "s3cret" not in str(app.after)


def test_who_wants_what_is_stored_or_nothing_is_told_that_nobody_asks_the_app() -> None:
    async def body() -> None:
        world = Told(Curious([FRESH, ("etag", '"1"')]))
        for later in (0, 61):
            told, _, calls = await world.get(("cache-control", "only-if-cached"))
            assert (told.served, told.stored, calls) == (False, False, 0)
            assert any("504" in step.found for step in told.steps)
            assert not any("the app is asked" in step.found or step.about == "note" for step in told.steps)
            await world.get()
            world.now += later + 61

    asyncio.run(body())


def test_a_request_whose_answer_is_not_stored_is_not_told_that_the_app_is_asked_in_the_background() -> None:
    async def body() -> None:
        world = Told(Curious([("cache-control", "max-age=60, stale-while-revalidate=60")]))
        await world.get()
        world.now += 61
        told, said, calls = await world.get(("cookie", "of=somebody"))
        assert (told.served, told.stored, calls) == (False, False, 1)
        assert said == 'Tidegate; fwd=stale; detail="credential"'

    asyncio.run(body())


def test_a_part_that_is_served_is_told_of() -> None:
    async def part(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-range", b"bytes 0-4/9"), (b"content-length", b"5"), (b"cache-control", b"max-age=60")]
        await send({"type": "http.response.start", "status": 206, "headers": headers})
        await send({"type": "http.response.body", "body": b"hello"})

    async def body() -> None:
        world = Told(part)
        await world.get(("range", "bytes=0-4"))
        told, said, calls = await world.get(("range", "bytes=1-2"))
        assert (told.served, calls, said) == (True, 0, "Tidegate; hit; ttl=60")
        assert told.found is not None
        assert (told.found.status, told.found.serving) == (206, "fresh")
        told, _, calls = await world.get(("range", "bytes=4-5"))
        assert (told.served, calls) == (False, 1)

    asyncio.run(body())


@pytest.mark.parametrize(("of", "asked"), [("0-4/9", "bytes=1-2"), ("0-4/5", "bytes=0-4")])
def test_what_stores_a_part_and_what_it_answers_name_one_key(of: str, asked: str) -> None:
    async def part(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-range", b"bytes " + of.encode()), (b"content-length", b"5")]
        headers += [(b"cache-control", b"max-age=60"), (b"vary", b"accept")]
        await send({"type": "http.response.start", "status": 206, "headers": headers})
        await send({"type": "http.response.body", "body": b"hello"})

    async def body() -> None:
        layer = layer_over(part, identity=None, share="public", show_key=True)
        keys: list[str | None] = []
        for wanted in ("bytes=0-4", asked):
            told = await layer.explain(scope_of(headers=[("range", wanted)]), no_body)
            answer = await call(layer, headers=[("range", wanted)])
            assert told.key is not None
            keys += [told.key.hash, key_in(answer.header("cache-status"))]
        assert answer.hit
        assert len(set(keys)) == 1, keys

    asyncio.run(body())


def test_asking_for_an_explanation_does_not_keep_a_part_from_being_completed() -> None:
    """The app gives another part than was asked for. Each time it is asked for the rest first, explained or not."""
    asked: list[bytes | None] = []

    async def part(scope: Any, receive: Any, send: Any) -> None:
        asked.append(dict(scope["headers"]).get(b"range"))
        headers = [(b"content-range", b"bytes 0-4/9"), (b"content-length", b"5"), (b"etag", b'"1"')]
        headers.append((b"cache-control", b"max-age=60"))
        await send({"type": "http.response.start", "status": 206, "headers": headers})
        await send({"type": "http.response.body", "body": b"hello"})

    async def body() -> None:
        layer = layer_over(part, identity=None, share="public")
        await call(layer, headers=[("range", "bytes=0-4")])
        for _ in range(2):
            asked.clear()
            told = await layer.explain(scope_of(), no_body)
            assert asked == [b"bytes=5-", None]
        answer = await call(layer)
        assert told.cache_status == answer.header("cache-status") == 'Tidegate; fwd=partial; detail="status 206"'

    asyncio.run(body())


async def no_body() -> Any:
    """A client's `receive`."""
    return {"type": "http.request", "body": b"", "more_body": False}


def test_of_what_is_fresh_and_what_is_stale_cache_status_says_who_made_the_cache_ask() -> None:
    async def body() -> None:
        for wish in ("no-cache", "max-age=0", "min-fresh=61"):
            world = Told(Curious([FRESH]))
            await world.get()
            for later, why in ((1, "request"), (61, "stale")):
                world.now += later
                _, said, calls = await world.get(("cache-control", wish))
                assert (said, calls) == (f"Tidegate; fwd={why}; stored", 1), wish

    asyncio.run(body())
