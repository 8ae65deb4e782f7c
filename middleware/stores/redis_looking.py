"""Looks through the records in Redis for what a purge would take: some of them, for some seconds, in the background."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Final

from redis.exceptions import RedisError

from tidegate.errors import StoreError
from tidegate.middleware.core.records import Entry, Record, Target
from tidegate.middleware.stores.affected import Affected, Tally

__all__ = ["LOOKED_AT", "LOOK_FOR", "look_through"]

LOOKED_AT: Final = 10_000
"""Records that are looked at; of more nothing is known."""

LOOK_FOR: Final = 2.0
"""Seconds after which no more are."""

_AT_ONCE: Final = 50
_TOKEN: Final = re.compile(rb"\x00.{16}", re.DOTALL)


async def look_through(
    names: AsyncIterator[list[bytes]],
    tags: Mapping[str, Sequence[Target]],
    *,
    read: Callable[[Sequence[bytes]], Awaitable[list[bytes | None]]],
    opened: Callable[[bytes, bytes], Record | None],
    stands: Callable[[Entry], Awaitable[bool]],
) -> Affected:
    """What a purge of these would take, among the records with these names.

    read: their values. opened: the record of a name and a value. stands: whether nothing has purged it already.

    Raises:
        StoreError: if not even the first names are told.
    """
    tally = Tally(tags)
    answered = False
    try:
        # Not only where there is a record: of a server that others use too most keys are none, and it may be silent.
        async with asyncio.timeout(LOOK_FOR):
            async for found in names:
                answered = True
                for start in range(0, len(found), _AT_ONCE):
                    if tally.looked_at >= LOOKED_AT:
                        tally.exact = False
                        return tally.told()
                    await _look_at(found[start : start + _AT_ONCE], tally, read, opened, stands)
    except (RedisError, StoreError, TimeoutError) as error:
        if not answered:
            late = isinstance(error, TimeoutError)
            raise StoreError(f"redis: no answer within {LOOK_FOR:g} s" if late else str(error)) from error
        tally.exact = False
    return tally.told()


async def _look_at(
    names: list[bytes],
    tally: Tally,
    read: Callable[[Sequence[bytes]], Awaitable[list[bytes | None]]],
    opened: Callable[[bytes, bytes], Record | None],
    stands: Callable[[Entry], Awaitable[bool]],
) -> None:
    concerned: list[Entry] = []
    for name, value in zip(names, await read(names), strict=True):
        if value is None:
            continue  # its time was over meanwhile
        tally.looked_at += 1
        if _TOKEN.fullmatch(value):
            tally.exact = False  # a large one lies elsewhere, and is left there
            continue
        record = opened(name, value)
        if isinstance(record, Entry) and tally.concerns(record):
            concerned.append(record)
    for entry, stood in zip(concerned, await asyncio.gather(*map(stands, concerned)), strict=True):
        if stood:
            tally.count(entry)
