"""ETags for responses that have none, and 304 for clients that have the bytes already (RFC 9110 8.8.3, 13.1.2).

A strong ETag is made of the body where the body comes whole in one message. Only a response that states its
Content-Length is held for that, from its start to its first body message: a stream (SSE, a generator) states none and
passes as it comes. Inside a content coding the tag is weak, because the coding may be applied anew each time. The
application's own ETag is never touched.
"""

from collections.abc import Sequence

from tidegate.middleware.core.message import field_values, lowered, single_value
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

__all__ = ["ETagLayer"]


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
        await self.app(scope, receive, _Labelling(scope, context, send))


class _Labelling:
    """The `send` of one request."""

    def __init__(self, scope: Scope, context: RequestContext, send: Send) -> None:
        self._request: Sequence[tuple[bytes, bytes]] = scope["headers"]
        self._context = context
        self._send = send
        self._held: Message | None = None
        self._swallow = False

    async def __call__(self, message: Message) -> None:
        kind = message["type"]
        if self._swallow:
            return  # the rest of a body that the client has
        if kind == "http.response.start":
            await self._begin(message)
        elif self._held is not None:
            start, self._held = self._held, None
            if kind == "http.response.body" and not message.get("more_body", False):
                await self._label(start, message)
            else:
                await self._send(start)
                await self._send(message)
        else:
            await self._send(message)

    async def _begin(self, start: Message) -> None:
        if start["status"] != 200 or start.get("trailers", False):
            await self._send(start)
            return
        start = repeatable(start)
        headers = lowered(start.get("headers", ()))
        names = {name for name, _ in headers}
        if b"etag" not in names and b"content-length" in names:
            self._held = start
        elif is_not_modified(self._request, headers):
            await self._not_modified(start, headers)
        else:
            await self._send(start)

    async def _label(self, start: Message, body: Message) -> None:
        sent = list(start.get("headers", ()))
        headers = lowered(sent)
        content = body.get("body", b"")
        # The answer to HEAD may come without the body that its ETag would be made of.
        if b"%d" % len(content) == single_value(headers, b"content-length"):
            coded = bool(field_values(headers, b"content-encoding"))
            etag = (b"etag", make_etag(content, weak=coded))
            sent, headers = [*sent, etag], (*headers, etag)
            self._context.own_etag = True
        if is_not_modified(self._request, headers):
            await self._not_modified(start, headers)
            return
        await self._send({**start, "headers": sent})
        await self._send(body)

    async def _not_modified(self, start: Message, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self._swallow = True
        await self._send({**start, "status": 304, "headers": not_modified_headers(headers)})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
