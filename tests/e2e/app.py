"""The application of the stories: three routes, a switch for what goes wrong, and metrics of its own.

`uvicorn tests.e2e.app:build --factory`; everything else comes from `TIDEGATE_*`.
"""

import asyncio
import os

from prometheus_client import Counter, Gauge
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidegate import RoutePolicy, Settings, Tidegate, TidegateMiddleware, trusted_headers

__all__ = ["build"]

HANDLER_SECONDS = 0.02

CALLS = Counter("e2e_handler_calls", "Requests that reached a handler.")
QUEUE = Gauge("e2e_queue_depth", "Something that the application measures and an alert may watch.")

POLICIES = (
    RoutePolicy(route="/me", ttl=300, share="user"),
    RoutePolicy(route="/clients", ttl=300, share="tenant"),
)


class Trouble:
    """What is wrong at the moment, for requests whose cache gate is open and that reach the application: `errors`,
    `no-store`, or nothing."""

    kind = ""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        struck = scope["type"] == "http" and scope["tidegate"].identity and scope["tidegate"].is_open("cache")
        if struck and Trouble.kind == "errors":
            await JSONResponse({"error": "a fault of open gates"}, status_code=500)(scope, receive, send)
            return

        async def unstorable(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"cache-control", b"no-store")]
            await send(message)

        await self.app(scope, receive, unstorable if struck and Trouble.kind == "no-store" else send)


class Worker:
    """Says in a header which process answered, hit or not: it stands outside of Tidegate."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-worker", b"%d" % os.getpid())]
            await send(message)

        await self.app(scope, receive, named)


async def answer(request: Request) -> Response:
    """Some work. `x-maker` names the process that did it, and stays with the stored response."""
    CALLS.inc()
    await asyncio.sleep(HANDLER_SECONDS)
    return JSONResponse({"path": request.url.path, "data": "x" * 400}, headers={"x-maker": str(os.getpid())})


async def now(request: Request) -> Response:
    """What no cache may keep."""
    CALLS.inc()
    await asyncio.sleep(HANDLER_SECONDS)
    return JSONResponse({"path": request.url.path}, headers={"cache-control": "no-store"})


async def switch(request: Request) -> Response:
    """`{"trouble": "errors", "queue": 3}`"""
    wanted = await request.json()
    Trouble.kind = wanted.get("trouble", Trouble.kind)
    QUEUE.set(wanted.get("queue", 0))
    return Response(status_code=204)


async def healthz(request: Request) -> Response:
    return Response(status_code=200)


def build() -> Starlette:
    """The application with the whole gate on it."""
    tide = Tidegate(Settings.load(), policies=POLICIES, identify=trusted_headers(tenant="x-tenant", user="x-user"))
    return Starlette(
        routes=[
            Route("/me", answer),
            Route("/clients", answer),
            Route("/now", now),
            Route("/switch", switch, methods=["PUT"]),
            Route("/healthz", healthz),
            Route("/metrics", tide.metrics_app),
        ],
        middleware=[Middleware(Worker), Middleware(TidegateMiddleware, tide=tide), Middleware(Trouble)],
    )
