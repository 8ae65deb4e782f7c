"""Writes that wait for the store in the background, so that no request does: bounded in number and in bytes."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from tidegate.middleware.core.records import Record
from tidegate.middleware.stores.memory import size_of

__all__ = ["Writes"]

Write = Callable[[bytes, Record, float], Awaitable[object]]


class Writes:
    """A queue and the task that empties it, one write after the other, so that two writes of a key keep their order.

    write: called with key, record and seconds to retain; absorbs its own failures.
    dropped: called for each write that found the queue full.

    A write of a key that is already waiting takes the other's place.
    """

    def __init__(self, write: Write, *, max_writes: int, max_bytes: int, dropped: Callable[[], None]) -> None:
        self._write = write
        self._max_writes = max_writes
        self._max_bytes = max_bytes
        self._dropped = dropped
        self._waiting: OrderedDict[bytes, tuple[Record, float, int]] = OrderedDict()
        self._bytes = 0
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: bytes, record: Record, retain: float) -> bool:
        """Queue a write; False if there is no room."""
        size = size_of(key, record)
        self.forget(key)
        if len(self._waiting) >= self._max_writes or self._bytes + size > self._max_bytes:
            self._dropped()
            return False
        self._waiting[key] = (record, retain, size)
        self._bytes += size
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work(), name="tidegate-store-writes")
        return True

    def forget(self, key: bytes) -> None:
        """Take a write back. One that is on its way already may still land."""
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            self._bytes -= waiting[2]

    async def drained(self) -> None:
        """Return when nothing waits any more."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def close(self) -> int:
        """Stop; returns how many writes are lost by it."""
        lost = len(self._waiting)
        self._waiting.clear()
        self._bytes = 0
        if self._task is not None:
            self._task.cancel()
            lost += 1
        return lost

    async def _work(self) -> None:
        try:
            while self._waiting:
                key, (record, retain, size) = self._waiting.popitem(last=False)
                self._bytes -= size
                await self._write(key, record, retain)
        finally:
            self._task = None
