"""The one of several requests that a run of the app began for, see `flight`."""

import asyncio
from collections import deque
from contextvars import Context, copy_context

from tidegate.middleware.layers.asgi import Message, Receive, Scope, Send, repeatable
from tidegate.middleware.layers.flight import Flight
from tidegate.middleware.layers.sessions import SessionUse, session_use, watch_session

__all__ = ["Leader"]


class Leader:
    """The connection that the run began for: its `receive` and `send` as the run sees them.

    watched: made before the run, so that a session which the scope has now is one from further out.

    began, left: the context variables from before the run, and as it has left them; None until it is over.

    Until the run waits for the first time nobody can join it: there is no flight then, and what the run says goes to
    the client and is noted for `take_off`.
    """

    __slots__ = (
        "_called",
        "_closed",
        "_drained",
        "_failure",
        "_outbox",
        "_receive",
        "_scope",
        "_send",
        "_sending",
        "_session",
        "_used",
        "began",
        "flight",
        "left",
        "start",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, watched: bool = True) -> None:
        self.flight: Flight | None = None
        self._scope = scope
        self._session = watch_session(scope) if watched else None
        self._used: SessionUse = "none"
        self._receive = receive
        self._send = send
        self.start: Message | None = None
        self.began = copy_context()
        self.left: Context | None = None
        self._closed = False
        self._outbox: deque[Message] = deque()
        self._called: asyncio.Future[None] | None = None
        self._drained: asyncio.Event | None = None
        self._failure: Exception | None = None
        self._sending = False

    def take_off(self, flight: Flight) -> None:
        """The run waits: from now on others may join, unless it has said too much already."""
        self.flight = flight
        if self.start is not None:
            flight.publish(self.start, self._used)
        if self._closed:
            flight.close()

    async def receive(self) -> Message:
        """The client's messages; that it left is told only when nobody follows any more."""
        if self.flight is None or not self.flight.abandoned:
            message = await self._receive()
            if message["type"] != "http.disconnect":
                if message.get("body"):
                    self._has_body()
                return message
        if self.flight is None:
            self._closed = True
        else:
            await self.flight.deserted()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Share a message with the followers, and give it to the client: at once, or in turn while others wait."""
        flight = self.flight
        is_start = message["type"] == "http.response.start"
        if is_start:
            message = repeatable(message)
            self._used = session_use(self._scope, self._session)
            self.end_session()
        if flight is None:
            if is_start and self.start is None:
                self.start = {**message, "headers": tuple(message.get("headers", ()))}  # as said: it may be changed
            else:
                self._closed = True
            await self._send(message)
            return
        flight.publish(message, self._used)
        if flight.abandoned:
            return
        if self._failure is not None:
            if not flight.shared:
                raise self._failure
        elif flight.seats and flight.refused is None:
            # The client may be slow, and its followers are not to wait for it: the buffer bounds what stands here.
            self._outbox.append(_as_said(message))
            self.call()
        else:
            await self._direct(message)

    def _has_body(self) -> None:
        """The answer is one to a body, of which the head need not tell (see `witness`)."""
        if self.flight is None:
            self._closed = True
        else:
            self.flight.close("body")

    def over(self) -> None:
        """The run is."""
        self.left = copy_context()
        self.end_session()
        if self.flight is not None:
            self.flight.finish()
        self.call()

    def said(self, start: Message, *, body: bool) -> None:
        """The run has sent this start, and some of its body, on another way."""
        self.start, self._closed = start, body

    def end_session(self) -> None:
        """The response starts, or there is none: the session says again what it said before."""
        if self._session is not None:
            self._session.end()

    async def _direct(self, message: Message) -> None:
        while (self._outbox or self._sending) and self._failure is None:
            if self._drained is None:
                self._drained = asyncio.Event()
            self._drained.clear()
            await self._drained.wait()
        if self._failure is not None:
            raise self._failure
        await self._send(message)

    def call(self) -> None:
        """Wake `attend`: there is something to send, or the run is over."""
        if self._called is not None and not self._called.done():
            self._called.set_result(None)

    async def attend(self, run: asyncio.Task[None]) -> None:
        """Send what waits, until the run is over; whoever ends it calls `call`.

        Raises:
            Exception: the run's own, or else what the client's connection raised.
        """
        while True:
            await self._send_waiting()
            if run.done() and not self._outbox:
                break
            self._called = asyncio.get_running_loop().create_future()
            await self._called
        run.result()
        if self._failure is not None:
            raise self._failure

    async def _send_waiting(self) -> None:
        while self._outbox and self._failure is None:
            self._sending = True
            try:
                await self._send(self._outbox.popleft())
            except Exception as error:  # noqa: BLE001 - the client is gone; `attend` raises it when the run is over
                self._failure = error
                self._outbox.clear()
            finally:
                self._sending = False
        if self._drained is not None:
            self._drained.set()


def _as_said(message: Message) -> Message:
    """A copy to be sent later: by then the app may have put something else into the same message, list or buffer."""
    said = {**message}
    if "headers" in said:
        said["headers"] = list(said["headers"])
    if "body" in said:
        said["body"] = bytes(said["body"])  # of bytes: the very same
    return said
