"""Runs the processes, kills the connections over which they hear of purges, and makes one reader's link silent again
and again; or, under Sentinels, lets the master lose what it was told last, and die.
"""

import asyncio
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis as Client
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.middleware.stores.support import deaf_url
from tests.promises.chaos.board import ENTITIES, Board, Count, Phase, read_notes
from tests.promises.chaos.verdict import Failover, Silence, Verdict, judge
from tests.services import RedisCluster, RedisServer, SentinelTrio
from tests.services.swallowing import SwallowingProxy

__all__ = ["Kind", "Plan", "Played", "play"]

Kind = RedisServer | SentinelTrio | RedisCluster

_Client: Any = Client  # its annotations leave much open

READERS: Final = (0, 1, 2)
WRITING: Final = (3, 4)
BEHIND_PROXY: Final = 2
SILENT_FOR: Final = 1.8
"""Seconds of a silence: so many more than one that there is something to see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much must have happened. patience: seconds after which a run ends although it has not."""

    purges: int = 3000
    kills: int = 100
    silences: int = 3
    failover: bool = False
    """Of a master under Sentinels, which loses purges, or of one of a cluster's."""
    forced: bool = False
    """Under Sentinels: the master lives on beside the other."""
    stream: bool = False
    """The server refuses CLIENT TRACKING, and purges are heard over a stream; in a cluster on a channel."""
    from_memory: int = 5000
    from_redis: int = 500
    patience: float = 80.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What happened, and the verdict on it.

    pending: purges that returned pending. left: seconds after all Sentinels named another master, in which all left the
    old one.
    """

    purges: int
    pending: int
    kills: int
    silences: int
    reissued: int
    left: list[float]
    verdict: Verdict

    def table(self) -> str:
        """The figures."""
        happened = (
            f"{self.purges} purges done, {self.pending} pending; {self.kills} connections that hear of purges killed"
        )
        lost = f"; {self.reissued} purged tags lost by a failover and purged again" * bool(self.verdict.failovers)
        left = "".join(f"; a master that lived on was left after {seconds:.2f} s" for seconds in self.left)
        return f"{happened}; {self.silences} silences of a link{lost}{left}\n{self.verdict.table()}"


class _Run:
    def __init__(
        self,
        plan: Plan,
        board: Board,
        server: Kind,
        proxy: SwallowingProxy,
        chance: random.Random,
    ) -> None:
        self.kills = 0
        self.silences: list[Silence] = []
        self.failovers: list[Failover] = []
        self.left: list[float] = []
        self.plan = plan
        self._board = board
        self._server = server
        self._clients = {one: _client(one) for one in _masters(server)}
        self._masters = list(server.masters) if isinstance(server, RedisCluster) else _masters(server)[:1]
        self.proxy = proxy
        self._chance = chance

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.aclose()

    @property
    def finished(self) -> bool:
        plan, board = self.plan, self._board
        return (
            board.total(Count.PURGES) >= plan.purges
            and self.kills >= plan.kills
            and len(self.silences) >= plan.silences
            and len(self.failovers) >= plan.failover
            and board.total(Count.MEMORY) >= plan.from_memory
            and board.total(Count.REDIS) >= plan.from_redis
        )

    async def keep_killing(self) -> None:
        """One tracking connection, now and then all of them; not so fast that a slow machine never hears."""
        while True:
            served = self._board.total(Count.MEMORY)
            await _until(lambda: self._board.total(Count.MEMORY) >= served + 20, 60.0, "it serves")  # noqa: B023
            client = self._clients[self._chance.choice(self._masters)]
            with suppress(RedisConnectionError):  # the master has died
                links = [link["id"] for link in await client.client_list() if self._hears(link)]
                if links and self._chance.random() < 0.9:
                    links = [self._chance.choice(links)]
                for link in links:
                    self.kills += await client.client_kill_filter(_id=link)
            await asyncio.sleep(self._chance.uniform(0, 0.12))

    def _hears(self, link: dict[str, str]) -> bool:
        """Whether somebody hears of purges over this connection."""
        if not self.plan.stream:
            return "t" in link["flags"]
        return "P" in link["flags"] if isinstance(self._server, RedisCluster) else link["cmd"] in ("xread", "xrange")

    async def fail_over(self) -> None:
        """Halfway: the replica hears of nothing more for some purges, then the master dies, or lives on as one; and the
        replica is made master. One of a cluster's masters just dies."""
        await self._some_purges(self.plan.purges / 2)
        began = time.monotonic()
        if isinstance(self._server, RedisCluster):
            lost, heir = self._server.masters[1], self._server.replicas[1]
            await asyncio.to_thread(self._server.lose_a_master)
            self._masters = [heir if one is lost else one for one in self._masters]
            promoted = time.monotonic()
            await self._some_purges(self._board.total(Count.PURGES) + 100)
            self.failovers.append(Failover(began, promoted))
            return
        assert isinstance(self._server, SentinelTrio)
        await asyncio.to_thread(self._server.cut_off)
        await self._some_purges(self._board.total(Count.PURGES) + 30)
        if self.plan.forced:
            await asyncio.to_thread(self._server.keep_two_masters)
        await asyncio.to_thread(self._server.fail_over, forced=self.plan.forced)
        self._masters = _masters(self._server)[0 if self.plan.forced else 1 :]
        promoted = time.monotonic()
        if self.plan.forced:
            await self._leave(_masters(self._server)[0])
            self.left.append(time.monotonic() - promoted)
            promoted = time.monotonic()
        await self._some_purges(self._board.total(Count.PURGES) + 100)
        self.failovers.append(Failover(began, promoted))

    async def _leave(self, master: RedisServer) -> None:
        """Until nobody has a connection to it any more but who breaks and proves things here, and the Sentinels."""
        ends = time.monotonic() + self.plan.patience
        while True:
            links = await self._clients[master].client_list()
            if not [link for link in links if not link["name"] and not link["cmd"].startswith(("ping", "client"))]:
                return
            assert time.monotonic() < ends, f"they stay with the old master: {links}"
            await asyncio.sleep(0.01)

    async def _some_purges(self, number: float) -> None:
        await _until(lambda: self._board.total(Count.PURGES) >= number, self.plan.patience, "purges are done")

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


async def play(server: Kind, plan: Plan, seed: int, told: Callable[[str], None] | None = None) -> Played:
    """Run until all of the plan has happened, then until all is at rest; and judge.

    server: one, to which links go silent; or Sentinels or a cluster, of which a master is broken if the plan says so.
    told: hears how far it is, every two seconds.
    """
    url = server.url
    if plan.stream:
        assert not isinstance(server, SentinelTrio)
        url = deaf_url(server)
    with tempfile.TemporaryDirectory(prefix="tidegate-chaos-") as name:
        folder = Path(name)
        board = Board(folder / "board")
        try:
            async with (
                SwallowingProxy(_masters(server)[0].port) as proxy,
                _processes(folder, server, url, proxy.port, seed) as all_,
            ):
                run = _Run(plan, board, server, proxy, random.Random(seed))
                try:
                    await _until(lambda: board.total(Count.READY) == len(all_), 60.0, "every process is ready", all_)
                    await _play(run, board, all_, told)
                finally:
                    await run.aclose()
            calls, purges = await asyncio.to_thread(read_notes, folder)
            truth = {entity: board.version(entity) for entity in range(ENTITIES)}
            return Played(
                purges=board.total(Count.PURGES),
                pending=board.total(Count.PENDING),
                kills=run.kills,
                silences=len(run.silences),
                reissued=board.total(Count.REISSUED),
                left=run.left,
                verdict=await asyncio.to_thread(judge, calls, purges, run.silences, truth, run.failovers),
            )
        finally:
            board.close()


async def _play(
    run: _Run, board: Board, processes: list[subprocess.Popen[bytes]], told: Callable[[str], None] | None
) -> None:
    doing = [asyncio.ensure_future(run.keep_killing())]
    if run.plan.silences:
        doing.append(asyncio.ensure_future(run.keep_silencing()))
    once = [asyncio.ensure_future(run.fail_over())] if run.plan.failover else []
    if told is not None:
        doing.append(asyncio.ensure_future(run.say(told)))
    ends = time.monotonic() + run.plan.patience
    try:
        await _until(
            lambda: run.finished or time.monotonic() > ends or any(task.done() for task in doing),
            run.plan.patience + 10.0,
            "the plan is done",
            processes,
        )
    finally:
        for task in (*doing, *once):
            task.cancel()
        await asyncio.gather(*doing, *once, return_exceptions=True)
    for task in (*doing, *once):
        if not task.cancelled():
            task.result()
    # However far it was: a link that is silent speaks again.
    run.proxy.silent = False
    run.proxy.let_go()
    run.proxy.cut()
    board.phase = Phase.SETTLE
    await _until(lambda: all(processes[writer].poll() is not None for writer in WRITING), 60.0, "writers end")
    board.phase = Phase.CHECK
    await _until(lambda: all(process.poll() is not None for process in processes), 60.0, "readers end")
    assert {process.returncode for process in processes} == {0}


@asynccontextmanager
async def _processes(
    folder: Path, server: Kind, url: str, through: int, seed: int
) -> AsyncGenerator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    try:
        for number in (*READERS, *WRITING):
            role = "reader" if number in READERS else "writer"
            at, ports = url, ",".join(str(one.port) for one in _masters(server))
            if number == BEHIND_PROXY and isinstance(server, RedisServer):
                at, ports = url.replace(f":{server.port}/", f":{through}/"), str(through)
            started.append(_start(role, str(folder), str(number), at, ports, str(seed)))
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def _masters(server: Kind) -> list[RedisServer]:
    """Who is master, and who may become it."""
    if isinstance(server, RedisCluster):
        return [*server.masters, *server.replicas]
    return [server.master, server.replica] if isinstance(server, SentinelTrio) else [server]


def _client(server: RedisServer) -> Any:
    # With redis-py's own timeout a cancelled call may go on (Python 3.11).
    return _Client.from_url(server.url, socket_timeout=None, socket_connect_timeout=None)


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
