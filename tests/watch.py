"""Fails a test that blocks its event loop, leaves a task behind, or makes asyncio log an error.

`asyncio.run` cancels without a word what is still running when the main coroutine returns; a test that relies on that
hides a leak. Mark the few that mean it: `@pytest.mark.leaves_tasks("why")`, `@pytest.mark.blocks_the_loop("why")`.
"""

import asyncio
import gc
import logging
import resource
import time
from asyncio import runners
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import pytest

from tests.services.server import Server

# Far above what our code may take, below what a person calls hanging.
LONGEST_CALLBACK_SECONDS = 0.5


class Collecting:
    """Seconds that garbage collection took, as pairs of wall and computing time.

    A full collection goes through what all earlier tests have left in memory, and comes in the middle of whichever
    callback happens to run then: late in a long run it alone may take longer than any callback should.
    """

    wall = 0.0
    computing = 0.0
    _began = (0.0, 0.0)

    @classmethod
    def note(cls, phase: str, _info: dict[str, int]) -> None:
        """For `gc.callbacks`; both phases of a collection run in the thread that it interrupts."""
        now = (time.perf_counter(), time.thread_time())
        if phase == "start":
            cls._began = now
        else:
            cls.wall += now[0] - cls._began[0]
            cls.computing += now[1] - cls._began[1]


class Spent(NamedTuple):
    """What this thread has used so far, in seconds, but for garbage collection; `yielded` counts how often it gave up
    its processor by itself.
    """

    wall: float
    computing: float
    servers: float
    yielded: int

    @classmethod
    def now(cls) -> Self:
        """A reading."""
        yielded = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        wall, computing = time.perf_counter() - Collecting.wall, time.thread_time() - Collecting.computing
        return cls(wall, computing, Server.seconds_waited, yielded)

    def blocked_since(self, before: "Spent") -> float:
        """The longer of computing and of waiting in a blocking call.

        A crowded machine also keeps a thread waiting, but then the thread did not yield. Time in which a test stops or
        starts a server from within its loop is not counted: it means to wait.
        """
        computing = self.computing - before.computing
        waiting = self.wall - before.wall - computing - (self.servers - before.servers)
        return max(computing, waiting) if self.yielded > before.yielded else computing


class Watch:
    """What was seen of all event loops during one test."""

    def __init__(self) -> None:
        self.blocked: list[str] = []
        self.left: list[str] = []
        self.logged: list[str] = []

    def note_slow(self, handle: asyncio.Handle, seconds: float) -> None:
        """Take down one callback that kept its loop from everything else."""
        self.blocked.append(f"{handle!r} ran for {seconds:.2f} s")

    def note_left(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take down the tasks that still run when the loop is about to close."""
        self.left += [repr(task) for task in asyncio.all_tasks(loop) if not task.done()]

    def report(self, item: pytest.Item) -> list[str]:
        """One line for each thing that the test was not marked for."""
        found = [f"asyncio logged: {line}" for line in self.logged]
        found += [f"event loop blocked: {line}" for line in self.blocked]
        if item.get_closest_marker("leaves_tasks") is None:
            found += [f"task left behind: {line}" for line in self.left]
        return found


class LoggedErrors(logging.Handler):
    """Hands what asyncio logs as an error (a lost exception, a destroyed task) to the watch."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(logging.ERROR)
        self._watch = watch

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message."""
        self._watch.logged.append(self.format(record))


def pytest_configure(config: pytest.Config) -> None:
    """Make the marks known, and begin to note collections."""
    if Collecting.note not in gc.callbacks:
        gc.callbacks.append(Collecting.note)
    config.addinivalue_line("markers", "leaves_tasks(why): the test may end with running tasks")
    config.addinivalue_line("markers", "blocks_the_loop(why): the test may block its event loop")


@pytest.fixture(autouse=True)
def watch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Watch every event loop of the test (uvloop's callbacks excepted: they are not Python)."""
    seen = Watch()
    run_callback: Any = asyncio.Handle._run
    cancel_all: Any = runners._cancel_all_tasks  # type: ignore[attr-defined]

    def timed(handle: asyncio.Handle) -> None:
        began = Spent.now()
        run_callback(handle)
        seconds = Spent.now().blocked_since(began)
        if seconds > LONGEST_CALLBACK_SECONDS:
            seen.note_slow(handle, seconds)

    def looked_at(loop: asyncio.AbstractEventLoop) -> None:
        seen.note_left(loop)
        cancel_all(loop)

    if request.node.get_closest_marker("blocks_the_loop") is None:
        monkeypatch.setattr(asyncio.Handle, "_run", timed)
    monkeypatch.setattr(runners, "_cancel_all_tasks", looked_at)
    handler = LoggedErrors(seen)
    logger = logging.getLogger("asyncio")
    logger.addHandler(handler)
    yield seen
    logger.removeHandler(handler)
    if found := seen.report(request.node):
        pytest.fail("\n".join(found), pytrace=False)
