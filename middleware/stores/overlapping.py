"""Tries again beside an attempt that hangs: who waits for a network that swallows everything does not learn that it is
back.

Attempts begin at most `every` seconds apart for as long as none succeeds, so that one of them begins soon after it can
succeed, however long the older ones would still hang. Those go on, so that one that is merely slow succeeds too.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

__all__ = ["first_of"]

T = TypeVar("T")


async def first_of(
    attempt: Callable[[], Awaitable[T]],
    *,
    every: float,
    within: float,
    failed: Callable[[Exception], object],
    spare: Callable[[T], Awaitable[object]] | None = None,
) -> T:
    """The result of the first attempt that succeeds; the others are cancelled.

    every: seconds after which another attempt begins while one is under way (up to a fifth less, so that processes
        differ). within: seconds that each may take; then it is cancelled.
    failed: called with why an attempt failed, while others are under way. spare: lets go of a result that is too many.

    Raises:
        Exception: why the last one failed, when none is under way any more.
    """
    under_way: set[asyncio.Task[T]] = set()
    try:
        won = await _first_of(under_way, attempt, every=every, within=within, failed=failed)
    except BaseException:
        await _end(under_way, spare)
        raise
    try:
        await _end(under_way, spare)
    except BaseException:  # cancelled meanwhile: nobody will have it
        if spare is not None:
            await spare(won)
        raise
    return won


async def _first_of(
    under_way: set[asyncio.Task[T]],
    attempt: Callable[[], Awaitable[T]],
    *,
    every: float,
    within: float,
    failed: Callable[[Exception], object],
) -> T:
    """As `first_of`. under_way: the others are left there."""
    loop = asyncio.get_running_loop()
    while True:
        under_way.add(loop.create_task(_timed(attempt, within)))
        next_at = loop.time() + every * random.uniform(0.8, 1.0)
        while True:
            left = max(0.0, next_at - loop.time())
            done, _ = await asyncio.wait(under_way, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            won = next((task for task in done if task.exception() is None), None)
            for task in done - {won}:
                error = task.exception()
                if error is not None:
                    under_way.discard(task)
                    if not under_way or not isinstance(error, Exception):
                        raise error
                    failed(error)
            if won is not None:
                under_way.discard(won)
                return won.result()
            if loop.time() >= next_at:
                break


async def _timed(attempt: Callable[[], Awaitable[T]], within: float) -> T:
    async with asyncio.timeout(within):
        return await attempt()


async def _end(tasks: "set[asyncio.Task[T]]", spare: Callable[[T], Awaitable[object]] | None) -> None:
    """Cancel them, and let go of what they have brought all the same. Who is cancelled meanwhile sees it to its end:
    nobody else would."""
    for task in tasks:
        task.cancel()
    if not tasks:
        return
    ending = asyncio.get_running_loop().create_task(_let_go(tasks, spare))
    cancelled: asyncio.CancelledError | None = None
    while not ending.done():
        try:
            await asyncio.wait([ending])
        except asyncio.CancelledError as error:
            cancelled = error
    ending.result()
    if cancelled is not None:
        raise cancelled


async def _let_go(tasks: "set[asyncio.Task[T]]", spare: Callable[[T], Awaitable[object]] | None) -> None:
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and task.exception() is None and spare is not None:
            await spare(task.result())
