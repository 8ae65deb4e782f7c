"""Hits over real sockets: one uvicorn worker, 64 connections, 50 tenants with 20 users each, 2 KiB for each user.

Two things are measured. Requests a second, which say most on a machine that does nothing else. And the CPU time of the
server's process, which others on the machine disturb less: what one core would serve, and what targets are checked by.
`make bench` sees to it that uvloop and httptools are there; without them the cases have another name.
"""

import os
import select
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import ClassVar, Final

from tests.bench.frame import BARE, RAW, Bench, Case, Target
from tests.bench.served import SIZE
from tests.services.server import Server, free_port, http_request, wait_until

__all__ = ["BENCHES", "SIZED", "served"]

ROOT = Path(__file__).parents[2]
CONNECTIONS = 64
PEOPLE = [(f"tenant{tenant}", f"user{tenant}-{user}") for tenant in range(50) for user in range(20)]
FAST = all(find_spec(name) is not None for name in ("uvloop", "httptools"))
SIZED = "sockets" if FAST else "sockets without uvloop"
"""What stands for the size in the titles of these cases."""
LONGER = 5.0
"""Times as long as other cases: of what a server does now and then, each round is to have its share."""
HIT: Final = b"; hit"
"""In the Cache-Status of what a cache layer answered."""
_PATIENCE: Final = 60.0
"""Seconds without an answer after which there will be none."""


class Served(Server):
    """One application of this package, by module and function, under uvicorn with these environment variables."""

    name: ClassVar[str] = "bench"

    def __init__(self, app: str, variables: Mapping[str, str]) -> None:
        super().__init__()
        self._app = app
        self._variables = dict(variables)
        self.port = free_port()

    def command(self) -> list[str]:
        """Program and arguments."""
        uvicorn = [sys.executable, "-m", "uvicorn", f"tests.bench.{self._app}", "--factory"]
        fast = ["--loop", "uvloop", "--http", "httptools"] if FAST else ["--loop", "asyncio", "--http", "h11"]
        return [*uvicorn, "--app-dir", str(ROOT), "--port", str(self.port), "--no-access-log", *fast]

    def environment(self) -> dict[str, str]:
        """Where uvloop and httptools are, if they are there. Whole paths: the server runs in a folder of its own."""
        return {"PYTHONPATH": os.pathsep.join(path for path in sys.path if os.path.isabs(path))} | self._variables

    def answers(self) -> bool:
        """Whether it serves a page."""
        return self.page()[0] == 200

    def page(self) -> tuple[int, bytes, dict[str, str]]:
        """The first user's page."""
        tenant, user = PEOPLE[0]
        return http_request(self.port, "GET", "/page", headers={"x-tenant": tenant, "x-user": user})

    def cpu_seconds(self) -> float:
        """What its process has used so far."""
        return time.clock_gettime(~self.pid << 3 | 2)  # as clock_getcpuclockid(3) makes it, which Python lacks


def _ask(port: int, requests: int) -> tuple[float, int]:
    """Ask for so many pages, everybody's in turn, over all connections at once; returns the seconds that it took, and
    how many were hits.

    Not with asyncio, which takes longer for a request than the server does: that would measure the client.
    """
    heads = cycle(
        f"GET /page HTTP/1.1\r\nhost: example.test\r\nx-tenant: {tenant}\r\nx-user: {user}\r\n\r\n".encode()
        for tenant, user in PEOPLE
    )
    with ExitStack() as closing, select.epoll() as poll:
        made = [closing.enter_context(socket.create_connection(("127.0.0.1", port), 5)) for _ in range(CONNECTIONS)]
        clients = {client.fileno(): client for client in made}
        begun = dict.fromkeys(clients, b"")
        began = time.perf_counter()
        for number, client in clients.items():
            poll.register(number, select.EPOLLIN)
            client.sendall(next(heads))
        answered, asked, hits = 0, len(clients), 0
        while answered < requests:
            events = poll.poll(_PATIENCE)
            if not events:
                raise TimeoutError(f"no answer for {_PATIENCE} s, after {answered} of {requests} requests")
            for number, _ in events:
                answer = begun[number] + clients[number].recv(65536)
                head = answer.find(b"\r\n\r\n")
                if head < 0 or len(answer) < head + 4 + SIZE:
                    if answer == begun[number]:
                        raise ConnectionError("the server has closed a connection")
                    begun[number] = answer
                    continue
                if not answer.startswith(b"HTTP/1.1 200"):
                    raise AssertionError(answer[:200])
                begun[number] = b""
                answered += 1
                hits += HIT in answer[:head]
                if asked < requests:
                    asked += 1
                    clients[number].sendall(next(heads))
        return time.perf_counter() - began, hits


def sockets(bench: Bench) -> list[Case]:
    """Hits over sockets, against the raw function and the handler itself."""
    wanted = {"five": Target(of_raw=0.75), "alone": Target(of_raw=0.85)}
    names = {"raw": RAW, "bare": BARE, "alone": "hit, cache alone", "five": "hit, five layers"}
    return [
        served(bench, f"served:{app}", name, hit=app in ("alone", "five"), target=wanted.get(app))
        for app, name in names.items()
    ]


def served(bench: Bench, app: str, name: str, *, hit: bool, target: Target | None = None, **variables: str) -> Case:
    """A case that asks an application (`module:function`) for everybody's page. hit: whether a cache layer answers.

    variables: of its environment.
    """
    server = bench.closing.enter_context(Served(app, variables))
    elapsed = 0.0

    def seconds(count: int) -> float:
        nonlocal elapsed
        before = server.cpu_seconds()
        elapsed, _ = _ask(server.port, count)
        return server.cpu_seconds() - before

    def is_what_it_is_called() -> bool:
        asked = len(PEOPLE)
        return _ask(server.port, asked)[1] == (asked if hit else 0)

    def verify() -> None:
        # What is asked for first is stored in the background. And on a busy machine Redis may not answer one request in
        # time, and is left alone for a second then.
        wait_until(is_what_it_is_called, 30, f"{app}: answers something else")

    return Case(
        name=name,
        seconds=seconds,
        verify=verify,
        size=SIZED,
        target=target,
        longer=LONGER,
        elapsed=lambda: elapsed,
    )


BENCHES = {"sockets": sockets}
