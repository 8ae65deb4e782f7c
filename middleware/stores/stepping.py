"""A deadline that costs nothing for a call that does not wait, and little for one that does.

A store answers from memory more often than not, and arming a timer costs more than such an answer. So the call is
taken one step first; only if it suspends, it gets in line for a timer, of which there is one for all that have the same
time: who came first is due first.

A deadline that passes while the event loop was held up says nothing about the store: its answer may have arrived long
ago and not been read yet. So the time by which the loop was late is given back, once and no more than the deadline
itself, and what has arrived is read before the call fails.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any, Final, TypeVar

__all__ = ["Answers", "Deadlines", "Waits"]

T = TypeVar("T")

PASSES: Final = 5
"""Passes of the event loop from an answer in the socket to the coroutine that waits for it, with some to spare."""


class Deadlines:
    """The calls under way, by the seconds that they may take: which are to be few different numbers at a time."""

    def __init__(self) -> None:
        self._lines: dict[float, _Line] = {}

    async def within(self, seconds: float, call: Coroutine[Any, Any, T]) -> T:
        """The result of `call`. After this many seconds what it waits for is cancelled, as if its task were.

        Raises:
            TimeoutError: if it was not done in time.
        """
        try:
            awaited = call.send(None)
        except StopIteration as done:
            result: T = done.value
            return result
        task = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        line = self._line(seconds)
        waits = line.begin(Waits(awaited, line.loop.time() + seconds))
        try:
            return await _rest(call, waits)
        except asyncio.CancelledError:
            now = asyncio.current_task()
            # Whoever cancels the caller meanwhile means the caller.
            if not waits.over or (now is not None and now.cancelling() > (before if now is task else 0)):
                raise
            raise TimeoutError from None
        finally:
            waits.over_with()

    def _line(self, seconds: float) -> "_Line":
        loop = asyncio.get_running_loop()
        line = self._lines.get(seconds)
        if line is None or line.loop is not loop:
            line = self._lines[seconds] = _Line(loop, seconds, self._let_go)
        return line

    def _let_go(self, line: "_Line") -> None:
        if self._lines.get(line.seconds) is line:
            del self._lines[line.seconds]


class Answers:
    """Futures that only their callers wait for, each for so many seconds: who cancels a caller cancels its future.

    One event loop at a time: those of another one before have no deadline any more.
    """

    __slots__ = ("_armed", "_loop", "_seconds", "_waiting")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[list[Any]] = deque()
        self._armed = False

    def begin(self, answer: "asyncio.Future[Any]") -> list[Any]:
        """Let a future fail with TimeoutError after its time, unless what this returns is cleared before: whoever has
        the answer is to do that, for it stays in line for a while, and not with kilobytes.
        """
        # A list, as it is made in a tenth of the time of an object with two fields: every look-up has one.
        loop = answer.get_loop()
        if loop is not self._loop:
            self._loop, self._waiting, self._armed = loop, deque(), False
        waits: list[Any] = [loop.time() + self._seconds, answer]
        self._waiting.append(waits)
        if not self._armed:
            self._armed = True
            loop.call_at(waits[0], self._due, loop, self._waiting)
        return waits

    def _due(self, loop: asyncio.AbstractEventLoop, waiting: deque[list[Any]]) -> None:
        now = loop.time()
        while waiting and (not waiting[0] or waiting[0][0] <= now):
            first = waiting.popleft()
            if first:
                loop.call_later(min(now - first[0], self._seconds), self._pass, loop, first, PASSES)
        if waiting:
            loop.call_at(waiting[0][0], self._due, loop, waiting)
        elif waiting is self._waiting:
            self._armed = False

    def _pass(self, loop: asyncio.AbstractEventLoop, waits: list[Any], left: int) -> None:
        if left:
            loop.call_soon(self._pass, loop, waits, left - 1)
        elif waits and not waits[1].done():
            waits[1].set_exception(TimeoutError())


class Waits:
    """One call: what it waits for, whether it is done, and whether its time is over."""

    __slots__ = ("awaited", "done", "due_at", "over")

    def __init__(self, awaited: Any, due_at: float) -> None:
        self.awaited: Any = awaited
        self.due_at = due_at
        self.done = False
        self.over = False

    def over_with(self) -> None:
        """It waits no more. It stays in line for a while: not with an answer of kilobytes."""
        self.done = True
        self.awaited = None

    def end(self) -> None:
        """Its time is over."""
        if not self.done:
            self.over = True
            if self.awaited is not None:
                self.awaited.cancel()


class _Line:
    """The calls of one event loop that may take the same time, and their timer: it is armed for the first of them.

    Those that are done stay in line until it is due. empty: called when nobody stands in it any more.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, empty: Callable[["_Line"], object]) -> None:
        self.loop = loop
        self.seconds = seconds
        self._empty = empty
        self._waiting: deque[Waits] = deque()
        self._armed = False

    def begin(self, waits: Waits) -> Waits:
        """A call waits from now on."""
        self._waiting.append(waits)
        if not self._armed:
            self._armed = True
            self.loop.call_at(waits.due_at, self._due)
        return waits

    def _due(self) -> None:
        now = self.loop.time()
        waiting = self._waiting
        while waiting and (waiting[0].done or waiting[0].due_at <= now):
            first = waiting.popleft()
            if not first.done:
                self.loop.call_later(min(now - first.due_at, self.seconds), self._pass, first, PASSES)
        self._armed = bool(waiting)
        if waiting:
            self.loop.call_at(waiting[0].due_at, self._due)
        else:
            self._empty(self)

    def _pass(self, waits: Waits, left: int) -> None:
        if left:
            self.loop.call_soon(self._pass, waits, left - 1)
        else:
            waits.end()


@coroutine
def _rest(call: Coroutine[Any, Any, T], waits: Waits) -> Generator[Any, Any, T]:
    """Go on with a coroutine that has been taken to its first suspension: `yield from`, entered in the middle."""
    while True:
        try:
            try:
                if waits.over and waits.awaited is not None:
                    waits.awaited.cancel()
                sent = yield waits.awaited
            except BaseException as error:  # noqa: BLE001 - cancellation too belongs to the call; it comes out of it again
                waits.awaited = call.throw(error)
            else:
                waits.awaited = call.send(sent)
        except StopIteration as done:
            result: T = done.value
            return result
