"""Refreshes in the background: stale-while-revalidate, once per key (RFC 5861 3).

Guaranteed: never two of one key at once in this process; at most `limit` at once, more are not begun; whatever the app
raises is counted and goes nowhere; `shut` ends all of them from any thread, `aclose` on their own event loop.
Not guaranteed: that a refresh stores anything (the app's answer decides).
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from tidegate.middleware.metrics import Metrics

__all__ = ["MAX_REFRESHES", "Refreshes"]

MAX_REFRESHES: Final = 100
"""At once. They are requests that nobody waits for, so they must not crowd out those that somebody does."""


class Refreshes:
    """The refreshes of one cache layer."""

    def __init__(self, metrics: Metrics, *, limit: int = MAX_REFRESHES) -> None:
        self._metrics = metrics
        self._limit = limit
        self._limited = metrics.limits.labels("cache-refreshes").inc
        self._tasks: dict[bytes, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def begin(self, key: bytes, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Refresh a key unless somebody does so already; False if there is no room for it."""
        if key in self._tasks and _runs(self._tasks[key]):
            return True
        if len(self._tasks) >= self._limit:
            self._tasks = {each: task for each, task in self._tasks.items() if _runs(task)}
        if len(self._tasks) >= self._limit:
            self._limited()
            return False
        task = asyncio.get_running_loop().create_task(self._tried(work), name="tidegate-refresh")
        self._tasks[key] = task

        def over(_task: asyncio.Task[None]) -> None:
            if self._tasks.get(key) is task:
                del self._tasks[key]

        task.add_done_callback(over)
        return True

    def shut(self) -> None:
        """End them all: nobody is to be served by this cache any more. In any thread; does not wait."""
        for task in tuple(self._tasks.values()):
            loop = task.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)

    async def aclose(self) -> None:
        """End them all, and wait until they have ended."""
        loop = asyncio.get_running_loop()
        tasks = [task for task in self._tasks.values() if task.get_loop() is loop]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _tried(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - nobody waits for it, and the stale response was served; counted
            self._metrics.fail("refresh", error)


def _runs(task: asyncio.Task[None]) -> bool:
    """Whether it may still come to its end: an event loop may have ended without it."""
    return task.get_loop().is_running()
