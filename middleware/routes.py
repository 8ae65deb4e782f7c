"""The metrics per route: requests, their seconds, what the cache did, why it stood aside.

A request adds to one row, of all its labels together, and a scrape adds the rows up: that costs a request a tenth of
what four of prometheus_client's children do. Only those can be summed over workers, however, so they are used where
`PROMETHEUS_MULTIPROC_DIR` is set; names, labels and values are the same.

Labels are route templates and fixed words, so that there are no more rows than routes by the few ways to end.
Rows are exact over threads with the GIL, which CPython hands over at calls and loops only, not within `row[i] += 1`.
"""

import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

__all__ = ["LATENCY_BUCKETS", "ROUTE_SECONDS", "CountsRoutes", "Ending", "RouteMetrics", "route_metrics"]

LATENCY_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds."""
_FIRST_BOUND: Final = LATENCY_BUCKETS[0]
ROUTE_SECONDS: Final = len(LATENCY_BUCKETS) + 1
"""Where in a row the sum of seconds stands. As `row[-1]` CPython 3.11 finds it half as quickly."""

_REQUESTS: Final = ("tidegate_requests", "HTTP requests by route template, method and status class.")
_SECONDS: Final = (
    "tidegate_request_duration_seconds",
    "Seconds from the start of a request to the end of its response.",
)
_CACHE: Final = ("tidegate_cache_requests", "What the cache did with a request: hit, miss, stale, shadow, bypass.")
_BYPASS: Final = ("tidegate_cache_bypass", "Requests that could not use the cache, by reason.")
_BY_REQUEST: Final = ("route", "method", "status")
_BY_OUTCOME: Final = ("route", "outcome")


class Ending(NamedTuple):
    """How a request ended: the labels of its row.

    status: the hundreds. outcome, reason: as RequestContext has them.
    """

    route: str
    method: str
    status: int
    outcome: str | None
    reason: str | None


Row = list[float]
"""Requests per bucket and one above the last, then the sum of seconds."""


class RouteMetrics:
    """The metrics of one process.

    requests, seconds, cache, bypass: its families, each a collector of its own.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._rows: dict[tuple[str, str, int, str | None, str | None], Row] = {}
        self.requests: Collector = _Family(CounterMetricFamily, _REQUESTS, _BY_REQUEST, self._requests)
        self.seconds: Collector = _Family(HistogramMetricFamily, _SECONDS, ("route",), self._durations)
        self.cache: Collector = _Family(CounterMetricFamily, _CACHE, _BY_OUTCOME, self._outcomes)
        self.bypass: Collector = _Family(CounterMetricFamily, _BYPASS, ("reason",), self._reasons)
        for family in (self.requests, self.seconds, self.cache, self.bypass):
            registry.register(family)

    def count(self, ending: tuple[str, str, int, str | None, str | None], seconds: float) -> None:
        """Count one finished request. ending: the fields of an `Ending`, or one."""
        try:
            row = self._rows[ending]
        except KeyError:
            row = self._rows.setdefault(ending, [0.0] * (len(LATENCY_BUCKETS) + 2))
        row[0 if seconds <= _FIRST_BOUND else bisect_left(LATENCY_BUCKETS, seconds)] += 1.0
        row[ROUTE_SECONDS] += seconds

    def row(self, ending: tuple[str, str, int, str | None, str | None]) -> Row | None:
        """Where those that end so are counted: one more in the bucket, the seconds in the last; None: none did yet."""
        return self._rows.get(ending)

    def _sums(self, label: Callable[[Ending], tuple[str, ...] | None]) -> dict[tuple[str, ...], Row]:
        """The rows added up by some of their labels; None: a row that does not count there."""
        sums: dict[tuple[str, ...], Row] = {}
        for ending, row in list(self._rows.items()):
            labels = label(Ending(*ending))
            if labels is not None:
                before = sums.get(labels)
                sums[labels] = (
                    list(row) if before is None else [one + other for one, other in zip(before, row, strict=True)]
                )
        return sums

    def _requests(self, family: CounterMetricFamily) -> None:
        for labels, row in self._sums(lambda e: (e.route, e.method, f"{e.status}xx")).items():
            family.add_metric(labels, sum(row[:-1]))

    def _outcomes(self, family: CounterMetricFamily) -> None:
        for labels, row in self._sums(lambda e: (e.route, e.outcome) if e.outcome is not None else None).items():
            family.add_metric(labels, sum(row[:-1]))

    def _reasons(self, family: CounterMetricFamily) -> None:
        for labels, row in self._sums(lambda e: (e.reason,) if _is_bypass(e) and e.reason else None).items():
            family.add_metric(labels, sum(row[:-1]))

    def _durations(self, family: HistogramMetricFamily) -> None:
        for labels, row in self._sums(lambda e: (e.route,)).items():
            running = 0.0
            buckets: list[tuple[str, float]] = []
            for bound, requests in zip((*map(str, LATENCY_BUCKETS), "+Inf"), row, strict=False):
                running += requests
                buckets.append((bound, running))
            family.add_metric(labels, buckets, sum_value=row[-1])


def _is_bypass(ending: Ending) -> bool:
    return ending.outcome == "bypass"


class _Family(Collector):
    """One metric family, filled when it is asked for."""

    def __init__(
        self, kind: Callable[..., Metric], told: tuple[str, str], labels: Sequence[str], fill: Callable[..., None]
    ) -> None:
        self._make = partial(kind, *told, labels=labels)
        self._labelnames = labels  # where prometheus_client's own metrics have theirs
        self._fill = fill

    def describe(self) -> Sequence[Metric]:
        """Its name, for the registry."""
        return [self._make()]

    def collect(self) -> Iterator[Metric]:
        """The family as it stands."""
        family = self._make()
        self._fill(family)
        yield family


class _OfWorkers:
    """The same with prometheus_client's own metrics, which it keeps in files and sums over workers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(*_REQUESTS, _BY_REQUEST, registry=registry)
        self.seconds = Histogram(*_SECONDS, ["route"], buckets=LATENCY_BUCKETS, registry=registry)
        self.cache = Counter(*_CACHE, _BY_OUTCOME, registry=registry)
        self.bypass = Counter(*_BYPASS, ["reason"], registry=registry)
        self._bound: dict[tuple[str, str, int, str | None, str | None], tuple[list[Counter], Histogram]] = {}

    def count(self, ending: tuple[str, str, int, str | None, str | None], seconds: float) -> None:
        bound = self._bound.get(ending)
        if bound is None:
            bound = self._bound[ending] = self._bind(Ending(*ending))
        for counter in bound[0]:
            counter.inc()
        bound[1].observe(seconds)

    def row(self, ending: tuple[str, str, int, str | None, str | None]) -> Row | None:
        """None: they are counted in files."""
        return None

    def _bind(self, ending: Ending) -> tuple[list[Counter], Histogram]:
        counters = [self.requests.labels(ending.route, ending.method, f"{ending.status}xx")]
        if ending.outcome is not None:
            counters.append(self.cache.labels(ending.route, ending.outcome))
        if _is_bypass(ending) and ending.reason is not None:
            counters.append(self.bypass.labels(ending.reason))
        return counters, self.seconds.labels(ending.route)


CountsRoutes = RouteMetrics | _OfWorkers
"""The metrics per route, counted in either way."""


def route_metrics(registry: CollectorRegistry) -> CountsRoutes:
    """The metrics per route, in the way that this process is scraped."""
    return _OfWorkers(registry) if "PROMETHEUS_MULTIPROC_DIR" in os.environ else RouteMetrics(registry)
