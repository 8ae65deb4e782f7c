"""Hits over real sockets: one uvicorn worker, 64 connections, 50 tenants with 20 users each, 2 KiB for each user.

What is measured is the CPU time of the server's process, which others on the machine disturb less than the rate: its
ratio to the raw function's is what one core would serve. uvicorn takes uvloop and httptools where they are there;
`make bench` sees to it.
"""

import asyncio
import os
import sys
from collections import deque
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import psutil

from tests.bench.frame import BARE, RAW, Bench, Case, Target
from tests.bench.served import SIZE
from tests.services.server import Server, free_port, http_request

__all__ = ["BENCHES"]

ROOT = Path(__file__).parents[2]
CONNECTIONS = 64
PEOPLE = [(f"tenant{tenant}", f"user{tenant}-{user}") for tenant in range(50) for user in range(20)]
FAST = all(find_spec(name) is not None for name in ("uvloop", "httptools"))
TICK = 0.01
LONGER = 10.0
"""Times as long as other cases: the kernel tells a process' CPU time in hundredths of a second."""


class Served(Server):
    """One application of `served` under uvicorn."""

    name: ClassVar[str] = "bench"

    def __init__(self, app: str) -> None:
        super().__init__()
        self._app = app
        self.port = free_port()

    def command(self) -> list[str]:
        """Program and arguments."""
        uvicorn = [sys.executable, "-m", "uvicorn", f"tests.bench.served:{self._app}", "--factory"]
        return [*uvicorn, "--app-dir", str(ROOT), "--port", str(self.port), "--no-access-log"]

    def environment(self) -> dict[str, str]:
        """Where uvloop and httptools are, if they are there."""
        return {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}

    def answers(self) -> bool:
        """Whether it serves a page."""
        return self.page()[0] == 200

    def page(self) -> tuple[int, bytes, dict[str, str]]:
        """The first user's page."""
        tenant, user = PEOPLE[0]
        return http_request(self.port, "GET", "/page", headers={"x-tenant": tenant, "x-user": user})

    def cpu_seconds(self) -> float:
        """What its process has used so far."""
        times = psutil.Process(self.pid).cpu_times()
        return times.user + times.system


class _Client(asyncio.Protocol):
    """One connection that asks for the next page as soon as it has one whole, until there is none to ask for."""

    def __init__(self, waiting: deque[bytes]) -> None:
        self._waiting = waiting
        self._answer = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def _next(self) -> None:
        if self._waiting:
            self._transport.write(self._waiting.popleft())
        else:
            self.done.set_result(None)
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head = self._answer.find(b"\r\n\r\n")
        if head < 0 or len(self._answer) < head + 4 + SIZE:
            return
        if not self._answer.startswith(b"HTTP/1.1 200"):
            raise AssertionError(self._answer[:200])
        self._answer = b""
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server has closed the connection"))


async def _ask(port: int, requests: int) -> None:
    """Ask for so many pages, everybody's in turn."""
    heads = [
        f"GET /page HTTP/1.1\r\nhost: example.test\r\nx-tenant: {tenant}\r\nx-user: {user}\r\n\r\n".encode()
        for tenant, user in PEOPLE
    ]
    waiting = deque(heads[number % len(heads)] for number in range(requests))
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(lambda: _Client(waiting), "127.0.0.1", port) for _ in range(CONNECTIONS)]
    async with asyncio.timeout(60 + requests / 100):
        await asyncio.gather(*(client.done for _, client in made))


def sockets(bench: Bench) -> list[Case]:
    """Hits over sockets, against the raw function and the handler itself."""
    wanted = {"five": Target(of_raw=0.75), "alone": Target(of_raw=0.85)}
    names = {"raw": RAW, "bare": BARE, "alone": "hit, cache alone", "five": "hit, five layers"}
    return [_case(bench, app, name, wanted.get(app)) for app, name in names.items()]


def _case(bench: Bench, app: str, name: str, target: Target | None) -> Case:
    server = bench.closing.enter_context(Served(app))
    bench.run(_ask(server.port, len(PEOPLE)))

    def seconds(count: int) -> float:
        before = server.cpu_seconds()
        bench.run(_ask(server.port, count))
        return max(server.cpu_seconds() - before, TICK / 2)  # a few requests may take no tick at all

    def verify() -> None:
        status, body, headers = server.page()
        hit = "; hit" in headers.get("cache-status", "")
        if (status, len(body), hit) != (200, SIZE, app in ("alone", "five")):
            raise AssertionError(f"{app}: answered {status} {headers}, which is something else")

    size = "sockets" if FAST else "sockets without uvloop"
    return Case(name=name, seconds=seconds, verify=verify, size=size, target=target, longer=LONGER)


BENCHES = {"sockets": sockets}
