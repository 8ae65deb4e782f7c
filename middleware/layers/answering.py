"""Sends a stored response: whole, in part, without its body for HEAD, or as 304 if the client has it."""

from collections.abc import Sequence

from tidegate.middleware.core.ranges import Partial, partial
from tidegate.middleware.core.reuse import Reuse
from tidegate.middleware.core.validators import is_not_modified, not_modified_headers
from tidegate.middleware.layers.asgi import Scope, Send
from tidegate.middleware.stores.base import Entry

__all__ = ["gateway_timeout", "send_part", "send_stored"]

Pairs = Sequence[tuple[bytes, bytes]]


async def send_stored(
    send: Send, scope: Scope, entry: Entry, reuse: Reuse, *, note: bytes, own_etags: bool, extra: Pairs = ()
) -> None:
    """Answer a GET or HEAD from a stored response.

    note: what Cache-Status says after the cache's name. own_etags: ETags that our layer made may be sent and matched.
    extra: fields for this client only.
    """
    request = scope["headers"]
    headers = list(entry.headers)
    if entry.own_etag and not own_etags:
        headers = [pair for pair in headers if pair[0] != b"etag"]
    headers += [(b"age", b"%d" % reuse.age), (b"cache-status", b"Tidegate; " + note), *extra]
    status, body = entry.status, entry.body
    if is_not_modified(request, headers, status=status):
        status, headers, body = 304, not_modified_headers(headers), b""
    elif scope["method"] == "HEAD":
        body = b""
    elif status == 200 and any(name == b"range" for name, _ in request):
        part = partial(request, headers, body, born=entry.born)
        if part is not None:
            status, headers, body = part.status, part.headers, part.body
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_part(send: Send, answer: Partial, reuse: Reuse, *, note: bytes) -> None:
    """Answer a GET with a Range from a part that is stored. note: what Cache-Status says after the cache's name."""
    headers = [*answer.headers, (b"age", b"%d" % reuse.age), (b"cache-status", b"Tidegate; " + note)]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})


async def gateway_timeout(send: Send) -> None:
    """The answer to only-if-cached where nothing usable is stored (RFC 9111 5.2.1.7)."""
    headers = [(b"content-length", b"0"), (b"cache-status", b"Tidegate; detail=only-if-cached")]
    await send({"type": "http.response.start", "status": 504, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
