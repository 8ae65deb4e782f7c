"""A real HTTP server with a /metrics that a test sets, for what reads one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from tests.rollout.worlds import FLAG
from tidegate.vocabulary import COHORT_BUCKETS, COHORT_LABELS


class Exporter:
    """Cohort counters of one app, at `url`.

    `broken` replaces the answer: a status, a text, or an event to wait for.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._counters = {
            name: Counter(f"tidegate_cohort_{name}", name, COHORT_LABELS, registry=self.registry)
            for name in ("requests", "errors", "storable", "hits")
        }
        self._seconds = Histogram(
            "tidegate_cohort_duration_seconds", "s", COHORT_LABELS, buckets=COHORT_BUCKETS, registry=self.registry
        )
        for cohort in ("canary", "control"):
            self.count(cohort, 0)
        self.port = 0
        self.reads = 0
        self.broken: int | str | threading.Event | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/metrics"

    def count(
        self, cohort: str, requests: int, *, errors: int = 0, hits: int = 0, seconds: float = 0.01, flag: str = FLAG
    ) -> None:
        labels = (flag, "10", cohort)
        for name, number in {"requests": requests, "errors": errors, "storable": requests, "hits": hits}.items():
            self._counters[name].labels(*labels).inc(number)
        for _ in range(requests):
            self._seconds.labels(*labels).observe(seconds)
        self._seconds.labels(*labels)

    def answer(self) -> tuple[int, bytes]:
        self.reads += 1
        if isinstance(self.broken, threading.Event):
            self.broken.wait(10)
        if isinstance(self.broken, int):
            return self.broken, b"no"
        if isinstance(self.broken, str):
            return 200, self.broken.encode()
        return 200, generate_latest(self.registry)


@contextmanager
def exporting() -> Iterator[Exporter]:
    """An exporter that serves while inside."""
    exporter = Exporter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = exporter.answer()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    exporter.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield exporter
    finally:
        if isinstance(exporter.broken, threading.Event):
            exporter.broken.set()
        server.shutdown()
        thread.join()
        server.server_close()
