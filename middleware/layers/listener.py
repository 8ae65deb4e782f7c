"""Hears that a client left while its request waits for another's answer, and keeps what it said for later."""

import asyncio
from collections import deque
from collections.abc import Callable

from tidegate.middleware.layers.asgi import Message, Receive

__all__ = ["Listener"]


class Listener:
    """Reads a client's messages until it leaves or turns out to send a body.

    heard: called when one of the two has happened.

    Nothing is lost: `receive` gives everything that was read, then goes on reading.
    """

    def __init__(self, receive: Receive, heard: Callable[[], None]) -> None:
        self._receive = receive
        self._heard = heard
        self._seen: deque[Message] = deque()
        self._news = asyncio.Event()
        self.gone = False
        self.has_body = False
        self._task = asyncio.get_running_loop().create_task(self._listen(), name="tidegate-coalesce-listener")

    @property
    def done(self) -> bool:
        """Whether there is nothing more to hear."""
        return self.gone or self.has_body or self._task.done()

    async def receive(self) -> Message:
        """The client's messages from the first one on."""
        while not self._seen and not self._task.done():
            self._news.clear()
            await self._news.wait()
        if self._seen:
            return self._seen.popleft()
        self._task.result()  # raises what the server's receive raised
        return await self._receive()

    def close(self) -> None:
        """Stop listening."""
        self._task.cancel()

    async def _listen(self) -> None:
        try:
            while not self.gone and not self.has_body:
                message = await self._receive()
                self._seen.append(message)
                self._news.set()
                self.gone = message["type"] == "http.disconnect"
                self.has_body = bool(message.get("body")) or bool(message.get("more_body"))
        finally:
            self._news.set()
            self._heard()
