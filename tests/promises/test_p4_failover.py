"""P4 when the master of a Sentinel trio dies, or lives on beside its successor: what it had not passed on is lost, and
what was purged is not served.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.middleware.stores.support import ACME, entry, eventually, positions, write
from tests.services import SentinelTrio, wait_until
from tidegate.middleware.core.records import PUBLIC_SCOPE, WHOLE_SCOPE, Entry
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores import sentinel_watch
from tidegate.middleware.stores.base import Aim
from tidegate.middleware.stores.guard import GuardedStore
from tidegate.middleware.stores.redis import RedisStore
from tidegate.middleware.stores.tiered import in_front_of

ZORG = "tenant:zorg"
PURGED: dict[bytes, tuple[str, str | Aim]] = {
    b"tag": (ACME, "client:1"),
    b"scope": (ZORG, WHOLE_SCOPE),
    b"together": (ACME, Aim(("client:2", "list"))),
    b"soft": (ACME, Aim(("client:3",), soft=True)),
}
"""By key, what is purged while the replica does not hear of it."""


@pytest.fixture
def trio() -> Iterator[SentinelTrio]:
    """One to break; its Sentinels act only when told."""
    with SentinelTrio() as started:
        yield started


class Process:
    """What a process has: a guarded store with a memory in front, and metrics."""

    def __init__(self, url: str) -> None:
        self.registry = CollectorRegistry()
        metrics = Metrics.of(self.registry)
        self.far = RedisStore(url, metrics=metrics)
        self.store = GuardedStore(
            in_front_of(self.far, max_bytes=1 << 20, metrics=metrics), budget=2.0, metrics=metrics
        )

    def purges(self, outcome: str) -> float:
        return self.registry.get_sample_value("tidegate_purges_total", {"outcome": outcome}) or 0.0

    async def hears(self) -> bool:
        return self.store.stats().extra["near_live"] == 1.0

    async def served(self, key: bytes) -> Entry | None:
        """As the cache layer asks."""
        record = self.store.peek(key)
        if record is None:
            record = (await self.store.get(key)).record
        return record if isinstance(record, Entry) else None


def tagged(key: bytes, at: tuple[tuple[str, int], ...]) -> Entry:
    tags = {b"tag": ["client:1"], b"together": ["client:2", "list"], b"soft": ["client:3"]}.get(key, ["list"])
    scope = ZORG if key == b"scope" else ACME
    named = tuple((scope, tag) for tag in tags)
    held = ((PUBLIC_SCOPE, 0), (ZORG, 0)) if scope == ZORG else at
    return entry(key, tags=named, positions=held, born=4_000_000_000.0, lifetime=3600.0)


def with_two(trio: SentinelTrio, body: Callable[[Process, Process], Awaitable[None]]) -> None:
    async def run() -> None:
        both = Process(trio.url), Process(trio.url)
        try:
            for process in both:
                await process.store.start()
                await eventually(process.hears, "it hears of purges", 30.0)
            await body(*both)
        finally:
            for process in both:
                await process.store.aclose()

    asyncio.run(run())


async def fill(one: Process, other: Process) -> None:
    """All that is to be purged, and a bystander, are stored, and both processes serve them."""
    at = await positions(one.store)
    for key in (*PURGED, b"bystander"):
        await write(one.store, key, tagged(key, at))
        for process in (one, other):
            assert await process.served(key) == tagged(key, at)


async def assert_purged(process: Process) -> None:
    """It serves nothing of what was purged, or as stale what was purged softly."""
    for key in PURGED:
        found = await process.served(key)
        assert found is None or (key == b"soft" and found.lifetime < 0), key


def cut_off(trio: SentinelTrio) -> None:
    """The replica hears of nothing more; it has all that there was."""
    wait_until(lambda: _offset(trio.replica) == _offset(trio.master), 20, "the replica has everything")
    trio.cut_off()


def _offset(server: Any) -> str:
    told = server.command_reply("INFO", "replication").decode()
    name = "slave_repl_offset:" if "role:slave" in told else "master_repl_offset:"
    return str(told.partition(name)[2].partition("\r\n")[0])


def test_purges_that_a_failover_lost_are_made_again_before_anything_is_served(trio: SentinelTrio) -> None:
    async def body(one: Process, other: Process) -> None:
        await fill(one, other)
        kept = await one.store.purge({PUBLIC_SCOPE: ["elsewhere"]})
        assert (kept.state, kept.durable) == ("done", True)
        assert one.purges("durable") == 1

        await asyncio.to_thread(cut_off, trio)
        for scope, target in PURGED.values():
            lost = await one.store.purge({scope: [target]})
            assert (lost.state, lost.durable) == ("done", False)
        assert one.purges("not-durable") == len(PURGED)
        for name in one.far.purged_names({scope: [target] for scope, target in PURGED.values()}):
            assert trio.replica.command_reply("EXISTS", name.decode()) == b"0", "the failover loses it"

        await asyncio.to_thread(trio.fail_over)
        seen: list[bytes] = []

        async def served_again() -> bool:
            """Until memory is used again; meanwhile nothing that was purged is ever served."""
            for process in (one, other) if one.purges("reissued") else (one,):
                await assert_purged(process)
                if await process.served(b"bystander") is not None:
                    seen.append(b"bystander")
            in_memory = [await process.hears() and process.store.peek(b"bystander") for process in (one, other)]
            return all(in_memory) and len(seen) >= 4

        await eventually(served_again, "both serve from memory, what was on the replica", 60.0)
        assert one.purges("reissued") == len(PURGED)
        assert other.purges("reissued") == 0

    with_two(trio, body)


@pytest.mark.parametrize("heard", ["told", "asked"])
def test_a_master_that_lives_on_is_left_when_the_sentinels_name_another(
    trio: SentinelTrio, monkeypatch: pytest.MonkeyPatch, heard: str
) -> None:
    """Whoever stayed with it would purge into the void, and not hear of the purges of who has left.

    That the Sentinels tell it, and that they are asked every second, is enough each.
    """
    if heard == "told":
        monkeypatch.setattr(sentinel_watch, "LOOK_EVERY", 600.0)
    else:
        monkeypatch.setattr(sentinel_watch.Watch, "_told", lambda self, push: None)

    async def body(one: Process, other: Process) -> None:
        await fill(one, other)
        await asyncio.to_thread(cut_off, trio)
        for scope, target in PURGED.values():
            assert (await one.store.purge({scope: [target]})).state == "done"

        await asyncio.to_thread(trio.keep_two_masters)
        await asyncio.to_thread(trio.fail_over, forced=True)

        async def made_again() -> bool:
            """Meanwhile the process that purged serves nothing of it, from whichever master."""
            await assert_purged(one)
            return one.purges("reissued") == len(PURGED)

        await eventually(made_again, "what the new master lacked is purged there again", 60.0)
        await assert_purged(other)

        newcomer = Process(trio.url)
        try:

            async def in_memory() -> bool:
                for process in (one, other):
                    await process.served(b"bystander")
                return all(process.store.peek(b"bystander") is not None for process in (one, other))

            await eventually(in_memory, "both serve from memory, what was on the replica", 60.0)
            await newcomer.store.purge({ACME: ["list"]})

            async def heard() -> bool:
                return all(process.store.peek(b"bystander") is None for process in (one, other))

            await eventually(heard, "who had been there hears of a purge on the new master", 60.0)
            for process in (one, other):
                assert await process.served(b"bystander") is None
        finally:
            await newcomer.store.aclose()
        assert b"role:master" in await asyncio.to_thread(trio.master.command_reply, "INFO", "replication")

    with_two(trio, body)


def test_a_master_that_wants_a_replica_takes_no_purge_that_its_successor_would_lack(trio: SentinelTrio) -> None:
    async def body(one: Process, other: Process) -> None:
        await fill(one, other)
        trio.master.command_reply("CONFIG", "SET", "min-replicas-to-write", "1")
        await asyncio.to_thread(cut_off, trio)
        await asyncio.to_thread(wait_until, lambda: _replicas(trio.master) == 0, 30, "the replica has left it")
        assert (await one.store.purge({ACME: ["client:1"]})).state == "pending"
        assert await one.served(b"tag") is None, "not by the process that wanted it away"
        await asyncio.to_thread(trio.keep_two_masters)
        await asyncio.to_thread(trio.fail_over, forced=True)
        (stamp,) = one.far.purged_names({ACME: ["client:1"]})

        async def made() -> bool:
            try:
                told = await asyncio.to_thread(trio.replica.command_reply, "EXISTS", stamp.decode())
            except OSError:  # Sentinels cut everybody's connections to whom they promote
                return False
            return told == b"1" and await other.served(b"tag") is None

        await eventually(made, "it is made on the new master, and holds in the other process too", 60.0)
        assert one.purges("reissued") == 0

    with_two(trio, body)


def _replicas(master: Any) -> int:
    told = master.command_reply("INFO", "replication").decode()
    return int(told.partition("connected_slaves:")[2].split()[0])
