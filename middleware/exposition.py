"""What operators read, as ASGI apps: the metrics, and the report of shadow mode.

`/metrics` has everything that Tidegate and prometheus_client count in this process or its workers. With
`PROMETHEUS_MULTIPROC_DIR` set, prometheus_client's own metrics are summed over workers as well; the cohort counters
always are, where they have a folder.
"""

import asyncio
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector

from tidegate.middleware.cohorts import CohortCounters
from tidegate.middleware.layers.asgi import Receive, Scope, Send
from tidegate.middleware.layers.shadow_notes import ShadowNotes

__all__ = ["MetricsApp", "ShadowApp"]


class MetricsApp:
    """Answers GET with the text format; mount it where only Prometheus and the controller can reach it.

    registry: what to expose.
    cohorts: the cohort counters, if they are not on that registry.
    """

    def __init__(self, registry: CollectorRegistry, *, cohorts: CohortCounters | None = None) -> None:
        self._cohorts = cohorts
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            self._registry = CollectorRegistry()
            _Workers(self._registry)  # type: ignore[no-untyped-call]
        else:
            self._registry = registry

    def render(self) -> bytes:
        """The exposition in the text format, version 0.0.4. Reads files; call it off the event loop."""
        text = generate_latest(self._registry)
        if self._cohorts is not None:
            own = CollectorRegistry()
            own.register(self._cohorts)
            text += generate_latest(own)
        return text

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _refuse_unless_http(scope, "/metrics")
        method = scope["method"]
        status, body = (200, await asyncio.to_thread(self.render)) if method in ("GET", "HEAD") else (405, b"")
        await _answer(method, send, status, CONTENT_TYPE_PLAIN_0_0_4.encode(), body)


class _Workers(MultiProcessCollector):
    """prometheus_client's sum over workers, without what a worker that is just starting has made but not yet filled:
    it would raise struct.error over such a file, so that /metrics failed whenever a worker started.
    """

    def collect(self) -> Iterable[Metric]:
        theirs: Any = self  # its types are unknown
        files = [str(file) for file in Path(theirs._path).glob("*.db") if _has_bytes(file)]
        return cast(Iterable[Metric], theirs.merge(files, accumulate=True))


def _has_bytes(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:  # of a worker that has gone
        return False


class ShadowApp:
    """Answers GET with the report of shadow mode in this process, as JSON.

    It shows paths and response fields of whoever asked: mount it where only operators can reach it.
    """

    def __init__(self, notes: ShadowNotes) -> None:
        self._notes = notes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _refuse_unless_http(scope, "The report of shadow mode")
        method = scope["method"]
        status, body = 405, b""
        if method in ("GET", "HEAD"):
            await self._notes.look(most=100)
            status, body = 200, json.dumps(self._notes.report(), indent=1).encode()
        await _answer(method, send, status, b"application/json", body)


def _refuse_unless_http(scope: Scope, what: str) -> None:
    if scope["type"] != "http":
        raise RuntimeError(f"{what} answers HTTP only, not {scope['type']}")


async def _answer(method: str, send: Send, status: int, kind: bytes, body: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})
