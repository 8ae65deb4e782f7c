"""Whoever can write to the store, or kills a worker in the middle of a write, makes nothing but misses of it."""

import asyncio
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from prometheus_client import CollectorRegistry
from redis import Redis

from tests.driver import Answer, App, User, call
from tests.middleware.stores.support import eventually
from tests.promises.attacks.faults import ONE_TENANT
from tests.promises.attacks.planting import Plant, attack
from tests.promises.attacks.stage import ANN, BEA, BOB, Echo, asked, fields_of, hits, said, stack, tide
from tests.promises.attacks.test_identity import NAIVE_JOIN, ONE_SCOPE
from tests.services import wait_until
from tests.services.valkey import Valkey
from tidegate import RoutePolicy, Tidegate
from tidegate.middleware.core.codec import CodecError, decode, encode
from tidegate.middleware.core.records import Entry
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.redis import RedisStore

ROOT = Path(__file__).parents[3]
RAN: list[str] = []


class Evil:
    def __reduce__(self) -> Any:
        return RAN.append, ("code from the store",)


def framed(meta: bytes, body: bytes = b"", *, version: int = 1, length: int | None = None) -> bytes:
    return struct.pack(">BI", version, len(meta) if length is None else length) + meta + body


def huge_list(_good: bytes) -> bytes:
    return framed(b"\xdd\xff\xff\xff\xff")


FORGERIES: dict[str, Callable[[bytes], bytes]] = {
    "random bytes": lambda good: bytes(byte ^ 0x5A for byte in good),
    "an older version": lambda good: b"\x00" + good[1:],
    "a newer version": lambda good: b"\x02" + good[1:],
    "truncated in the body": lambda good: good[:-1],
    "truncated in the head": lambda good: good[:4],
    "longer": lambda good: good + b"x",
    "empty": lambda _good: b"",
    "a length past the end": lambda good: good[:1] + b"\xff\xff\xff\xff" + good[5:],
    "a list of four milliards": huge_list,
    "nested": lambda _good: framed(b"\x91" * 100_000),
    "pickle": lambda _good: pickle.dumps(Evil()),
    "pickle in the meta part": lambda _good: framed(pickle.dumps(Evil())),
    "a bomb": lambda _good: zlib.compress(b"\x00" * 10_000_000),
    "an extension type": lambda _good: framed(msgpack.packb(msgpack.ExtType(5, b"x"))),
}


def trusting(_original: Any) -> Any:
    """A decoder that takes for a page whatever it finds, and unpickles what looks like it."""

    def fake(data: bytes) -> Entry:
        for part in (data, data[5:]):
            if part[:1] == b"\x80":
                pickle.loads(part)
        return Entry(status=200, headers=(), body=data, born=9e9, lifetime=1e9)

    return fake


TRUSTING = Plant(name="a decoder that trusts", target="middleware.core.codec:decode", by=trusting)


@asynccontextmanager
async def on_valkey(valkey: Valkey, policy: RoutePolicy) -> AsyncIterator[tuple[Tidegate, App]]:
    """The five layers on a real server, and the app in them; closed whatever becomes of the test."""
    layers = tide(policy, store=RedisStore(valkey.url, metrics=Metrics.of(CollectorRegistry())))
    try:
        yield layers, layers(Echo())
    finally:
        await layers.aclose()


async def until_hit(app: Any, **of: Any) -> Answer:
    """Ask until it is answered from the store: writes go there in the background."""
    answers: list[Answer] = []

    async def hit() -> bool:
        answers.append(await call(app, **of))
        return answers[-1].hit

    await eventually(hit, "an answer from the store", 30.0)
    return answers[-1]


def kept(valkey: Valkey) -> Any:
    return closing(Redis.from_url(valkey.url))


def records(valkey: Valkey) -> dict[bytes, bytes]:
    with kept(valkey) as client:
        found = {key: client.get(key) for key in client.scan_iter("tidegate:e:*")}
        for key, value in found.items():
            if value is not None and len(value) == 17:  # a token; the large record stands behind it elsewhere
                whole = client.get(b"tidegate:b:{%b}" % key)
                found[key] = whole[17:] if whole is not None and whole.startswith(value) else None
    return {key: value for key, value in found.items() if value is not None}


@attack("24", "CVE-2021-33026", "CVE-2025-69872", "CVE-2026-2970", without=[TRUSTING], cases=list(FORGERIES))
def test_what_is_no_record_of_ours_is_a_miss_and_runs_nothing(case: str, valkey: Valkey) -> None:
    RAN.clear()

    async def attacked() -> None:
        async with on_valkey(valkey, RoutePolicy(route="/", ttl=600, share="tenant")) as (_, app):
            good = await until_hit(app, user=ANN)
            with kept(valkey) as client:
                for key, value in records(valkey).items():
                    client.set(key, FORGERIES[case](value), ex=600)
            answer = await call(app, user=BOB)
            assert not answer.hit
            assert (answer.status, said(answer)["who"]) == (200, ["acme", "bob", ""])
            assert (await until_hit(app, user=ANN)).status == good.status

    asyncio.run(attacked())
    assert RAN == []


@attack("24", "27", without=[TRUSTING])
def test_no_forgery_takes_more_memory_than_it_is_long() -> None:
    good = encode(Entry(status=200, headers=(), body=b"x", born=1.0, lifetime=1.0))
    for name, forge in FORGERIES.items():
        data = forge(good)
        tracemalloc.start()
        try:
            with pytest.raises(CodecError):
                decode(data)
            assert tracemalloc.get_traced_memory()[1] < 4_000_000, name
        finally:
            tracemalloc.stop()


@attack("27", without=[Plant(name="records are compressed", target="middleware.core.codec:encode",
                             by=lambda original: lambda record: zlib.compress(original(record)))])  # fmt: skip
def test_the_size_of_a_record_tells_nothing_of_what_its_body_repeats() -> None:
    def size(body: bytes) -> int:
        return len(encode(Entry(status=200, headers=(), body=body, born=1.0, lifetime=1.0)))

    assert size(b"token=secret; token=secret") == size(b"token=secret; token=sxcrxt")
    assert size(bytes(4096)) == size(os.urandom(4096))


NO_CHECK = Plant(
    name="entries do not say which variant they are",
    target="middleware.core.codec:decode",
    by=lambda original: lambda data: unnamed(original(data)),
)


def unnamed(record: Any) -> Any:
    return replace(record, vary=()) if isinstance(record, Entry) else record


@attack("24", without=[NO_CHECK])
def test_a_variant_under_the_key_of_another_is_a_miss(valkey: Valkey) -> None:
    async def swapped() -> None:
        async with on_valkey(valkey, RoutePolicy(route="/", ttl=600, share="public", vary=("X-Kind",))) as (_, app):
            kinds = [[("x-kind", kind)] for kind in "ab"]
            for headers in kinds:
                await until_hit(app, headers=headers)
            found = records(valkey)
            one, other = [key for key, value in found.items() if isinstance(decode(value), Entry)]
            with kept(valkey) as client:
                client.set(one, found[other], ex=600)
                client.set(other, found[one], ex=600)
            answers = [await call(app, headers=headers) for headers in kinds]
            assert [fields_of(answer, "x-kind") for answer in answers] == [["a"], ["b"]]
            assert hits(answers) == [False, False]

    asyncio.run(swapped())


@attack("4", "24", "26", without=[ONE_TENANT, NAIVE_JOIN])
def test_odd_tenants_keep_apart_in_a_real_store_and_cannot_be_read_there(valkey: Valkey) -> None:
    users = [User(tenant, "u") for tenant in ("*", "{a}", "a", "a:u", "a\x00", "?", "[a]", "a:e:*", "secret-tenant")]
    users.append(User("a", "u:u"))

    async def all_of_them() -> None:
        async with on_valkey(valkey, RoutePolicy(route="/", ttl=600, share="user", tags=("c:1",))) as (layers, app):
            for user in users:
                assert said(await until_hit(app, user=user))["who"] == [user.tenant, user.username, ""]
            await layers.purge("c:1", tenant="*")
            answers = [await call(app, user=user) for user in users]
            assert hits(answers) == [False, *[True] * (len(users) - 1)]

    asyncio.run(all_of_them())
    with kept(valkey) as client:
        names = b"".join(client.keys())
    assert b"secret-tenant" not in names
    assert b"c:1" not in names


@attack("26", without=[ONE_TENANT])
def test_what_one_tenant_warmed_does_not_show_to_another() -> None:
    answers = asked(stack(Echo(), share="tenant"), {"user": ANN}, {"user": BEA}, {"user": BOB})
    cold, probed, warm = (answer.header("cache-status") or "" for answer in answers)
    assert probed == cold
    assert "; hit" in warm
    assert not any("key=" in status for status in (cold, probed, warm))


@attack("10", "24", without=[ONE_SCOPE])
def test_a_purge_of_one_tenant_in_a_real_store_leaves_the_others_alone(valkey: Valkey) -> None:
    async def purged() -> None:
        async with on_valkey(valkey, RoutePolicy(route="/", ttl=600, share="tenant", tags=("clients",))) as (
            layers,
            app,
        ):
            for user in (ANN, BEA):
                await until_hit(app, user=user)
            await layers.purge("clients", tenant="bolt")
            assert hits([await call(app, user=user) for user in (ANN, BEA)]) == [True, False]

    asyncio.run(purged())


WORKER = """
import asyncio, sys
from tidegate.middleware.core.records import Entry
from tidegate.middleware.stores.redis import RedisStore

async def main():
    store = RedisStore(sys.argv[1])
    body = b"0123456789abcdef" * (4 << 16)
    print("writing", flush=True)
    number = 0
    while True:
        number += 1
        entry = Entry(status=200, headers=((b"x-number", b"%d" % number),), body=body, born=1.0, lifetime=1e9)
        if sys.argv[2] == "whole":
            await store.put(b"%d" % (number % 3), entry, retain=600)
        else:
            from tidegate.middleware.core.codec import encode
            data = encode(entry)
            for at in range(0, len(data), 1 << 14):
                name = store._names.record(b"%d" % (number % 3))
                await store._servers.call(name, b"SETRANGE", name, at, data[at : at + (1 << 14)])

asyncio.run(main())
"""


def killed_while_writing(valkey: Valkey, how: str) -> tuple[int, int]:
    """Kill a worker in the middle of its writes, a few times: how many records are whole, and how many are not."""
    whole = broken = 0
    for _ in range(3):
        valkey.flush()
        worker = subprocess.Popen([sys.executable, "-c", WORKER, valkey.url, how], stdout=subprocess.PIPE, cwd=ROOT)
        try:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"writing\n"
            wait_until(lambda: len(records(valkey)) >= 2, 30, "two records in the store")
        finally:
            worker.kill()
            worker.wait()
            if worker.stdout is not None:
                worker.stdout.close()
        for value in records(valkey).values():
            try:
                entry = decode(value)
            except CodecError:
                broken += 1
            else:
                assert isinstance(entry, Entry)
                assert entry.body == b"0123456789abcdef" * (4 << 16)
                whole += 1
    return whole, broken


def test_a_worker_that_is_killed_while_it_stores_leaves_whole_records_only(valkey: Valkey) -> None:
    whole, broken = killed_while_writing(valkey, "whole")
    assert whole >= 4
    assert broken == 0


def test_records_written_in_pieces_would_have_been_seen_as_broken(valkey: Valkey) -> None:
    assert killed_while_writing(valkey, "in pieces")[1] > 0


def test_no_module_can_unpickle() -> None:
    folders = ("middleware", "flags", "rollout", "src/tidegate")
    sources = [path for folder in folders for path in (ROOT / folder).glob("**/*.py")]
    assert len(sources) > 80
    for path in sources:
        text = path.read_text(encoding="utf-8")
        assert not any(f"import {name}" in text or f"from {name}" in text for name in ("pickle", "marshal", "shelve"))
