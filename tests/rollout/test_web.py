"""What the controller answers over HTTP: who may shut a flag, by which alerts, and what is told."""

import asyncio
import base64
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.driver import Answer, call
from tests.rollout.exporter import Exporter, exporting
from tests.rollout.worlds import MemoryActuator, SteadySource, make_spec
from tests.services.prometheus import AlertReceiver, Prometheus
from tests.services.server import free_port, http_request
from tidegate.errors import RolloutError
from tidegate.rollout.controller import Controller
from tidegate.rollout.daemon import Daemon
from tidegate.rollout.machine import State
from tidegate.rollout.metrics import RolloutMetrics
from tidegate.rollout.store import Journal
from tidegate.rollout.web import MAX_BODY, RolloutWeb

TOKEN = "s3cret"
NOW = 1_800_000_000.0
FIRING = {"alertname": "HighErrorRate", "service": "api"}


class Site:
    """The app with a controller that only notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Mapping[str, str]] = []
        self.healthy = True
        self.fails = False
        self.metrics = RolloutMetrics()
        self.app = RolloutWeb(
            alert=self._alert,
            status=lambda: [{"name": "canary"}],
            healthy=lambda: self.healthy,
            metrics=self.metrics,
            token=TOKEN,
            clock=lambda: NOW,
        )

    async def _alert(self, labels: Mapping[str, str]) -> list[str]:
        if self.fails:
            raise RolloutError("journal j cannot be used: disk full")
        self.told.append(labels)
        return ["canary"] if labels.get("alertname") == "HighErrorRate" else []

    def ask(self, method: str, path: str, body: bytes = b"", authorization: str | None = f"Bearer {TOKEN}") -> Answer:
        headers = [] if authorization is None else [("authorization", authorization)]
        return asyncio.run(call(self.app, path, method=method, headers=headers, body=body))

    def post(self, document: Any, path: str = "/alerts", **more: Any) -> Answer:
        return self.ask("POST", path, json.dumps(document).encode(), **more)


@pytest.fixture
def site() -> Site:
    return Site()


def alertmanager(*statuses: str) -> dict[str, Any]:
    """As Alertmanager's webhook sends it, version 4."""
    alerts = [
        {
            "status": status,
            "labels": FIRING,
            "annotations": {},
            "startsAt": "2026-11-22T14:00:00Z",
            "endsAt": "0001-01-01T00:00:00Z",
            "generatorURL": "http://p/graph",
            "fingerprint": "abc",
        }
        for status in statuses
    ]
    return {"version": "4", "status": "firing", "receiver": "tidegate", "groupLabels": {}, "alerts": alerts}


def test_a_firing_alert_of_alertmanager_is_handed_on(site: Site) -> None:
    answer = site.post(alertmanager("resolved", "firing"))
    assert (answer.status, json.loads(answer.body)) == (200, {"shut": ["canary"]})
    assert site.told == [FIRING]


@pytest.mark.parametrize(
    ("ends", "fires"),
    [
        ("2027-01-15T08:00:01Z", True),
        ("2027-01-15T07:59:59.123Z", False),
        ("0001-01-01T00:00:00Z", True),
        (None, True),
    ],
)
def test_an_alert_of_prometheus_fires_until_its_end(site: Site, ends: str | None, fires: bool) -> None:
    alert = {"labels": FIRING, "annotations": {}, "startsAt": "2026-11-22T14:00:00Z", "generatorURL": "http://p"}
    site.post([alert if ends is None else {**alert, "endsAt": ends}], "/api/v2/alerts")
    assert site.told == ([FIRING] if fires else [])


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        TOKEN,
        f"Digest {TOKEN}",
        "Basic !!!",
        "Basic " + base64.b64encode(b"user:wrong").decode(),
        "Basic " + base64.b64encode(TOKEN.encode()).decode(),
    ],
)
def test_without_the_token_nothing_is_shut(site: Site, authorization: str | None) -> None:
    answer = site.post(alertmanager("firing"), authorization=authorization)
    assert answer.status == 401
    assert (b"www-authenticate", b'Bearer realm="tidegate"') in answer.headers
    assert site.told == []


@pytest.mark.parametrize(
    "authorization", [f"bearer {TOKEN}", "Basic " + base64.b64encode(f"any:{TOKEN}".encode()).decode()]
)
def test_the_token_may_come_as_bearer_or_as_a_password(site: Site, authorization: str) -> None:
    assert site.post(alertmanager("firing"), authorization=authorization).status == 200


def test_an_app_without_a_token_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="empty token"):
        RolloutWeb(
            alert=Site()._alert, status=list, healthy=bool, metrics=RolloutMetrics(), token="", clock=lambda: NOW
        )


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"3", "a list of alerts"),
        (b"{}", "a list of alerts"),
        (b'{"alerts": {}}', "a list of alerts"),
        (b"[3]", "alert 0 has no labels"),
        (b'[{"labels": []}]', "alert 0 has no labels"),
        (b'[{"labels": {}, "endsAt": "soon"}]', "RFC 3339"),
        (b'[{"labels": {}, "endsAt": 7}]', "RFC 3339"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_body_that_is_no_alert_is_refused_with_the_reason(site: Site, body: bytes, says: str) -> None:
    answer = site.ask("POST", "/alerts", body)
    assert answer.status == 400
    assert says in json.loads(answer.body)["error"]


def test_a_body_that_is_too_long_is_cut_off(site: Site) -> None:
    assert site.ask("POST", "/alerts", b" " * (MAX_BODY + 1)).status == 413


def test_a_controller_that_cannot_shut_says_so_and_the_sender_tries_again(site: Site) -> None:
    site.fails = True
    answer = site.post(alertmanager("firing"))
    assert answer.status == 503
    assert "disk full" in json.loads(answer.body)["error"]
    assert site.metrics.registry.get_sample_value("tidegate_rollout_errors_total", {"component": "web"}) == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/alerts", 405),
        ("POST", "/status", 405),
        ("GET", "/nowhere", 404),
        ("GET", "/status", 200),
        ("HEAD", "/status", 200),
        ("GET", "/status/", 200),
        ("GET", "/metrics", 200),
        ("GET", "/healthz", 200),
    ],
)
def test_each_path_has_its_method(site: Site, method: str, path: str, status: int) -> None:
    answer = site.ask(method, path, authorization=None)
    assert answer.status == status
    assert (answer.body == b"") is (method == "HEAD")


def test_health_is_the_controllers(site: Site) -> None:
    site.healthy = False
    assert site.ask("GET", "/healthz").status == 503


# --- the daemon, with real HTTP and a real Prometheus ---------------------------


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite3") as made:
        yield made


async def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait, with a deadline, for something that other tasks do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.02)


async def daemon(journal: Journal, port: int, flag: MemoryActuator, stop: asyncio.Event) -> None:
    controller = Controller(journal=journal, actuator=flag, source=SteadySource(), clock=time.time, holder="one")
    await Daemon(controller, journal, clock=time.time, listen=f"127.0.0.1:{port}", token=TOKEN).run(stop)


def test_the_daemon_answers_obeys_and_gives_the_lease_back(journal: Journal) -> None:
    port, flag, stop = free_port(), MemoryActuator(), asyncio.Event()

    async def scenario() -> None:
        running = asyncio.create_task(daemon(journal, port, flag, stop))
        await until(lambda: journal.holder(time.time()) == "one", 5, "the daemon leads")
        journal.add(make_spec(), "production", time.time())
        await until(lambda: flag.enabled, 5, "it begins at its next look")
        status, body, _ = await asyncio.to_thread(http_request, port, "GET", "/status")
        assert status == 200
        (shown,) = json.loads(body)
        assert (shown["name"], shown["percent"]) == ("canary", 1)
        _, text, _ = await asyncio.to_thread(http_request, port, "GET", "/metrics")
        assert b'tidegate_rollout_step_percent{rollout="canary"} 1.0' in text
        journal.ask(journal.get("canary"), "abort", "enough", time.time())
        await until(lambda: not flag.enabled, 3, "it obeys at its next look, not at the tick ten seconds on")
        stop.set()
        await running

    asyncio.run(scenario())
    assert journal.holder(time.time()) is None


def test_a_daemon_whose_journal_fails_goes_on_and_says_so_once(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    flag, stop = MemoryActuator(), asyncio.Event()
    controller = Controller(journal=journal, actuator=flag, source=SteadySource(), clock=time.time, holder="one")
    broken = [0]
    asked = journal.asked

    def failing() -> Any:
        broken[0] += 1
        if broken[0] <= 5:
            raise RolloutError("journal j cannot be used: disk I/O error")
        return asked()

    journal.asked = failing  # type: ignore[method-assign]

    async def scenario() -> None:
        running = asyncio.create_task(Daemon(controller, journal, clock=time.time).run(stop))
        await until(lambda: broken[0] > 7, 10, "it looks again and again")
        stop.set()
        await running

    asyncio.run(scenario())
    assert caplog.text.count("disk I/O error") == 1
    value = controller.metrics.registry.get_sample_value("tidegate_rollout_errors_total", {"component": "journal"})
    assert value == 5


def test_an_address_that_is_taken_is_one_clear_error(journal: Journal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(RolloutError, match=f"cannot listen on 127.0.0.1:{port}: "):
            asyncio.run(daemon(journal, port, MemoryActuator(), asyncio.Event()))


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    with exporting() as made:
        yield made


def test_an_alert_that_a_real_prometheus_posts_shuts_the_flag(
    journal: Journal, exporter: Exporter, prometheus: Callable[..., Prometheus]
) -> None:
    port, flag, stop = free_port(), MemoryActuator(), asyncio.Event()
    rule = {"alert": "HighErrorRate", "expr": "tidegate_cohort_errors_total > 0", "labels": {"service": "api"}}
    receiver = AlertReceiver(address=f"127.0.0.1:{port}", token=TOKEN)
    server = prometheus(
        [f"127.0.0.1:{exporter.port}"], rules=[{"name": "slo", "rules": [rule]}], alert_receivers=[receiver]
    )
    journal.add(make_spec(), "production", time.time())

    async def scenario() -> None:
        running = asyncio.create_task(daemon(journal, port, flag, stop))
        await asyncio.to_thread(server.wait_for_sample, "tidegate_cohort_errors_total")
        assert flag.enabled
        exporter.count("canary", 5, errors=5)
        await until(lambda: not flag.enabled, 15, "the alert arrives")
        stop.set()
        await running

    asyncio.run(scenario())
    rollout = journal.get("canary")
    assert rollout.state is State.ROLLED_BACK
    assert "alertname=HighErrorRate" in rollout.reason
