"""Asks the app for what a stored part lacks, and makes one whole answer of both (RFC 9111 3.4, RFC 9110 15.3.7.3).

The client asked for the whole and gets a 200: what is stored goes out as soon as the app's answer begins, the rest as
it comes, and where the part is the end of the whole, it follows. If-Range says of which version the part is. An app
that has another by now answers with that one in full, which passes as it is; one that answers with some other part
than was asked for is asked for the whole after all.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from tidegate.middleware.core.message import lowered
from tidegate.middleware.core.parts import Lack, completes, whole_headers
from tidegate.middleware.core.updating import without_conditions
from tidegate.middleware.layers.asgi import ASGIApp, Message, Receive, Scope, Send
from tidegate.middleware.layers.witness import show_scope
from tidegate.middleware.stores.base import Entry

__all__ = ["UNREPEATABLE", "completing", "no_body"]

UNREPEATABLE: Final = frozenset({"http.response.pathsend", "http.response.zerocopysend", "http.response.trailers"})
"""ASGI extensions by which an app sends what cannot be stored, nor joined to anything."""


def completing(
    app: ASGIApp, part: Entry, lack: Lack, *, joined: Callable[[], None], refused: Callable[[], Awaitable[None]]
) -> ASGIApp:
    """The app, asked for what the part lacks. joined, refused: called when its answer fits, or does not, before it is
    asked again.
    """

    async def asking(scope: Scope, receive: Receive, send: Send) -> None:
        wanted = [(b"range", lack.asked), (b"if-range", lack.etag)]
        offered: Mapping[str, Any] = scope.get("extensions") or {}
        extensions = {name: offered[name] for name in offered.keys() - UNREPEATABLE}
        joining = _Joining(send, part, lack, joined)
        headers = [*without_conditions(scope["headers"]), *wanted]
        given = {**scope, "headers": headers, "extensions": extensions}
        await app(given, receive, joining)
        if not joining.refused:
            show_scope(given, scope)
        else:
            await refused()
            await app(scope, no_body(receive), send)

    return asking


class _Joining:
    """The `send` of the app."""

    def __init__(self, send: Send, part: Entry, lack: Lack, joined: Callable[[], None]) -> None:
        self._send = send
        self._part = part
        self._lack = lack
        self._joined = joined
        self._started = False
        self._after = b""
        self.refused = False

    async def __call__(self, message: Message) -> None:
        kind = message["type"]
        if self.refused:
            return  # of an answer that fits nothing
        if kind == "http.response.start" and not self._started:
            self._started = True
            await self._start(message)
        elif self._after and kind == "http.response.body" and not message.get("more_body", False):
            after, self._after = self._after, b""
            await self._send({**message, "more_body": True})
            await self._send({"type": "http.response.body", "body": after, "more_body": False})
        else:
            await self._send(message)

    async def _start(self, message: Message) -> None:
        if message["status"] not in (206, 416):
            await self._send(message)
            return
        headers = lowered(message.get("headers", ()))
        if message["status"] == 416 or not completes(self._part.headers, self._lack, headers):
            self.refused = True
            return
        self._joined()
        whole = list(whole_headers(headers, self._lack.place.total))
        await self._send({**message, "status": 200, "headers": whole})
        if self._lack.place.first:
            await self._send({"type": "http.response.body", "body": self._part.body, "more_body": True})
        else:
            self._after = self._part.body


def no_body(receive: Receive) -> Receive:
    """A `receive` that has an empty body first: of a request that was read already, or of one that nobody sent."""
    given = False

    async def empty_then() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": b"", "more_body": False}
        return await receive()

    return empty_then
