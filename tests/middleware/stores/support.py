"""What the stores' tests share: entries, stores by name, and waiting for a condition."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis as Client

from tests.services import RedisCluster, RedisServer
from tidegate.middleware.core.records import PUBLIC_SCOPE, Entry, Record
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.base import Peeks, Store
from tidegate.middleware.stores.redis import RedisStore
from tidegate.middleware.stores.tiered import TieredStore, in_front_of

ACME = "tenant:acme"
SCOPES = (PUBLIC_SCOPE, ACME)

Open = Callable[..., Store]
"""Makes a store inside the running loop; takes max_stamps, max_entry_bytes."""

Both = Callable[[TieredStore, TieredStore, Any], Awaitable[None]]
"""What is done with the stores of two processes, and a client beside them."""


def deaf_url(server: RedisServer | RedisCluster, *less: str) -> str:
    """The address of a user who may do everything but follow keys, and less than that."""
    for one in server.servers if isinstance(server, RedisCluster) else [server]:
        one.command_reply("ACL", "SETUSER", "deaf", "reset", "on", ">x", "~*", "&*", "+@all", "-client|tracking", *less)
    return server.url.replace("://", "://deaf:x@")


def new_metrics() -> Metrics:
    return Metrics.of(CollectorRegistry())


def entry(body: bytes = b"body", **of: Any) -> Entry:
    """A fresh entry; positions 0 in both scopes unless told."""
    return Entry(
        **{
            "status": 200,
            "headers": ((b"content-type", b"text/plain"), (b"set-thing", b"a"), (b"set-thing", b"b")),
            "body": body,
            "born": 1_700_000_000.25,
            "lifetime": 60.0,
            "positions": tuple((scope, 0) for scope in SCOPES),
        }
        | of
    )


async def eventually(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = 3.0) -> None:
    """Return when the condition holds; fail after `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.002)


async def found(store: Store, key: bytes) -> Record | None:
    """As the layers look: what is at hand first."""
    at_hand = store.peek(key) if isinstance(store, Peeks) else None
    return at_hand if at_hand is not None else (await store.get(key)).record


async def hears(store: TieredStore, seconds: float = 30.0) -> None:
    """Returns when its memory is in step; fails after `seconds`."""

    async def live() -> bool:
        return store.stats().extra["near_live"] == 1.0

    await eventually(live, "it hears of purges", seconds)


async def gone(store: TieredStore, key: bytes) -> None:
    """Returns when its memory does not answer this any more."""

    async def none() -> bool:
        return store.peek(key) is None

    await eventually(none, "memory does not answer it", 30.0)


def two_processes(url: str, body: Both, *, beside: str) -> Metrics:
    """Their stores, each with a memory in front, and a client of one's own; begins when both hear of purges.

    beside: the client's address. Returns the first one's metrics.
    """
    made = [new_metrics(), new_metrics()]

    async def run() -> None:
        one, other = (in_front_of(RedisStore(url, metrics=each), max_bytes=1 << 20, metrics=each) for each in made)
        client: Any = Client.from_url(beside)
        for store in (one, other):
            await store.start()
        try:
            for store in (one, other):
                await hears(store)
            await body(one, other, client)
        finally:
            for store in (one, other):
                await store.aclose()
            await client.aclose()

    asyncio.run(run())
    return made[0]


async def positions(store: Store) -> tuple[tuple[str, int], ...]:
    """As a caller reads them before it asks the app."""
    read = (await store.get(b"nothing-here", SCOPES)).positions
    assert read is not None
    return tuple(read.items())


async def write(store: Store, key: bytes, record: Record, retain: float = 60.0) -> None:
    """Put, and wait until the store has it: writes may be made in the background."""
    before = await found(store, key)
    assert await store.put(key, record, retain=retain)

    async def there() -> bool:
        now = await found(store, key)
        return now == record if before != record else now is not None

    await eventually(there, f"{key!r} is written")
