"""What goes wrong between Unleash and its client, each shown with the real server.

A server cannot be made to answer without a flag or without an ETag; for those a proxy before it changes the answer.

the SDK's cache folder is shared by app name
    test_unleash.test_environments_under_one_app_name_never_mix
the server is a black hole when the app starts
    test_an_app_starts_and_answers_before_a_server_that_hangs
the same, and the app is closed meanwhile
    test_unleash_faults.test_closing_while_the_start_hangs_takes_no_longer_than_close_timeout
nothing changes: 304
    test_answers_that_nothing_changed_keep_the_state_fresh
200 without any flag, after one with some
    test_an_answer_without_any_flag_is_not_believed
200 without an ETag
    test_an_answer_without_an_etag_is_not_taken_for_the_one_before
the token is revoked
    test_a_revoked_token_leaves_the_last_state_ageing_until_it_shuts
the token is wrong from the start
    test_unleash.test_a_token_that_the_server_refuses_leaves_all_shut_and_says_why
the server hangs later
    test_unleash.test_a_server_that_hangs_after_a_good_answer_leaves_the_state_in_force_and_ageing
the server is killed and comes back
    test_unleash.test_the_last_state_outlives_the_server_and_the_next_change_is_seen_when_it_is_back
a report of usage fails; the server restarts
    test_unleash_usage.test_unleash_counts_every_request
the process forks
    test_unleash.test_a_forked_child_that_starts_it_again_follows_the_server
`uvicorn --workers 2`
    test_each_of_two_uvicorn_workers_follows_the_flag
the end: threads, last report
    test_unleash.test_closing_ends_the_threads_keeps_the_state_and_reports_what_was_asked
it is started again
    test_unleash.test_it_can_be_started_again_and_begins_with_the_last_state
an outage floods the log
    test_unleash_faults.test_without_on_error_an_outage_is_at_most_one_line_a_second
"""

import asyncio
import http.client
import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.driver import Origin, User, call
from tests.e2e.stage import App
from tests.flags.following import Errors, run, until
from tests.services import Unleash, wait_until
from tests.services.postgres import Postgres
from tests.services.server import http_request
from tidegate import Settings, Tidegate
from tidegate.flags import Gates, normalized
from tidegate.flags.unleash import UnleashFlags
from tidegate.vocabulary import FLAGS

pytestmark = pytest.mark.timeout(110)

ANN = User("acme", "ann")
FLAG = FLAGS["cache"]


@pytest.fixture(scope="module")
def server(postgres: Postgres) -> Iterator[Unleash]:
    """A server of our own, so that the names of the layers' flags are free in it."""
    with Unleash(postgres) as server:
        server.admin.roll_out(FLAG, 100)
        yield server


Answer = tuple[int, dict[str, str], bytes]
"""Status, fields, body."""


class Proxy:
    """Passes everything on to Unleash, and polls of the flags through `alter`.

    statuses: those of the polls, as the client saw them.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = ""
        self.statuses: list[int] = []
        self.alter: Callable[[int, dict[str, str], bytes], Answer] = lambda *answer: answer

    def forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """Ask the server; what it answers, changed if it is a poll."""
        upstream = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        passed = {name: value for name, value in headers.items() if name.lower() not in ("host", "accept-encoding")}
        upstream.request(method, path, body, passed)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        kept = {name: value for name, value in answer.getheaders() if name.lower() in ("etag", "content-type")}
        if not path.endswith("/client/features"):
            return answer.status, kept, content
        changed = self.alter(answer.status, kept, content)
        self.statuses.append(changed[0])
        return changed


@contextmanager
def proxy_of(unleash: Unleash) -> Iterator[Proxy]:
    proxy = Proxy(unleash.port)

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, content = proxy.forward(self.command, self.path, dict(self.headers.items()), body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status != 304:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = answer

        def log_message(self, *_args: object) -> None: ...

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    proxy.url = f"http://127.0.0.1:{listening.server_port}"
    try:
        yield proxy
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


def connect(url: str, token: str, errors: Errors, **settings: Any) -> UnleashFlags:
    return UnleashFlags(url, token=token, on_error=errors, **({"poll_interval": 0.1} | settings))


def test_the_table_names_tests_that_exist() -> None:
    named = re.findall(r"^    ([\w.]+)$", str(__doc__), re.MULTILINE)
    assert len(named) == 16
    here = Path(__file__)
    for module, test in (name.rpartition(".")[::2] for name in named):
        text = here.with_name(f"{module or here.stem}.py").read_text(encoding="utf-8")
        assert f"def {test}(" in text, test


def test_an_app_starts_and_answers_before_a_server_that_hangs(server: Unleash) -> None:
    """The server takes the connection and answers nothing, until it wakes."""
    flags = {"provider": "unleash", "unleash_url": server.api_url, "unleash_token": server.development_token}
    tide = Tidegate(Settings.of({"flags": {**flags, "poll_interval": 0.2}}), registry=CollectorRegistry())
    layers, gates = tide(Origin(b"body")), tide.gates
    assert gates is not None

    async def main() -> None:
        server.suspend()
        try:
            began = time.monotonic()
            for _ in range(20):
                answer = await call(layers, user=ANN)
                assert (answer.status, answer.body, answer.header("cache-status")) == (200, b"body", None)
            assert time.monotonic() - began < 3  # the request's time limit is 5 s: nobody waited for one
            assert not gates.health().ready
        finally:
            server.resume()
        await until(lambda: gates.reach("cache") == "everybody", 20, "the server wakes")
        assert (await call(layers, user=ANN)).header("cache-status") is not None
        await tide.aclose()

    asyncio.run(main())


def test_answers_that_nothing_changed_keep_the_state_fresh(server: Unleash) -> None:
    flag, errors = server.admin.fresh_name(), Errors()
    server.admin.roll_out(flag, 50)
    with proxy_of(server) as proxy:
        flags = connect(proxy.url, server.development_token, errors)
        gates = Gates(flags, flags={"cache": flag}, max_staleness=30)

        async def check() -> None:
            await until(lambda: gates.reach("cache") == "some", 20, "the flag is known")
            await until(lambda: proxy.statuses[-10:] == [304] * 10, 30, "ten polls that bring nothing new")
            assert flags.version == proxy.statuses.count(200)  # what was decided stays remembered
            await until(lambda: flags.health().staleness < 1, 20, "a fresh state")
            assert (flags.health().detail, errors.seen) == ("", [])

        run(flags, check)


def test_an_answer_without_any_flag_is_not_believed(server: Unleash) -> None:
    flag, errors = server.admin.fresh_name(), Errors()
    server.admin.roll_out(flag, 100)

    def emptied(status: int, headers: dict[str, str], body: bytes) -> Answer:
        return 200, {**headers, "ETag": '"empty"'}, json.dumps({"version": 2, "features": []}).encode()

    with proxy_of(server) as proxy:
        flags = connect(proxy.url, server.development_token, errors)
        gates = Gates(flags, flags={"cache": flag})

        async def check() -> None:
            await until(lambda: gates.reach("cache") == "everybody", 20, "the flag opens")
            honest, proxy.alter = proxy.alter, emptied
            await until(lambda: len(errors.seen) >= 3, 20, "the answer is refused, and again")
            assert all("an answer without any flag" in error for error in errors.seen)
            assert "an answer without any flag" in flags.health().detail
            assert gates.decide_for("acme").open == {"cache"}
            await until(lambda: flags.health().staleness > 0.5, 20, "the state ages")
            proxy.alter = honest
            await asyncio.to_thread(server.admin.turn_off, flag)
            await until(lambda: gates.reach("cache") == "nobody", 20, "the next honest answer is in force")
            await until(lambda: flags.health().detail == "", 20, "all is well")

        run(flags, check)


def test_an_answer_without_an_etag_is_not_taken_for_the_one_before(server: Unleash) -> None:
    """The client asks by the ETag of the state that it has, or by none: never by that of the state before."""
    flag, errors = server.admin.fresh_name(), Errors()
    server.admin.roll_out(flag, 100)

    def without(status: int, headers: dict[str, str], body: bytes) -> Answer:
        return status, {name: value for name, value in headers.items() if name.lower() != "etag"}, body

    with proxy_of(server) as proxy:
        flags = connect(proxy.url, server.development_token, errors)
        gates = Gates(flags, flags={"cache": flag})

        async def check() -> None:
            await until(lambda: gates.reach("cache") == "everybody", 20, "the flag opens")
            await until(lambda: proxy.statuses[-1] == 304, 20, "it is asked for by its ETag")
            proxy.alter = without
            await asyncio.to_thread(server.admin.turn_off, flag)
            await until(lambda: gates.reach("cache") == "nobody", 20, "the flag shuts")
            seen = len(proxy.statuses)
            await until(lambda: len(proxy.statuses) >= seen + 5, 20, "more polls")
            assert set(proxy.statuses[seen + 1 :]) == {200}
            assert gates.decide_for("acme").open == frozenset()
            await asyncio.to_thread(server.admin.turn_on, flag)
            await until(lambda: gates.reach("cache") == "everybody", 20, "the flag opens again")

        run(flags, check)
    assert errors.seen == []


def test_a_revoked_token_leaves_the_last_state_ageing_until_it_shuts(server: Unleash) -> None:
    partly, fully, errors = server.admin.fresh_name(), server.admin.fresh_name(), Errors()
    server.admin.roll_out(partly, 50)
    server.admin.roll_out(fully, 100)
    token = {"tokenName": "revoked", "type": "client", "environment": "development", "projects": ["default"]}
    secret = str(server.admin.request("POST", "/api/admin/api-tokens", token)["secret"])
    flags = connect(server.url, secret, errors)
    gates = Gates(flags, flags={"cache": partly, "etag": fully}, max_staleness=1.0)
    inside = next(name for name in map(str, range(100)) if normalized(partly, name) <= 50)

    async def check() -> None:
        await until(lambda: gates.decide_for(inside).open == {"cache", "etag"}, 20, "both flags open")
        await asyncio.to_thread(server.admin.request, "DELETE", f"/api/admin/api-tokens/{secret}")
        await asyncio.to_thread(server.restart)  # else it takes the token for another minute
        await until(lambda: "unexpected HTTP status code: 401" in flags.health().detail, 30, "the token is refused")
        await until(lambda: gates.decide_for(inside).open == {"etag"}, 30, "the partly open flag shuts")
        assert gates.reach("cache") == "nobody"
        assert flags.health().ready
        assert not any(secret in error for error in errors.seen)

    run(flags, check)


def test_each_of_two_uvicorn_workers_follows_the_flag(server: Unleash) -> None:
    (strategy,) = server.admin.strategies(FLAG)
    settings = {
        "TIDEGATE_FLAGS_PROVIDER": "unleash",
        "TIDEGATE_FLAGS_UNLEASH_URL": server.api_url,
        "TIDEGATE_FLAGS_UNLEASH_TOKEN": server.development_token,
        "TIDEGATE_FLAGS_POLL_INTERVAL": "0.2",
    }

    def gates_of_workers(app: App) -> dict[str, bool]:
        """Which worker had its cache gate open."""
        found: dict[str, bool] = {}
        for pid in app.worker_pids():
            with app.only(pid):
                _, _, headers = http_request(app.port, "GET", "/clients", headers={"x-tenant": "acme", "x-user": "ann"})
            found[headers["x-worker"]] = "cache-status" in headers
        return found

    with App(settings, workers=2) as app:
        workers: set[str] = set()

        def all_are(is_open: bool) -> Callable[[], bool]:
            def hold() -> bool:
                found = gates_of_workers(app)
                workers.update(found)
                return len(found) == 2 and set(found.values()) == {is_open}

            return hold

        wait_until(all_are(True), 40, "both workers open the layer")
        server.admin.turn_off(FLAG)
        wait_until(all_are(False), 40, "both workers shut it")
        server.admin.turn_on(FLAG)
        server.admin.set_percentage(FLAG, str(strategy["id"]), 0)
        wait_until(all_are(False), 40, "nobody is in")
        server.admin.set_percentage(FLAG, str(strategy["id"]), 100)
        wait_until(all_are(True), 40, "both workers open it again")
        assert len(workers) == 2
