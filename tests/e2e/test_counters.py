"""The cohort counters of two servers, one with three workers of which one is killed: as Prometheus and as the embedded
controller sees them, they equal the requests that were made."""

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.crowd import FLAG, Sample, batch, is_canary
from tests.e2e.stage import REPLACED_WITHIN, App
from tests.services import Prometheus, wait_until
from tidegate.rollout.scrape import ScrapeSource
from tidegate.rollout.source import CohortQuery
from tidegate.rollout.stats import Series, total
from tidegate.vocabulary import LAYERS

WORKERS = 3
QUERY = CohortQuery(flag=FLAG, select={})
JUDGED = f'{{flag="{FLAG}",cohort!="none"}}'


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[App]]:
    """Two servers of one application, each with a folder of its own; the flags of both are open for half the users."""
    half = {"enabled": True, "strategies": [{"percentage": 50, "stickiness": "userId"}]}
    flags = tmp_path / "flags.json"
    flags.write_text(json.dumps({"version": 1, "flags": {f"tidegate.{layer}": half for layer in LAYERS}}))
    with ExitStack() as stack:
        apps: list[App] = []
        for name, workers in (("one", WORKERS), ("two", 1)):
            folder = tmp_path / name
            folder.mkdir()
            settings = {
                "TIDEGATE_FLAGS_PROVIDER": "local",
                "TIDEGATE_FLAGS_FILE": str(flags),
                "TIDEGATE_FLAGS_UNIT": "user",
                "PROMETHEUS_MULTIPROC_DIR": str(folder),
            }
            apps.append(stack.enter_context(App(settings, workers=workers)))
        yield apps


class Embedded:
    """The controller's own look at /metrics, for a controller without Prometheus."""

    def __init__(self, runner: asyncio.Runner, servers: Sequence[App]) -> None:
        self._runner = runner
        self._source = ScrapeSource([f"http://127.0.0.1:{app.port}/metrics" for app in servers], timeout=20)
        self._looks = 0
        self.look()

    def look(self) -> Sequence[Series]:
        """One more look, and all that was seen so far."""
        self._looks += 1
        return self._runner.run(self._source.samples(QUERY, 0, self._looks))

    def grown(self, what: str) -> dict[str, float]:
        """By how much a counter has grown since the first look, by cohort."""
        seen = self.look()
        return {
            cohort: total([one for one in _of(seen, what) if one.labels["cohort"] == cohort], 0, self._looks, 1) or 0.0
            for cohort in ("canary", "control")
        }

    def close(self) -> None:
        self._runner.run(self._source.close())


def _of(seen: Sequence[Series], what: str) -> list[Series]:
    return [one for one in seen if one.name == f"tidegate_cohort_{what}_total"]


def by_prometheus(prometheus: Prometheus, what: str) -> dict[str, float]:
    found = prometheus.query(f"sum by (cohort) (tidegate_cohort_{what}_total{JUDGED})")
    return {sample.labels["cohort"]: sample.value for sample in found}


def by_instance(prometheus: Prometheus) -> dict[str, float]:
    found = prometheus.query(f"sum by (instance) (tidegate_cohort_requests_total{JUDGED})")
    return {sample.labels["instance"]: sample.value for sample in found}


def made(samples: Sequence[Sample], *, hits: bool = False) -> Mapping[str, float]:
    counts = Counter("canary" if is_canary(one.user, 50) else "control" for one in samples if one.hit or not hits)
    return {cohort: float(counts[cohort]) for cohort in ("canary", "control")}


def test_what_prometheus_and_the_embedded_controller_see_equals_the_requests_made(servers: list[App]) -> None:
    one, two = servers
    targets = [f"127.0.0.1:{app.port}" for app in servers]
    everything: list[Sample] = []
    with asyncio.Runner() as runner, Prometheus(targets) as prometheus:
        embedded = Embedded(runner, servers)
        try:
            both = f"count(count by (instance) (tidegate_cohort_requests_total{JUDGED} == 0)) == 2"
            prometheus.wait_for_sample(both, 60)
            wait_until(lambda: len(one.answering()) == WORKERS, 60, "all workers answer")

            def send(app: App, count: int, seed: int) -> list[Sample]:
                sent = batch(app.port, count, seed=seed)
                everything.extend(sent)
                return sent

            first = send(one, 300, 1)
            send(two, 100, 2)
            victim = int(Counter(sample.worker for sample in first).most_common(1)[0][0])
            os.kill(victim, signal.SIGKILL)

            def replaced() -> bool:
                answering = one.answering()
                return len(answering) == WORKERS and victim not in answering

            wait_until(replaced, REPLACED_WITHIN, "the killed worker is replaced")
            send(one, 300, 3)
            print(f"{len(everything)} requests, {made(everything)}; killed {victim}, which had answered most")

            assert {sample.status for sample in everything} == {200}
            assert min(made(everything).values()) > 100
            assert sum(made(everything, hits=True).values()) > 50
            for what, expected in (("requests", made(everything)), ("hits", made(everything, hits=True))):
                assert embedded.grown(what) == expected
                wait_until(lambda: by_prometheus(prometheus, what) == expected, 60, f"{what}: {expected}")  # noqa: B023
            assert by_instance(prometheus) == {targets[0]: 600.0, targets[1]: 100.0}, "each server shows its own"
            resets = prometheus.query(f"sum(resets(tidegate_cohort_requests_total{JUDGED}[10m]))")
            assert [sample.value for sample in resets] == [0], "no counter ever went back"
        finally:
            embedded.close()
