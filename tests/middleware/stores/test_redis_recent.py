"""The purges of one process are made again on a server that lacks them: which, how many, and when."""

import asyncio
from typing import Any

from prometheus_client import CollectorRegistry

from tests.middleware.stores.support import ACME, SCOPES, entry, eventually, found
from tests.services import RedisServer
from tidegate.errors import StoreError
from tidegate.middleware.core.records import PUBLIC_SCOPE, WHOLE_SCOPE
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.redis import RedisStore
from tidegate.middleware.stores.redis_names import Names
from tidegate.middleware.stores.redis_purge import Purging
from tidegate.middleware.stores.redis_recent import Recent

OLD = entry(tags=((ACME, "t0"),), positions=tuple((scope, 5) for scope in SCOPES))


class Opened:
    """A store with its metrics."""

    def __init__(self, url: str, **limits: int) -> None:
        self.registry = CollectorRegistry()
        self.store = RedisStore(url, metrics=Metrics.of(self.registry), **limits)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    async def answers(self) -> bool:
        try:
            await self.store.get(b"nothing")
        except StoreError:
            return False
        return True


async def restarted(server: RedisServer, opened: Opened) -> None:
    """The server has lost everything, and is another run; the store is on it again."""
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.restart)
    await eventually(opened.answers, "the store is connected again", 30.0)


def test_a_server_that_lost_its_memory_is_told_again_before_it_is_asked(start_server: Any) -> None:
    server: RedisServer = start_server()

    async def run() -> None:
        opened = Opened(server.url)
        try:
            await opened.store.purge({ACME: ["t0", "t1"], PUBLIC_SCOPE: ["u"]})
            stamps = opened.store.purged_names({ACME: ["t0", "t1"], PUBLIC_SCOPE: ["u"]})
            before = [server.command_reply("GET", name.decode()) for name in stamps]
            await restarted(server, opened)
            assert [server.command_reply("GET", name.decode()) for name in stamps] == before
            assert opened.count("tidegate_purges_total", outcome="reissued") == 3
            await opened.store.put(b"key", OLD, retain=60)
            assert await found(opened.store, b"key") is None
            fresh = (await opened.store.get(b"key", SCOPES)).positions
            assert fresh is not None
            await opened.store.put(b"key", entry(tags=OLD.tags, positions=tuple(fresh.items())), retain=60)
            assert await found(opened.store, b"key") is not None
        finally:
            await opened.store.aclose()

    asyncio.run(run())


def test_beyond_the_limit_the_oldest_become_a_purge_of_all_of_their_scope(start_server: Any) -> None:
    server: RedisServer = start_server()

    async def run() -> None:
        opened = Opened(server.url, max_recent=4)
        try:
            for number in range(10):
                await opened.store.purge({ACME: [f"t{number}"]})
            limited = opened.count("tidegate_limits_total", limit="redis-recent-purges")
            assert limited >= 6
            await restarted(server, opened)
            await opened.store.put(b"key", OLD, retain=60)
            assert await found(opened.store, b"key") is None, "its purge was forgotten, not what it meant"
            (whole,) = opened.store.purged_names({ACME: [WHOLE_SCOPE]})
            assert server.command_reply("EXISTS", whole.decode()) == b"1"
        finally:
            await opened.store.aclose()

    asyncio.run(run())


def test_a_server_that_does_not_say_who_it_is_is_told_every_time(start_server: Any) -> None:
    server: RedisServer = start_server()
    rights = ["~tidegate:*", "+@read", "+@write", "+@scripting", "+@connection", "+time"]
    server.command_reply("ACL", "SETUSER", "app", "reset", "on", ">secret", *rights)

    async def run() -> None:
        opened = Opened(f"redis://app:secret@127.0.0.1:{server.port}/0")
        try:
            await opened.store.purge({ACME: ["t0"]})
            (stamp,) = opened.store.purged_names({ACME: ["t0"]})
            server.flush()
            assert server.command_reply("EXISTS", stamp.decode()) == b"0"
            server.command_reply("CLIENT", "KILL", "TYPE", "normal")

            async def told() -> bool:
                return await opened.answers() and opened.count("tidegate_purges_total", outcome="reissued") == 1

            await eventually(told, "it is told again", 30.0)
            assert server.command_reply("EXISTS", stamp.decode()) == b"1"
        finally:
            await opened.store.aclose()

    asyncio.run(run())


def test_they_are_remembered_for_a_time_and_up_to_a_number_of_scopes_too() -> None:
    now = 0.0
    bitten: list[int] = []
    purging = Purging(Names("tidegate", b""), retention=60.0, max_stamps=10)
    recent = Recent(purging, most=3, age=10.0, bites=lambda: bitten.append(1), clock=lambda: now)
    recent.add(ACME, ["a"], 1)
    now = 9.0
    recent.add(ACME, ["b"], 2)
    now = 11.0
    recent.add(ACME, ["c"], 3)
    assert [targets for _, targets in recent._since(0)] == [[("b", 2), ("c", 3)]]
    for number in range(20):
        recent.add(f"tenant:{number}", ["x"], 10 + number)
    assert len(recent) == 3
    left = dict(recent._since(0))
    assert (WHOLE_SCOPE, max(stamp for _, stamp in left[PUBLIC_SCOPE] if stamp)) in left[PUBLIC_SCOPE]
    assert len(bitten) >= 19


def test_long_names_are_remembered_up_to_a_number_of_bytes() -> None:
    bitten: list[int] = []
    purging = Purging(Names("tidegate", b""), retention=60.0, max_stamps=10)
    recent = Recent(purging, most=1000, most_bytes=10_000, bites=lambda: bitten.append(1))
    for number in range(100):
        recent.add(ACME, [f"{number:01000}", f"{number}"], 1 + number)
        assert sum(len(scope) + len(str(target)) for scope, target in recent._made) <= 10_000
    left = dict(recent._since(0))[ACME]
    (whole,) = [stamp or 0 for target, stamp in left if target == WHOLE_SCOPE]
    assert 80 < whole < 100, "the older ones, as all of their tenant's"
    assert {stamp for target, stamp in left if target != WHOLE_SCOPE} >= set(range(whole + 1, 101)), "the others"
    assert len(bitten) > 100
    recent.add(ACME, ["x" * 20_000], 101)
    assert [target for _, targets in recent._since(0) for target, _ in targets] == [WHOLE_SCOPE]
    recent.add(ACME, ["short"], 102)
    assert ("short", 102) in dict(recent._since(0))[ACME]
