"""Stores by name, each on a real server where it needs one."""

import pytest

from tests.middleware.stores.support import Open, deaf_url, new_metrics
from tidegate.middleware.stores.base import Store
from tidegate.middleware.stores.guard import GuardedStore
from tidegate.middleware.stores.memory import MemoryStore
from tidegate.middleware.stores.redis import RedisStore
from tidegate.middleware.stores.tiered import in_front_of

SERVERS = {"valkey": "valkey", "redis 7": "redis_server"}
MANY = {"sentinel": "sentinels", "cluster": "redis_cluster"}
DEAF = ("valkey over a stream", "cluster on a channel")
IN_FRONT = [f"memory in front of {kind}" for kind in (*SERVERS, *MANY, *DEAF)]
STORES = ["memory", "valkey", "redis 7", "guarded memory", "guarded valkey", "guarded redis 7", *MANY, *IN_FRONT]


@pytest.fixture(params=STORES)
def open_store(request: pytest.FixtureRequest) -> Open:
    name: str = request.param
    kind = name.removeprefix("guarded ").removeprefix("memory in front of ")
    fixtures = SERVERS | MANY
    asked = kind.removesuffix(" over a stream").removesuffix(" on a channel")
    server = request.getfixturevalue(fixtures[asked]) if kind != "memory" else None
    url = "" if server is None else deaf_url(server) if kind in DEAF else server.url

    def open_one(**limits: int) -> Store:
        metrics = new_metrics()
        inner: Store
        if kind == "memory":
            inner = MemoryStore(metrics=metrics, **limits)
        else:
            inner = far = RedisStore(url, metrics=metrics, **limits)
            if name in IN_FRONT:
                inner = in_front_of(far, max_bytes=1 << 20, metrics=metrics)
        # The suite is about what a store does, not about how fast a crowded machine is.
        return GuardedStore(inner, metrics=metrics, budget=2.0) if name.startswith("guarded") else inner

    return open_one


@pytest.fixture(params=list(SERVERS))
def server(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    """Either shared server, emptied."""
    return request.getfixturevalue(SERVERS[request.param])


@pytest.fixture(params=["start_valkey", "start_redis"])
def start_server(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    """Starts a private server of either kind."""
    return request.getfixturevalue(request.param)
