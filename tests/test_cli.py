"""The command line: what it does, what it says, how it exits. Real files, and the real daemon as a process."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.operations.running import called
from tests.rollout.exporter import Exporter, exporting
from tests.services.server import free_port, wait_until
from tidegate.rollout.machine import State
from tidegate.rollout.store import Journal
from tidegate.rollout.watch import watch

FLAG = "tidegate.cache"
SPEC = """\
name: canary
flag: tidegate.cache
steps: [{percent: 1, dwell: 500ms, min_requests: 10}, {percent: 100, dwell: 500ms, min_requests: 10}]
window: 5s
interval: 100ms
objectives: {errors: {max: 1%}}
bake: 200ms
"""


class Desk:
    """A folder with settings, a flag file and a spec, and the command run in it."""

    def __init__(self, folder: Path, exporter: Exporter, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.port = free_port()
        self._capsys = capsys
        strategy = {"percentage": 0, "stickiness": "tenantId"}
        self.write(
            "flags.json", json.dumps({"version": 1, "flags": {FLAG: {"enabled": False, "strategies": [strategy]}}})
        )
        self.write("canary.yaml", SPEC)
        self.write(
            "tidegate.toml",
            f"""
            [flags]
            provider = "local"
            file = "flags.json"
            [rollout]
            metrics_urls = ["{exporter.url}"]
            listen = "127.0.0.1:{self.port}"
            alert_token = "s3cret"
            """,
        )

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """As `called` says."""
        return called(self._capsys, *arguments)

    @property
    def flag(self) -> tuple[bool, int]:
        found = json.loads((self.folder / "flags.json").read_text(encoding="utf-8"))["flags"][FLAG]
        return found["enabled"], found["strategies"][0]["percentage"]

    def state(self) -> str:
        with Journal(self.folder / "tidegate-journal.sqlite3", make=False) as journal:
            return journal.get("canary").state


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    with exporting() as made:
        yield made


@pytest.fixture
def desk(
    tmp_path: Path, exporter: Exporter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Desk:
    for name in os.environ:
        if name.startswith(("TIDEGATE_", "REDIS_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return Desk(tmp_path, exporter, capsys)


def test_a_good_spec_is_ok(desk: Desk) -> None:
    assert desk.run("rollout", "validate", "canary.yaml") == (0, "canary.yaml: ok, tidegate.cache in 2 steps\n", "")


def test_a_step_between_two_bands_is_noted(desk: Desk) -> None:
    desk.write("canary.yaml", SPEC.replace("percent: 100", "percent: 30"))
    code, out, _ = desk.run("rollout", "validate", "canary.yaml")
    assert code == 0
    assert "note: steps[1].percent: 30 is not among flags.bands" in out


def test_a_broken_spec_exits_2_with_every_problem(desk: Desk) -> None:
    desk.write("canary.yaml", "name: canary\nflg: x\nsteps: [{percent: 200}]\n")
    code, out, err = desk.run("rollout", "validate", "canary.yaml")
    assert (code, out) == (2, "")
    assert err.startswith("canary.yaml: 4 problems\n")
    for told in ("flg: ", "flag is missing; ", "steps[0].percent: ", "objectives is missing; "):
        assert f"  - {told}" in err


def test_broken_settings_exit_2_with_every_problem(desk: Desk) -> None:
    desk.write("tidegate.toml", '[flags]\nprovider = "etcd"\npolls = 3\n')
    code, _, err = desk.run("rollout", "start", "canary.yaml")
    assert code == 2
    assert "flags.provider" in err
    assert "flags.polls" in err


def test_a_controller_that_lacks_settings_names_all_of_them(desk: Desk) -> None:
    desk.write("tidegate.toml", '[flags]\nprovider = "unleash"\n[rollout]\nlisten = "127.0.0.1:1"\n')
    code, _, err = desk.run("controller")
    assert code == 2
    for path in ("rollout.alert_token", "rollout.admin_token", "rollout.metrics_urls"):
        assert f"  - {path}: " in err


@pytest.mark.parametrize("arguments", [(), ("rollout",), ("rollout", "fly"), ("kill",)])
def test_a_command_line_that_makes_no_sense_exits_2(desk: Desk, arguments: tuple[str, ...]) -> None:
    code, _, err = desk.run(*arguments)
    assert code == 2
    assert "usage: tidegate" in err


def test_it_tells_its_version(desk: Desk) -> None:
    assert desk.run("--version") == (0, f"tidegate {version('tidegate')}\n", "")


def test_help_shows_examples_and_exit_codes(desk: Desk) -> None:
    code, out, _ = desk.run("--help")
    assert code == 0
    assert "tidegate rollout start canary.yaml" in out
    assert "exit codes" in out


def test_the_schema_is_printed(desk: Desk) -> None:
    code, out, _ = desk.run("rollout", "schema")
    assert code == 0
    assert json.loads(out)["title"] == "Tidegate rollout"


def test_start_hands_the_rollout_over_and_leaves_the_flag_alone(desk: Desk) -> None:
    code, out, _ = desk.run("rollout", "start", "canary.yaml")
    assert code == 0
    assert "canary: tidegate.cache in development will open to 1 %, 100 %" in out
    assert "no controller runs" in out
    assert desk.state() == State.PENDING
    assert desk.flag == (False, 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("flag: tidegate.cache", "flag: tidegate.cahce"), "there is no flag 'tidegate.cahce'; it has tidegate.cache"),
        (("name: canary", "name: canary\nenvironment: moon"), "holds the environment 'development', not 'moon'"),
        (("name: canary", "name: canary\nunit: user"), "sticky by 'tenantId', but the unit user needs 'userId'"),
    ],
)
def test_start_refuses_a_flag_that_cannot_be_moved_and_names_it(desk: Desk, change: tuple[str, str], says: str) -> None:
    desk.write("canary.yaml", SPEC.replace(*change))
    code, _, err = desk.run("rollout", "start", "canary.yaml")
    assert code == 1
    assert says in err
    assert not (desk.folder / "tidegate-journal.sqlite3").exists()


def test_start_refuses_a_flag_that_has_a_rollout(desk: Desk) -> None:
    desk.run("rollout", "start", "canary.yaml")
    code, _, err = desk.run("rollout", "start", "canary.yaml")
    assert code == 1
    assert "rollout 'canary' of flag 'tidegate.cache' is pending" in err


def test_start_notes_conditions_that_limit_whom_the_rollout_can_reach(desk: Desk) -> None:
    assert desk.run("flags", "open", FLAG, "--only", "tenantId=acme")[0] == 0
    assert desk.run("kill", FLAG)[0] == desk.run("lift", FLAG)[0] == 0
    code, out, _ = desk.run("rollout", "start", "canary.yaml")
    assert code == 0
    assert f"note: {FLAG} has conditions, so at 100 % it is open only for those who meet them" in out


def test_every_command_explains_itself_in_percent_signs_that_stand_alone(desk: Desk) -> None:
    for command in ("flags", "flags init", "flags shut", "flags open", "kill", "rollout start"):
        code, out, _ = desk.run(*command.split(), "--help")
        assert (code, "%%" in out) == (0, False), command


def test_a_journal_whose_folder_is_missing_is_told_so(desk: Desk) -> None:
    code, _, err = desk.run("controller", "--once", "--journal", "nowhere/journal.sqlite3")
    assert (code, "there is no folder nowhere; make it, or name another journal" in err) == (1, True)


def test_start_refuses_a_flag_that_is_open(desk: Desk) -> None:
    text = (desk.folder / "flags.json").read_text().replace("false", "true").replace('": 0', '": 20')
    desk.write("flags.json", text)
    code, _, err = desk.run("rollout", "start", "canary.yaml")
    assert code == 1
    assert "is open already (on at 20 %)" in err
    assert "shut it first (tidegate flags shut tidegate.cache)" in err
    assert desk.run("flags", "shut", FLAG)[0] == 0
    assert desk.run("rollout", "start", "canary.yaml")[0] == 0


def test_status_of_nothing_is_one_clear_line(desk: Desk) -> None:
    code, _, err = desk.run("rollout", "status")
    assert code == 1
    assert err.startswith("tidegate: there is no journal tidegate-journal.sqlite3")


def test_status_of_an_unknown_rollout_names_the_known_ones(desk: Desk) -> None:
    desk.run("rollout", "start", "canary.yaml")
    code, _, err = desk.run("rollout", "status", "canry")
    assert code == 1
    assert "knows no rollout 'canry'; it knows canary" in err


def test_once_does_what_is_due(desk: Desk) -> None:
    desk.run("rollout", "start", "canary.yaml")
    assert desk.run("controller", "--once")[0] == 0
    assert desk.flag == (True, 1)
    code, out, _ = desk.run("rollout", "status", "canary")
    assert code == 0
    assert "canary: observing at 1 % (step 1 of 2), tidegate.cache in development: opened to 1 %" in out
    code, out, _ = desk.run("rollout", "status", "--json")
    (shown,) = json.loads(out)
    assert (shown["state"], shown["percent"], shown["steps"]) == ("observing", 1, [1, 100])
    assert [entry["kind"] for entry in shown["log"]] == ["start", "intent", "opened"]


def test_once_gives_way_to_the_controller_that_has_the_lease(desk: Desk) -> None:
    with Journal(desk.folder / "tidegate-journal.sqlite3") as journal:
        journal.acquire("other", time.time(), 60)
    code, _, err = desk.run("controller", "--once")
    assert code == 1
    assert "another controller holds the lease" in err


def test_abort_without_a_controller_shuts_the_flag_itself(desk: Desk) -> None:
    desk.run("rollout", "start", "canary.yaml")
    desk.run("controller", "--once")
    code, out, _ = desk.run("rollout", "abort", "canary", "--reason", "no good")
    assert code == 0
    assert "rollout canary is aborted" in out
    assert desk.flag == (False, 0)
    code, out, _ = desk.run("rollout", "status", "canary")
    assert code == 1
    assert "canary: aborted at 0 %" in out
    assert "no good" in out
    code, _, err = desk.run("rollout", "abort", "canary")
    assert code == 1
    assert "canary is over: aborted (no good)" in err


def test_pause_needs_a_controller(desk: Desk) -> None:
    desk.run("rollout", "start", "canary.yaml")
    desk.run("controller", "--once")
    code, _, err = desk.run("rollout", "pause", "canary")
    assert code == 1
    assert "no controller runs" in err


def test_kill_works_without_journal_or_controller(desk: Desk) -> None:
    desk.write("flags.json", (desk.folder / "flags.json").read_text().replace("false", "true").replace('": 0', '": 20'))
    code, out, _ = desk.run("kill", FLAG)
    assert code == 0
    for line in ("tidegate.cache in development is off\n", "tidegate.cache in development is at 0 %\n"):
        assert line in out
    assert desk.flag == (False, 0)
    assert not (desk.folder / "tidegate-journal.sqlite3").exists()


def test_kill_marks_the_flags_rollout_as_aborted(desk: Desk) -> None:
    desk.run("rollout", "start", "canary.yaml")
    desk.run("controller", "--once")
    code, out, _ = desk.run("kill", FLAG, "--reason", "fire")
    assert code == 0
    assert "rollout canary is aborted" in out
    assert desk.state() == State.ABORTED


def test_kill_works_when_the_journal_does_not(desk: Desk) -> None:
    desk.write("flags.json", (desk.folder / "flags.json").read_text().replace("false", "true"))
    desk.write("tidegate-journal.sqlite3", "rubbish " * 500)
    code, out, err = desk.run("kill", FLAG)
    assert code == 0
    assert "the journal could not be told" in out + err
    assert desk.flag == (False, 0)


def test_kill_works_when_a_setting_that_it_does_not_need_is_wrong(desk: Desk) -> None:
    desk.write("flags.json", (desk.folder / "flags.json").read_text().replace("false", "true"))
    settings = desk.folder / "tidegate.toml"
    text = settings.read_text() if settings.exists() else ""
    desk.write("tidegate.toml", text + '\n[cache]\nshare = "everybody"\n[unheard-of]\n')
    code, _, err = desk.run("rollout", "status")
    assert (code, "everybody" in err) == (2, True)
    assert desk.run("kill", FLAG)[0] == 0
    assert desk.flag == (False, 0)


def test_kill_of_an_unknown_flag_names_it(desk: Desk) -> None:
    code, _, err = desk.run("kill", "cahce")
    assert code == 1
    assert "there is no flag 'cahce'" in err


def test_help_needs_no_extra(tmp_path: Path) -> None:
    """`pip install tidegate` alone: the command tells what is missing."""
    blocked = "import sys; sys.modules.update(dict.fromkeys(['httpx2', 'yaml', 'rich', 'uvicorn']))"
    script = f"{blocked}; from tidegate.cli import main; sys.exit(main(sys.argv[1:]))"
    for arguments, code in ((["--help"], 0), (["rollout", "schema"], 0), (["rollout", "validate", "x"], 1)):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
    assert "pip install 'tidegate[rollout]'" in done.stderr
    assert "Traceback" not in done.stderr


# --- the daemon as a process ----------------------------------------------------


class Traffic:
    """Requests of both cohorts, until it is stopped."""

    def __init__(self, exporter: Exporter) -> None:
        self.errors = 0
        self._stop = threading.Event()
        self._exporter = exporter
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            self._exporter.count("canary", 5, errors=self.errors, hits=4)
            self._exporter.count("control", 5)

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


class Process:
    """`tidegate controller` in the desk's folder."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.log = desk.folder / "controller.log"
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tidegate.cli", "controller"], cwd=self._desk.folder, stdout=log, stderr=log
            )

    def kill_and_restart(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self.process = self._start()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)


@pytest.fixture
def controller(desk: Desk) -> Iterator[Process]:
    made = Process(desk)
    yield made
    made.process.kill()
    made.process.wait(10)


def test_the_daemon_opens_a_healthy_flag_survives_a_kill_and_stops_when_asked(
    desk: Desk, exporter: Exporter, controller: Process
) -> None:
    with Traffic(exporter):
        assert desk.run("rollout", "start", "canary.yaml")[0] == 0
        wait_until(lambda: desk.flag == (True, 1), 10, "the first step")
        controller.kill_and_restart()
        code, out, _ = desk.run("rollout", "watch", "canary")
    assert code == 0, controller.log.read_text()
    assert "opened to 100 %" in out
    assert "-> done" in out
    assert desk.flag == (True, 100)
    assert controller.stop() == 0
    assert "Traceback" not in controller.log.read_text()


def test_the_daemon_shuts_a_flag_whose_canary_fails(desk: Desk, exporter: Exporter, controller: Process) -> None:
    with Traffic(exporter) as traffic:
        desk.run("rollout", "start", "canary.yaml")
        wait_until(lambda: desk.flag == (True, 1), 10, "the first step")
        traffic.errors = 3
        code, out, _ = desk.run("rollout", "watch", "canary")
    assert code == 1
    assert "-> rolled_back" in out
    assert "control meets it" in out
    assert desk.flag == (False, 0)


def test_people_speak_with_the_daemon_through_the_journal(desk: Desk, exporter: Exporter, controller: Process) -> None:
    desk.run("rollout", "start", "canary.yaml")
    wait_until(lambda: desk.flag == (True, 1), 10, "the first step")
    assert desk.run("rollout", "pause", "canary", "--reason", "lunch") == (0, "canary: paused\n", "")
    assert desk.run("rollout", "resume", "canary")[:2] == (0, "canary: observing\n")
    code, _, err = desk.run("rollout", "resume", "canary")
    assert code == 1
    assert "cannot take resume" in err
    assert desk.run("rollout", "abort", "canary") == (0, "canary: aborted\n", "")
    assert desk.flag == (False, 0)


def test_a_kill_beside_the_daemon_is_not_undone_by_it(desk: Desk, exporter: Exporter, controller: Process) -> None:
    desk.run("rollout", "start", "canary.yaml")
    wait_until(lambda: desk.flag == (True, 1), 10, "the first step")
    assert desk.run("kill", FLAG)[0] == 0
    assert desk.state() == State.ABORTED
    assert controller.stop() == 0
    assert desk.flag == (False, 0)


def test_a_daemon_that_cannot_listen_says_so(desk: Desk) -> None:
    with socket.create_server(("127.0.0.1", desk.port)):
        done = subprocess.run(
            [sys.executable, "-m", "tidegate.cli", "controller"],
            cwd=desk.folder, capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert f"tidegate: cannot listen on 127.0.0.1:{desk.port}: " in done.stderr
    assert "Traceback" not in done.stderr


def test_watch_draws_steps_objectives_and_decisions_on_a_terminal(desk: Desk) -> None:
    desk.run("rollout", "start", "canary.yaml")
    desk.run("controller", "--once")
    desk.run("controller", "--once")
    desk.run("kill", FLAG)
    console = Console(force_terminal=True, width=140, record=True, file=Path(os.devnull).open("w"))  # noqa: SIM115
    with Journal(desk.folder / "tidegate-journal.sqlite3") as journal:
        assert watch(journal, "canary", console) is State.ABORTED
    console.file.close()
    drawn: Any = console.export_text()
    for shown in ("canary  tidegate.cache in development", "1%", "100%", "aborted", "objective", "opened to 1 %"):
        assert shown in drawn
