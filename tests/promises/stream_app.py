"""The application of `test_p1_memory.py`, under uvicorn: streams of any length, through the layers and beside them.

`/stored` may be stored as far as its length goes, `/sized` states its length, `/other` forbids to store; `?N` is the
length in mebibytes. `/bare` is the same without layers. PUT `/memory` begins a measurement, GET shows it.
"""

import json
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from tidegate import RoutePolicy, Tidegate

__all__ = ["PIECE", "POLICIES", "build"]

PIECE = 64 * 1024
POLICIES = [RoutePolicy(route=route, ttl=600, share="public") for route in ("/stored", "/sized", "/other")]
HEADERS = {"/other": [(b"cache-control", b"no-store")]}


async def _stream(scope: Any, receive: Any, send: Any) -> None:
    pieces = int(scope["query_string"]) * 1024 * 1024 // PIECE
    headers = list(HEADERS.get(scope["path"], []))
    if scope["path"] == "/sized":
        headers.append((b"content-length", b"%d" % (pieces * PIECE)))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for number in range(pieces):
        # Each piece is new, as from a file: whoever keeps it keeps 64 KiB.
        await send({"type": "http.response.body", "body": bytes([number % 256]) * PIECE, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _memory() -> dict[str, int]:
    """Bytes of this process in memory, now and at the highest since the measurement began (proc(5))."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return {name: int(fields[field].split()[0]) * 1024 for name, field in (("now", "VmRSS"), ("peak", "VmHWM"))}


def _begin() -> None:
    """From here on the peak is counted anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


async def _measure(scope: Any, receive: Any, send: Any) -> None:
    if scope["method"] == "PUT":
        _begin()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(_memory()).encode()})


def build() -> Any:
    """The application."""
    layers = Tidegate(policies=POLICIES, registry=CollectorRegistry())(_stream)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError  # uvicorn goes on without
        beside = {"/memory": _measure, "/healthz": _measure, "/bare": _stream}
        await beside.get(scope["path"], layers)(scope, receive, send)

    return app
