"""P1: other middleware above and below ours. What works gives the same answers with Tidegate and without, hits in
between; what cannot work says so when the application starts, and what harm it does is shown here.
"""

import asyncio
import gzip
import logging
import zlib
from base64 import b64decode
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.httpsredirect import HTTPSRedirectMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from tests.docs.pages import Page
from tests.driver import Answer, Origin, call, scope_of
from tests.promises.test_p1_transparent import Conversation, Everybody
from tidegate import RoutePolicy, Settings, Tidegate, TidegateMiddleware, trusted_headers
from tidegate.ordering import RULES, inside_of, misplaced

TABLE = Page.of("docs/mounting.md").table("Other middleware")
POLICIES = (
    RoutePolicy(route="/page", ttl=60, share="tenant"),
    RoutePolicy(route="/open", ttl=60, share="public"),
    RoutePolicy(route="/visit", ttl=60, share="tenant"),
)
OURS = frozenset({b"cache-status", b"cache-control", b"age", b"etag"})
BY_HEADERS = trusted_headers(tenant="x-tenant", user="x-user")


# --- a small application, and what is asked of it ------------------------------------


class Basic(AuthenticationBackend):
    """`Authorization: Basic` with anybody's name; the tenant is what stands before the point."""

    async def authenticate(self, conn: Any) -> Any:
        if not (given := conn.headers.get("authorization")):
            return None
        name = b64decode(given.partition(" ")[2]).decode().partition(":")[0]
        user = SimpleUser(name)
        user.tenant = name.partition(".")[0]  # type: ignore[attr-defined]
        return AuthCredentials(["authenticated"]), user


async def stamp(request: Request, call_next: Any) -> Response:
    response = await call_next(request)
    response.headers["x-stamped"] = request.url.path
    return response


OTHERS: dict[str, Middleware] = {
    "GZipMiddleware": Middleware(GZipMiddleware, minimum_size=100),
    "CORSMiddleware": Middleware(CORSMiddleware, allow_origins=["https://a.test", "https://b.test"]),
    "SessionMiddleware": Middleware(SessionMiddleware, secret_key="secret"),
    "AuthenticationMiddleware": Middleware(AuthenticationMiddleware, backend=Basic()),
    "TrustedHostMiddleware": Middleware(TrustedHostMiddleware, allowed_hosts=["example.test", "*.example.test"]),
    "HTTPSRedirectMiddleware": Middleware(HTTPSRedirectMiddleware),
    "BaseHTTPMiddleware": Middleware(BaseHTTPMiddleware, dispatch=stamp),
    "ProxyHeadersMiddleware": Middleware(ProxyHeadersMiddleware),
}
ASKS: list[dict[str, Any]] = [
    {"path": path, "method": method, "headers": [*known, *headers], "scheme": scheme}
    for path in ("/page", "/open", "/visit", "/nowhere")
    for method in ("GET", "HEAD", "POST")
    for known in (
        [],
        [("x-tenant", "acme"), ("x-user", "ann"), ("authorization", "Basic YWNtZS5hbm46eA==")],
        [("x-tenant", "globex"), ("x-user", "gil"), ("authorization", "Basic Z2xvYmV4LmdpbDp4")],
    )
    for scheme, headers in (
        ("https", []),
        ("https", [("accept-encoding", "gzip")]),
        ("https", [("origin", "https://a.test")]),
        ("https", [("origin", "https://b.test"), ("accept-encoding", "gzip")]),
        ("https", [("origin", "https://evil.test")]),
        ("https", [("range", "bytes=5-99")]),
        ("http", []),
        ("http", [("x-forwarded-proto", "https"), ("x-forwarded-for", "192.0.2.7")]),
    )
]
ASKS += [
    {"path": "/page", "headers": [("x-tenant", "acme"), ("x-user", "ann")], "host": "evil.test"},
    {"path": "/open", "host": "www.example.test"},
    {"path": "/page", "method": "OPTIONS",
     "headers": [("origin", "https://a.test"), ("access-control-request-method", "GET")]},
]  # fmt: skip


async def page(request: Request) -> Response:
    user, who = request.scope.get("user"), "everybody"
    if request.url.path == "/page":
        who = user.display_name if user else request.headers.get("x-tenant")
    return PlainTextResponse(f"{request.url} for {who}\n" * 20)


async def visit(request: Request) -> Response:
    if "session" in request.scope:
        request.session["seen"] = True
    return PlainTextResponse("welcome " * 50)


def application(*middleware: Middleware) -> Starlette:
    routes = [Route(path, page, methods=["GET", "POST"]) for path in ("/page", "/open")]
    return Starlette(routes=[*routes, Route("/visit", visit)], middleware=middleware)


def tidegate(**more: Any) -> Middleware:
    return Middleware(TidegateMiddleware, policies=POLICIES, registry=CollectorRegistry(), **more)


def placed(name: str, place: str) -> Starlette:
    more = {} if name == "AuthenticationMiddleware" else {"identify": BY_HEADERS}
    own = tidegate(**more)
    return application(*([OTHERS[name], own] if place == "outside" else [own, OTHERS[name]]))


def _scope(path: str, *, scheme: str = "https", host: str = "example.test", **of: Any) -> dict[str, Any]:
    scope = scope_of(path, **of)
    return scope | {"scheme": scheme, "headers": [(b"host", host.encode()), *scope["headers"][1:]]}


def _shown(answer: Answer, method: str = "GET") -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    """An answer without what is ours to add, and without what is drawn anew in every answer."""
    body = b"" if method == "HEAD" else answer.body  # a server sends none
    headers = [(name.lower(), value) for name, value in answer.headers]
    if (b"content-encoding", b"gzip") in headers:
        # Compressed anew it has another time in it.
        body = gzip.decompress(body) if body else body
        headers = [pair for pair in headers if pair[0] != b"content-length"]
    shown = [(name, value.partition(b"=")[0] if name == b"set-cookie" else value) for name, value in headers]
    return answer.status, body, sorted(pair for pair in shown if pair[0] not in OURS)


async def compared(bare: Any, layers: Any) -> tuple[list[str], int]:
    """What differs when everything is asked of both, twice; and how many hits there were."""
    found: list[str] = []
    hits = 0
    for ask in ASKS * 2:
        one, other = await call(bare, scope=_scope(**ask)), await call(layers, scope=_scope(**ask))
        hits += other.hit
        if one.status == 200 and other.status == 206:
            continue  # parts are answered from the whole: ours to do (RFC 9110 14.2)
        was, became = (_shown(answer, ask.get("method", "GET")) for answer in (one, other))
        if was != became:
            found.append(f"{ask}: {was} became {became}")
    return found, hits


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of an order; threads that other tests have left may log other things."""
    said = [record.getMessage() for record in caplog.records if record.name == "tidegate"]
    return [message for message in said if message.startswith("order of middleware: ")]


# --- the table -----------------------------------------------------------------------


def test_the_table_names_what_is_tried_here() -> None:
    assert [row[0].strip("`") for row in TABLE] == list(OTHERS)
    told = {place for row in TABLE for place in row[1:] if place.startswith("warns")}
    assert len(told) == 3
    assert len(RULES) == 3 + 2  # and Tidegate itself, on either side


@pytest.mark.parametrize("place", ["outside", "inside"])
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0].strip("`"))
def test_every_order_does_what_the_table_says(row: Any, place: str, caplog: pytest.LogCaptureFixture) -> None:
    name, says = row[0].strip("`"), row[1 if place == "outside" else 2]
    found, hits = asyncio.run(compared(application(OTHERS[name]), placed(name, place)))
    if says.startswith("warns"):
        (warning,) = warned(caplog)
        assert f"{name} is {place} of Tidegate: " in warning
    else:
        assert says.startswith("works")
        assert warned(caplog) == []
        assert found == []
        assert hits >= 40


def test_all_of_them_in_the_right_order_work_together(caplog: pytest.LogCaptureFixture) -> None:
    outside = ["ProxyHeaders", "TrustedHost", "HTTPSRedirect", "CORS", "Session", "Authentication"]
    above = [OTHERS[f"{name}Middleware"] for name in outside]
    below = [OTHERS["GZipMiddleware"], OTHERS["BaseHTTPMiddleware"]]
    found, hits = asyncio.run(compared(application(*above, *below), application(*above, tidegate(), *below)))
    assert warned(caplog) == []
    assert found == []
    assert hits >= 40


# --- the harm that the warnings speak of ---------------------------------------------


def test_with_compression_outside_a_resumed_download_is_joined_from_two_representations() -> None:
    async def resumed(app: Any) -> tuple[bytes, bytes]:
        coded = [("x-tenant", "acme"), ("x-user", "ann"), ("accept-encoding", "gzip")]
        whole = await call(app, "/page", headers=coded)
        etag = whole.header("etag") or ""
        rest = await call(app, "/page", headers=[*coded, ("range", "bytes=40-"), ("if-range", etag)])
        assert rest.status in (200, 206)
        return whole.body, whole.body[:40] + rest.body if rest.status == 206 else rest.body

    for place, whole in (("outside", False), ("inside", True)):
        first, joined = asyncio.run(resumed(placed("GZipMiddleware", place)))
        assert (gzip.decompress(first) == _plain(joined)) is whole


def _plain(body: bytes) -> bytes | None:
    try:
        return gzip.decompress(body)
    except (OSError, EOFError, zlib.error):
        return None


def test_with_authentication_inside_nobody_is_known_and_a_metric_says_so() -> None:
    for place, hits, counted in (("outside", True, None), ("inside", False, 2.0)):
        registry = CollectorRegistry()
        own = Middleware(TidegateMiddleware, policies=POLICIES, registry=registry)
        other = OTHERS["AuthenticationMiddleware"]
        app = application(*([other, own] if place == "outside" else [own, other]))

        async def twice(app: Any = app) -> list[Answer]:
            return [await call(app, "/page", headers=[]) for _ in range(2)] + [
                await call(app, "/page", headers=[("authorization", "Basic YWNtZS5hbm46eA==")]) for _ in range(2)
            ]

        answers = asyncio.run(twice())
        assert answers[-1].hit is hits
        anonymous = registry.get_sample_value("tidegate_cache_bypass_total", {"reason": "no-identity"})
        credential = registry.get_sample_value("tidegate_cache_bypass_total", {"reason": "credential"})
        assert (anonymous, credential) == (2.0, counted)


def test_with_proxy_headers_inside_the_location_of_a_write_purges_nothing() -> None:
    async def hits(place: str) -> list[bool]:
        proxy, writing = OTHERS["ProxyHeadersMiddleware"], Middleware(_Writing)
        own = tidegate(identify=BY_HEADERS)
        app = application(*([proxy, own, writing] if place == "outside" else [own, proxy, writing]))
        found: list[bool] = []
        for method, path in (("GET", "/open"), ("GET", "/open"), ("POST", "/elsewhere"), ("GET", "/open")):
            scope = _scope(path, method=method, scheme="http", headers=[("x-forwarded-proto", "https")])
            found.append((await call(app, scope=scope)).hit)
        return found

    assert asyncio.run(hits("outside")) == [False, True, False, False]
    assert asyncio.run(hits("inside")) == [False, True, False, True]


class _Writing:
    """Answers every POST with the place of what it has changed."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope.get("method") != "POST":
            await self.app(scope, receive, send)
            return
        place = f"{scope['scheme']}://example.test/open".encode()
        await send({"type": "http.response.start", "status": 201, "headers": [(b"location", place)]})
        await send({"type": "http.response.body", "body": b""})


def test_one_tidegate_inside_another_takes_over_its_decisions(caplog: pytest.LogCaptureFixture) -> None:
    def sides() -> tuple[Tidegate, Tidegate]:
        one, other = [Tidegate(policies=POLICIES, registry=CollectorRegistry()) for _ in range(2)]
        return one, other

    outer, inner = sides()
    asyncio.run(lived(outer(inner(application()))))
    outer, inner = sides()
    mounted = Starlette(
        routes=[Mount("/sub", inner(Origin()))], middleware=[Middleware(TidegateMiddleware, tide=outer)]
    )
    asyncio.run(call(mounted, "/sub/open"))
    once, again = warned(caplog)
    assert once.startswith("order of middleware: Mounted is inside of Tidegate: ")
    assert again.startswith("order of middleware: Tidegate is outside of Tidegate: ")


# --- how it is seen ------------------------------------------------------------------


async def lived(app: Any) -> None:
    """Start and end an application, as a server does."""
    life = Conversation(app, {"type": "lifespan", "state": {}})
    await life.inbox.put({"type": "lifespan.startup"})
    assert (await life.next())["type"] == "lifespan.startup.complete"
    await life.inbox.put({"type": "lifespan.shutdown"})
    assert (await life.next())["type"] == "lifespan.shutdown.complete"
    await life.task


def _wrapped(tide: Tidegate) -> Any:
    return tide(AuthenticationMiddleware(application(), backend=Basic()))


def _wrapped_starlette(tide: Tidegate) -> Any:
    inner = application()
    app = tide(inner)
    inner.add_middleware(AuthenticationMiddleware, backend=Basic())  # after it was wrapped, before it starts
    return app


def _added(tide: Tidegate) -> Any:
    app = application()
    app.add_middleware(AuthenticationMiddleware, backend=Basic())
    app.add_middleware(TidegateMiddleware, tide=tide)
    return app


def _added_itself(tide: Tidegate) -> Any:
    app = application()
    app.add_middleware(AuthenticationMiddleware, backend=Basic())
    app.add_middleware(tide)
    return app


def _derived(tide: Tidegate) -> Any:
    class Ours(AuthenticationMiddleware): ...

    return tide(Ours(application(), backend=Basic()))


@pytest.mark.parametrize("make", [_wrapped, _wrapped_starlette, _added, _added_itself, _derived])
@pytest.mark.parametrize("how", ["lifespan", "first request"])
def test_the_order_is_seen_at_the_start_however_it_came_about_and_said_once(
    make: Callable[[Tidegate], Any], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = make(Tidegate(policies=POLICIES, registry=CollectorRegistry()))

    async def run() -> None:
        if how == "lifespan":
            await lived(app)
            assert len(warned(caplog)) == 1
        for _ in range(3):
            await call(app, "/page")

    asyncio.run(run())
    (warning,) = warned(caplog)
    assert "is inside of Tidegate: nobody is known" in warning
    assert "put it outside: add_middleware for it after the one for Tidegate" in warning
    assert caplog.records[0].levelno == logging.WARNING


def test_compression_round_an_application_that_mounts_tidegate_is_seen_at_the_first_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tide = Tidegate(policies=POLICIES, registry=CollectorRegistry())
    app = Starlette(routes=[Mount("/sub", tide(application()))], middleware=[OTHERS["GZipMiddleware"]])

    async def run() -> None:
        await lived(app)
        assert warned(caplog) == []
        await call(app, "/sub/open")

    asyncio.run(run())
    (warning,) = warned(caplog)
    assert "GZipMiddleware is outside of Tidegate: one strong ETag" in warning


ALL_PUBLIC = Settings.of({"cache": {"share": "public"}})
PUBLIC = (RoutePolicy(route="/open", ttl=60, share="public"),)


@pytest.mark.parametrize(
    ("place", "name", "more"),
    [
        ("outside", "GZipMiddleware", {"layers": ["telemetry", "coalesce", "breaker"]}),
        ("inside", "AuthenticationMiddleware", {"identify": BY_HEADERS}),
        ("inside", "AuthenticationMiddleware", {"policies": PUBLIC}),
        (
            "inside",
            "AuthenticationMiddleware",
            {"settings": Settings.of({"cache": {"share": "public"}}), "policies": ()},
        ),
        ("inside", "AuthenticationMiddleware", {"layers": ["telemetry", "breaker", "etag"]}),
        ("inside", "ProxyHeadersMiddleware", {"layers": ["telemetry", "coalesce", "breaker", "etag"]}),
    ],
)
def test_where_an_order_does_no_harm_nothing_is_said(
    place: str, name: str, more: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    own = Middleware(TidegateMiddleware, **({"policies": POLICIES, "registry": CollectorRegistry()} | more))
    app = application(*([OTHERS[name], own] if place == "outside" else [own, OTHERS[name]]))
    asyncio.run(lived(app))
    assert warned(caplog) == []


def test_flags_over_tenants_need_to_know_who_asks_even_where_all_is_public(caplog: pytest.LogCaptureFixture) -> None:
    for more in ({}, {"properties": lambda _scope: {"tenantId": "acme"}}):
        tide = Tidegate(policies=PUBLIC, provider=Everybody(True), registry=CollectorRegistry(), **more)
        asyncio.run(lived(tide(application(OTHERS["AuthenticationMiddleware"]))))
        # With properties of its own the application says itself who asks.
        assert len(warned(caplog)) == 1


class Endless:
    """Makes up every attribute that it is asked for, and is its own inside."""

    def __init__(self) -> None:
        self.app = self
        self.user_middleware = "none"

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await Origin()(scope, receive, send)


class Slotted:
    __slots__ = ("app",)


def test_looking_runs_no_code_of_the_application_and_ends() -> None:
    assert 1 < len(list(inside_of(Endless()))) <= 100
    assert len(list(inside_of(Slotted()))) == 1
    assert next(inside_of(lambda: None))[0].endswith("<lambda>")
    app = Tidegate(policies=PUBLIC, registry=CollectorRegistry())(Endless())
    scope = scope_of("/open") | {"app": Endless()}
    assert asyncio.run(call(app, scope=scope)).body == b"hello"


def test_names_that_only_look_alike_are_left_alone() -> None:
    harmless = [("app.AuthorMiddleware",), ("app.AuthMiddlewareSettings",), ("app.Compressor",), ("app.decompress",)]
    found: dict[Any, Any] = {"inside": harmless, "outside": harmless}
    assert misplaced(found, layers=["cache", "etag"], needs_identity=True) == []
    for name in ("AuthMiddleware", "JWTAuthMiddleware", "AuthenticationMiddleware"):
        assert len(misplaced({"inside": [(f"x.{name}",)]}, layers=["cache"], needs_identity=True)) == 1
    for name in ("BrotliMiddleware", "GZipMiddleware", "CompressionMiddleware", "ZstdMiddleware"):
        assert len(misplaced({"outside": [(f"x.{name}",)]}, layers=["etag"], needs_identity=False)) == 1
