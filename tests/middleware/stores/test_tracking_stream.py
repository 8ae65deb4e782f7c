"""Where a server refuses CLIENT TRACKING, purges are heard over a stream: nothing old is served, whatever happens."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.middleware.stores.support import (
    ACME,
    SCOPES,
    deaf_url,
    entry,
    eventually,
    gone,
    hears,
    positions,
    two_processes,
    write,
)
from tests.services import RedisServer
from tidegate.middleware.core.records import PUBLIC_SCOPE, WHOLE_SCOPE, Entry
from tidegate.middleware.stores.redis_purge import EVERYTHING
from tidegate.middleware.stores.tiered import TieredStore
from tidegate.middleware.stores.tracking_stream import Streaming

TAGGED = entry(tags=((ACME, "client:42"), (PUBLIC_SCOPE, "uri:/a")))
STREAM = "tidegate:p"


async def known(store: TieredStore, key: bytes, record: Entry = TAGGED) -> None:
    """Write a record, and see it in memory after it was read once; again if it was voided for something else."""
    await write(store, key, record)

    async def there() -> bool:
        return (await store.get(key)).record == record == store.peek(key)

    await eventually(there, "it is in memory", 20.0)


@pytest.mark.parametrize(
    "purged",
    [
        {ACME: ["client:42"]},
        {PUBLIC_SCOPE: ["uri:/a"]},
        {ACME: [WHOLE_SCOPE]},
        {ACME: [*map(str, range(40)), "client:42"]},
    ],
    ids=["a tag", "a URI", "a scope", "many tags"],
)
def test_a_purge_reaches_every_memory(server: RedisServer, purged: dict[str, list[str]]) -> None:
    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        for turn in range(10):
            key = b"%d" % turn
            record = entry(tags=TAGGED.tags, positions=await positions(one))
            await known(one, key, record)
            assert (await other.get(key, SCOPES)).record == record
            await known(other, key, record)
            assert (await one.purge(purged)).state == "done"
            assert one.peek(key) is None, "its own at once"
            await gone(other, key)
            assert (await other.get(key)).record is None

    two_processes(deaf_url(server), body, beside=server.url)


def test_a_server_that_speaks_no_resp3_tells_of_purges_over_the_stream_too(
    start_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    less = tmp_path / "less.conf"
    less.write_text('rename-command HELLO ""')
    server = start_server(options={"include": str(less)})

    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        await known(one, b"key")
        await other.purge({ACME: ["client:42"]})
        await gone(one, b"key")

    url = f"{server.url}?protocol=2"
    two_processes(url, body, beside=url)


def test_a_purge_of_others_leaves_what_is_not_theirs(server: RedisServer) -> None:
    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        await known(one, b"key")
        await known(one, b"other", entry(tags=((ACME, "other"),)))
        await other.purge({ACME: ["client:7"], "tenant:zorg": ["client:42"]})
        await other.purge({ACME: ["other"]})
        await gone(one, b"other")  # so the one before was heard too
        assert one.peek(b"key") == TAGGED

    two_processes(deaf_url(server), body, beside=server.url)


def test_it_is_said_once_and_a_metric_tells_what_is_used(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        for link in await client.client_list():
            if link["user"] == "deaf" and link["cmd"] in ("xread", "xrange"):
                await client.client_kill_filter(_id=link["id"])
        await hears(one)

    with caplog.at_level(logging.WARNING, "tidegate"):
        metrics = two_processes(deaf_url(server), body, beside=server.url)
    told = [record.getMessage() for record in caplog.records if "over a stream" in record.getMessage()]
    assert len(told) == 2, "once by each process"
    assert told[0].startswith("the server refuses CLIENT TRACKING: NOPERM")
    assert metrics.hearing.labels("stream")._value.get() == 1.0
    assert metrics.hearing.labels("tracking")._value.get() == 0.0


def test_nothing_is_answered_from_memory_while_the_stream_cannot_be_read(server: RedisServer) -> None:
    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        for _ in range(3):
            await known(one, b"key", entry(positions=await positions(one)))
            for link in await client.client_list():
                if link["user"] == "deaf" and link["cmd"] == "xread":
                    await client.client_kill_filter(_id=link["id"])
            await gone(one, b"key")
            await hears(one)
            assert one.peek(b"key") is None, "everything was voided before it hears again"

    two_processes(deaf_url(server), body, beside=server.url)


def test_when_the_server_hangs_memory_answers_nothing(start_server: Callable[..., RedisServer]) -> None:
    server = start_server()

    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        await known(one, b"key")
        server.suspend()
        await gone(one, b"key")
        server.resume()

    two_processes(deaf_url(server), body, beside=server.url)


def test_a_stream_that_is_gone_voids_everything(server: RedisServer) -> None:
    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        await other.purge({ACME: ["another"], PUBLIC_SCOPE: ["another"]})  # so it is not the server that was emptied
        await known(one, b"key")
        await client.delete(STREAM)
        await gone(one, b"key")
        await known(one, b"key", entry(b"again", tags=TAGGED.tags))
        assert (await other.purge({ACME: ["client:42"]})).state == "done"
        await gone(one, b"key")

    two_processes(deaf_url(server), body, beside=server.url)


def test_the_stream_is_bounded(server: RedisServer) -> None:
    async def body(one: TieredStore, other: TieredStore, client: Any) -> None:
        for _ in range(50):
            await asyncio.gather(*[other.purge({ACME: [f"tag:{number}"]}) for number in range(50)])
        assert 1000 < await client.xlen(STREAM) < 2200
        assert await client.ttl(STREAM) == -1, "a server short of memory leaves it"
        await hears(one)

    two_processes(deaf_url(server), body, beside=server.url)


@pytest.mark.parametrize("protocol", [2, 3])
def test_what_was_let_go_unread_voids_everything(protocol: int) -> None:
    changed: list[object] = []
    stream = Streaming(
        None,  # type: ignore[arg-type]
        prefix=b"p",
        changed=lambda names: changed.append(list(names)),
        void=lambda: changed.append("void"),
        failed=changed.append,
    )

    def news(*entries: tuple[bytes, bytes]) -> Any:
        told = [[place, [b"n", names]] for place, names in entries]
        return {b"p": told} if protocol == 3 else [[b"p", told]]

    assert stream._told([[b"5-0", [b"n", b""]]], None, b"5-0") == b"5-0"
    assert changed == []
    assert stream._told([[b"5-0", [b"n", b""]]], news((b"10-0", b"a b"), (b"10-1", b"")), b"9-0") == b"10-1"
    assert changed == [[b"a", b"b"]]
    changed.clear()
    assert stream._told([[b"10-2", []]], news((b"11-0", b"c"), (b"12-0", EVERYTHING)), b"10-1") == b"12-0"
    assert changed == ["void", [b"c"], "void"]
