"""Shut on an alert: by Prometheus itself, and in Alertmanager's format; nobody else shuts anything."""

import time
from collections.abc import Callable

from tests.e2e.crowd import Crowd, hit_ratio
from tests.e2e.stage import Stage, metric
from tests.services import wait_until
from tests.services.server import http_request

ALERT = "QueueTooDeep"
RULES = [
    {
        "name": "e2e",
        "rules": [
            {"alert": ALERT, "expr": "e2e_queue_depth > 5", "for": "1s", "labels": {"service": "shop"}},
            {"alert": "SomethingElse", "expr": "e2e_queue_depth > 2", "labels": {"service": "shop"}},
        ],
    }
]
UNHURRIED = {
    "interval": "20s",
    "window": "40s",
    "steps": [{"percent": 50, "dwell": "60s"}],
    "alerts": [{"alertname": ALERT, "service": "shop"}],
}
"""Ticks so rare that what happens within seconds of an alert happens because of it."""


def test_an_alert_of_prometheus_shuts_the_flag_within_seconds_and_not_at_the_tick(
    set_stage: Callable[..., Stage],
) -> None:
    stage = set_stage(rules=RULES)
    with stage.controller() as controller, Crowd(stage.app.port) as crowd:
        open_and_in_use(stage, crowd, "alerted")
        stage.app.switch(queue=3)
        other = 'ALERTS{alertname="SomethingElse",alertstate="firing"}'
        stage.prometheus.wait_for_sample(other)
        wait_until(lambda: posts(stage) > 0, 10, "Prometheus has posted the other alert")
        assert stage.flag() == (True, 50), "an alert that the rollout does not name shuts nothing"

        stage.app.switch(queue=9)
        switched = time.time()
        stage.prometheus.wait_for_sample(f'ALERTS{{alertname="{ALERT}",alertstate="firing"}}')
        firing = time.time()
        over = stage.wait_for_end("alerted", 10)
        wait_until(lambda: not crowd.next(20)[-1].gated, 10, "the layer serves nobody")
        alert = next(entry for entry in stage.entries("alerted") if entry.kind == "alert")
        shut = stage.entries("alerted")[-1]
        print(stage.story("alerted"))
        print(f"trouble to alert {alert.at - switched:.1f} s, alert to shut {shut.at - alert.at:.2f} s")
        assert over.state == "rolled_back"
        assert stage.flag() == (False, 0)
        assert stage.changes() == ["on", 50, "off", 0]
        assert ALERT in over.reason
        assert alert.evidence["labels"]["service"] == "shop"
        assert alert.at - firing < 5, "Prometheus posts when the alert fires"
        assert shut.at - alert.at < 2, "the flag is shut at once"
        assert controller.running


def test_an_alertmanager_shuts_the_flag_only_with_the_token_and_an_alert_that_fires_and_matches(
    set_stage: Callable[..., Stage],
) -> None:
    stage = set_stage()
    with stage.controller() as controller, Crowd(stage.app.port) as crowd:
        open_and_in_use(stage, crowd, "managed")
        labels = {"alertname": ALERT, "service": "shop", "instance": "shop-1"}
        status, _ = controller.post_alerts("/alerts", alertmanager("firing", labels), token="wrong")
        assert status == 401
        status, _ = controller.post_alerts("/alerts", alertmanager("firing", labels), token="")
        assert status == 401
        assert controller.post_alerts("/alerts", alertmanager("resolved", labels)) == (200, {"shut": []})
        elsewhere = alertmanager("firing", {**labels, "service": "stock"})
        assert controller.post_alerts("/alerts", elsewhere) == (200, {"shut": []})
        status, _ = controller.post_alerts("/alerts", {"version": "4", "alerts": [{"status": "firing"}]})
        assert status == 400, "an alert without labels"
        assert stage.flag() == (True, 50), "nothing of this shuts anything"
        assert stage.rollout("managed").percent == 50

        posted = time.time()
        assert controller.post_alerts("/alerts", alertmanager("firing", labels)) == (200, {"shut": ["managed"]})
        print(f"POST answered after {time.time() - posted:.2f} s")
        assert stage.flag() == (False, 0), "the answer comes when the flag is shut"
        assert stage.rollout("managed").state == "rolled_back"
        assert controller.post_alerts("/alerts", alertmanager("firing", labels)) == (200, {"shut": []}), (
            "again: nothing"
        )
        assert stage.changes() == ["on", 50, "off", 0]


def open_and_in_use(stage: Stage, crowd: Crowd, name: str) -> None:
    """A rollout that is open to half of the users, who get hits."""
    stage.start(name, **UNHURRIED)
    stage.wait_for(name, lambda rollout: rollout.percent == 50, 20, "the first step")
    wait_until(lambda: sum(one.hit for one in crowd.samples) > 50, 20, "the cache is in use")
    assert hit_ratio([one for one in crowd.samples if one.gated]) > 0.2


def posts(stage: Stage) -> float:
    """Alerts that Prometheus has delivered; it does not scrape itself here, so from its own page."""
    _, page, _ = http_request(stage.prometheus.port, "GET", "/metrics")
    return metric(page.decode(), "prometheus_notifications_sent_total") - metric(
        page.decode(), "prometheus_notifications_errors_total"
    )


def alertmanager(status: str, labels: dict[str, str]) -> dict[str, object]:
    """What Alertmanager's webhook sends, version 4."""
    return {
        "version": "4",
        "groupKey": "{}:{}",
        "truncatedAlerts": 0,
        "status": status,
        "receiver": "tidegate",
        "groupLabels": {},
        "commonLabels": labels,
        "commonAnnotations": {},
        "externalURL": "http://alertmanager.example.com",
        "alerts": [
            {
                "status": status,
                "labels": labels,
                "annotations": {},
                "startsAt": "2026-01-01T00:00:00.000Z",
                "endsAt": "0001-01-01T00:00:00Z",
                "generatorURL": "http://prometheus.example.com",
                "fingerprint": "c0ffee",
            }
        ],
    }
