"""Counted together, requests count as they do in cohorts and per route one after the other."""

import threading
import time
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from tidegate.middleware.cohort_files import Labels
from tidegate.middleware.cohorts import CohortCounters, CohortTotals
from tidegate.middleware.counting import Aside, Together
from tidegate.middleware.routes import LATENCY_BUCKETS, CountsRoutes, RouteMetrics, route_metrics
from tidegate.vocabulary import COHORT_BUCKETS

LABELS = [(flag, band, cohort) for flag in ("a", "b") for band in ("10", "50") for cohort in ("canary", "control")]
COHORTS: list[tuple[Labels, ...]] = [
    *product(LABELS[:4], LABELS[4:]),
    (LABELS[0],),
    (("nobody's", "10", "canary"), LABELS[5]),
    (),
]
KINDS = [("hit", True), ("miss", True), ("miss", False), ("aside", True), ("aside", False)]
"""The outcome, and whether it was storable."""
SECONDS = [0.0, 0.0003, *LATENCY_BUCKETS, *COHORT_BUCKETS, 0.3, 11.0]
REQUESTS = st.tuples(
    st.sampled_from(COHORTS),
    st.sampled_from(["/a", "/b/{id}"]),
    st.sampled_from(SECONDS),
    st.integers(0, 4),
)
Request = tuple[tuple[Labels, ...], str, float, int]


class Counted:
    """Counters of both kinds, and what was counted in them."""

    def __init__(self, directory: Path | None = None) -> None:
        self.cohorts = CohortCounters(LABELS, directory=str(directory) if directory else None)
        self.registry = CollectorRegistry()
        self.routes: CountsRoutes = route_metrics(self.registry)
        self.together = [Together(self.cohorts, self.routes, outcome=o, storable=storable) for o, storable in KINDS[:3]]
        self.aside = Aside(self.cohorts)

    def at_once(self, request: Request) -> None:
        cohorts, route, seconds, kind = request
        if KINDS[kind][0] == "aside":
            self.aside.count(cohorts, seconds, KINDS[kind][1])
        else:
            self.together[kind].count(cohorts, route, seconds)

    def one_by_one(self, request: Request) -> None:
        cohorts, route, seconds, kind = request
        outcome, storable = KINDS[kind]
        self.cohorts.count(cohorts, seconds, False, storable, outcome == "hit")
        if outcome != "aside":
            self.routes.count((route, "GET", 2, outcome, None), seconds)

    def told(self) -> tuple[Mapping[Labels, CohortTotals], list[str]]:
        lines = generate_latest(self.registry).decode().splitlines()
        return self.cohorts.totals(), sorted(line for line in lines if "_created" not in line)


@pytest.mark.parametrize("groups", [512, 2])  # sets of cohorts that have a row of their own
@settings(max_examples=60, deadline=None)
@given(st.lists(REQUESTS, max_size=30))
def test_at_once_is_as_one_by_one(groups: int, requests: list[Request]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tidegate.middleware.cohorts._GROUPS", groups)
        one, other = Counted(), Counted()
        for request in requests * 2:  # the second time where all places are known
            one.at_once(request)
            other.one_by_one(request)
        assert one.told() == other.told()


def test_what_is_known_is_counted_in_one_place() -> None:
    """Else the law above would say nothing."""
    counted = Counted()
    requests: list[Request] = [(COHORTS[0], "/a", 0.1, kind) for kind in range(len(KINDS))]
    for request in requests:
        counted.at_once(request)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counted.cohorts, "count", None)
        patch.setattr(counted.routes, "count", None)
        for request in requests:
            counted.at_once(request)
    totals = counted.cohorts.totals()[COHORTS[0][0]]
    assert (totals.requests, totals.storable, totals.hits) == (10, 6, 2)


def test_cohorts_that_are_made_for_one_request_are_not_taken_for_those_before() -> None:
    one, other = Counted(), Counted()
    for number in range(10_000):  # more than are remembered
        request = ((*COHORTS[number * number % 7],), "/a", 0.1, number % 2 * 3)
        one.at_once(request)
        other.one_by_one(request)
        del request
    assert one.told() == other.told()


@pytest.mark.parametrize("kind", [0, 3], ids=["hit", "aside"])
def test_several_threads_count_exactly(kind: int) -> None:
    class Slow(float):
        """Seconds whose addition lets other threads in: between the reading of a count and its writing."""

        def __radd__(self, other: float) -> float:
            time.sleep(0)
            return float(self) + other

    counted = Counted()
    # Found by the first, which is counted in the two ways: per route they take seconds for plain numbers.
    counted.at_once((COHORTS[0], "/a", 0.25, kind))

    def count() -> None:
        for _ in range(500):
            counted.at_once((COHORTS[0], "/a", Slow(0.25), kind))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    totals, lines = counted.told()
    assert all(totals[label].requests == 2001 and totals[label].seconds == 500.25 for label in COHORTS[0])
    assert ('tidegate_request_duration_seconds_sum{route="/a"} 500.25' in lines) is (kind == 0)


def let_go(cohorts: CohortCounters) -> None:
    cohorts.close()


def fork(cohorts: CohortCounters) -> None:
    cohorts.forked()


@pytest.mark.parametrize("in_files", [True, False])
@pytest.mark.parametrize("end", [let_go, fork])
def test_what_comes_after_a_fork_or_the_end_is_counted_where_the_counters_count_it(
    tmp_path: Path, end: Callable[[CohortCounters], None], in_files: bool
) -> None:
    one, other = (Counted(tmp_path / name if in_files else None) for name in ("one", "other"))
    for _ in range(3):
        for cohorts, kind in product(COHORTS, range(len(KINDS))):
            one.at_once((cohorts, "/a", 0.125, kind))
            other.one_by_one((cohorts, "/a", 0.125, kind))
        assert one.told() == other.told()
        assert one.cohorts.totals()[LABELS[0]].hits > 0
        end(one.cohorts)
        end(other.cohorts)


def test_routes_that_are_counted_in_files_are_counted_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "set")
    counted = Counted()
    assert not isinstance(counted.routes, RouteMetrics)
    for _ in range(3):
        counted.at_once((COHORTS[0], "/a", 0.1, 0))
    told = generate_latest(counted.registry).decode()
    assert 'tidegate_requests_total{method="GET",route="/a",status="2xx"} 3.0' in told
    assert counted.cohorts.totals()[COHORTS[0][0]].hits == 3
