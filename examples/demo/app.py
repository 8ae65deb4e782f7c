"""The demo's application: a small multi-tenant API whose answers take a while and are asked for again and again.

`fault` plays the mistake that a canary exists to find: once switched on, it fails requests whose cache gate is open,
and only those.
"""

import asyncio
import json
from typing import Any

from prometheus_client import Counter
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tidegate import RoutePolicy, Settings, Tidegate, TidegateMiddleware

__all__ = ["POLICIES", "build"]

CALLS = Counter("demo_handler_calls", "Requests that reached a handler of the application.")

POLICIES = (
    RoutePolicy(route="/api/context/me", ttl=60, share="user", tags=("context",)),
    RoutePolicy(route="/api/clients", ttl=60, share="tenant", tags=("clients",)),
    RoutePolicy(route="/api/clients/{client_id}/engagements", ttl=60, share="tenant", tags=("client:{client_id}",)),
    RoutePolicy(route="/api/clients/{client_id}", invalidates=("clients", "client:{client_id}")),
)


class DemoUser(BaseUser):
    """Somebody of some tenant."""

    def __init__(self, tenant: str, username: str) -> None:
        self.tenant = tenant
        self.username = username

    @property
    def is_authenticated(self) -> bool:
        return True


class BearerNames(AuthenticationBackend):
    """`Authorization: Bearer <tenant>/<user>`: enough for a demo, and for nothing else."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        kind, _, token = conn.headers.get("authorization", "").partition(" ")
        tenant, _, user = token.partition("/")
        if kind != "Bearer" or not tenant or not user:
            return None
        return AuthCredentials(["authenticated"]), DemoUser(tenant, user)


class Fault:
    """Fails what comes through an open cache gate, while it is on."""

    on = False

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = scope.get("tidegate")
        if Fault.on and scope["type"] == "http" and context is not None and context.is_open("cache"):
            await JSONResponse({"error": "the demo's fault"}, status_code=500)(scope, receive, send)
            return
        await self.app(scope, receive, send)


async def me(request: Request) -> Response:
    return await _slowly(0.08, {"user": request.user.username, "tenant": request.user.tenant})


async def clients(request: Request) -> Response:
    return await _slowly(0.05, {"clients": [f"{request.user.tenant}-{number}" for number in range(40)]})


async def engagements(request: Request) -> Response:
    client = request.path_params["client_id"]
    return await _slowly(0.06, {"client": client, "engagements": [{"id": n, "name": f"E{n}"} for n in range(30)]})


async def rename(request: Request) -> Response:
    CALLS.inc()
    return Response(status_code=204)


async def switch(request: Request) -> Response:
    Fault.on = bool(json.loads(await request.body()))
    return JSONResponse(Fault.on)


async def _slowly(seconds: float, answer: dict[str, Any]) -> Response:
    CALLS.inc()
    await asyncio.sleep(seconds)
    return JSONResponse(answer)


def build() -> Starlette:
    """The application with the whole gate on it, configured by the environment."""
    tide = Tidegate(Settings.load(), policies=POLICIES)
    return Starlette(
        routes=[
            Route("/api/context/me", me),
            Route("/api/clients", clients),
            Route("/api/clients/{client_id}/engagements", engagements),
            Route("/api/clients/{client_id}", rename, methods=["PUT"]),
            Route("/demo/fault", switch, methods=["PUT"]),
            Route("/metrics", tide.metrics_app),
        ],
        middleware=[
            Middleware(AuthenticationMiddleware, backend=BearerNames()),
            Middleware(TidegateMiddleware, tide=tide),
            Middleware(Fault),
        ],
    )
