"""What a story plays on: the application, the controller and the command line as processes, and what they leave behind.

The processes are `Server`s like the real servers round them: on ports of their own, stopped whatever happens.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.crowd import FLAG
from tests.services import Prometheus, Server, ServiceError, Unleash, free_port, wait_until
from tests.services.server import http_request
from tidegate.rollout.records import Entry, Rollout
from tidegate.rollout.store import Journal

__all__ = [
    "ALERT_TOKEN",
    "ENVIRONMENT",
    "FLAG",
    "REPLACED_WITHIN",
    "App",
    "Controller",
    "Stage",
    "metric",
    "open_by_hand",
    "shut_by_hand",
    "spec",
    "steps",
]

ROOT = Path(__file__).parents[2]
ENVIRONMENT = "production"
ALERT_TOKEN = "the-alert-token"
OVER = frozenset({"done", "rolled_back", "aborted"})

PATIENCE = 60
"""Seconds after which uvicorn's parent takes a worker for dead that does not answer it: longer than `App.only` suspends
one."""

REPLACED_WITHIN = PATIENCE + 60
"""Seconds for a killed worker to be replaced. It takes less than one, unless it died while its parent waited for its
answer, as it does twice a second for a moment: then that goes on waiting for as long as it has patience."""


class PythonServer(Server):
    """A Python process of ours that listens on a port; the settings stay the same over restarts."""

    start_seconds: ClassVar[float] = 30.0

    def __init__(self, settings: Mapping[str, str], *, port: int | None = None) -> None:
        super().__init__()
        self.port = port or free_port()
        self.settings = dict(settings)

    def environment(self) -> dict[str, str]:
        """The settings, and no setting that the tests were started with."""
        return {"PYTHONUNBUFFERED": "1", **self.settings}

    def answers(self) -> bool:
        """Whether /healthz is 200."""
        return http_request(self.port, "GET", "/healthz", seconds=2)[0] == 200

    def metrics(self) -> str:
        """What /metrics shows."""
        return http_request(self.port, "GET", "/metrics")[1].decode()

    def log_lines(self) -> list[str]:
        """All that it wrote."""
        return self.log.read_text(encoding="utf-8").splitlines()


class App(PythonServer):
    """The application under uvicorn."""

    name: ClassVar[str] = "app"

    def __init__(self, settings: Mapping[str, str], *, port: int | None = None, workers: int = 1) -> None:
        super().__init__(settings, port=port)
        self.workers = workers

    def command(self) -> list[str]:
        """Program and arguments."""
        uvicorn = [sys.executable, "-m", "uvicorn", "tests.e2e.app:build", "--factory", "--app-dir", str(ROOT)]
        patience = ["--timeout-worker-healthcheck", str(PATIENCE)] if self.workers > 1 else []
        return [*uvicorn, "--port", str(self.port), "--workers", str(self.workers), "--no-access-log", *patience]

    def worker_pids(self) -> list[int]:
        """The processes of several workers, whether or not they answer yet."""
        children = psutil.Process(self.pid).children()
        return [child.pid for child in children if "spawn_main" in " ".join(_command_line(child))]

    @contextmanager
    def only(self, worker: int) -> Generator[None]:
        """While entered, new connections are this worker's.

        All workers accept from one socket, and the first to wake takes all that wait: left to themselves, one of four
        may well get every request of a crowd.
        """
        others = [pid for pid in self.worker_pids() if pid != worker]
        try:
            for pid in others:
                _signal(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in others:
                _signal(pid, signal.SIGCONT)

    def answering(self) -> set[int]:
        """The workers that answer, each asked alone; by nobody, so in no cohort."""
        found: set[int] = set()
        for pid in self.worker_pids():
            with self.only(pid), suppress(OSError):
                _, _, headers = http_request(self.port, "GET", "/healthz", seconds=5)
                found.add(int(headers["x-worker"]))
        return found

    def switch(self, **wanted: Any) -> None:
        """Make something go wrong, or right again."""
        status, _, _ = http_request(self.port, "PUT", "/switch", body=wanted)
        assert status == 204

    def handler_calls(self) -> float:
        """Requests that have reached a handler so far."""
        return metric(self.metrics(), "e2e_handler_calls_total")


class Controller(PythonServer):
    """`tidegate controller`."""

    name: ClassVar[str] = "controller"

    def command(self) -> list[str]:
        """Program and arguments."""
        return [sys.executable, "-m", "tidegate.cli", "controller"]

    def environment(self) -> dict[str, str]:
        """With the address that it listens on."""
        return {**super().environment(), "TIDEGATE_ROLLOUT_LISTEN": f"127.0.0.1:{self.port}"}

    def post_alerts(self, path: str, body: object, token: str = ALERT_TOKEN) -> tuple[int, Any]:
        """Send alerts as their senders do: status, and the decoded answer."""
        headers = {"Authorization": f"Bearer {token}"}
        status, content, _ = http_request(self.port, "POST", path, body=body, headers=headers)
        return status, json.loads(content)


def metric(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def steps(*percents: int, dwell: str = "4s") -> list[dict[str, Any]]:
    """Steps as short as a window with some evidence allows."""
    return [{"percent": percent, "dwell": dwell, "min_requests": 15} for percent in percents]


def spec(name: str, **changes: Any) -> dict[str, Any]:
    """A rollout of three short steps; `changes` replace whole fields.

    The hit ratio that it asks for is low because a window holds some 15 requests, and users have just been let in.
    """
    return {
        "name": name,
        "flag": FLAG,
        "environment": ENVIRONMENT,
        "unit": "user",
        "interval": "1s",
        "window": "5s",
        "bake": "2s",
        "steps": steps(10, 50, 100),
        "objectives": {
            "errors": {"max": "2%"},
            "slow": {"over": "1s", "max": "20%"},
            "hit_ratio": {"min": "5%", "warm_up": "2s"},
        },
    } | changes


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []  # it has just ended


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@dataclass
class Stage:
    """One story's processes, settings and journal. `events_before`: how much Unleash's log held at its beginning."""

    folder: Path
    unleash: Unleash
    app: App
    prometheus: Prometheus
    settings: dict[str, str]
    events_before: int
    control_port: int
    journals: list[Journal] = field(default_factory=list[Journal])

    def controller(self) -> Controller:
        """A controller, not yet started. All of one stage share journal and port, so one runs at a time."""
        return Controller(self.settings, port=self.control_port)

    def tidegate(self, *arguments: str, expect: int = 0, **settings: str) -> str:
        """Run one command as a person would; what it said, on either stream."""
        done = subprocess.run(
            [sys.executable, "-m", "tidegate.cli", *arguments],
            env={"PATH": os.environ.get("PATH", os.defpath), **self.settings, **settings},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == expect, f"tidegate {' '.join(arguments)}: exit status {done.returncode}\n{said}"
        assert "Traceback" not in said, said
        return said

    def start(self, name: str, **changes: Any) -> None:
        """Start a rollout with the command line."""
        self.tidegate("rollout", "start", str(self.write_spec(name, **changes)))

    def write_spec(self, name: str, **changes: Any) -> Path:
        """A spec file. JSON is YAML."""
        file = self.folder / f"{name}.yaml"
        file.write_text(json.dumps(spec(name, **changes)), encoding="utf-8")
        return file

    @property
    def journal(self) -> Journal:
        """The controller's journal, to look at."""
        if not self.journals:
            self.journals.append(Journal(self.settings["TIDEGATE_ROLLOUT_JOURNAL"]))
        return self.journals[0]

    def rollout(self, name: str) -> Rollout:
        """Where a rollout is."""
        return self.journal.get(name)

    def entries(self, name: str) -> list[Entry]:
        """What happened to a rollout, oldest first."""
        return self.journal.entries(self.rollout(name).id, limit=1000)

    def wait_for(self, name: str, condition: Callable[[Rollout], object], seconds: float, what: str) -> Rollout:
        """The rollout as soon as something is so; fails at once if it is over without that."""

        def so() -> bool:
            rollout = self.rollout(name)
            return bool(condition(rollout)) or rollout.state in OVER

        try:
            wait_until(so, seconds, what)
        except ServiceError as error:
            raise AssertionError(f"{error}; {self.story(name)}") from None
        rollout = self.rollout(name)
        assert condition(rollout), f"{what}: it is over without that; {self.story(name)}"
        return rollout

    def wait_for_end(self, name: str, seconds: float = 60) -> Rollout:
        """The rollout when it is over."""
        return self.wait_for(name, lambda rollout: rollout.state in OVER, seconds, f"{name} is over")

    def story(self, name: str) -> str:
        """What the journal tells, for messages of failed tests and for `pytest -s`."""
        rollout = self.rollout(name)
        lines = [f"{name} is {rollout.state} at {rollout.percent} %: {rollout.reason}"]
        began = rollout.created
        lines += [f"{one.at - began:6.2f} s  {one.kind} -> {one.went_to}: {one.reason}" for one in self.entries(name)]
        return "\n  ".join(lines)

    def changes(self) -> list[int | str]:
        """What was done to the flag since the story began, from Unleash's own log: "on", "off" and percentages.

        What changes nothing, such as 0 % for a flag that is at 0 %, is not in that log.
        """
        words = {"feature-environment-enabled": "on", "feature-environment-disabled": "off"}
        return [
            words.get(event["type"]) or int(event["data"]["parameters"]["rollout"])
            for event in self._events()
            if event["type"] in (*words, "feature-strategy-update")
        ]

    def authors(self) -> set[str]:
        """Who changed the flag since the story began, from Unleash's own log."""
        return {event["createdBy"] for event in self._events()}

    def _events(self) -> list[dict[str, Any]]:
        events = self.unleash.admin.events(FLAG, limit=500)
        return sorted((one for one in events if one["id"] > self.events_before), key=lambda one: int(one["id"]))

    def flag(self) -> tuple[bool, int]:
        """Whether the flag's environment is on in Unleash, and its percentage."""
        admin = self.unleash.admin
        return admin.enabled(FLAG, environment=ENVIRONMENT), int(admin.percentage(FLAG, environment=ENVIRONMENT))


def open_by_hand(unleash: Unleash, percent: int) -> None:
    """Open the cache's flag as a person does, without a rollout."""
    _set(unleash, percent)
    unleash.admin.turn_on(FLAG, environment=ENVIRONMENT)


def shut_by_hand(unleash: Unleash) -> None:
    """The cache's flag as a rollout wants to find it: off, at 0 %, and told so to clients.

    Unleash renews what it tells clients once a second: an application that starts sooner sees the flag of before.
    """
    unleash.admin.turn_off(FLAG, environment=ENVIRONMENT)
    _set(unleash, 0)
    wait_until(lambda: not _told_to_clients(unleash)["enabled"], 5, "Unleash tells clients that the flag is off")


def _told_to_clients(unleash: Unleash) -> dict[str, Any]:
    # Asked as the SDK asks: Unleash remembers an answer for each kind of question, and may still have its old one.
    headers = {"Authorization": unleash.production_token, "Unleash-Client-Spec": "6.1.0"}
    status, content, _ = http_request(unleash.port, "GET", "/api/client/features", headers=headers)
    assert status == 200, content
    (told,) = [one for one in json.loads(content)["features"] if one["name"] == FLAG]
    return dict(told)


def _set(unleash: Unleash, percent: int) -> None:
    (strategy,) = unleash.admin.strategies(FLAG, environment=ENVIRONMENT)
    unleash.admin.set_percentage(FLAG, strategy["id"], percent, environment=ENVIRONMENT)
