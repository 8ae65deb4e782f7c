"""A task in the background of whichever event loop there is now.

An event loop may end without its tasks (`loop.close()` without `asyncio.run`, a test's, a script's), and a process may
fork: what worked in the background is gone then, though its task never says that it is done.
"""

import asyncio
import os
from collections.abc import Coroutine
from contextvars import Context
from typing import Any

__all__ = ["Background"]


class Background:
    """At most one task at a time, which can be begun anew where the last one's event loop does not run any more."""

    __slots__ = ("_process", "_task")

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._process = 0

    @property
    def at_work(self) -> bool:
        """Whether it is not done, and the event loop that it needs runs, in this process."""
        task = self._task
        # A fork has a copy of a loop that says that it runs.
        return task is not None and not task.done() and self._process == os.getpid() and task.get_loop().is_running()

    def begin(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        """Work on this in the running event loop, without the context of whoever happens to ask for it: its trace would
        be that of everything later. What was at work elsewhere is given up."""
        self.give_up()
        self._process = os.getpid()
        self._task = task = asyncio.get_running_loop().create_task(work, name=name, context=Context())
        return task

    def give_up(self) -> None:
        """Have it end, where it can."""
        task = self._task
        if task is not None and not task.done() and self._process == os.getpid() and not task.get_loop().is_closed():
            task.cancel()

    async def done(self) -> None:
        """Return when it is done by itself, where it is of this event loop."""
        task = self._task
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            await asyncio.wait([task])

    async def ended(self, within: float | None = None) -> None:
        """Have it end, and wait for that, where it is of this event loop. within: seconds to wait at most."""
        task = self._task
        self.give_up()
        if task is not None and task is not asyncio.current_task() and task.get_loop() is asyncio.get_running_loop():
            await asyncio.wait([task], timeout=within)
