"""ETags for responses that have none, and 304 for clients that have the bytes already (RFC 9110 8.8.3, 13.1.2).

A strong ETag is made of the body where the body comes in one message: then nothing is held that could have left earlier.
A streamed response passes as it comes and gets none. Inside a content coding the tag is weak, because the coding may be
applied anew each time. The application's own ETag is never touched.
"""

from collections.abc import Sequence

from tidegate.middleware.core.message import field_values
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
    """The `send` of one request: holds the start message until the first body message tells what comes."""

    def __init__(self, scope: Scope, context: RequestContext, send: Send) -> None:
        self._request: Sequence[tuple[bytes, bytes]] = scope["headers"]
        self._head = scope["method"] == "HEAD"
        self._context = context
        self._send = send
        self._start: Message | None = None
        self._swallow = False

    async def __call__(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start" and _may_label(message):
            self._start = message
        elif self._start is not None:
            start, self._start = self._start, None
            if kind == "http.response.body":
                await self._answer(start, message)
            else:
                await self._send(start)
                await self._send(message)
        elif not self._swallow:
            await self._send(message)

    async def _answer(self, start: Message, body: Message) -> None:
        headers = list(start.get("headers", ()))
        whole = not body.get("more_body", False)
        if whole and not self._head and not field_values(headers, b"etag"):
            coded = bool(field_values(headers, b"content-encoding"))
            headers.append((b"etag", make_etag(body.get("body", b""), weak=coded)))
            self._context.own_etag = True
            start = {**start, "headers": headers}
        if is_not_modified(self._request, headers, status=start["status"]):
            # What follows would be the rest of a body that the client has.
            self._swallow = not whole
            await self._send({**start, "status": 304, "headers": not_modified_headers(headers)})
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        await self._send(start)
        await self._send(body)


def _may_label(start: Message) -> bool:
    """Only a whole 200 is labelled; trailers would come after what the tag was made of."""
    return start["status"] == 200 and not start.get("trailers", False)
