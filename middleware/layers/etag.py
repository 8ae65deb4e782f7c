"""ETags for responses that have none, and 304 for clients that have the bytes already (RFC 9110 8.8.3, 13.1.2).

A strong ETag is made of the body where its first message has all of it. Only a response that states its Content-Length
is held for that, from its start to its first body message: a stream (SSE, a generator) states none and passes as it
comes. Some frameworks say only in a second, empty message that a body is over; the length says so before. Inside a
content coding the tag is weak, because the coding may be applied anew each time. The application's own ETag is never
touched. An app that returns without a body has its start sent on; one that raises instead has not begun to answer.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Final

from tidegate.middleware.core.message import lowered
from tidegate.middleware.core.validators import is_not_modified, make_etag, not_modified_headers
from tidegate.middleware.layers.asgi import (
    ASGIApp,
    ContextResolver,
    Gate,
    Message,
    Receive,
    RequestContext,
    Scope,
    Send,
    always,
    repeatable,
)

__all__ = ["ETagLayer", "Labelling"]

Pairs = Sequence[tuple[bytes, bytes]]


class ETagLayer:
    """Labels GET and HEAD answers with an ETag and answers If-None-Match.

    app: the ASGI application inside.
    gate: whether the layer is open for a request; shut, it forwards everything as it is.
    resolver: shared by the layers of one stack; a layer alone makes its own.
    """

    def __init__(self, app: ASGIApp, *, gate: Gate = always, resolver: ContextResolver | None = None) -> None:
        self.app = app
        self._gate = gate
        self._resolver = resolver if resolver is not None else ContextResolver()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        context = self._resolver.of(scope)
        if not self._gate(context):
            await self.app(scope, receive, send)
            return
        labelling = Labelling(scope, context, send)
        await self.app(scope, receive, labelling)
        if labelling.holds:
            await labelling.release()


_CONDITIONS: Final = frozenset({b"if-none-match", b"if-modified-since"})
_MATTERS: Final = frozenset({b"etag", b"content-length", b"content-encoding"})


class Labelling:
    """The `send` of one request."""

    __slots__ = ("_coded", "_context", "_held", "_length", "_opened", "_opens", "_request", "_send", "_swallow")

    def __init__(self, scope: Scope, context: RequestContext, send: Send) -> None:
        self._request: Pairs = scope["headers"]
        self._context = context
        self._send = send
        self._held: Message | None = None
        self._opens = False
        """The start that was kept is to be sent, or on its way."""
        self._opened: asyncio.Event | None = None
        self._swallow = False

    def __call__(self, message: Message) -> Awaitable[None]:
        if self._opens or self._held is not None:
            self._opens = True
            if message["type"] == "http.response.body" and (
                not message.get("more_body", False) or b"%d" % len(message.get("body", b"")) == self._length
            ):
                return self._label(message)
            return self._in_turn(message)
        if self._swallow:
            return _nothing()  # the rest of a body that the client has
        if message["type"] == "http.response.start" and message["status"] == 200 and not message.get("trailers", False):
            return self._begin(message)
        return self._send(message)

    def _begin(self, start: Message) -> Awaitable[None]:
        start = repeatable(start)
        has_etag = coded = False
        lengths: list[bytes] = []
        for name, value in start.get("headers", ()):
            if not name.islower():  # Django keeps the case of names
                name = name.lower()
            if name in _MATTERS:
                if name == b"content-length":
                    lengths.append(value)
                elif name == b"etag":
                    has_etag = True
                else:
                    coded = True
        if not has_etag and lengths:
            # A length that stands there twice says nothing (RFC 9110 8.6).
            self.hold(start, lengths[0].strip(b" \t") if len(lengths) == 1 else b"", coded=coded)
            return _nothing()
        if self._is_conditional():
            headers = lowered(start.get("headers", ()))
            if self._has_it(headers):
                return self._not_modified(start, headers)
        return self._send(start)

    def hold(self, start: Message, length: bytes, *, coded: bool) -> None:
        """Keep a start until the body comes. length: of that, as stated. coded: it is inside a content coding.

        As said: an app may put the fields of another answer into the same list meanwhile.
        """
        self._held = {**start, "headers": list(start.get("headers", ()))}
        self._length, self._coded = length, coded

    async def _label(self, body: Message) -> None:
        """Send the start that was kept, with an ETag, and the body; if it was kept until now."""
        start, self._held = self._held, None
        if start is None:
            await self._in_turn(body)
            return
        self._opens = False  # until `_open`, before which nothing is awaited, and something may be raised
        sent: list[tuple[bytes, bytes]] = start["headers"]  # our own, see `hold`
        content = body.get("body", b"")
        # The answer to HEAD may come without the body that its ETag would be made of.
        if b"%d" % len(content) == self._length:
            sent.append((b"etag", make_etag(content, weak=self._coded)))
            self._context.own_etag = True
        if self._is_conditional():
            headers = lowered(sent)
            if self._has_it(headers):
                await self._not_modified(start, headers)
                return
        await self._open(start)
        await self._send(body)

    @property
    def holds(self) -> bool:
        """Whether a start is kept whose body has not come."""
        return self._held is not None

    async def release(self) -> None:
        """The app has returned without a body, and is not to be taken for one that has said nothing."""
        if self._held is not None:
            start, self._held = self._held, None
            await self._open(start)

    async def _in_turn(self, message: Message) -> None:
        """Send a message after the start that was kept; the first one sends that. What other tasks of the app send
        meanwhile waits: the app was told that the start was sent.
        """
        start, self._held = self._held, None
        if start is not None:
            await self._open(start)
        elif self._opens:
            if self._opened is None:
                self._opened = asyncio.Event()
            await self._opened.wait()
        if not self._swallow:
            await self._send(message)

    async def _open(self, start: Message) -> None:
        self._opens = True
        try:
            await self._send(start)
        finally:
            self.opened()

    def opens(self) -> None:
        """The start is on its way, on another one than this."""
        self._opens, self._length = True, b""

    def opened(self) -> None:
        """It was sent; or could not be, of which whoever waited is told as it would be without us."""
        self._opens = False
        if self._opened is not None:
            self._opened.set()

    def _is_conditional(self) -> bool:
        return not _CONDITIONS.isdisjoint([name for name, _ in self._request])

    def _has_it(self, headers: Pairs) -> bool:
        """Whether who asks has this answer already. Where the cache asks, a date alone does not tell: it is of whole
        seconds, and what is here is no older than what is stored.
        """
        if self._context.positions is not None and not any(name == b"if-none-match" for name, _ in self._request):
            return False
        return is_not_modified(self._request, headers)

    async def _not_modified(self, start: Message, headers: Pairs) -> None:
        self._swallow = True
        await self._send({**start, "status": 304, "headers": not_modified_headers(headers)})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


async def _nothing() -> None:
    """What is awaited where a message is kept."""
