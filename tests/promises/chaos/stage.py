"""Runs the processes, kills their tracking connections, and makes one reader's link silent again and again."""

import asyncio
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis as Client

from tests.promises.chaos.board import ENTITIES, Board, Count, Phase, read_notes
from tests.promises.chaos.verdict import Silence, Verdict, judge
from tests.services import RedisServer
from tests.services.swallowing import SwallowingProxy

__all__ = ["Plan", "Played", "play"]

_Client: Any = Client  # its annotations leave much open

READERS: Final = (0, 1, 2)
WRITERS: Final = (3, 4)
BEHIND_PROXY: Final = 2
SILENT_FOR: Final = 1.8
"""Seconds of a silence: so many more than one that there is something to see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much must have happened. patience: seconds after which a run ends although it has not."""

    purges: int = 3000
    kills: int = 100
    silences: int = 3
    from_memory: int = 5000
    from_redis: int = 500
    patience: float = 80.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What happened, and the verdict on it. pending: purges that returned pending."""

    purges: int
    pending: int
    kills: int
    silences: int
    verdict: Verdict

    def table(self) -> str:
        """The figures."""
        happened = f"{self.purges} purges done, {self.pending} pending; {self.kills} tracking connections killed"
        return f"{happened}; {self.silences} silences of a link\n{self.verdict.table()}"


class _Run:
    def __init__(self, plan: Plan, board: Board, client: Any, proxy: SwallowingProxy, chance: random.Random) -> None:
        self.kills = 0
        self.silences: list[Silence] = []
        self.plan = plan
        self._board = board
        self._client = client
        self.proxy = proxy
        self._chance = chance

    @property
    def finished(self) -> bool:
        plan, board = self.plan, self._board
        return (
            board.total(Count.PURGES) >= plan.purges
            and self.kills >= plan.kills
            and len(self.silences) >= plan.silences
            and board.total(Count.MEMORY) >= plan.from_memory
            and board.total(Count.REDIS) >= plan.from_redis
        )

    async def keep_killing(self) -> None:
        """One tracking connection, now and then all of them; not so fast that a slow machine never hears."""
        while True:
            served = self._board.total(Count.MEMORY)
            await _until(lambda: self._board.total(Count.MEMORY) >= served + 20, 60.0, "it serves")  # noqa: B023
            links = [link["id"] for link in await self._client.client_list() if "t" in link["flags"]]
            if links and self._chance.random() < 0.9:
                links = [self._chance.choice(links)]
            for link in links:
                self.kills += await self._client.client_kill_filter(_id=link)
            await asyncio.sleep(self._chance.uniform(0, 0.12))

    async def keep_silencing(self) -> None:
        """The link swallows all, and is cut in the end; or holds all back, and brings it in the end."""
        while True:
            served = self._board.count(BEHIND_PROXY, Count.MEMORY)
            await _until(lambda: self._board.count(BEHIND_PROXY, Count.MEMORY) >= served + 200, 60.0, "it serves")  # noqa: B023
            holds = len(self.silences) % 2 == 1
            if holds:
                self.proxy.hold()
            else:
                self.proxy.silent = True
            began = time.monotonic()
            await asyncio.sleep(SILENT_FOR)
            self.silences.append(Silence(BEHIND_PROXY, began, time.monotonic()))
            if holds:
                self.proxy.let_go()
            else:
                self.proxy.silent = False
                self.proxy.cut()

    async def say(self, told: Callable[[str], None]) -> None:
        while True:
            await asyncio.sleep(2.0)
            board = self._board
            told(
                f"{board.total(Count.PURGES)} purges, {self.kills} kills, {len(self.silences)} silences, answers from"
                f" memory {board.total(Count.MEMORY)}, Redis {board.total(Count.REDIS)}, app {board.total(Count.APP)}"
            )


async def play(server: RedisServer, plan: Plan, seed: int, told: Callable[[str], None] | None = None) -> Played:
    """Run until all of the plan has happened, then until all is at rest; and judge.

    told: hears how far it is, every two seconds.
    """
    with tempfile.TemporaryDirectory(prefix="tidegate-chaos-") as name:
        folder = Path(name)
        board = Board(folder / "board")
        try:
            async with SwallowingProxy(server.port) as proxy, _processes(folder, server.port, proxy.port, seed) as all_:
                # With redis-py's own timeout a cancelled call may go on (Python 3.11).
                client = _Client.from_url(server.url, socket_timeout=None, socket_connect_timeout=None)
                run = _Run(plan, board, client, proxy, random.Random(seed))
                try:
                    await _until(lambda: board.total(Count.READY) == len(all_), 60.0, "every process is ready", all_)
                    await _play(run, board, all_, told)
                finally:
                    await client.aclose()
            calls, purges = read_notes(folder)
            truth = {entity: board.version(entity) for entity in range(ENTITIES)}
            return Played(
                purges=board.total(Count.PURGES),
                pending=board.total(Count.PENDING),
                kills=run.kills,
                silences=len(run.silences),
                verdict=judge(calls, purges, run.silences, truth),
            )
        finally:
            board.close()


async def _play(
    run: _Run, board: Board, processes: list[subprocess.Popen[bytes]], told: Callable[[str], None] | None
) -> None:
    doing = [asyncio.ensure_future(work) for work in (run.keep_killing(), run.keep_silencing())]
    if told is not None:
        doing.append(asyncio.ensure_future(run.say(told)))
    ends = time.monotonic() + run.plan.patience
    try:
        await _until(
            lambda: run.finished or time.monotonic() > ends or doing[0].done() or doing[1].done(),
            run.plan.patience + 10.0,
            "the plan is done",
            processes,
        )
    finally:
        for task in doing:
            task.cancel()
        await asyncio.gather(*doing, return_exceptions=True)
    for task in doing:
        if not task.cancelled():
            task.result()
    # However far it was: a link that is silent speaks again.
    run.proxy.silent = False
    run.proxy.let_go()
    run.proxy.cut()
    board.phase = Phase.SETTLE
    await _until(lambda: all(processes[writer].poll() is not None for writer in WRITERS), 60.0, "writers end")
    board.phase = Phase.CHECK
    await _until(lambda: all(process.poll() is not None for process in processes), 60.0, "readers end")
    assert {process.returncode for process in processes} == {0}


@asynccontextmanager
async def _processes(folder: Path, port: int, through: int, seed: int) -> AsyncGenerator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    try:
        for number in (*READERS, *WRITERS):
            role, to = "reader" if number in READERS else "writer", through if number == BEHIND_PROXY else port
            started.append(_start(role, str(folder), str(number), str(to), str(seed)))
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def _start(*words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.promises.chaos.process", *words]
    return subprocess.Popen(command, cwd=Path(__file__).parents[3])


async def _until(
    condition: Callable[[], bool], seconds: float, what: str, processes: list[subprocess.Popen[bytes]] | None = None
) -> None:
    """Wait for the condition; not if one of the processes has ended before its time."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"not within {seconds:g} s: {what}"
        assert all(process.poll() is None for process in processes or ()), "a process has ended"
        await asyncio.sleep(0.02)
