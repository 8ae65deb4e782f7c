"""Prometheus 2: a real server that scrapes the given targets, with rules and alert receivers if wanted."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlencode

from tests.services.programs import prometheus
from tests.services.server import Server, ServiceError, free_port, http_request, wait_until

__all__ = ["AlertReceiver", "Prometheus", "Sample"]

Labels = dict[str, str]
FIRST_SAMPLE_SECONDS = 20.0
"""How long to wait for a first sample: its service discovery alone takes five seconds after a start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertReceiver:
    """Where Prometheus POSTs its alerts, as it would to an Alertmanager: `http://{address}{prefix}/api/v2/alerts`.

    `address` is `host:port`; with a `token` each POST carries it as a bearer token.
    """

    address: str
    prefix: str = ""
    token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One element of an instant vector."""

    labels: Labels
    value: float


class Prometheus(Server):
    """A Prometheus that scrapes `targets` (`host:port`, path `/metrics`).

    `rules` are rule groups as in a rules file, decoded: `[{"name": "g", "rules": [{"record": …, "expr": …}]}]`.
    `alert_receivers` are addresses (`host:port`) or AlertReceivers. `labels` are added to everything scraped.
    """

    name: ClassVar[str] = "prometheus"

    def __init__(
        self,
        targets: Sequence[str],
        *,
        rules: Sequence[Mapping[str, Any]] = (),
        alert_receivers: Sequence[str | AlertReceiver] = (),
        scrape_interval: str = "1s",
        metrics_path: str = "/metrics",
        job: str = "app",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.port = free_port()
        self.config = self.directory / "prometheus.json"
        rules_file = self.directory / "rules.json"
        receivers = [one if isinstance(one, AlertReceiver) else AlertReceiver(address=one) for one in alert_receivers]
        # JSON is YAML, so no YAML library is needed here.
        rules_file.write_text(json.dumps({"groups": list(rules)}), encoding="utf-8")
        document = {
            "global": {
                "scrape_interval": scrape_interval,
                "scrape_timeout": scrape_interval,
                "evaluation_interval": scrape_interval,
            },
            "rule_files": [str(rules_file)],
            "scrape_configs": [
                {
                    "job_name": job,
                    "metrics_path": metrics_path,
                    "static_configs": [{"targets": list(targets), "labels": dict(labels or {})}],
                }
            ],
            "alerting": {"alertmanagers": [_alertmanager(receiver) for receiver in receivers]},
        }
        self.config.write_text(json.dumps(document), encoding="utf-8")

    @property
    def url(self) -> str:
        """Root address."""
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """Program and arguments."""
        return [
            str(prometheus().program),
            f"--config.file={self.config}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--web.enable-lifecycle",
            "--log.level=warn",
        ]

    def environment(self) -> dict[str, str]:
        """Where its shared libraries were unpacked."""
        return prometheus().environment

    def answers(self) -> bool:
        """Whether it serves queries."""
        return http_request(self.port, "GET", "/-/ready", seconds=2)[0] == 200

    def version(self) -> str:
        """Version that the running server names."""
        return str(self._api("status/buildinfo")["version"])

    def query(self, promql: str) -> list[Sample]:
        """An instant vector now; empty where no such series has a sample.

        Raises:
            ServiceError: if Prometheus refused the query.
        """
        result = self._api(f"query?{urlencode({'query': promql})}")["result"]
        return [Sample(labels=one["metric"], value=float(one["value"][1])) for one in result]

    def wait_for_sample(self, promql: str, seconds: float = FIRST_SAMPLE_SECONDS) -> list[Sample]:
        """The query's result as soon as it is not empty.

        Write the condition into the query: `wait_for_sample("http_requests_total > 10")`.

        Raises:
            ServiceError: if it stays empty for `seconds`; names the state of every target.
        """
        found: list[Sample] = []

        def arrived() -> bool:
            found[:] = self.query(promql)
            return bool(found)

        try:
            wait_until(arrived, seconds, f"prometheus has a sample for {promql}")
        except ServiceError as error:
            raise ServiceError(f"{error}; targets: {self._target_states()}; its log:\n{self.log_tail()}") from None
        return found

    def _target_states(self) -> str:
        targets = self._api("targets?state=active")["activeTargets"]
        return "; ".join(f"{one['scrapeUrl']} {one['health']} {one['lastError']}" for one in targets) or "none yet"

    def _api(self, path: str) -> dict[str, Any]:
        status, body, _ = http_request(self.port, "GET", f"/api/v1/{path}")
        answer = json.loads(body)
        if status != 200:
            raise ServiceError(f"prometheus answered {path} with {status}: {answer.get('error')}")
        data: dict[str, Any] = answer["data"]
        return data


def _alertmanager(receiver: AlertReceiver) -> dict[str, Any]:
    described: dict[str, Any] = {
        "static_configs": [{"targets": [receiver.address]}],
        "path_prefix": receiver.prefix,
        "api_version": "v2",
        "timeout": "2s",
    }
    if receiver.token is not None:
        described["authorization"] = {"type": "Bearer", "credentials": receiver.token}
    return described
