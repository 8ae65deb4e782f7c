"""A deadline that costs nothing for a call that does not wait.

A store answers from memory more often than not, and arming a timer costs more than such an answer. So the call is
taken one step first; only if it suspends, the timer is armed and the rest awaited under it.
"""

import asyncio
from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any, TypeVar

__all__ = ["within"]

T = TypeVar("T")


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
    async with asyncio.timeout(seconds):
        return await _rest(call, awaited)


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
