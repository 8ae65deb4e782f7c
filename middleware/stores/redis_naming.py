"""By which naming keys responses were stored lately.

Names of scopes and tags are made with the naming key, so that a purge reaches what was stored with the same one only.
Nothing in a record tells which that was. So whoever stores says it: in one key of the namespace stand the marks of the
naming keys (hashes, which tell nothing of them), each with the time at which somebody stored with it last.

Not guaranteed: that a process is known that has stored nothing within `LATELY`, or that is older than this.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from redis.exceptions import RedisError

from tidegate.errors import StoreError
from tidegate.middleware.stores.redis_names import Names
from tidegate.middleware.stores.redis_servers import Servers

__all__ = ["LATELY", "Named", "Naming"]

LATELY: Final = 3600.0
"""Seconds for which it counts that somebody stored."""

_SAY_EVERY: Final = 300.0
_FORGOTTEN: Final = 30 * 24 * 3600.0


class Named(NamedTuple):
    """alike: whether somebody stored lately with the naming key of this process. otherwise: with how many others."""

    alike: bool
    otherwise: int


class Naming:
    """That of one process. clock: wall-clock seconds."""

    def __init__(self, names: Names, servers: Servers, *, clock: Callable[[], float] = time.time) -> None:
        self._key, self._names = names.namings, names
        self._servers = servers
        self._clock = clock
        self._due = 0.0

    async def say(self) -> None:
        """This process has stored something; written every few minutes. Never fails: it is evidence, no more."""
        now = self._clock()
        if now < self._due:
            return
        self._due = now + _SAY_EVERY
        with suppress(RedisError, StoreError):
            await self._call(b"ZADD", int(now), self._names.naming)
            old = [mark for mark, at in await self._marks() if at < now - _FORGOTTEN]
            if old:
                await self._call(b"ZREM", *old)

    async def seen(self) -> Named:
        """Who stored lately.

        Raises:
            RedisError, StoreError: if Redis cannot be asked.
        """
        since = self._clock() - LATELY
        lately = [mark for mark, at in await self._marks() if at >= since]
        alike = self._names.naming in lately
        return Named(alike, len(lately) - alike)

    async def _marks(self) -> list[tuple[bytes, float]]:
        told: list[Any] = await self._call(b"ZRANGE", 0, -1, b"WITHSCORES")
        pairs = told if told and isinstance(told[0], list) else zip(told[::2], told[1::2], strict=True)
        return [(mark, float(at)) for mark, at in pairs]  # RESP3 has them in pairs

    async def _call(self, command: bytes, *words: bytes | int) -> Any:
        return await self._servers.call(self._key, command, self._key, *words, large=True)
