"""What one Sentinel says of who is the master: asked every second, and at once when it changes its mind.

Sentinels learn of a new master one after the other. Each of their configurations has a number, the epoch; of two that
name different masters the higher one is the newer.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from redis.exceptions import RedisError

from tidegate.errors import StoreError
from tidegate.middleware.stores.background import Background
from tidegate.middleware.stores.ears import Ears
from tidegate.middleware.stores.redis_link import Dial

__all__ = ["LOOK_EVERY", "Named", "Watch", "asked", "named_by"]

LOOK_EVERY: Final = 1.0
"""Seconds between two questions."""

_ANSWER: Final = 1.0
"""Seconds to connect, and for each answer."""

_LONGEST_PAUSE: Final = 5.0
"""Seconds until a Sentinel that is not there is tried again: one of several may be away for days."""


class Named(NamedTuple):
    """A master, as a Sentinel named it."""

    epoch: int
    host: str
    port: int

    def replaces(self, other: "Named") -> bool:
        """Whether it was made the master in that one's place."""
        return self.epoch > other.epoch and self[1:] != other[1:]


def asked(service: str) -> tuple[tuple[bytes, ...], ...]:
    """What a Sentinel is asked, both at once: `named_by` understands the replies.

    The epoch first: with a change in between, a new name has the old epoch until it is asked again, never the reverse.
    """
    name = service.encode()
    return (b"SENTINEL", b"MASTER", name), (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", name)


def named_by(replies: Sequence[Any]) -> Named | None:
    """The master in the replies to `asked`, of which a refusal is an exception; None: it does not know the service.

    Raises:
        StoreError: if they are not those of a Sentinel.
        Exception: the refusal.
    """
    told, named = replies
    if isinstance(named, Exception):
        raise named
    if named is None:
        return None
    if isinstance(told, Exception):
        raise told
    try:
        fields: Any = told if hasattr(told, "keys") else dict(zip(told[::2], told[1::2], strict=True))
        return Named(int(fields[b"config-epoch"]), named[0].decode(), int(named[1]))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise StoreError(f"it does not talk like a Sentinel: {error!r}") from error


class Watch:
    """Asks one Sentinel over a connection of its own.

    heard: called after each answer. failed: called with why the connection was lost or could not be made.
    """

    def __init__(
        self, dial: Dial, service: str, *, heard: Callable[[], object], failed: Callable[[Exception], object]
    ) -> None:
        self._dial = dial
        self._service = service
        self._heard = heard
        self._failed = failed
        self._background = Background()
        self._news = asyncio.Event()
        self.named: Named | None = None
        """What it said last; None while nothing is heard of it."""

    def start(self) -> None:
        """Ask in the background, from now on."""
        if not self._background.at_work:
            self._background.begin(self._follow(), "tidegate-sentinel")

    async def aclose(self) -> None:
        """Ask no more."""
        await self._background.ended()

    async def _follow(self) -> None:
        pause = 0.1
        while True:
            began = time.monotonic()
            try:
                await self._session()
            except TimeoutError:
                self._failed(StoreError(f"no answer within {_ANSWER:g} s"))
            except (RedisError, OSError, StoreError) as error:
                self._failed(error)
            finally:
                self.named = None
            pause = 0.1 if time.monotonic() - began > _LONGEST_PAUSE else min(_LONGEST_PAUSE, pause * 2)
            await asyncio.sleep(pause)

    async def _session(self) -> None:
        """From connecting to losing the connection."""
        self._news = asyncio.Event()  # of this loop
        ears = Ears(self._told, lambda: None)
        connection: Any = None
        try:
            async with asyncio.timeout(_ANSWER):
                connection = await self._dial()
                ears.attach(connection)
                await ears.ask(b"HELLO", b"3")
                await ears.ask(b"SUBSCRIBE", b"+switch-master")
            while True:
                self._news.clear()
                async with asyncio.timeout(_ANSWER):
                    replies = await asyncio.gather(
                        *[ears.ask(*words) for words in asked(self._service)], return_exceptions=True
                    )
                self.named = named_by(replies)
                self._heard()
                await self._next_look(ears)
        finally:
            if connection is not None:
                await ears.hang_up(connection)

    async def _next_look(self, ears: Ears) -> None:
        """Until there is news, or it is time; fails when the connection is lost."""
        news: asyncio.Future[Any] = asyncio.ensure_future(self._news.wait())
        either: list[asyncio.Future[Any]] = [news, ears.lost]
        try:
            await asyncio.wait(either, timeout=LOOK_EVERY, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()
            await asyncio.wait([news])
        if ears.lost.done():
            ears.lost.result()

    def _told(self, push: Sequence[Any]) -> None:
        self._news.set()  # whatever it is: it is asked
