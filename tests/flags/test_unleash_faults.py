"""The Unleash provider before servers that hang, refuse, or answer what cannot be meant."""

import asyncio
import http.server
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.flags.following import ACME, Errors, run, threads_of, until
from tests.services import wait_until
from tidegate.errors import ConfigError
from tidegate.flags import Gates
from tidegate.flags.unleash import UnleashFlags

pytestmark = pytest.mark.timeout(90)


class Stub:
    """An HTTP server that answers the feature poll with whatever a test puts in `answer`."""

    def __init__(self) -> None:
        self.answer: tuple[int, bytes, str] = (500, b"", "")
        self.registration = 202
        self.polls = 0
        self.conditions: list[str | None] = []


@contextmanager
def stub_server() -> Iterator[tuple[str, Stub]]:
    stub = Stub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(stub.registration)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            stub.polls += 1
            condition = self.headers["If-None-Match"]
            stub.conditions.append(condition)
            status, body, etag = stub.answer
            if etag and condition == etag:
                status, body = 304, b""
            self.send_response(status)
            if etag:
                self.send_header("ETag", etag)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def features(*names: str, rollout: str = "100") -> bytes:
    strategy = {"name": "flexibleRollout", "parameters": {"rollout": rollout, "stickiness": "tenantId", "groupId": "g"}}
    found = [{"name": name, "type": "release", "enabled": True, "strategies": [strategy]} for name in names]
    return json.dumps({"version": 2, "features": found}).encode()


def test_start_returns_at_once_from_a_black_hole_and_all_is_shut(caplog: pytest.LogCaptureFixture) -> None:
    errors = Errors()
    with socket.create_server(("127.0.0.1", 0)) as hole:
        flags = UnleashFlags(
            f"http://127.0.0.1:{hole.getsockname()[1]}",
            token="t",
            request_timeout=0.5,
            close_timeout=1,
            on_error=errors,
        )
        gates = Gates(flags)

        async def main() -> None:
            began = time.monotonic()
            await flags.start()
            assert time.monotonic() - began < 0.45, "it waited for an answer"
            assert gates.decide_for("acme").open == frozenset()
            assert flags.health().detail.startswith("no answer from")
            await until(lambda: len(errors.seen) >= 2, 10, "registration and first poll fail")
            assert all("timed out" in error for error in errors.seen)
            assert gates.decide_for("acme").open == frozenset()
            assert not flags.health().ready
            await flags.aclose()

        asyncio.run(main())
    assert caplog.records == []


def test_closing_while_the_start_hangs_takes_no_longer_than_close_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as hole:
        flags = UnleashFlags(
            f"http://127.0.0.1:{hole.getsockname()[1]}",
            token="t",
            request_timeout=2,
            close_timeout=0.2,
            on_error=Errors(),
        )

        async def main() -> float:
            await flags.start()
            began = time.monotonic()
            await flags.aclose()
            return time.monotonic() - began

        assert asyncio.run(main()) < 1.8, "it waited for the request's end"
        wait_until(lambda: not threads_of(flags), 10, "the threads end when the requests have timed out")


def test_other_unleash_clients_of_the_process_keep_their_log(caplog: pytest.LogCaptureFixture) -> None:
    with stub_server() as (url, stub):
        stub.answer = (503, b"", "")
        flags = UnleashFlags(url, token="t", poll_interval=0.05, on_error=Errors())

        async def check() -> None:
            await until(lambda: stub.polls > 3, 10, "some polls")
            logging.getLogger("UnleashClient").warning("somebody else's")

        run(flags, check)
    assert [record.getMessage() for record in caplog.records if record.name == "UnleashClient"] == ["somebody else's"]


def test_without_on_error_an_outage_is_at_most_one_line_a_second(caplog: pytest.LogCaptureFixture) -> None:
    with stub_server() as (url, stub):
        stub.answer = (503, b"", "")
        flags = UnleashFlags(url, token="t", poll_interval=0.05)

        async def check() -> None:
            await until(lambda: stub.polls >= 30, 20, "thirty polls")

        began = time.monotonic()
        run(flags, check)
        seconds = time.monotonic() - began
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith(f"flags.unleash: FlagError: {url}/api: ")
    assert "unexpected HTTP status code: 503" in lines[0]
    assert len(lines) <= seconds + 1


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (features(), "an answer without any flag, after one with 1"),
        (b"<html>a proxy's own page</html>", "an answer that is no list of flags"),
        (b'{"version": 2}', "an answer that is no list of flags"),
        (b'{"features": [{"name": "f"}]}', "an answer that is no list of flags"),
    ],
)
def test_an_answer_that_cannot_be_meant_is_refused_and_the_last_state_kept(body: bytes, why: str) -> None:
    errors = Errors()
    with stub_server() as (url, stub):
        stub.answer = (200, features("f"), '"1"')
        flags = UnleashFlags(url, token="t", poll_interval=0.05, on_error=errors)

        async def check() -> None:
            await until(lambda: flags.is_enabled("f", ACME), 10, "the flag opens")
            stub.answer = (200, body, '"2"')
            await until(lambda: len(errors.seen) >= 3, 10, "the answer is refused, and again")
            assert all(why in error for error in errors.seen)
            assert why in flags.health().detail
            assert (flags.is_enabled("f", ACME), flags.version) == (True, 1)
            assert '"2"' not in stub.conditions  # what was refused is asked for again, not taken for known
            age = flags.health().staleness
            await until(lambda: flags.health().staleness > age + 0.2, 5, "the state ages")
            stub.answer = (200, features("f", rollout="0"), '"3"')
            await until(lambda: not flags.is_enabled("f", ACME), 10, "the next good answer is in force")
            await until(lambda: flags.health().detail == "", 5, "all is well")

        run(flags, check)


def test_an_answer_without_an_etag_is_not_confused_with_the_one_before() -> None:
    with stub_server() as (url, stub):
        stub.answer = (200, features("f"), '"1"')
        flags = UnleashFlags(url, token="t", poll_interval=0.05, on_error=Errors())

        async def check() -> None:
            await until(lambda: flags.is_enabled("f", ACME), 10, "the flag opens")
            stub.answer = (200, features("f", rollout="0"), "")
            await until(lambda: not flags.is_enabled("f", ACME), 10, "the flag shuts")
            stub.answer = (200, features("f"), '"1"')
            await until(lambda: flags.is_enabled("f", ACME), 10, "the flag opens again")

        run(flags, check)


def test_a_registration_that_fails_is_told_and_does_not_make_the_flags_stale() -> None:
    errors = Errors()
    with stub_server() as (url, stub):
        stub.registration = 500
        stub.answer = (200, features("f"), '"1"')
        flags = UnleashFlags(url, token="t", poll_interval=60, on_error=errors)

        async def check() -> None:
            await until(lambda: flags.version, 10, "the first answer")
            await until(lambda: flags.health().staleness < 10, 1, "it counts")
            assert flags.health().detail == ""

        run(flags, check)
    assert any("registration failed due to unexpected HTTP status code: 500" in error for error in errors.seen)


def gradual(rollout: str, **more: Any) -> dict[str, Any]:
    return {"name": "flexibleRollout", "parameters": {"rollout": rollout}, **more}


@pytest.mark.parametrize(
    ("strategies", "expected"),
    [
        ([], "everybody"),
        ([{"name": "default"}], "everybody"),
        ([{"name": "default", "constraints": [{"contextName": "region"}]}], "some"),
        ([gradual("100")], "everybody"),
        ([gradual("100", segments=[3])], "some"),
        ([gradual("10")], "some"),
        ([gradual("0")], "nobody"),
        ([gradual("0"), gradual("0", segments=[3])], "nobody"),
        ([gradual("0"), gradual("1")], "some"),
        ([gradual("10"), {"name": "default"}], "everybody"),
        ([{"name": "remoteAddress", "parameters": {"IPs": "::1"}}], "some"),
        ([{"name": "userWithId", "parameters": None}], "some"),
    ],
)
def test_the_reach_of_a_flag_is_what_its_strategies_tell(strategies: list[Any], expected: str) -> None:
    with stub_server() as (url, stub):
        flag = {"name": "f", "type": "release", "enabled": True, "strategies": strategies}
        off = {**flag, "name": "off", "enabled": False}
        child = {**flag, "name": "child", "dependencies": [{"feature": "f"}]}
        stub.answer = (200, json.dumps({"version": 2, "features": [flag, off, child]}).encode(), '"1"')
        flags = UnleashFlags(url, token="t", on_error=Errors())

        async def check() -> None:
            assert flags.reach("f") == "nobody"
            await until(lambda: flags.version, 10, "the first answer")
            assert flags.reach("f") == expected
            assert flags.reach("off") == "nobody"
            assert flags.reach("unknown") == "nobody"
            assert flags.reach("child") == ("nobody" if expected == "nobody" else "some")

        run(flags, check)


@pytest.mark.parametrize(
    ("parent", "wanted", "expected"),
    [
        ({"enabled": True}, {}, "some"),
        ({"enabled": False}, {}, "nobody"),
        ({"enabled": False}, {"enabled": True}, "nobody"),
        ({"enabled": False}, {"enabled": False}, "some"),
        ({"enabled": True, "strategies": [gradual("0")]}, {"variants": ["blue"]}, "nobody"),
        ({"name": "another"}, {}, "nobody"),
    ],
)
def test_a_flag_admits_nobody_while_a_flag_that_it_needs_does_not(
    parent: dict[str, Any], wanted: dict[str, Any], expected: str
) -> None:
    with stub_server() as (url, stub):
        everybody = {"type": "release", "enabled": True, "strategies": [{"name": "default"}]}
        child = {**everybody, "name": "child", "dependencies": [{"feature": "parent", **wanted}]}
        body = {"version": 2, "features": [{**everybody, "name": "parent", **parent}, child]}
        stub.answer = (200, json.dumps(body).encode(), '"1"')
        flags = UnleashFlags(url, token="t", on_error=Errors())

        async def check() -> None:
            await until(lambda: flags.version, 10, "the first answer")
            assert flags.reach("child") == expected
            assert flags.is_enabled("child", ACME) is (expected == "some")  # as the engine sees it

        run(flags, check)


def test_every_argument_that_cannot_be_used_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        UnleashFlags(
            "unleash:4242", token="sécret", app_name="", poll_interval=0, request_timeout=-1, metrics_interval=0
        )
    assert [problem.path for problem in caught.value.problems] == [
        "url",
        "token",
        "app_name",
        "poll_interval",
        "request_timeout",
        "metrics_interval",
    ]
    assert "sécret" not in str(caught.value)
