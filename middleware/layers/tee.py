"""Passes a response to the client as it comes and keeps a bounded copy beside it.

The client is never made to wait: a chunk is sent before it is copied. The copy is handed over after the last body
message, and only if it is whole: the stated length matches, nothing came that a stored response could not repeat
(trailers, a file sent by path), and the limit was not passed.
"""

from collections.abc import Awaitable, Callable, Set
from typing import Final, Protocol

from tidegate.middleware.core.message import lowered, single_value
from tidegate.middleware.core.storing import Pairs
from tidegate.middleware.core.validators import is_not_modified, not_modified_headers
from tidegate.middleware.layers.asgi import Message, Send

__all__ = ["FAILURES", "UNREACHABLE", "UNREPEATABLE", "Copy", "Keeper", "Pairs", "Tee"]

FAILURES: Final = frozenset({500, 502, 503, 504})
"""Statuses that a stale response may stand in for (RFC 5861 4); an exception is a 500."""

UNREACHABLE: Final = frozenset({502, 504})
"""Of those, the ones that say that the app could not reach what it asks (RFC 9110 15.6.3, 15.6.5)."""

UNREPEATABLE: Final = frozenset(
    {"http.response.pathsend", "http.response.zerocopysend", "http.response.trailers", "http.response.start"}
)
"""What no stored response could repeat. A second start is the server's to refuse; what comes after it belongs to no
response."""


class Copy:
    """A bounded copy of a body.

    room: bytes; of a longer one nothing is kept. stated: its Content-Length; None: there is none.
    """

    __slots__ = ("_parts", "_room", "_stated", "over")

    def __init__(self, room: int, stated: bytes | None) -> None:
        self.over = False
        """There is nothing to come any more: the body is whole, or too long."""
        self._room = room
        self._stated = stated
        self._parts: list[bytes] = []

    def take(self, chunk: bytes, more: bool) -> bytes | None:
        """Take the next part. The body, with its last one and if it is as long as it should be; else None."""
        self._room -= len(chunk)
        if self._room < 0:
            self.over = True
            self._parts.clear()
            return None
        if chunk:
            self._parts.append(bytes(chunk))  # a buffer may be filled anew for the next message
        if more:
            return None
        self.over = True
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        return body if is_whole(self._stated, body) else None


def is_whole(stated: bytes | None, body: bytes) -> bool:
    """Whether a body is as long as its Content-Length says (RFC 9111 3.3)."""
    return stated is None or stated == b"%d" % len(body)


class Keeper(Protocol):
    """Decides about a response and takes the copy."""

    def begin(self, status: int, headers: Pairs, *, trailers: bool) -> tuple[Pairs, int | None]:
        """The headers for the client, and how many bytes to keep; None: do not keep this response."""
        ...

    async def commit(self, status: int, headers: Pairs, body: bytes) -> None:
        """Take the whole response, with the headers as the client got them."""
        ...


class Tee:
    """The `send` of one request that the app answers.

    request: the client's own fields; its conditions were withheld from the app, so a 304 is made here.
    stand_in: called instead of forwarding one of the `failures`; sends another answer. None: forward failures.
    renew: called with the fields of a 304 instead of forwarding it: the app was asked about a stored response. It
        sends the answer, or else the app is asked again after `start_anew`.
    """

    def __init__(
        self,
        send: Send,
        *,
        request: Pairs,
        keeper: Keeper,
        stand_in: Callable[[], Awaitable[None]] | None = None,
        failures: Set[int] = frozenset(),
        renew: Callable[[Pairs], Awaitable[None]] | None = None,
    ) -> None:
        self.started = False
        self._failures = failures
        self._renew = renew
        self._send = send
        self._request = request
        self._keeper = keeper
        self._stand_in = stand_in
        self._copy: Copy | None = None
        self._status = 0
        self._headers: Pairs = ()
        self._silent = False

    async def __call__(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start" and not self.started:
            self.started = True
            await self._begin(message)
            return
        # Read before it is sent: compression further out writes its bytes into the same message.
        chunk, more = message.get("body", b""), message.get("more_body", False)
        if not self._silent:
            await self._send(message)
        if kind == "http.response.body":
            if self._copy is not None:
                await self._keep(self._copy, chunk, more)
        elif kind in UNREPEATABLE:
            self._copy = None

    async def failed(self) -> bool:
        """The app raised: let the stale response stand in, if it may and nothing was sent."""
        if self.started or self._stand_in is None or 500 not in self._failures:
            return False
        self.started = self._silent = True
        await self._stand_in()
        return True

    def start_anew(self) -> None:
        """Take another answer, as if there had been none."""
        self.started = self._silent = False
        self._renew = None

    async def _begin(self, message: Message) -> None:
        status: int = message["status"]
        if status in self._failures and self._stand_in is not None:
            self._silent = True
            await self._stand_in()
            return
        given = lowered(message.get("headers", ()))
        if status == 304 and self._renew is not None:
            self._silent = True
            await self._renew(given)
            return
        headers, room = self._keeper.begin(status, given, trailers=message.get("trailers", False))
        self._status, self._headers = status, headers
        if room is not None:
            self._copy = Copy(room, single_value(headers, b"content-length"))
        if is_not_modified(self._request, headers, status=status):
            self._silent = True
            await self._send({**message, "status": 304, "headers": not_modified_headers(headers), "trailers": False})
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        await self._send({**message, "headers": list(headers)})

    async def _keep(self, copy: Copy, chunk: bytes, more: bool) -> None:
        body = copy.take(chunk, more)
        if copy.over:
            self._copy = None
        if body is not None:
            await self._keeper.commit(self._status, self._headers, body)
