"""Begins a run in the turn of the event loop that asked for it; only a run that waits becomes a task.

A task costs its making, two turns of the event loop and a wake-up, and most handlers answer without waiting for
anything: while they do so nobody else can come, leave, or be cancelled. What Python 3.12 calls an eager task, for 3.11
as well, by what asyncio documents for other implementations of tasks ("Extending": `_enter_task`, `_leave_task`).

Guaranteed: the run has one task from its first line to its last, and it is not the caller's: what binds itself to
`asyncio.current_task()` (time-outs, task groups, cancel scopes) sees no difference between before and after its first
wait. It runs in a copy of the caller's context, as in a task; `show` lets the caller see what it has set there. Whoever
cancels the caller does not touch it.

A task that a run without waits left as it found it, so that nobody can tell, serves the next run of the same turn: of
many requests that come in one turn, as they do under load, the first alone pays for a task. Whatever is left on a task
(a reference, a weak one, a callback, an attribute, a name, a cancellation) keeps it from others.
"""

import asyncio
import threading
from asyncio import current_task
from asyncio.tasks import (  # documented for other implementations of tasks, in spite of their names
    _enter_task,  # pyright: ignore[reportPrivateUsage]
    _leave_task,  # pyright: ignore[reportPrivateUsage]
)
from collections.abc import Coroutine, Generator
from contextvars import Context, copy_context
from gc import get_referents
from sys import getrefcount
from typing import Any, Final
from weakref import getweakrefcount

__all__ = ["begin", "show"]

_NAME: Final = "tidegate-coalesce-run"
_UNSET: Final = object()
_OVER: Final = object()


def begin(work: Coroutine[Any, Any, None], context: Context | None = None) -> "asyncio.Task[None] | None":
    """Take a run to its first wait; its task, or None if it is over.

    context: in which it runs, and nobody else; None: a copy of the caller's.

    Raises:
        BaseException: what the run raised, if it did not wait.
    """
    here = _here.thread
    own, here.own = here.own, None  # a run may begin another
    caller = current_task(own.loop) if own is not None else None
    if own is None or caller is None:
        # To know the loop costs as much as all the rest. Where one has a current task it runs, and a task is left over
        # for the turn alone in which its loop runs in this thread.
        loop = asyncio.get_running_loop()
        if own is None or own.loop is not loop:
            own = _Own(loop)
        caller = current_task(loop)
    loop, task = own.loop, own.task
    if context is None:
        context = copy_context()
    if caller is not None:
        _leave_task(loop, caller)
    references = getrefcount(task)
    _enter_task(loop, task)
    try:
        awaited = context.run(next, work.__await__(), _OVER)  # `send` would raise StopIteration, which takes as long
    finally:
        _leave_task(loop, task)
        if caller is not None:
            _enter_task(loop, caller)
    if awaited is not _OVER:
        own.rest.take(work, context, awaited)
        return task
    if task.cancelling():
        raise asyncio.CancelledError  # as its task would have ended
    # Whether nothing is left on the task: no reference, no weak one, no name; and it holds no more than at first, which
    # would be a callback, an attribute, or what a cancellation was told, though it was taken back.
    if (
        getrefcount(task) == references
        and getweakrefcount(task) == own.weak
        and task.get_name() is _NAME
        and len(get_referents(task)) == own.holds
    ):
        here.own = own
    return None


def show(left: Context, began: Context | None = None) -> None:
    """Set the context variables of the caller that a run has set: as if it had been called, and been no task.

    What it did not set stays: the caller's may be another one by now, of messages that were sent there meanwhile.
    left, began: the run's context at its end, and a copy of it from before; None: the caller's is that still.
    """
    for variable, value in left.items():
        if (variable.get(_UNSET) if began is None else began.get(variable, _UNSET)) is not value:
            variable.set(value)


class _Own:
    """A task that nobody has been given, until its loop's next turn ends it.

    weak, holds: how many weak references to it there are at first, and how many objects it holds.
    """

    __slots__ = ("holds", "loop", "rest", "task", "weak")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Made before the run begins, which may want to know its task. Where nobody needs it, it ends in the loop's next
        # turn. A task factory could start it now, so it is not asked.
        self.loop = loop
        self.rest = _Rest()
        self.task: asyncio.Task[None] = asyncio.Task(self.rest, loop=loop, name=_NAME)
        self.weak = getweakrefcount(self.task)
        self.holds = len(get_referents(self.task))


class _Thread:
    """A thread, and the task that is left over in it."""

    __slots__ = ("own",)

    def __init__(self) -> None:
        self.own: _Own | None = None


class _Here(threading.local):
    """This thread's: one look for what belongs to a thread costs as much as ten at an object."""

    def __init__(self) -> None:
        self.thread = _Thread()


_here: Final = _Here()


class _Rest(Coroutine[Any, Any, None]):
    """What a task is given to run: the rest of a coroutine that was begun already, in its own context; or nothing."""

    __slots__ = ("_awaited", "_context", "_work")

    def __init__(self) -> None:
        self._work: Coroutine[Any, Any, None] | None = None
        self._context: Context | None = None
        self._awaited: Any = None

    def take(self, work: Coroutine[Any, Any, None], context: Context, awaited: Any) -> None:
        """Go on with this run, which waits for `awaited`."""
        self._work, self._context, self._awaited = work, context, (awaited,)

    def send(self, value: Any, /) -> Any:
        """The task's next step."""
        if self._work is None or self._context is None:
            self._is_over()
            raise StopIteration
        if self._awaited is not None:
            (awaited,), self._awaited = self._awaited, None
            return awaited
        return self._context.run(self._work.send, value)

    def throw(self, error: Any, value: Any = None, traceback: Any = None, /) -> Any:
        """The task's next step, where an exception comes out of what the run waits for, or it is cancelled."""
        if self._work is None or self._context is None:
            self._is_over()
            raise error
        if self._awaited is not None:
            # Cancelled before the task's first step: what the run waits for is cancelled, as asyncio does it.
            (awaited,), self._awaited = self._awaited, None
            waiting: asyncio.Future[Any] | None = awaited if asyncio.isfuture(awaited) else None
            if isinstance(error, asyncio.CancelledError) and waiting is not None and waiting.cancel():
                return waiting
        return self._context.run(self._work.throw, error)

    def _is_over(self) -> None:
        """No run has taken the task until its first step, and none can any more."""
        own = _here.thread.own
        if own is not None and own.rest is self:
            _here.thread.own = None

    def close(self) -> None:
        """The loop is gone."""
        if self._work is not None:
            self._work.close()

    def __await__(self) -> Generator[Any, Any, None]:
        raise TypeError("this is for a task alone")

    def __getattr__(self, name: str) -> Any:
        # What looks into a task's coroutine (repr, stacks, anyio: cr_frame, cr_running, ...) means the run.
        if self._work is not None and (name.startswith("cr_") or name in ("__name__", "__qualname__")):
            return getattr(self._work, name)
        if name == "cr_frame" or name == "cr_await":
            return None
        if name in ("cr_running", "cr_suspended"):
            return False
        raise AttributeError(name)
