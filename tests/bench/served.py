"""What `sockets` has served: each function makes one application, whose answer depends on who asks, 2 KiB for each."""

from typing import Any

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.bench.exchanges import POLICY, Flags
from tests.driver import App
from tidegate import Tidegate, trusted_headers
from tidegate.middleware.core.policy import Policies
from tidegate.middleware.layers.asgi import ContextResolver
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.memory import MemoryStore

__all__ = ["IDENTIFY", "SIZE", "alone", "bare", "five", "raw"]

SIZE = 2 * 1024

IDENTIFY = trusted_headers(tenant="x-tenant", user="x-user")


def _body(tenant: bytes, user: bytes) -> bytes:
    return (tenant + b"/" + user).ljust(SIZE, b".")


def raw() -> App:
    """A function that returns the bytes of whoever asks, made before."""
    made: dict[tuple[bytes, bytes], bytes] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        sent = dict(scope["headers"])
        who = sent[b"x-tenant"], sent[b"x-user"]
        body = made.get(who)
        if body is None:
            body = made[who] = _body(*who)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % SIZE)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def bare() -> App:
    """A Starlette application that returns the same."""

    async def page(request: Request) -> Response:
        body = _body(request.headers["x-tenant"].encode(), request.headers["x-user"].encode())
        return Response(body, media_type="application/json")

    return Starlette(routes=[Route("/page", page)])


def alone() -> App:
    """The cache layer on that."""
    metrics = Metrics.of(CollectorRegistry())
    resolver = ContextResolver(identify=IDENTIFY, policies=Policies([POLICY]))
    return CacheLayer(bare(), store=MemoryStore(metrics=metrics), resolver=resolver, metrics=metrics)


def five() -> App:
    """All five layers on that, every flag open."""
    tide = Tidegate(identify=IDENTIFY, policies=[POLICY], provider=Flags(on=True), registry=CollectorRegistry())
    return tide(bare())
