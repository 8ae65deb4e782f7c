"""`make conformance SUITE=folder`: run the public HTTP caching suite against Tidegate, and print the score.

The suite is `http-tests/cache-tests`; `folder` is a checkout of it in which `npm install` has been run.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conformance.score import cases_of, summary
from tests.services import free_port, wait_until


def main() -> int:
    """Run it as often as was asked."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("suite", type=Path, help="checkout of http-tests/cache-tests, after npm install")
    parser.add_argument("--authorization", choices=["strict", "rfc9111"], default="strict")
    parser.add_argument("--id", default="", help="one test, with its requests and responses")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--results", type=Path, help="write the suite's own results here")
    given = parser.parse_args()
    if not (given.suite / "test-engine").is_dir():
        parser.error(f"{given.suite} is no checkout of http-tests/cache-tests")
    cases = cases_of(json.loads(_npm(given.suite, "export")))
    for _ in range(given.runs):
        with _origin(given.suite) as origin, _gate(origin, given.authorization) as gate:
            said = _npm(given.suite, "cli", f"--base=http://127.0.0.1:{gate}", f"--id={given.id}")
        if given.id:
            print(said)
            continue
        if given.results:
            given.results.write_text(said)
        print(summary(cases, json.loads(said)), flush=True)
    return 0


def _npm(suite: Path, script: str, *options: str) -> str:
    command = ["npm", "run", "--silent", script, *options]
    return subprocess.run(command, cwd=suite, check=True, text=True, stdout=subprocess.PIPE).stdout


@contextmanager
def _origin(suite: Path) -> Iterator[int]:
    port = free_port()
    command = ["node", "test-engine/server/server.mjs"]
    environment = {
        **os.environ,
        "npm_config_port": str(port),
        "npm_config_protocol": "http",
        "npm_config_pidfile": os.devnull,
    }
    with _running(command, port, cwd=suite, env=environment):
        yield port


@contextmanager
def _gate(origin: int, authorization: str) -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "tests.conformance.proxy:layers", "--factory", "--http", "httptools"]
    command += ["--no-date-header", "--no-server-header", "--no-access-log", "--log-level", "warning"]
    command += ["--port", str(port)]
    environment = {**os.environ, "TIDEGATE_ORIGIN_PORT": str(origin), "TIDEGATE_AUTHORIZATION": authorization}
    with _running(command, port, env=environment):
        yield port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _running(command: list[str], port: int, **options: Any) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        wait_until(lambda: _listens(port), 30, f"{command[0]} listens on port {port}")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


if __name__ == "__main__":
    sys.exit(main())
