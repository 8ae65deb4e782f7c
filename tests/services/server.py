"""What every server of the suite has in common: a folder, a log, a start that waits, a stop that is sure.

All of it blocks; in an async test call it through `asyncio.to_thread`.
"""

import atexit
import collections
import http.client
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import psutil

__all__ = ["Server", "ServiceError", "Workspace", "free_port", "http_request", "wait_until", "workspace"]

LOG_TAIL_LINES = 25


class ServiceError(Exception):
    """A server could not be had, did not start, or did not do in time what it was asked; the message says which."""


class Workspace:
    """The temporary folder of this process' servers, and the keeper process that empties it in the end."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="tidegate-services-"))
        self.path.chmod(0o711)  # PostgreSQL runs as another user and must be able to pass through.
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._link, theirs = socket.socketpair()
        with theirs:
            script = Path(__file__).with_name("keeper.py")
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", str(script), str(theirs.fileno()), str(self.path)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for us; the keeper stops when we do.
            )
        self._answers = self._link.makefile("rb")
        atexit.register(self.close)

    @property
    def keeper_pid(self) -> int:
        """Process id of the keeper."""
        return self._keeper.pid

    def folder(self, name: str) -> Path:
        """A new folder for one server."""
        path = self.path / f"{name}-{next(self._numbers)}"
        path.mkdir(mode=0o711)
        return path

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send the keeper one request and return its answer.

        Raises:
            ServiceError: if it refused, or is gone.
        """
        with self._lock:
            try:
                self._link.sendall(json.dumps(request).encode() + b"\n")
                line = self._answers.readline()
            except OSError as error:
                raise ServiceError(f"the keeper of the test servers is gone: {error}") from error
        if not line:
            raise ServiceError("the keeper of the test servers is gone")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ServiceError(answer["error"])
        return answer

    def close(self) -> None:
        """Stop all servers and remove the folder; returns when that is done."""
        self._answers.close()
        self._link.close()
        self._keeper.wait(timeout=15)


_workspace: Workspace | None = None
_workspace_lock = threading.Lock()


def workspace() -> Workspace:
    """The workspace of this process, made at the first call."""
    global _workspace
    with _workspace_lock:
        if _workspace is None:
            _workspace = Workspace()
        return _workspace


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on.

    Taken from below the range from which the kernel gives ports to outgoing connections: there, a client that knocks
    at a stopped server can be given that very port and connect to itself.
    """
    for _ in range(100):
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServiceError("no free TCP port between 15000 and 32000 on 127.0.0.1")


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Return as soon as `condition()` is true; ask every 10 ms.

    Raises:
        ServiceError: if it is still false after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ServiceError(f"{what}: not within {seconds:g} s")
        time.sleep(0.01)


def http_request(
    port: int,
    method: str,
    path: str,
    *,
    body: object = None,
    headers: dict[str, str] | None = None,
    seconds: float = 5.0,
) -> tuple[int, bytes, dict[str, str]]:
    """One request to 127.0.0.1: status, body, headers (names in lower case). `body` is sent as JSON.

    Raises:
        OSError: nobody answered within `seconds`.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    payload = None if body is None else json.dumps(body).encode()
    kind = {} if body is None else {"Content-Type": "application/json"}
    try:
        connection.request(method, path, body=payload, headers=kind | (headers or {}))
        response = connection.getresponse()
        return response.status, response.read(), {name.lower(): value for name, value in response.getheaders()}
    except http.client.HTTPException as error:
        raise ConnectionError(f"no HTTP answer: {error!r}") from error
    finally:
        connection.close()


class Server:
    """One server process. Usable as a context manager; start, stop, kill, restart and suspend it at will.

    A subclass says what to run (`command`) and how to see that it answers (`answers`). What it writes goes to `log`.
    Its port and folder stay the same over restarts.
    """

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    start_seconds: ClassVar[float] = 20.0
    stop_seconds: ClassVar[float] = 10.0
    seconds_waited: ClassVar[float] = 0.0
    """Time that this process has spent in blocking calls of any server; read by the check for blocked event loops."""

    def __init__(self) -> None:
        self.directory = workspace().folder(self.name)
        self.log = self.directory / "server.log"
        self._pid: int | None = None

    def command(self) -> list[str]:
        """Program and arguments."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it serves; an OSError counts as no."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Variables added to a bare environment."""
        return {}

    def run_as(self) -> tuple[int, int] | None:
        """User and group id to run as; None is ours."""
        return None

    def start(self) -> Self:
        """Start it and return when it answers.

        Raises:
            ServiceError: if it ended or did not answer in time; the message ends with its log.
        """
        with self._waiting():
            if self.running:
                raise ServiceError(f"{self.name} is running already (pid {self._pid})")
            ids = self.run_as()
            base = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.directory), "LANG": "C", "TZ": "UTC"}
            answer = workspace().ask(
                do="start",
                argv=self.command(),
                env=base | self.environment(),
                cwd=str(self.directory),
                log=str(self.log),
                user=ids and ids[0],
                group=ids and ids[1],
                signal=int(self.stop_signal),
            )
            self._pid = answer["pid"]
            try:
                wait_until(self._answers_or_ended, self.start_seconds, f"{self.name} answers")
                if not self.running:
                    raise ServiceError(f"{self.name} ended while it started")
            except ServiceError as error:
                tail = self.log_tail()
                self.kill()
                raise ServiceError(f"{error}; its log ends with\n{tail}") from None
            return self

    def stop(self) -> None:
        """Ask it to end and return when it has; does nothing if it is not running.

        Raises:
            ServiceError: if it had to be killed.
        """
        with self._waiting():
            if not self.running:
                return
            self.resume()
            self.send_signal(self.stop_signal)
            try:
                wait_until(lambda: not self.running, self.stop_seconds, f"{self.name} stops")
            except ServiceError as error:
                tail = self.log_tail()
                self.kill()
                raise ServiceError(f"{error}; its log ends with\n{tail}") from None

    def kill(self) -> None:
        """End it at once, as `kill -9` does."""
        with self._waiting():
            if self.running:
                for process in self._processes():
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                wait_until(lambda: not self.running, self.stop_seconds, f"{self.name} dies")

    def restart(self) -> Self:
        """Stop and start it, on the same port and data."""
        self.stop()
        return self.start()

    def suspend(self) -> None:
        """Freeze it: connections stay open, nothing answers (SIGSTOP)."""
        for process in self._processes():
            process.suspend()

    def resume(self) -> None:
        """Let it go on after `suspend`."""
        for process in self._processes():
            process.resume()

    def send_signal(self, number: signal.Signals) -> None:
        """Send its main process a signal."""
        os.kill(self.pid, number)

    @property
    def pid(self) -> int:
        """Process id.

        Raises:
            ServiceError: if it is not running.
        """
        if self._pid is None or not self.running:
            raise ServiceError(f"{self.name} is not running")
        return self._pid

    @property
    def running(self) -> bool:
        """Whether the process lives (a suspended one does)."""
        return self._pid is not None and workspace().ask(do="poll", pid=self._pid)["returncode"] is None

    def log_tail(self) -> str:
        """The last lines that it wrote."""
        if not self.log.exists():
            return "(no log)"
        with self.log.open(encoding="utf-8", errors="replace") as lines:
            return "".join(collections.deque(lines, LOG_TAIL_LINES)).rstrip() or "(empty)"

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answers_or_ended(self) -> bool:
        if not self.running:
            return True
        try:
            return self.answers()
        except OSError:
            return False

    def _processes(self) -> list[psutil.Process]:
        main = psutil.Process(self.pid)
        return [main, *main.children(recursive=True)]

    @contextmanager
    def _waiting(self) -> Generator[None]:
        began = time.monotonic()
        counted_inside = Server.seconds_waited
        try:
            yield
        finally:
            # An outer call (restart in start) covers the inner ones: count the time once.
            Server.seconds_waited = counted_inside + time.monotonic() - began
