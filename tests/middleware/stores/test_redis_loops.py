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
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _COMMON + script, server.url],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.stdout.splitlines() == [str({"right": one, "wrong": 0, "failed": 0}) for one in right], run.stderr
