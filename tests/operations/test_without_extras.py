"""`pip install tidegate` and no extra: what works with a flag file, and what is said of what does not."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.services import free_port
from tidegate.operations.asking import Unanswered, ask

EXTRAS = ("redis", "hiredis", "msgpack", "cryptography", "UnleashClient", "yggdrasil_engine", "requests", "httpx2",
          "yaml", "rich", "uvicorn", "openfeature", "opentelemetry")  # fmt: skip
SCRIPT = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS!r})); from tidegate.cli import main; sys.exit(main())"
ACME = ("--only", "tenantId=acme")


class Bare:
    """The command in a folder, as the base install has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tidegate.toml").write_text('[flags]\nprovider = "local"\n')

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *arguments], cwd=self.folder, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        return done


@pytest.fixture
def bare(tmp_path: Path) -> Bare:
    return Bare(tmp_path)


@contextmanager
def server(status: int, headers: dict[str, str], body: bytes) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that answers every GET so; and the fields of what it was asked."""
    asked: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_address[1]}", asked
    finally:
        listening.shutdown()
        listening.server_close()


def test_a_flag_file_is_made_opened_killed_and_lifted(bare: Bare) -> None:
    for arguments, says in (
        (("flags", "init", "tidegate.cache"), "made the flag tidegate.cache"),
        (("flags", "open", "tidegate.cache", *ACME), "is open for tenantId acme only"),
        (("flags", "status", "tidegate.cache"), "where tenantId IN acme"),
        (("kill", "tidegate.cache"), "shut in every worker within 3 s"),
        (("lift", "tidegate.cache"), "its layer stays shut"),
        (("flags", "shut", "tidegate.cache"), "is off"),
    ):
        done = bare.run(*arguments)
        assert (done.returncode, says in done.stdout) == (0, True), done
    assert json.loads((bare.folder / "flags.json").read_text())["flags"]["tidegate.cache"]["enabled"] is False


def test_the_doctor_fails_nothing_of_a_flag_file(bare: Bare) -> None:
    assert bare.run("flags", "init").returncode == 0
    metrics = b'tidegate_cohort_requests_total{flag="tidegate.cache"} 0\n'
    with server(200, {"content-type": "text/plain"}, metrics) as (url, _):
        settings = bare.folder / "tidegate.toml"
        settings.write_text(f'{settings.read_text()}[rollout]\nmetrics_urls = ["{url}/metrics"]\n')
        done = bare.run("doctor")
    assert (done.returncode, "FAIL" in done.stdout) == (0, False), done.stdout
    assert f"{url}/metrics answers" in done.stdout


def test_a_running_server_is_explained(bare: Bare) -> None:
    with server(200, {"cache-status": "Tidegate; hit; ttl=9"}, b"x" * 100_000) as (url, asked):
        done = bare.run("cache", "explain", "GET", f"{url}/a%20b?c=1", "-H", "x-tenant: acme")
    assert (done.returncode, "GET answered 200" in done.stdout) == (0, True), done
    assert "answered from the store" in done.stdout
    assert asked[0]["x-tenant"] == "acme"


def test_kill_in_unleash_writes_its_record_and_says_what_the_rest_takes(bare: Bare) -> None:
    """An application's image has the extra `unleash`, not what the Admin API takes."""
    (bare.folder / "tidegate.toml").write_text(
        f'[flags]\nprovider = "unleash"\nunleash_url = "http://127.0.0.1:{free_port()}/api"\nstops = "stops.json"\n'
        '[rollout]\nadmin_token = "x"\n'
    )
    done = bare.run("kill", "tidegate.cache")
    assert (done.returncode, "is stopped until it is lifted" in done.stdout) == (0, True), done
    assert "was not turned off: httpx2 is not installed: pip install 'tidegate[rollout]'" in done.stderr
    done = bare.run("lift", "tidegate.cache")
    assert (done.returncode, "pip install 'tidegate[rollout]'" in done.stderr) == (0, True), done


def test_a_question_follows_no_redirect_keeps_what_it_may_and_opens_no_file() -> None:
    with server(302, {"location": "/elsewhere"}, b"moved") as (url, asked):
        answer = ask("GET", f"{url}/", headers=[(b"cookie", b"a=1"), (b"cookie", b"b=2")], limit=3)
    assert (answer.status, answer.header("location"), answer.body, answer.whole) == (302, "/elsewhere", b"mov", False)
    assert [one["cookie"] for one in asked] == ["a=1; b=2"]
    with server(200, {}, b"") as (url, asked):
        assert ask("GET", url.replace("//", "//ann:p%40ss@")).status == 200
        assert ask("GET", url.replace("//", "//ann:x@"), headers=[(b"authorization", b"own")]).status == 200
    assert [one["authorization"] for one in asked] == ["Basic YW5uOnBAc3M=", "own"]
    for nowhere in ("file:///etc/hostname", f"http://127.0.0.1:{free_port()}/", "http://127.0.0.1:1\n/"):
        with pytest.raises(Unanswered):
            ask("GET", nowhere, timeout=2)
