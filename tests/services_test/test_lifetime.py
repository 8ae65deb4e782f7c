"""No server outlives the process that started it, however that process ends."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.services import ServiceError, Unleash, Valkey, wait_until
from tests.services.server import workspace

ROOT = Path(__file__).resolve().parents[2]

# A run of pytest that starts servers and then waits to be killed.
SUITE = """
import os, pathlib, threading

import pytest

from tests.services.server import workspace

def announce():
    announced = pathlib.Path(os.environ["ANNOUNCE"])
    announced.with_suffix(".part").write_text(f"{workspace().keeper_pid} {workspace().path}")
    announced.with_suffix(".part").rename(announced)
    threading.Event().wait()

def test_every_server(valkey, redis_server, start_unleash, prometheus):
    start_unleash()
    prometheus(targets=[]).suspend()
    announce()

def test_two_servers(valkey, redis_server):
    announce()
"""
EVERY_SERVER = {"valkey-server", "redis-server", "postgres", "node", "prometheus"}


class RunningSuite:
    """A child pytest with every kind of server up."""

    def __init__(self, process: subprocess.Popen[bytes], announced: str) -> None:
        keeper, folder = announced.split()
        self.process = process
        self.workspace = Path(folder)
        self.keeper = psutil.Process(int(keeper))
        self.servers = self.keeper.children(recursive=True)

    def nothing_is_left(self) -> bool:
        return not any(alive(process) for process in [self.keeper, *self.servers])


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def hear_ctrl_c() -> None:
    """A shell lets what it starts in the background ignore Ctrl-C, and that is inherited: the child is to hear it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def suite(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RunningSuite]:
    announced = tmp_path / "announced"
    module = tmp_path / "test_child.py"
    module.write_text(SUITE)
    plugins = ["-p", "tests.services.fixtures", "-p", "no:cacheprovider"]
    with (tmp_path / "output").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *plugins, f"{module}::{request.param}"],
            cwd=ROOT,
            env=os.environ | {"ANNOUNCE": str(announced)},
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=hear_ctrl_c,
        )
        try:
            wait_until(
                lambda: announced.exists() or process.poll() is not None, 60, "the child has started its servers"
            )
            assert process.poll() is None, Path(output.name).read_text()
            yield RunningSuite(process, announced.read_text())
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("suite", ["test_every_server"], indirect=True)
def test_a_suite_that_is_killed_leaves_no_process_and_no_file(suite: RunningSuite) -> None:
    assert {process.name().removesuffix(":") for process in suite.servers} >= EVERY_SERVER
    suite.process.kill()
    assert suite.process.wait(10) == -signal.SIGKILL
    wait_until(suite.nothing_is_left, 10, "servers and keeper are gone")
    assert not suite.workspace.exists()


@pytest.mark.parametrize("suite", ["test_two_servers"], indirect=True)
def test_a_suite_whose_keeper_is_killed_leaves_no_process(suite: RunningSuite) -> None:
    suite.keeper.kill()
    wait_until(lambda: not any(alive(server) for server in suite.servers), 10, "the servers are gone")
    shutil.rmtree(suite.workspace)


@pytest.mark.parametrize("suite", ["test_two_servers"], indirect=True)
def test_ctrl_c_ends_a_suite_and_its_servers(suite: RunningSuite) -> None:
    suite.process.send_signal(signal.SIGINT)
    assert suite.process.wait(20) == 2
    wait_until(suite.nothing_is_left, 10, "servers and keeper are gone")
    assert not suite.workspace.exists()


def test_a_server_outlives_the_thread_that_started_it(start_valkey: Callable[..., Valkey]) -> None:
    started: list[Valkey] = []
    thread = threading.Thread(target=lambda: started.append(start_valkey()))
    thread.start()
    thread.join()
    assert started[0].answers()


def test_stop_of_a_server_that_does_not_end_is_an_error_with_its_log(
    start_valkey: Callable[..., Valkey], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_valkey()
    monkeypatch.setattr(server, "stop_signal", signal.SIGCONT)
    monkeypatch.setattr(server, "stop_seconds", 0.2)
    with pytest.raises(ServiceError, match=r"(?s)valkey stops: not within 0\.2 s; its log ends with\n.*[Rr]eady"):
        server.stop()
    assert not server.running


def test_what_a_server_writes_lies_in_the_workspace(valkey: Valkey, unleash: Unleash) -> None:
    assert all(server.log.is_relative_to(workspace().path) for server in (valkey, unleash, unleash.postgres))
    assert "Ready to accept connections" in valkey.log_tail()
    assert "ready to accept connections" in unleash.postgres.log.read_text()
