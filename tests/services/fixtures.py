"""The servers as pytest fixtures.

| fixture | what it gives | lives |
|---|---|---|
| `valkey`, `redis_server` | the shared server, emptied before the test | a session |
| `valkey_server`, `shared_redis` | the same, not emptied: for fixtures of a wider scope | a session |
| `sentinels`, `redis_cluster` | Redis 7 under three Sentinels, a cluster of Valkey 9; emptied | a session |
| `unleash` | the shared Unleash; take fresh flag names (`unleash.admin.fresh_name()`) | a session |
| `start_unleash` | a function that starts a private one; `own_postgres=True` gives it a database to break | the test |
| `prometheus` | a function that starts one with the arguments of `Prometheus` | the test |
| `start_valkey`, `start_redis` | a function that starts a private one: kill it, restart it, configure it | the test |
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import pytest

from tests.services.postgres import Postgres
from tests.services.prometheus import Prometheus
from tests.services.replicated import RedisCluster, SentinelTrio
from tests.services.server import Server, ServiceError
from tests.services.unleash import Unleash
from tests.services.valkey import Redis, Valkey

__all__ = [
    "postgres",
    "prometheus",
    "redis_cluster",
    "redis_server",
    "sentinels",
    "shared_cluster",
    "shared_redis",
    "shared_sentinels",
    "start_redis",
    "start_unleash",
    "start_valkey",
    "unleash",
    "valkey",
    "valkey_server",
]

AnyServer = TypeVar("AnyServer", bound=Server)


@contextmanager
def _one_line() -> Generator[None]:
    """Let a server that cannot be had fail the test with its message alone."""
    try:
        yield
    except ServiceError as error:
        pytest.fail(str(error), pytrace=False)


def _shared(make: Callable[[], AnyServer]) -> Iterator[AnyServer]:
    with _one_line():
        server = make().start()
    yield server
    server.stop()


def _private(make: Callable[..., AnyServer]) -> Iterator[Callable[..., AnyServer]]:
    with ExitStack() as stack:

        def start(*arguments: Any, **settings: Any) -> AnyServer:
            with _one_line():
                server = make(*arguments, **settings)
                stack.enter_context(server)
                return server

        yield start


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Valkey]:
    yield from _shared(Valkey)


@pytest.fixture
def valkey(valkey_server: Valkey) -> Valkey:
    valkey_server.flush()
    return valkey_server


@pytest.fixture
def start_valkey() -> Iterator[Callable[..., Valkey]]:
    """Call with the arguments of `Valkey`."""
    yield from _private(Valkey)


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[Redis]:
    yield from _shared(Redis)


@pytest.fixture
def redis_server(shared_redis: Redis) -> Redis:
    shared_redis.flush()
    return shared_redis


@pytest.fixture
def start_redis() -> Iterator[Callable[..., Redis]]:
    """Call with the arguments of `Redis`."""
    yield from _private(Redis)


@pytest.fixture(scope="session")
def shared_sentinels() -> Iterator[SentinelTrio]:
    with _one_line():
        trio = SentinelTrio().start()
    yield trio
    trio.stop()


@pytest.fixture
def sentinels(shared_sentinels: SentinelTrio) -> SentinelTrio:
    shared_sentinels.flush()
    return shared_sentinels


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[RedisCluster]:
    with _one_line():
        cluster = RedisCluster().start()
    yield cluster
    cluster.stop()


@pytest.fixture
def redis_cluster(shared_cluster: RedisCluster) -> RedisCluster:
    shared_cluster.flush()
    return shared_cluster


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    yield from _shared(Postgres)


@pytest.fixture(scope="session")
def unleash(postgres: Postgres) -> Iterator[Unleash]:
    yield from _shared(lambda: Unleash(postgres))


@pytest.fixture
def start_unleash(postgres: Postgres) -> Iterator[Callable[..., Unleash]]:
    """Call with nothing, or with `own_postgres=True` to have `.postgres` to stop, kill or suspend."""

    def make(*, own_postgres: bool = False) -> Unleash:
        return Unleash() if own_postgres else Unleash(postgres)

    yield from _private(make)


@pytest.fixture
def prometheus() -> Iterator[Callable[..., Prometheus]]:
    """Call with the arguments of `Prometheus`. The first sample comes some six seconds after the start."""
    yield from _private(Prometheus)
