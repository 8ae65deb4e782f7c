"""Sealed records in a real Redis and Valkey: what an attacker does there is a counted miss; keys change under load."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis as Client

from tests.middleware.stores.support import ACME, entry, eventually, found, new_metrics, positions, write
from tests.services import RedisServer
from tidegate.errors import ConfigError
from tidegate.keyfile import ring_reader
from tidegate.middleware.core.codec import encode
from tidegate.middleware.core.keyring import KeyRing, SealingKey, written
from tidegate.middleware.core.records import Entry
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.redis import RedisStore
from tidegate.middleware.stores.seals import Seals
from tidegate.settings import StoreSettings

RING = KeyRing(keys=(SealingKey(b"1" * 32),), naming_key=b"n" * 32)
SECRET = b"what only acme may see"
Body = Callable[["Stage"], Awaitable[None]]


class Stage:
    """A sealed store on a server, its metrics, and what an attacker has: the server itself."""

    def __init__(self, url: str, read: Callable[[], KeyRing], clock: Callable[[], float] | None = None) -> None:
        self.metrics = new_metrics()
        timed = {} if clock is None else {"clock": clock}
        self.seals = Seals(read, metrics=self.metrics, follow=0.05, **timed)
        naming = self.seals.ring.naming_key
        self.store = RedisStore(url, naming_key=naming, seals=self.seals, metrics=self.metrics)
        self.attacker: Any = Client.from_url(url)

    def refusals(self, reason: str) -> float:
        return refusals(self.metrics, reason)

    async def records(self) -> dict[bytes, bytes]:
        return {name: await self.attacker.get(name) for name in await self.attacker.keys("*:e:*")}

    async def aclose(self) -> None:
        await self.store.aclose()
        await self.attacker.aclose()


def refusals(metrics: Metrics, reason: str) -> float:
    return metrics.seal_refusals.labels(reason)._value.get()


def staged(server: RedisServer, body: Body, *, clock: Callable[[], float] | None = None) -> None:
    async def run() -> None:
        stage = Stage(server.url, lambda: RING, clock)
        await stage.store.start()
        try:
            await body(stage)
        finally:
            await stage.aclose()

    server.flush()
    asyncio.run(run())


def test_nothing_of_a_response_can_be_read_in_redis(server: RedisServer) -> None:
    async def body(stage: Stage) -> None:
        record = entry(SECRET, tags=((ACME, "client:42"),))
        await write(stage.store, b"a" * 20, record)
        await stage.store.purge({ACME: ["client:7"]})
        lying = [value for name in await stage.attacker.keys("*") for value in [name, await stage.attacker.dump(name)]]
        assert len(lying) >= 8
        assert not [v for v in lying for word in (SECRET, b"client:", b"acme", b"text/plain") if word in v]

    staged(server, body)


def test_a_swapped_cut_flipped_unsealed_or_random_record_is_a_counted_miss(server: RedisServer) -> None:
    async def body(stage: Stage) -> None:
        one, two = b"a" * 20, b"a" + b"b" * 19
        await write(stage.store, one, entry(SECRET))
        names = list(await stage.records())
        await write(stage.store, two, entry(b"of another"))
        ((mine, good),) = [(n, v) for n, v in (await stage.records()).items() if n in names]
        ((_, others),) = [(n, v) for n, v in (await stage.records()).items() if n not in names]
        flipped = good[:40] + bytes((good[40] ^ 1,)) + good[41:]
        planted = {
            "forged": [others, flipped, good[:-1], good + b"x", good[:5] + b"\x7f" * 8 + good[13:]],
            "malformed": [b"", b"\x02", good[:40], b"\x03" + os.urandom(200), b"\x80\x04cos\nsystem\n."],
            "unsealed": [encode(entry(SECRET)), b"\x01\xff\xff\xff\xff" + b"x" * 40],
            "unknown-key": [good[:1] + b"\0\0\0\0" + good[5:]],
        }
        for reason, values in planted.items():
            for value in values:
                before = sum(stage.refusals(each) for each in planted)
                await stage.attacker.set(mine, value)
                assert await found(stage.store, one) is None, (reason, value)
                assert sum(stage.refusals(each) for each in planted) == before + 1
        assert [stage.refusals(reason) for reason in ("forged", "unsealed", "unknown-key")] == [5, 2, 1]
        await stage.attacker.set(mine, good)
        record = await found(stage.store, one)
        assert isinstance(record, Entry), "and what was stored there opens still"
        assert record.body == SECRET

    staged(server, body)


def test_an_older_record_put_back_after_a_purge_stays_purged(server: RedisServer) -> None:
    async def body(stage: Stage) -> None:
        tagged = entry(b"old", tags=((ACME, "client:42"),))
        await write(stage.store, b"a" * 20, tagged)
        ((name, old),) = (await stage.records()).items()
        await stage.store.purge({ACME: ["client:42"]})
        fresh = entry(b"new", tags=tagged.tags, positions=await positions(stage.store))
        await write(stage.store, b"a" * 20, fresh)
        await stage.attacker.set(name, old)
        assert await found(stage.store, b"a" * 20) is None
        assert sum(stage.refusals(reason) for reason in ("forged", "malformed", "expired")) == 0, "it does open"

    staged(server, body)


def test_a_record_that_the_server_was_made_to_keep_ends_with_its_life(server: RedisServer) -> None:
    now = [1_700_000_000.0]

    async def body(stage: Stage) -> None:
        await write(stage.store, b"a" * 20, entry(), retain=60.0)
        for name in await stage.records():
            await stage.attacker.persist(name)
        now[0] += 59.0
        assert await found(stage.store, b"a" * 20) is not None
        now[0] += 1.0
        assert await found(stage.store, b"a" * 20) is None
        assert stage.refusals("expired") == 1

    staged(server, body, clock=lambda: now[0])


def test_a_ring_that_breaks_leaves_the_last_good_one_and_is_counted(tmp_path: Path, valkey: RedisServer) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(written("tgk1", b"1" * 32))
    read = ring_reader(StoreSettings(key_file=str(path)))
    assert read is not None

    async def run() -> None:
        stage = Stage(valkey.url, read)
        await stage.store.start()
        try:
            await write(stage.store, b"a" * 20, entry(SECRET))
            for broken in ("tgk1_broken", None):
                counted = stage.metrics.errors.labels("keys")._value
                before = counted.get()
                path.write_text(broken) if broken is not None else path.unlink()

                async def told(counted: Any = counted, before: float = before) -> bool:
                    return bool(counted.get() > before)

                await eventually(told, "the broken ring is counted", 20.0)
                assert await found(stage.store, b"a" * 20) is not None
                await write(stage.store, b"b" * 20, entry(SECRET))
        finally:
            await stage.aclose()

    asyncio.run(run())
    with pytest.raises(ConfigError, match="cannot be read"):
        Seals(read, metrics=new_metrics())


def test_rotation_costs_no_miss_and_no_process_meets_what_it_cannot_open(tmp_path: Path, server: RedisServer) -> None:
    """Two processes' stores with a file each, as where it is copied out: the new key comes to one after the other."""
    old, new = b"1" * 32, b"2" * 32
    now = [1_700_000_000.0]
    paths = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for path in paths:
        path.write_text(written("tgk1", old))

    async def run() -> None:
        readers = [ring_reader(StoreSettings(key_file=str(path))) for path in paths]
        stages = [Stage(server.url, read, lambda: now[0]) for read in readers if read is not None]
        one, two = stages
        for stage in stages:
            await stage.store.start()
        hits = 0

        async def both_read_both(mark: bytes) -> int:
            seen = 0
            for number, writer in enumerate(stages):
                key = mark + b"%d" % number + b"k" * 18
                await write(writer.store, key, entry(mark), retain=3600.0)
                for reader in stages:
                    for known in written_keys:
                        seen += await found(reader.store, known) is not None
                written_keys.append(key)
            return seen

        written_keys: list[bytes] = []
        try:
            hits += await both_read_both(b"a")
            ring = written("tgk1", old) + "\n" + written("tgk1", new, now[0] + 600)
            for stage, path in zip(stages, paths, strict=True):  # the second gets it while the first has it
                path.write_text(ring)

                async def has_both(stage: Stage = stage) -> bool:
                    return len(stage.seals.ring.keys) == 2

                await eventually(has_both, "the ring is read", 20.0)
                hits += await both_read_both(b"b")
            now[0] += 601
            hits += await both_read_both(b"c")
            ids = {bytes(value[1:5]) for value in (await one.records()).values()}
            assert ids == {SealingKey(old).id, SealingKey(new).id}
            paths[0].write_text(written("tgk1", new))  # long after: the old key goes, and so do its records

            async def has_new() -> bool:
                return len(one.seals.ring.keys) == 1

            await eventually(has_new, "the ring is read", 20.0)
            assert [await found(one.store, key) is None for key in written_keys] == [True] * 6 + [False] * 2
            assert one.refusals("unknown-key") == 6
            assert two.refusals("unknown-key") == 0
            assert hits == 2 * (0 + 1 + 2 + 3 + 4 + 5 + 6 + 7), "every record, by every reader"
        finally:
            for stage in stages:
                await stage.aclose()

    server.flush()
    asyncio.run(run())


def test_a_ring_is_followed_in_a_later_event_loop_too() -> None:
    newer = KeyRing(keys=(*RING.keys, SealingKey(b"2" * 32)), naming_key=RING.naming_key)
    rings = [RING]
    read: list[KeyRing] = []

    def reads() -> KeyRing:
        read.append(rings[-1])
        return rings[-1]

    seals = Seals(reads, metrics=new_metrics(), follow=0.05)

    async def follow() -> None:
        seen = len(read)

        async def again() -> bool:
            return len(read) > seen + 1

        seals.start()
        await eventually(again, "it looks at the ring time and again", 20.0)
        await seals.aclose()

    asyncio.run(follow())
    rings.append(newer)
    asyncio.run(follow())
    assert seals.ring == newer
