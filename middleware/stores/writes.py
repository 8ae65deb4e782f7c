"""Writes that wait for the store in the background, so that no request does: bounded in number and in bytes."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from tidegate.middleware.core.records import Record
from tidegate.middleware.stores.background import Background
from tidegate.middleware.stores.memory import size_of

__all__ = ["Writes"]

Write = Callable[[bytes, Record, float], Awaitable[object]]

AT_ONCE: Final = 64
"""Writes that are on their way together. One after the other each would wait for several passes of the event loop: a
busy one has tens in a second, and a hundred times as many responses to store."""

BYTES_AT_ONCE: Final = 1024 * 1024
"""Bytes of these, beyond which no other goes with them: what is on its way is held beside what waits."""

_LETTING_GO: Final = 0.25
"""Seconds that cancelled writes may take to end: they do at once."""


class Writes:
    """A queue and the task that empties it, some writes at a time, no two of one key, so that those keep their order.

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
        self._leaving: Sequence[asyncio.Future[object]] = ()
        self._begins: set[bytes] = set()
        """Keys of those that leave in the next pass of the event loop."""
        self._background = Background()

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
        if not self._background.at_work:
            self._background.begin(self._work(), "tidegate-store-writes")
        return True

    def forget(self, key: bytes) -> None:
        """Take a write back. One that is on its way already may still land: before what is asked of the store now."""
        self._begins.discard(key)
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            self._bytes -= waiting[2]

    async def drained(self) -> None:
        """Return when nothing waits any more."""
        await self._background.done()

    async def close(self) -> int:
        """Stop; returns how many writes are lost by it."""
        lost = len(self._waiting) + sum(not write.done() for write in self._leaving)
        self._waiting.clear()
        self._bytes = 0
        await self._background.ended(_LETTING_GO)
        return lost

    async def _work(self) -> None:
        while self._waiting:
            batch = self._next()
            self._begins = {key for key, _, _ in batch}
            self._leaving = [asyncio.ensure_future(self._begin(*each)) for each in batch]
            await asyncio.gather(*self._leaving)

    async def _begin(self, key: bytes, record: Record, retain: float) -> object:
        if key not in self._begins:
            return None  # taken back since it was chosen: its key may be deleted already
        self._begins.discard(key)
        return await self._write(key, record, retain)

    def _next(self) -> list[tuple[bytes, Record, float]]:
        """Those that leave together, the oldest first."""
        batch: list[tuple[bytes, Record, float]] = []
        together = 0
        while self._waiting and len(batch) < AT_ONCE and together < BYTES_AT_ONCE:
            key, (record, retain, size) = self._waiting.popitem(last=False)
            self._bytes -= size
            together += size
            batch.append((key, record, retain))
        return batch
