"""P5, round the faults of Redis: event loops that are held up, processes that fork, several workers, shutdown."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from tests.e2e.stage import ROOT, App
from tests.promises.faults.judging import steps_until, warm
from tests.promises.faults.stage import PAGES, Stage, timed
from tests.services import Redis, RedisServer, Valkey, wait_until
from tests.services.server import http_request

STALL = 0.3
LEASE = 0.8
"""Seconds for which memory in front knows of all purges: see `stores.tracking`."""

UNTOUCHED = str(PAGES // 2)
"""A page that nobody purges."""

WORKERS = 4
ASKED = 20


def connected(server: RedisServer) -> set[str]:
    """The connections that are open, by their numbers; but for the one that asks."""
    told = server.command_reply("CLIENT", "LIST").decode().splitlines()
    return {line.split()[0] for line in told if "cmd=client" not in line}


@pytest.mark.blocks_the_loop("some code of the application does, and that is what is looked at")
def test_an_event_loop_that_was_held_up_mixes_no_replies_and_loses_no_connection(valkey: Valkey) -> None:
    async def story() -> None:
        # A look-up may take less than the stall.
        async with (
            Stage(valkey.url, valkey.url, memory=True, budget=0.25) as stage,
            Stage(valkey.url, valkey.url, world=stage.world, budget=0.25) as redis_only,
        ):
            await warm(stage, "from memory")
            await warm(redis_only, "from Redis")
            before, errors = connected(valkey), redis_only.errors + stage.errors
            hits = 0
            for turn in range(5):
                asked = [asyncio.create_task(redis_only.get(page)) for page in range(PAGES)]
                await asyncio.sleep(0)
                purging = threading.Thread(target=asyncio.run, args=(stage.purge_elsewhere(str(turn)),))
                began = time.monotonic()
                purging.start()
                purging.join()  # in this thread, in which nothing else goes on meanwhile
                time.sleep(max(0.0, STALL - (time.monotonic() - began)))  # noqa: ASYNC251 - as code does that blocks
                hits += sum(await asyncio.gather(*asked))
                await stage.get(turn)  # which another process has purged meanwhile
                assert await stage.get(PAGES - 1 - turn), "memory gives the rest"
            assert hits >= 5 * (PAGES - 5)
            assert stage.asked_again == 5
            assert stage.mixed == stage.old == redis_only.mixed == []
            assert redis_only.errors + stage.errors < errors + PAGES / 2, "a stall was taken for a failure of Redis"
            assert before <= connected(valkey), "a connection was lost"
            assert stage.peeks(UNTOUCHED) is not None
            # Longer than memory can know of all purges: it gives nothing before it has heard.
            time.sleep(1.5 * LEASE)  # noqa: ASYNC251 - as above
            assert stage.live == 0.0
            assert stage.peeks(UNTOUCHED) is None

            async def live() -> bool:
                return stage.live == 1.0

            print(f"live again after {await steps_until(live, 'memory is live'):.2f} s")

    asyncio.run(story())


def test_a_worker_that_was_made_before_its_process_forked_serves_in_each(redis_server: Redis) -> None:
    command = [sys.executable, "-m", "tests.promises.faults.forked", redis_server.url]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    print(ran.stdout)
    assert ran.returncode == 0, ran.stderr
    served = dict(line.split() for line in ran.stdout.splitlines())
    assert len(served) == 4
    assert all(float(share) >= 0.9 for share in served.values())


def test_four_workers_answer_without_redis_and_find_it_again(start_valkey: Callable[..., Valkey]) -> None:
    server = start_valkey()
    with App({"TIDEGATE_STORE_URL": server.url}, workers=WORKERS) as app:

        def ask() -> list[int]:
            """Hits of each worker, asked alone."""
            hits = list[int]()
            for pid in app.worker_pids():
                with app.only(pid):
                    answers = [
                        http_request(app.port, "GET", "/me", headers={"x-tenant": "acme", "x-user": f"user-{number}"})
                        for number in range(ASKED)
                    ]
                assert {status for status, _, _ in answers} == {200}
                assert {headers["x-worker"] for _, _, headers in answers} == {str(pid)}
                hits.append(sum("; hit" in headers["cache-status"] for _, _, headers in answers))
            return hits

        def all_hit() -> bool:
            return min(ask()) >= 0.9 * ASKED

        wait_until(lambda: len(app.answering()) == WORKERS, 60, "all workers answer")
        wait_until(all_hit, 60, "all find what the others stored")
        server.stop()
        wait_until(lambda: max(ask()) == 0, 60, "nobody hits")
        server.start()
        wait_until(all_hit, 60, "all have found it again")
        told = server.command_reply("INFO", "stats").decode()
        made = int(
            next(line for line in told.splitlines() if line.startswith("total_connections_received")).split(":")[1]
        )
        print(f"{made} connections of {WORKERS} workers since the server is back")
        assert made <= 10 * WORKERS


def test_a_shutdown_writes_what_waits_and_waits_for_nobody(start_redis: Callable[..., Redis]) -> None:
    server = start_redis()

    async def story() -> None:
        async with Stage(server.url, server.url, budget=5.0) as stage:
            await warm(stage, "before")
            pages = [stage.cold() for _ in range(100)]
            await asyncio.gather(*(stage.get(page) for page in pages))
            waiting = stage.tide.store.stats().extra["writes_waiting"]
            took = await timed(stage.tide.aclose())
            print(f"{waiting:g} writes waited, closing took {1000 * took:.0f} ms")
            assert waiting > 0
            assert stage.errors == 0
            assert [await stage.lies_there(page) for page in pages] == [0] * 100
        async with Stage(server.url, server.url) as stage:
            await warm(stage, "again")
            await asyncio.to_thread(server.suspend)
            await stage.write("7")
            await asyncio.gather(*(stage.get(stage.cold()) for _ in range(20)))

            async def closed() -> bool:
                return closing.done()

            closing = asyncio.create_task(stage.tide.aclose())
            took = await steps_until(closed, "it is closed")
            print(f"closing took {took:.2f} s while Redis hung")
            # A second for what waits, half of one for the connections.
            assert took <= 1.5 + 0.35
            assert stage.errors > 0
            await asyncio.to_thread(server.resume)

    asyncio.run(story())
