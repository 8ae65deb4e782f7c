"""A reverse proxy as an ASGI app, and Tidegate's layers in front of it: what the public caching suite is run against.

The proxy speaks a lenient HTTP/1.1 of its own, so that nothing but the ASGI server stands between the suite's client
and origin and the layers under test. It passes a body on chunk by chunk, as it comes.

Environment: TIDEGATE_ORIGIN_PORT; TIDEGATE_AUTHORIZATION (`strict` or `rfc9111`).
"""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any, Final

from tidegate import Settings, Tidegate
from tidegate.middleware.core.message import HOP_BY_HOP

Pairs = list[tuple[bytes, bytes]]

_BODILESS: Final = frozenset({204, 304})


def layers() -> Any:
    """The layers over the proxy: everything is public, and only the responses' own fields decide (RFC mode)."""
    cache = {"share": "public", "authorization": os.environ.get("TIDEGATE_AUTHORIZATION", "strict")}
    return Tidegate(Settings.of({"cache": cache}))(Proxy(int(os.environ["TIDEGATE_ORIGIN_PORT"])))


class Proxy:
    """Hands every request to the origin on this port of the loopback."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        request = _head(scope, body := await _whole(receive))
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(request + body)
            status, headers = await _response_head(reader)
            while status < 200:
                status, headers = await _response_head(reader)
            await send({"type": "http.response.start", "status": status, "headers": _end_to_end(headers)})
            if scope["method"] != "HEAD" and status not in _BODILESS:
                async for chunk in _chunks(reader, headers):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except (OSError, EOFError) as error:
            await send({"type": "http.response.start", "status": 502, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": repr(error).encode()})
        finally:
            if writer is not None:
                writer.close()


async def _whole(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


def _head(scope: Any, body: bytes) -> bytes:
    query = scope["query_string"]
    target = scope["raw_path"] + (b"?" + query if query else b"")
    lines = [b"%s %s HTTP/1.1" % (scope["method"].encode(), target)]
    lines += [b"%s: %s" % pair for pair in _end_to_end(scope["headers"]) if pair[0] != b"content-length"]
    if body:
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join([*lines, b"connection: close", b"", b""])


def _end_to_end(headers: Pairs) -> Pairs:
    named = {
        token.strip().lower() for name, value in headers if name == b"connection" for token in value.split(b",")
    } | HOP_BY_HOP
    return [pair for pair in headers if pair[0] not in named]


async def _response_head(reader: asyncio.StreamReader) -> tuple[int, Pairs]:
    lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
    fields = (line.partition(b":") for line in lines[1:])
    return int(lines[0].split(b" ")[1]), [(name.lower(), value.strip(b" \t")) for name, _, value in fields]


async def _chunks(reader: asyncio.StreamReader, headers: Pairs) -> AsyncIterator[bytes]:
    stated = dict(headers)
    if stated.get(b"transfer-encoding", b"").lower() == b"chunked":
        while size := int((await reader.readline()).split(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readline()
    elif b"content-length" in stated:
        if left := int(stated[b"content-length"]):
            yield await reader.readexactly(left)
    else:
        while data := await reader.read(65536):
            yield data
