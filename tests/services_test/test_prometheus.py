"""Prometheus as the suite starts it, scraping a small HTTP server of our own."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.services import AlertReceiver, Prometheus, Sample, ServiceError, wait_until


class App(ThreadingHTTPServer):
    """Serves one gauge and takes alerts."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), AppHandler)
        self.depth = 1
        self.alerts: list[tuple[str, str | None, list[dict[str, dict[str, str]]]]] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class AppHandler(BaseHTTPRequestHandler):
    server: App

    def do_GET(self) -> None:
        body = f"# TYPE tide_depth gauge\ntide_depth {self.server.depth}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.alerts.append((self.path, self.headers["Authorization"], body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def app() -> Iterator[App]:
    with App() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_it_scrapes_records_alerts_and_survives_restart_and_kill(
    app: App, prometheus: Callable[..., Prometheus]
) -> None:
    rules = [
        {
            "name": "tide",
            "rules": [
                {"record": "tide_depth:doubled", "expr": "tide_depth * 2"},
                {"alert": "TooDeep", "expr": "tide_depth > 5", "labels": {"flag": "tidegate.cache"}},
            ],
        }
    ]
    server = prometheus(
        targets=[app.address],
        rules=rules,
        alert_receivers=[AlertReceiver(address=app.address, prefix="/hook", token="secret")],
        labels={"sea": "north"},
    )
    assert server.version().startswith("2.")
    assert server.query("tide_depth") == []
    (sample,) = server.wait_for_sample("tide_depth:doubled")
    assert sample == Sample(
        labels={"__name__": "tide_depth:doubled", "instance": app.address, "job": "app", "sea": "north"}, value=2.0
    )
    app.depth = 7
    wait_until(lambda: app.alerts, 10, "the alert arrives")
    path, token, alerts = app.alerts[0]
    assert (path, token) == ("/hook/api/v2/alerts", "Bearer secret")
    assert alerts[0]["labels"]["flag"] == "tidegate.cache"

    url = server.url
    server.restart()
    assert server.query("last_over_time(tide_depth[5m])") != [], "what it had scraped is still there"
    server.kill()
    with pytest.raises(OSError, match="refused"):
        server.query("tide_depth")
    server.start()
    assert server.url == url
    assert server.query("last_over_time(tide_depth[5m])") != []


def test_waiting_for_a_sample_that_does_not_come_names_the_targets(prometheus: Callable[..., Prometheus]) -> None:
    server = prometheus(targets=["127.0.0.1:1"])
    with pytest.raises(ServiceError, match=r"no_such_metric: not within 0\.1 s; targets: "):
        server.wait_for_sample("no_such_metric", 0.1)


def test_a_refused_query_is_an_error_and_not_an_empty_answer(prometheus: Callable[..., Prometheus]) -> None:
    server = prometheus(targets=[])
    with pytest.raises(ServiceError, match=r"400.*parse error"):
        server.query("rate(")
