"""P1 on five frameworks over sockets: one uvicorn for each, the layers in the framework's own way."""

import http.client
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from websockets.sync.client import connect

from tests.frameworks.surface import EVENTS, FORM, FORM_TYPE
from tests.services import Server, free_port, wait_until
from tests.services.server import http_request

ROOT = Path(__file__).parents[2]
NAMES = ("starlette", "fastapi", "litestar", "quart", "django")
SECONDS = 30.0
"""Within this time a server answers, however loaded the machine is."""


@dataclass(frozen=True, slots=True)
class Told:
    """A response that was read to its end."""

    status: int
    cache_status: str
    body: bytes


class Served(Server):
    """One framework's app in a process of its own."""

    name: ClassVar[str] = "served"
    start_seconds: ClassVar[float] = 60.0
    stop_seconds: ClassVar[float] = 30.0

    def __init__(self, framework: str) -> None:
        super().__init__()
        self.framework = framework
        self.port = free_port()

    def command(self) -> list[str]:
        """Program and arguments."""
        app = ["tests.frameworks.served:build", "--factory", "--app-dir", str(ROOT)]
        return [sys.executable, "-m", "uvicorn", *app, "--port", str(self.port), "--no-access-log"]

    def environment(self) -> dict[str, str]:
        """Which framework."""
        return {"PYTHONUNBUFFERED": "1", "FRAMEWORK": self.framework}

    def answers(self) -> bool:
        """Whether it serves."""
        return http_request(self.port, "GET", "/control", seconds=2)[0] == 200

    def control(self, method: str = "GET") -> dict[str, Any]:
        """What the handlers have done, and what Ann sends; PUT lets background tasks go."""
        return json.loads(http_request(self.port, method, "/control", seconds=SECONDS)[1])

    @contextmanager
    def begin(
        self, path: str, method: str = "GET", body: bytes | None = None, *more: tuple[str, str]
    ) -> Iterator[http.client.HTTPResponse]:
        """A request of Ann's: its response, of which nothing but the head is read yet."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method, path, body, dict([*self.control()["ann"], *more]))
            yield connection.getresponse()
        finally:
            connection.close()

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, *more: tuple[str, str]) -> Told:
        """The same, read to its end."""
        with self.begin(path, method, body, *more) as response:
            return Told(response.status, response.headers.get("cache-status", ""), response.read())


@pytest.fixture(scope="module", params=NAMES)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    with Served(request.param) as running:
        yield running


def test_a_page_and_one_users_json_are_answered_from_the_store_the_second_time(served: Served) -> None:
    for path in ("/page", "/me"):
        first, second = served.ask(path), served.ask(path)
        assert first.cache_status == "Tidegate; fwd=miss; stored"
        assert second.cache_status.startswith("Tidegate; hit; ttl=")
        assert (second.status, second.body) == (200, first.body)
        assert served.control()["runs"][path.removeprefix("/")] == 1


def test_an_event_arrives_before_the_next_one_is_made(served: Served) -> None:
    with served.begin("/events") as stream:
        for number in range(EVENTS):
            assert served.ask("/allow", "POST", b"").status in (200, 204)
            # No other is made before it is allowed, so nothing can push this one out.
            while f"data: event {number}".encode() not in (line := stream.readline()):
                assert line, "the stream ended"
        assert not stream.read().strip()


def test_a_websocket_echoes(served: Served) -> None:
    address = f"ws://127.0.0.1:{served.port}/ws"
    with connect(address, additional_headers=served.control()["ann"], open_timeout=SECONDS) as talk:
        for text in ("tide", "ebb"):
            talk.send(text)
            assert talk.recv(SECONDS) == f"echo {text}"


def test_an_upload_arrives_whole(served: Served) -> None:
    told = served.ask("/upload", "POST", FORM, FORM_TYPE)
    assert (told.status, json.loads(told.body)) == (201, {"field": "value", "name": "a.txt", "size": 20})


def test_a_background_task_delays_no_response(served: Served) -> None:
    told = served.ask("/report")  # read to its end, and the task is waiting still
    assert (told.status, served.control()["done"]) == (200, [])
    assert served.ask("/report").cache_status.startswith("Tidegate; hit")
    served.control("PUT")
    if served.framework != "django":  # which runs nothing after a response
        wait_until(lambda: served.control()["done"] == ["report"], SECONDS, "the task is done")


def test_an_exception_is_a_500_each_time(served: Served) -> None:
    for _ in range(2):
        told = served.ask("/crash")
        assert (told.status, "stored" in told.cache_status) == (500, False)
    assert served.ask("/refused").status == 409


def test_the_layers_start_and_stop_with_the_server(served: Served) -> None:
    served.ask("/page")
    assert served.ask("/page").cache_status.startswith("Tidegate; hit")
    served.stop()
    log = served.log.read_text(encoding="utf-8")
    stages = ("layers started", "Application startup complete", "layers stopped", "Application shutdown complete")
    assert [log.count(stage) for stage in stages] == [1] * 4, log
    assert sorted(stages, key=log.index) == list(stages)
    served.start()
    assert served.ask("/page").cache_status == "Tidegate; fwd=miss; stored"  # the memory went with the process
