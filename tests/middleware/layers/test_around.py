"""What a middleware further out sees of a request's way through the app: the same as without the layers."""

import asyncio
from contextvars import ContextVar
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.driver import call, scope_of
from tidegate import CoalesceLayer, MemoryStore, RoutePolicy, Settings, TelemetryLayer, Tidegate
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.metrics import Metrics
from tidegate.settings import CacheSettings


class Route:
    """As a framework's: it has a template."""

    path = "/things/{thing}"


class Site:
    """Routes as frameworks do, into the very scope, and answers as it is told."""

    def __init__(self, status: int, *headers: tuple[bytes, bytes]) -> None:
        self.status = status
        self.headers = list(headers)
        self.body = b""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope["route"], scope["path_params"] = Route(), {"thing": "1"}
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})


CONDITIONS = [("if-none-match", '"other"'), ("if-modified-since", "Mon, 01 Jun 2026 00:00:00 GMT")]


@pytest.mark.parametrize("headers", [[], *[[each] for each in CONDITIONS]], ids=["plain", "etag", "date"])
def test_what_the_app_puts_into_the_scope_is_seen_further_out_whatever_was_asked(headers: Any) -> None:
    site = Site(200, (b"cache-control", b"no-store"))
    scope = scope_of("/things/1", headers=headers)
    given = scope["headers"]
    asyncio.run(call(Tidegate(Settings(cache=CacheSettings(share="public")))(site), scope=scope))
    assert isinstance(scope["route"], Route)
    assert scope["path_params"] == {"thing": "1"}
    assert scope["headers"] is given, "which are the client's"


def test_it_is_seen_where_the_app_was_asked_about_what_is_stored() -> None:
    async def body() -> None:
        site = Site(200, (b"cache-control", b"max-age=0"), (b"etag", b'"1"'))
        layer = CacheLayer(site, store=MemoryStore(), share="public")
        await call(layer, "/things/1")
        site.status = 304
        scope = scope_of("/things/1")
        answer = await call(layer, scope=scope)
        assert "fwd-status=304" in (answer.header("cache-status") or "")
        assert isinstance(scope["route"], Route)

    asyncio.run(body())


def test_it_is_seen_where_the_app_was_asked_for_the_rest_of_a_part() -> None:
    async def body() -> None:
        fresh = ((b"cache-control", b"max-age=60"), (b"etag", b'"1"'), (b"content-length", b"3"))
        site = Site(206, (b"content-range", b"bytes 0-2/6"), *fresh)
        site.body = b"abc"
        layer = CacheLayer(site, store=MemoryStore(), share="public")
        await call(layer, "/things/1", headers=[("range", "bytes=0-2")])
        site.headers, site.body = [(b"content-range", b"bytes 3-5/6"), *fresh], b"def"
        scope = scope_of("/things/1")
        answer = await call(layer, scope=scope)
        assert (answer.status, answer.body) == (200, b"abcdef")
        assert isinstance(scope["route"], Route)

    asyncio.run(body())


def test_a_conditional_request_is_counted_under_the_frameworks_route() -> None:
    registry = CollectorRegistry()
    metrics = Metrics.of(registry)
    layer = CacheLayer(Site(404), store=MemoryStore(), share="public", metrics=metrics)
    asyncio.run(call(TelemetryLayer(layer, metrics=metrics), "/things/1", headers=CONDITIONS))
    samples = [sample for metric in registry.collect() for sample in metric.samples if sample.value]
    assert {sample.labels["route"] for sample in samples if "route" in sample.labels} == {Route.path}


SAID: ContextVar[str] = ContextVar("said", default="")


def around(stack: str, app: Any) -> Any:
    """The app inside layers that let others join a run, each in another way."""
    layers: dict[str, Any] = {
        "straight": Tidegate(Settings(), policies=[RoutePolicy(route="/", ttl=60, share="public")]),
        "general": Tidegate(Settings()),
        "coalesce": CoalesceLayer,
        "busy": lambda app: CoalesceLayer(app, max_busy=0),
    }
    return layers[stack](app)


@pytest.mark.parametrize("fails", [False, True], ids=["answers", "fails"])
@pytest.mark.parametrize("wait", ["first", "last", "never"])
@pytest.mark.parametrize("stack", ["straight", "general", "coalesce", "busy"])
def test_what_the_app_says_in_a_context_variable_is_heard_further_out(stack: str, wait: str, fails: bool) -> None:
    """As an access log wants it, which names the user that a handler has found."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert SAID.get() == "further out"
        if wait == "first":
            await asyncio.sleep(0)
        token = SAID.set("for a while")
        SAID.reset(token)
        SAID.set("by the app")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"hi"})
        if wait == "last":
            await asyncio.sleep(0)
        if fails:
            raise ValueError

    async def body() -> None:
        mounted = around(stack, app)
        SAID.set("further out")
        for path in ("/", "/again") if stack != "busy" else ("/", "/"):
            SAID.set("further out")
            try:
                await call(mounted, path)
            except ValueError:
                assert fails
            assert SAID.get() == "by the app"

    asyncio.run(body())


@pytest.mark.parametrize("stack", ["straight", "general", "coalesce", "busy"])
def test_what_was_said_further_out_while_others_followed_stays(stack: str) -> None:
    """As an access log notes the status, in its own `send`: of a run that others follow that is called further out."""

    async def body() -> None:
        came, on = asyncio.Event(), asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            came.set()
            await on.wait()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": b"hi"})

        mounted = around(stack, app)
        heard: list[str] = []

        async def outside(scope: Any, receive: Any, send: Any) -> None:
            async def noting(message: Any) -> None:
                SAID.set("sent")
                await send(message)

            SAID.set("asked")
            await mounted(scope, receive, noting)
            heard.append(SAID.get())

        requests = [asyncio.create_task(call(outside, "/")) for _ in range(3)]
        await came.wait()
        for _ in range(5):
            await asyncio.sleep(0)  # the others come
        on.set()
        await asyncio.gather(*requests)
        assert heard == ["sent"] * 3

    asyncio.run(body())


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("control", [b"max-age=60", b"no-store"])
def test_a_start_without_a_body_reaches_the_server_which_would_else_say_that_there_was_none(
    control: bytes, waits: bool
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        fields = [(b"content-length", b"2"), (b"cache-control", control)]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        if waits:
            await asyncio.sleep(0)

    async def body() -> None:
        policy = RoutePolicy(route="/", ttl=60, share="public")
        mounted = Tidegate(Settings(), policies=[policy], registry=CollectorRegistry())(app)
        for _ in range(3):  # the second knows that the first was not for sharing
            answer = await call(mounted)
            assert [message["type"] for message in answer.messages] == ["http.response.start"]
            assert (b"content-length", b"2") in answer.headers

    asyncio.run(body())


def test_what_was_changed_twice_in_one_second_is_not_taken_for_what_is_stored() -> None:
    """The app looks at no conditions; the cache asks by the date, which is the same, and gets the new page."""
    pages = iter([b"one", b"two"])
    fields = [(b"last-modified", b"Sun, 06 Nov 1994 08:49:37 GMT"), (b"cache-control", b"max-age=60"), (b"age", b"60")]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        page = next(pages)
        headers = [(b"content-length", b"%d" % len(page)), *fields]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": page})

    async def body() -> None:
        mounted = Tidegate(Settings(cache=CacheSettings(share="public")), registry=CollectorRegistry())(app)
        assert [(await call(mounted)).body for _ in range(2)] == [b"one", b"two"]

    asyncio.run(body())
