"""Whether what was written to a server has reached a replica, so that a failover keeps it: `WAIT 1`.

`WAIT` holds up its connection, and waits for what was written over it; so it has a connection of its own, over which a
key with a short life is written first: what was written to the server before, over whichever connection, is older than
that. Everybody who asks while one `WAIT` is under way shares the next.

A server that had no replicas, or whose replicas did not answer in time, is not waited for in the next second: who asks
is told the same at once, and in the background it is asked again.
"""

import asyncio
from typing import Any, Final

from redis.exceptions import RedisError, ResponseError

from tidegate.errors import StoreError
from tidegate.middleware.stores.background import Background
from tidegate.middleware.stores.redis_link import Link

__all__ = ["REACHED_WITHIN", "Replicas"]

REACHED_WITHIN: Final = 0.05
"""Seconds that a replica has to say that it has it."""

_BELIEVED_FOR: Final = 1.0

_MARK_LIVES: Final = 1000
"""Milliseconds."""


class Replicas:
    """The replicas of one server.

    link: a connection that nobody else uses.
    expected: there are to be some; without, nobody can say (None).
    """

    def __init__(self, link: Link, *, expected: bool) -> None:
        self._link = link
        self._expected = expected
        self._next: asyncio.Future[bool | None] | None = None
        self._mark = b""
        self._background = Background()
        self._turn = 0
        """Which task works: one of an event loop that ended without it may be cleared away at any time."""
        self._last: bool | None = True
        self._believed_until = 0.0

    def open(self) -> None:
        """Take calls, again after `aclose`."""
        self._link.open()

    async def aclose(self) -> None:
        """Close the connection; who waits is told that nothing is known."""
        await self._background.ended()
        await self._link.aclose()

    def renew(self, why: str) -> None:
        """Make the connection anew."""
        self._link.renew(why)

    async def reached(self, mark: bytes) -> bool | None:
        """Whether all that was written up to now has reached a replica; None: there are none.

        mark: a key that the server takes, for nothing else.
        """
        loop = asyncio.get_running_loop()
        works = self._background.at_work
        if self._next is None or not works:
            self._next = loop.create_future()
            self._mark = mark
        asked = self._next
        if not works:
            self._turn += 1
            self._background.begin(self._work(self._turn), "tidegate-redis-replicas")
        if loop.time() < self._believed_until:
            return self._last
        return await asyncio.shield(asked)

    async def _work(self, turn: int) -> None:
        asked: asyncio.Future[bool | None] | None = None
        try:
            while (asked := self._next) is not None:
                self._next = None
                self._last = await self._ask(self._mark)
                if self._last is not True:
                    self._believed_until = asyncio.get_running_loop().time() + _BELIEVED_FOR
                asked.set_result(self._last)
        finally:
            if turn == self._turn:
                for left in (asked, self._next):
                    if left is not None and not left.done() and not left.get_loop().is_closed():
                        left.set_result(False)
                self._next = None

    async def _ask(self, mark: bytes) -> bool | None:
        link = self._link
        try:
            both = link.call(b"SET", mark, b"", b"PX", _MARK_LIVES), link.call(b"ROLE")
            replies: Any = await asyncio.gather(*both, return_exceptions=True)
            for reply in replies:
                if isinstance(reply, BaseException):
                    raise reply
            told = replies[1]
            if told[0] != b"master" or not told[2]:
                return False if self._expected else None
            reached: int = await link.call(b"WAIT", 1, int(REACHED_WITHIN * 1000))
        except ResponseError:
            return False if self._expected else None  # an ACL forbids to ask, or the server is full
        except (RedisError, StoreError, OSError):
            return False
        return reached > 0
