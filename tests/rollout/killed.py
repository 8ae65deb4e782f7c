"""A controller in a process of its own that kills itself (SIGKILL) at the n-th thing it does.

Run as `python -m tests.rollout.killed FOLDER FROM UNTIL [N]`: attends every five seconds of a made-up clock, prints
`at SECONDS` before each, and `write N` when the N-th thing is a write to the flag. A killed run is resumed by a run
that begins at the seconds printed last.
"""

import asyncio
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

from tests.rollout.worlds import Clock, SteadySource, make_spec
from tidegate.errors import RolloutError
from tidegate.rollout.actuator_local import LocalActuator
from tidegate.rollout.controller import Controller
from tidegate.rollout.store import Journal

NEVER = -1


class Count:
    """Kills the process at the `last` call."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.done = 0

    def __call__(self) -> None:
        self.done += 1
        if self.done == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


class Doomed:
    """Counts before and after every call of the wrapped object's methods."""

    def __init__(self, inner: Any, count: Count) -> None:
        self._inner = inner
        self._count = count

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not asyncio.iscoroutinefunction(found):
            return found

        async def counted(*arguments: Any) -> Any:
            self._count()
            if name != "read":
                print("write", self._count.done, flush=True)
            answer = await found(*arguments)
            self._count()
            return answer

        return counted


class DoomedConnection(sqlite3.Connection):
    """Counts before and after each statement, COMMIT too."""

    count: Count

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        self.count()
        answer = super().execute(*arguments)
        self.count()
        return answer


def main(folder: Path, start: int, until: int, last: int) -> None:
    count = Count(last)
    DoomedConnection.count = Count(NEVER)
    connect = sqlite3.connect
    sqlite3.connect = lambda *a, **k: connect(*a, factory=DoomedConnection, **k)  # type: ignore[assignment,misc]
    clock = Clock(float(start))
    actuator: Any = Doomed(LocalActuator(folder / "flags.json", "production"), count)
    with Journal(folder / "journal.sqlite3") as journal:
        try:
            journal.add(make_spec(bake=20), "production", float(start))
        except RolloutError:
            assert journal.get("canary") is not None
        DoomedConnection.count = count
        controller = Controller(
            journal=journal, actuator=actuator, source=SteadySource(), clock=clock, holder="the only one"
        )
        for now in range(start, until, 5):
            clock.now = float(now)
            print("at", now, flush=True)
            asyncio.run(controller.attend(wait=True))
            if not journal.active():
                break
        print("things", count.done, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int((sys.argv[4:] or [NEVER])[0]))
