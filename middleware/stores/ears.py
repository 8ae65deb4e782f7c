"""A connection of redis-py's that is read where its bytes come in: replies in order, and what comes unasked."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import hiredis
from redis.exceptions import RedisError

from tidegate.errors import StoreError

__all__ = ["Ears", "RefusedError"]

_hiredis: Any = hiredis
_pack: Final[Callable[[tuple[bytes, ...]], bytes]] = _hiredis.pack_command

_GOODBYE: Final = 0.25


class RefusedError(StoreError):
    """The server will not do it."""


class Ears(asyncio.Protocol):
    """Reads replies and pushes where they come in."""

    def __init__(self, pushed: Callable[[Sequence[Any]], None], ended: Callable[[], None]) -> None:
        self._reader = _hiredis.Reader(notEnoughData=self)
        self._pushed = pushed
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._asked: deque[asyncio.Future[Any]] = deque()
        self.transport: Any = None
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def attach(self, connection: Any) -> None:
        """From now on what comes over this connection comes to us.

        connection: of redis-py; all that was asked over it has been answered, so no byte is on its way.
        """
        self.transport = connection._writer.transport  # redis-py has no public way to it
        self.transport.set_protocol(self)

    async def hang_up(self, connection: Any) -> None:
        """Close the connection, with the goodbye that TLS asks for if the other side takes its part at once."""
        with suppress(RedisError, OSError):
            await connection.disconnect(nowait=True)
        if self.transport is not None:
            await asyncio.wait([self.lost], timeout=_GOODBYE)

    def ask(self, *words: bytes) -> asyncio.Future[Any]:
        """The reply to a command; a refusal is RefusedError."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._asked.append(future)
        self.transport.write(_pack(words))
        return future

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not self:
                # A subscription is confirmed by a push: it is the reply to who asked for it.
                if isinstance(reply, _hiredis.PushNotification) and reply[0] != b"subscribe":
                    self._pushed(reply)
                    continue
                future = self._asked.popleft()
                if future.done():
                    continue
                if isinstance(reply, Exception):
                    future.set_exception(RefusedError(str(reply)))
                    future.exception()  # seen: of several that are refused only one is raised
                else:
                    future.set_result(reply)
        except (_hiredis.HiredisError, IndexError) as error:
            self._end(StoreError(f"the server talks nonsense: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or StoreError("the connection was closed"))

    def eof_received(self) -> bool:
        self._ended()  # now: `connection_lost` comes a pass of the event loop later, and requests may come before it
        return False  # close

    def give_up(self, error: Exception) -> None:
        """End, though the connection may be well."""
        self._end(error)

    def _end(self, error: Exception) -> None:
        self._ended()
        for future in (*self._asked, self.lost):
            if not future.done():
                future.set_exception(error)
                future.exception()  # seen: whoever still waits gets it all the same
