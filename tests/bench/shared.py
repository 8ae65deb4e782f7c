"""Applications that answer out of Redis, served by `redis_hits`: 2 KiB of JSON for whoever asks.

`plan` is the handler of the plan that this project grew out of: GET, json.loads, an ETag of what came, JSONResponse.
`got` is the least that a handler can do: the bytes of one GET. Both use redis-py as its documentation begins. `sealed`
and `sealed_five` are hits in front of a handler that makes the answer, with no memory in front of Redis.
"""

import json
import os
from hashlib import md5
from typing import Any

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.bench.exchanges import POLICY, Flags
from tests.bench.served import IDENTIFY, SIZE
from tests.driver import App
from tidegate import Tidegate
from tidegate.middleware.core.keyring import KeyRing, SealingKey
from tidegate.middleware.core.policy import Policies
from tidegate.middleware.layers.asgi import ContextResolver
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.guard import GuardedStore
from tidegate.middleware.stores.redis import RedisStore
from tidegate.middleware.stores.seals import Seals

__all__ = ["got", "plan", "sealed", "sealed_five"]

URL = "BENCH_REDIS"


def _context(tenant: str, user: str) -> dict[str, Any]:
    """A user's context as the plan has it, a number of clients long; as compact JSON it has `SIZE` bytes."""
    clients = [{"id": number, "name": f"client {number}", "active": number % 2 == 0} for number in range(30)]
    made: dict[str, Any] = {"user": {"id": user}, "client": {"id": tenant}, "clients": clients, "note": ""}
    made["note"] = "." * (SIZE - len(_written(made)))
    return made


def _written(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _who(request: Request) -> tuple[str, str]:
    return request.headers["x-tenant"], request.headers["x-user"]


def plan() -> App:
    """The plan's handler."""
    redis: Any = Redis.from_url(os.environ[URL])

    async def page(request: Request) -> Response:
        tenant, user = _who(request)
        key = f"v1:user:context:{user}"
        cached = await redis.get(key)
        if cached:
            context = json.loads(cached)
            etag = f'"{md5(json.dumps(context, sort_keys=True).encode()).hexdigest()}"'
            if request.headers.get("If-None-Match") == etag:
                return Response(status_code=304)
            return JSONResponse(context, headers={"ETag": etag, "Cache-Control": "private, max-age=3600"})
        context = _context(tenant, user)
        await redis.set(key, json.dumps(context), ex=3600)
        return JSONResponse(context)

    return Starlette(routes=[Route("/page", page)])


def got() -> App:
    """The bytes of one GET."""
    redis: Any = Redis.from_url(os.environ[URL])

    async def page(request: Request) -> Response:
        tenant, user = _who(request)
        key = f"bytes:{user}"
        found = await redis.get(key)
        if found is None:
            found = _written(_context(tenant, user))
            await redis.set(key, found, ex=3600)
        return Response(found, media_type="application/json")

    return Starlette(routes=[Route("/page", page)])


def _bare() -> App:
    async def page(request: Request) -> Response:
        return Response(_written(_context(*_who(request))), media_type="application/json")

    return Starlette(routes=[Route("/page", page)])


def _store(metrics: Metrics) -> RedisStore:
    ring = KeyRing(keys=(SealingKey(bytes(range(32))),), naming_key=bytes(range(32, 64)))
    seals = Seals(lambda: ring, metrics=metrics)
    return RedisStore(os.environ[URL], naming_key=ring.naming_key, seals=seals, metrics=metrics)


def sealed() -> App:
    """The cache layer on that."""
    metrics = Metrics.of(CollectorRegistry())
    resolver = ContextResolver(identify=IDENTIFY, policies=Policies([POLICY]))
    store = GuardedStore(_store(metrics), metrics=metrics)
    return CacheLayer(_bare(), store=store, resolver=resolver, metrics=metrics)


def sealed_five() -> App:
    """All five layers on that, every flag open."""
    registry = CollectorRegistry()
    store = _store(Metrics.of(registry))
    tide = Tidegate(identify=IDENTIFY, policies=[POLICY], provider=Flags(on=True), registry=registry, store=store)
    return tide(_bare())
