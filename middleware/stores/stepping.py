"""A deadline that costs nothing for a call that does not wait.

A store answers from memory more often than not, and arming a timer costs more than such an answer. So the call is
taken one step first; only if it suspends, the timer is armed and the rest awaited under it.

A deadline that passes while the event loop was held up says nothing about the store: its answer may have arrived long
ago and not been read yet. So the time by which the loop was late is given back, once and no more than the deadline
itself, and what has arrived is read before the call fails.
"""

import asyncio
from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any, Final, TypeVar

__all__ = ["within"]

T = TypeVar("T")

PASSES: Final = 5
"""Passes of the event loop from an answer in the socket to the coroutine that waits for it, with some to spare."""


async def within(seconds: float, call: Coroutine[Any, Any, T]) -> T:
    """The result of `call`, which is cancelled after this many seconds.

    Raises:
        TimeoutError: if it was not done in time.
    """
    try:
        awaited = call.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    async with asyncio.timeout(None) as deadline:
        late = _Late(deadline, asyncio.get_running_loop(), seconds)
        try:
            return await _rest(call, awaited)
        finally:
            late.cancel()


class _Late:
    """The timer of one call: when it is due, it gives back what the loop was late by, and lets it pass some times."""

    def __init__(self, deadline: asyncio.Timeout, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._deadline = deadline
        self._loop = loop
        self._seconds = seconds
        self._passes = 0
        self._due_at = loop.time() + seconds
        self._handle: asyncio.Handle = loop.call_at(self._due_at, self._due)

    def cancel(self) -> None:
        """The call is done."""
        self._handle.cancel()

    def _due(self) -> None:
        late = min(self._loop.time() - self._due_at, self._seconds)
        self._handle = self._loop.call_later(late, self._pass)

    def _pass(self) -> None:
        if self._passes == PASSES:
            self._deadline.reschedule(self._loop.time())
        else:
            self._passes += 1
            self._handle = self._loop.call_soon(self._pass)


@coroutine
def _rest(call: Coroutine[Any, Any, T], awaited: Any) -> Generator[Any, Any, T]:
    """Go on with a coroutine that has been taken to its first suspension: `yield from`, entered in the middle."""
    while True:
        try:
            try:
                sent = yield awaited
            except BaseException as error:  # noqa: BLE001 - cancellation too belongs to the call; it comes out of it again
                awaited = call.throw(error)
            else:
                awaited = call.send(sent)
        except StopIteration as done:
            result: T = done.value
            return result
