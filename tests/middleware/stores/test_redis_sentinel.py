"""Whom the Sentinels name: the newest of what they say, each heard at once, and none believed that is behind."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis.exceptions import ResponseError

from tests.middleware.stores.support import eventually
from tests.services import Redis, free_port
from tests.services.replicated import Sentinel
from tidegate.addresses import Address
from tidegate.errors import StoreError
from tidegate.middleware.stores import redis_sentinel, sentinel_watch
from tidegate.middleware.stores.redis_sentinel import Sentinels
from tidegate.middleware.stores.redis_servers import Way
from tidegate.middleware.stores.sentinel_watch import Named, Watch, named_by

OLD, NEW = Named(3, "127.0.0.1", 1), Named(4, "127.0.0.1", 2)
ADDRESS = [b"127.0.0.1", b"2"]


@pytest.fixture(scope="module")
def master() -> Iterator[Redis]:
    with Redis() as started:
        yield started


@pytest.fixture
def start_sentinel(master: Redis) -> Iterator[Callable[[], Sentinel]]:
    started: list[Sentinel] = []

    def start() -> Sentinel:
        one = Sentinel(master, service="main", down_after=60.0)
        one.start()
        started.append(one)
        return one

    yield start
    for one in started:
        one.kill()


def way_to(url: str) -> tuple[Address, Way]:
    address = Address.of(url)
    return address, Way.of(address)


@pytest.mark.parametrize(
    ("replies", "named"),
    [
        ([{b"config-epoch": b"4", b"ip": b"x"}, ADDRESS], NEW),
        ([[b"name", b"main", b"config-epoch", b"4"], ADDRESS], NEW),
        ([ResponseError("No such master"), None], None),
    ],
    ids=["in RESP3", "in RESP2", "it does not know the service"],
)
def test_what_a_sentinel_says(replies: list[Any], named: Named | None) -> None:
    assert named_by(replies) == named


@pytest.mark.parametrize("replies", [[ResponseError("NOPERM"), ADDRESS], [{}, ResponseError("NOPERM")]])
def test_a_refusal_is_told(replies: list[Any]) -> None:
    with pytest.raises(ResponseError, match="NOPERM"):
        named_by(replies)


@pytest.mark.parametrize(
    "replies", [[{}, ADDRESS], [[b"config-epoch"], ADDRESS], [7, b"x"], [{b"config-epoch": b"x"}, 7]]
)
def test_what_no_sentinel_says_is_told(replies: list[Any]) -> None:
    with pytest.raises(StoreError, match="does not talk like a Sentinel"):
        named_by(replies)


@pytest.mark.parametrize(
    ("named", "moves"),
    [
        ([NEW, OLD, None], True),
        ([OLD, NEW, None], True),
        ([OLD, OLD, OLD], False),
        ([Named(2, "127.0.0.1", 2), None, None], False),
        ([Named(4, "127.0.0.1", 1), OLD, None], False),
        ([None, None, None], False),
    ],
    ids=["one has the news", "whichever", "none has", "it is behind", "the same master", "none is heard"],
)
def test_connections_are_made_anew_when_any_names_a_newer_master(named: list[Named | None], moves: bool) -> None:
    sentinels: Any = Sentinels(*way_to("redis+sentinel://a:1,b:1,c:1/main"))
    told: list[str] = []
    sentinels.moved = told.append
    sentinels._led_to = {OLD}
    for watch, one in zip(sentinels._watches, named, strict=True):
        watch.named = one
        sentinels._heard()
    assert told == (["the Sentinels have made 127.0.0.1:2 the master of main"] if moves else []), "once"


async def led_by(one: Sentinel) -> Any:
    """What this Sentinel has led to a master once. It is not listened to."""
    sentinels: Any = Sentinels(*way_to(f"redis+sentinel://{one.host}:{one.port}/main"))
    for watch in sentinels._watches:
        watch.start = lambda: None
    connection = await sentinels.connect()
    await connection.disconnect()
    return sentinels


def test_a_connection_to_a_master_that_was_replaced_meanwhile_is_not_used(
    master: Redis, start_sentinel: Callable[[], Sentinel]
) -> None:
    """The Sentinel that was asked is behind, and the old master says still that it is one."""
    one = start_sentinel()

    async def run() -> None:
        sentinels = await led_by(one)
        assert {each[1:] for each in sentinels._led_to} == {(master.host, master.port)}

        async def asked() -> Named:
            named: Named = await ask()
            sentinels._watches[0].named = Named(named.epoch + 1, "127.0.0.1", 1)
            return named

        ask, sentinels._master = sentinels._master, asked
        with pytest.raises(StoreError, match="is not the master of main"):
            await sentinels.connect()

    asyncio.run(run())


def test_nor_is_one_while_the_sentinel_that_had_the_news_cannot_be_heard(
    master: Redis, start_sentinel: Callable[[], Sentinel], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = start_sentinel()

    async def run() -> None:
        sentinels = await led_by(one)
        (old,) = sentinels._led_to
        monkeypatch.setattr(redis_sentinel, "BELIEVED_FOR", 600.0)
        for heard in (Named(old.epoch + 1, "127.0.0.1", 1), old, None):
            sentinels._watches[0].named = heard
            sentinels._heard()
        with pytest.raises(StoreError, match="is not the master of main"):
            await sentinels.connect()
        monkeypatch.setattr(redis_sentinel, "BELIEVED_FOR", 0.0)
        connection = await sentinels.connect()
        await connection.disconnect()

    asyncio.run(run())


@pytest.mark.parametrize("fault", ["killed", "suspended"])
def test_a_sentinel_that_is_gone_or_silent_says_nothing_until_it_is_back(
    master: Redis, start_sentinel: Callable[[], Sentinel], fault: str
) -> None:
    sentinel = start_sentinel()

    async def run() -> None:
        failures: list[Exception] = []
        heard: list[Named | None] = []
        way = way_to(f"redis://{sentinel.host}:{sentinel.port}")[1]
        watch = Watch(way.connect, "main", heard=lambda: heard.append(watch.named), failed=failures.append)

        async def names() -> bool:
            return watch.named is not None and watch.named[1:] == (master.host, master.port)

        async def nothing() -> bool:
            return watch.named is None

        watch.start()
        try:
            await eventually(names, "it names the master", 30.0)
            assert heard[0] == watch.named
            await asyncio.to_thread(sentinel.kill if fault == "killed" else sentinel.suspend)
            await eventually(nothing, "nothing is known of it", 30.0)
            await asyncio.to_thread(sentinel.start if fault == "killed" else sentinel.resume)
            await eventually(names, "it names the master again", 30.0)
            assert failures
        finally:
            await watch.aclose()
        assert watch.named is None

    asyncio.run(run())


def test_a_sentinel_that_was_never_there_is_told_and_others_are_asked(
    master: Redis, start_sentinel: Callable[[], Sentinel]
) -> None:
    one = start_sentinel()

    async def run() -> None:
        failures: list[Exception] = []
        address, way = way_to(f"redis+sentinel://127.0.0.1:{free_port()},{one.host}:{one.port}/main")
        sentinels = Sentinels(address, way, failed=failures.append)
        connection = await sentinels.connect()
        await connection.disconnect()

        async def told() -> bool:
            return bool(failures)

        await eventually(told, "that one cannot be watched", 30.0)
        await sentinels.aclose()

    asyncio.run(run())


def test_what_was_closed_in_one_event_loop_watches_again_in_another(
    master: Redis, start_sentinel: Callable[[], Sentinel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentinel_watch, "LOOK_EVERY", 600.0)
    one = start_sentinel()
    way = way_to(f"redis://{one.host}:{one.port}")[1]
    heard: list[Named | None] = []
    watch = Watch(way.connect, "main", heard=lambda: heard.append(watch.named), failed=lambda error: None)

    async def run() -> None:
        heard.clear()
        watch.start()

        async def asked() -> bool:
            return bool(heard)

        await eventually(asked, "it was asked", 30.0)
        connection: Any = await way.connect()
        for _ in range(50):
            await connection.send_command("PING")
            await connection.read_response()
        await connection.disconnect()
        assert len(heard) == 1, "and waits for news"
        await watch.aclose()

    for _ in range(2):
        asyncio.run(run())
