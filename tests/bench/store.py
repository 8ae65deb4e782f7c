"""What a GET of 2 KiB costs this process with 100 tasks at once: redis-py's pool, and the store's own link.

Both on the same Valkey, over TCP. Both processes share the machine; what is counted is this thread's CPU time.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from tests.bench.frame import Bench, Case, Target
from tests.services import Valkey
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.redis_connect import connect_to

__all__ = ["BENCHES"]

TASKS: Final = 100
KEYS: Final = 1000
BODY: Final = b"x" * 2048
USUAL: Final = "GET, redis-py as it is"
PLAIN: Final = "GET, redis-py without timeouts"


Get = Callable[[bytes], Awaitable[bytes | None]]


def redis(bench: Bench) -> list[Case]:
    """A quarter of the least that redis-py takes is the target."""
    server = bench.closing.enter_context(Valkey())
    usual: Any = Redis.from_url(server.url)
    client: Any = Redis.from_url(server.url, socket_timeout=None)
    servers = connect_to(
        server.url, max_waiting=10_000, greet=_greet, connected=lambda: None, metrics=Metrics.of(CollectorRegistry())
    )
    for each in (usual, client, servers):
        bench.closing.push_async_callback(each.aclose)

    async def fill() -> None:
        for number in range(KEYS):
            await client.set(_key(number), BODY)

    async def linked(key: bytes) -> bytes | None:
        return (await servers.read([key]))[0]

    bench.run(fill())
    target = Target(of_others=((PLAIN, 0.25),))
    return [
        _case(bench, USUAL, usual.get),
        _case(bench, PLAIN, client.get),
        _case(bench, "GET, the store's link", linked, target=target),
    ]


async def _greet(_: object) -> None: ...


def _key(number: int) -> bytes:
    return b"key:%d" % (number % KEYS)


def _case(bench: Bench, name: str, get: Get, **of: Any) -> Case:
    async def task(first: int, count: int) -> None:
        for number in range(first, first + count):
            if await get(_key(number)) != BODY:
                raise AssertionError(f"{name}: another value")

    async def drive(each: int) -> float:
        await get(_key(0))  # connected
        began = time.thread_time()
        await asyncio.gather(*[task(number * 7, each) for number in range(TASKS)])
        return time.thread_time() - began

    def seconds(count: int) -> float:
        each = math.ceil(count / TASKS)
        taken: list[float] = []

        async def measured() -> None:
            taken.append(await drive(each))

        bench.run(measured())
        # In whole rounds of all tasks, and told for as many as were asked for.
        return taken[0] * count / (each * TASKS)

    return Case(name=name, seconds=seconds, longer=2.0, **of)


BENCHES = {"redis": redis}
