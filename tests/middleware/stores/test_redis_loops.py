"""Event loops that end without those who use them, and processes that fork: nobody is given another's reply.

In a process of its own: what such a loop leaves behind is cleared away at any time, and says so.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.services import RedisServer

_COMMON = """
import asyncio, gc, os, sys
from prometheus_client import CollectorRegistry
from tests.middleware.stores.support import entry
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.redis import RedisStore

metrics = Metrics.of(CollectorRegistry())
inner = RedisStore(sys.argv[1], metrics=metrics)
told = {"right": 0, "wrong": 0, "failed": 0}

async def ask(number):
    try:
        async with asyncio.timeout(5.0):
            record = (await inner.get(b"%d" % number)).record
    except Exception:
        told["failed"] += 1
    else:
        told["right" if record is not None and record.body == b"body %d" % number else "wrong"] += 1

async def fill():
    for number in range(60):
        await inner.put(b"%d" % number, entry(b"body %d" % number), retain=60.0)
        await ask(number)
    told["right"] = 0

async def crowd():
    asked = [asyncio.create_task(ask(number)) for number in range(60)]
    await asyncio.sleep(0)
    left.clear()
    gc.collect()  # of whoever still keeps the connection of a loop that has ended
    for number in range(60):
        asked.append(asyncio.create_task(ask(number)))
        await asyncio.sleep(0)
    await asyncio.gather(*asked)

first = asyncio.new_event_loop()
first.run_until_complete(fill())
left = list(asyncio.all_tasks(first))
"""

_CLOSED = """
first.close()
async def later():
    await ask(0)
    await crowd()
    await crowd()
    await inner.aclose()
asyncio.run(later())
print(told)
"""

_FORKED = """
async def both():
    await crowd()
    await crowd()
    await inner.aclose()
child = os.fork()
if not child:
    asyncio.run(both())
    print(told, flush=True)
    os._exit(0)
first.run_until_complete(crowd())
os.waitpid(child, 0)
first.run_until_complete(both())
first.close()
print(told)
"""


@pytest.mark.parametrize(
    ("script", "right"), [(_CLOSED, [241]), (_FORKED, [240, 360])], ids=["a loop that was closed", "a fork"]
)
def test_nobody_is_given_anothers_reply_after(server: RedisServer, script: str, right: list[int]) -> None:
    run = _run(_COMMON + script, server.url)
    assert run.stdout.splitlines() == [str({"right": one, "wrong": 0, "failed": 0}) for one in right], run.stderr


_WORKS = """
import asyncio, os, sys
from tests.middleware.stores.support import ACME, entry, eventually, new_metrics, positions
from tidegate.errors import Problems
from tidegate.keyfile import fresh_items
from tidegate.middleware.core.keyring import KeyRing
from tidegate.middleware.stores.guard import GuardedStore
from tidegate.middleware.stores.redis import RedisStore
from tidegate.middleware.stores.seals import Seals
from tidegate.middleware.stores.tiered import in_front_of

ring = KeyRing.of(fresh_items(), Problems("keys"))
looks = 0

def read():
    global looks
    looks += 1
    return ring

metrics = new_metrics()
far = RedisStore(sys.argv[1], metrics=metrics, seals=Seals(read, metrics=metrics, follow=0.1))
tiered = in_front_of(far, max_bytes=1 << 20, metrics=metrics)
store = GuardedStore(tiered, metrics=metrics, budget=2.0)

def connections():
    return tiered._hearing._tracking.connections

async def works(turn):
    before, seen = connections(), looks
    await store.start()

    async def hears():
        return connections() > before and store.stats().extra["near_live"] == 1.0

    async def follows():
        return looks > seen

    await eventually(hears, "purges are heard in this loop", 20.0)
    await eventually(follows, "the keys are followed in this loop", 20.0)
    key = b"%d" % turn
    record = entry(b"body", positions=await positions(store), tags=((ACME, "it"),))
    assert await store.put(key, record, retain=60.0)

    async def kept():
        return (await store.get(key)).record == record

    await eventually(kept, "writes are made in this loop", 20.0)
    purge = await store.purge({ACME: ["it"]})
    assert (purge.state, purge.durable) == ("done", None), purge
    assert store.peek(key) is None and (await store.get(key)).record is None
    # Left on its way when the loop ends:
    await store.put(b"left", record, retain=60.0)
    asyncio.create_task(store.purge({ACME: ["left"]}))
    await asyncio.sleep(0)
"""

_LEFT = """
for turn in range(3):
    loop = asyncio.new_event_loop()
    loop.run_until_complete(works(turn))
    loop.close()
print("works three times", flush=True)
os._exit(0)
"""

_CHILD = """
loop = asyncio.new_event_loop()
loop.run_until_complete(works(0))
if not (child := os.fork()):
    asyncio.run(works(1))
    print("works in the child", flush=True)
    os._exit(0)
os.waitpid(child, 0)
loop.run_until_complete(asyncio.sleep(0))
print("lives in the parent", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(
    ("script", "told"),
    [(_LEFT, ["works three times"]), (_CHILD, ["works in the child", "lives in the parent"])],
    ids=["loops that were closed", "a fork"],
)
def test_everything_in_the_background_begins_anew_after(valkey: RedisServer, script: str, told: list[str]) -> None:
    run = _run(_WORKS + script, valkey.url)
    assert run.stdout.splitlines() == told, run.stderr


_CONNECTING = """
import asyncio, contextlib, gc
from tidegate.errors import StoreError
from tidegate.middleware.stores.redis_link import Link

class Gone(Exception):
    pass

first = True

dials = []

async def dial():
    dials.append(first)
    if first:
        await asyncio.Event().wait()
    raise Gone("no server")

refusals = []
link = Link(dial)
refuse = link._refuse
link._refuse = lambda error: (refusals.append(type(error).__name__), refuse(error))

async def connects(seen):
    with contextlib.suppress(StoreError):  # where it is not connected; the test is about what it tells of that
        link.call(b"PING")
    async with asyncio.timeout(20):
        while not seen:
            await asyncio.sleep(0)

loop = asyncio.new_event_loop()
loop.run_until_complete(connects(dials))
loop.close()
del loop

async def later():
    global first
    first = False
    await connects(refusals)
    gc.collect()
    await link.aclose()

asyncio.run(later())
print(set(refusals))
"""


def test_a_loop_that_ended_while_it_connected_refuses_nothing_in_the_next() -> None:
    run = _run(_CONNECTING)
    assert run.stdout.splitlines() == ["{'Gone'}"], run.stderr


def _run(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *arguments],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
