"""All five layers behind flags from a file, with authentication in front and the metrics that a rollout is judged by.

uvicorn app:app, in a copy of this folder (the controller writes flags.json)
"""

import asyncio

from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tidegate import RoutePolicy, Settings, Tidegate, TidegateMiddleware

NAMES: dict[tuple[str, str], str] = {}


class Employee(BaseUser):
    """Somebody at some customer. Tidegate reads `tenant`, `username` and `grants`."""

    def __init__(self, tenant: str, username: str) -> None:
        self.tenant = tenant
        self.username = username
        self.grants = "reader"

    @property
    def is_authenticated(self) -> bool:
        return True


class BearerNames(AuthenticationBackend):
    """`Authorization: Bearer <tenant>/<user>`: believes everything. Put your own in its place."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        kind, _, token = conn.headers.get("authorization", "").partition(" ")
        tenant, _, user = token.partition("/")
        return (AuthCredentials(), Employee(tenant, user)) if kind == "Bearer" and tenant and user else None


async def client(request: Request) -> Response:
    await asyncio.sleep(0.2)  # a slow query
    number = request.path_params["client_id"]
    return JSONResponse({"id": number, "name": NAMES.get((request.user.tenant, number), f"client {number}")})


async def rename(request: Request) -> Response:
    NAMES[request.user.tenant, request.path_params["client_id"]] = (await request.body()).decode()
    return Response(status_code=204)


tide = Tidegate(
    Settings.load(),
    policies=[
        RoutePolicy(route="/clients/{client_id}", ttl=60, share="tenant", tags=("client:{client_id}",)),
        RoutePolicy(route="/clients/{client_id}/name", invalidates=("client:{client_id}",)),
    ],
)
app = Starlette(
    routes=[
        Route("/clients/{client_id}", client),
        Route("/clients/{client_id}/name", rename, methods=["PUT"]),
        Route("/metrics", tide.metrics_app),
    ],
    # In this order: Tidegate has to know who asks.
    middleware=[
        Middleware(AuthenticationMiddleware, backend=BearerNames()),
        Middleware(TidegateMiddleware, tide=tide),
    ],
)
