"""A connection that redis-py has made and greeted: commands are written in one piece, and replies are read where their
bytes come in, without a task in between.

Guaranteed: replies are told in their order, each before any task of the same pass of the event loop runs; what the
server refuses is told as the ResponseError that redis-py makes of it; once the connection is lost, or what comes over
it makes no sense, or it says that the server is not to be asked, `lost` has why, and nothing is told any more.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import hiredis
from redis.exceptions import ResponseError

from tidegate.errors import StoreError

__all__ = ["Wire"]

_hiredis: Any = hiredis
_PUSH: Final[type] = _hiredis.PushNotification


class Wire(asyncio.Protocol):
    """Takes a connection over: redis-py reads nothing of it any more, and only closes it.

    connection: a connected `redis.asyncio.Connection`; all that was asked over it has been answered.
    replied: called with each reply.
    resumed: called when more may be written.
    """

    def __init__(self, connection: Any, replied: Callable[[Any], None], resumed: Callable[[], None]) -> None:
        self._replied = replied
        self._resumed = resumed
        # redis-py has no public way to these two.
        self._transport: asyncio.Transport = connection._writer.transport
        self._reader = _hiredis.Reader(replyError=connection._parser.parse_error, notEnoughData=self)
        self._before = self._transport.get_protocol()  # waits for the end, to close
        self.lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self.full = False
        """Whether the server takes too little to write more."""
        self.heard = 0
        """How often something has come."""
        self._transport.set_protocol(self)
        if self._transport.is_closing():
            self._end(StoreError("the connection was closed"))

    def write(self, packed: bytes) -> None:
        """Send commands."""
        self._transport.write(packed)

    def data_received(self, data: bytes) -> None:
        """Tell of the replies that are whole now."""
        self.heard += 1
        if self.lost.done():
            return
        reader, replied = self._reader, self._replied
        gets = reader.gets
        try:
            reader.feed(data)
            while (reply := gets()) is not self:
                if type(reply) is list:  # most are: what look-ups ask for
                    replied(reply)
                    continue
                if isinstance(reply, Exception) and not isinstance(reply, ResponseError):
                    raise reply  # such as LOADING, or NOAUTH: nobody is answered here
                if type(reply) is not _PUSH:
                    replied(reply)
        except Exception as error:  # noqa: BLE001 - told: whoever waits gets it
            self._end(error)

    def eof_received(self) -> bool:
        """The server has said its last word."""
        self._end(StoreError("the server closed the connection"))
        return False  # close

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._end(exc or StoreError("the connection was closed"))
        self._before.connection_lost(exc)

    def pause_writing(self) -> None:
        """The server takes less than is written."""
        self.full = True

    def resume_writing(self) -> None:
        """It has taken most of it."""
        self.full = False
        self._resumed()

    def _end(self, error: Exception) -> None:
        if not self.lost.done():
            self.lost.set_result(error)
