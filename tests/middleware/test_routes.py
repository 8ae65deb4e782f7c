"""The metrics per route say the same from rows as from prometheus_client's own metrics."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from tidegate.middleware.routes import LATENCY_BUCKETS, Ending, RouteMetrics, route_metrics

ENDINGS = st.builds(
    Ending,
    route=st.sampled_from(["/a", "/b/{id}", "other"]),
    method=st.sampled_from(["GET", "POST"]),
    status=st.integers(2, 5),
    outcome=st.sampled_from([None, "hit", "miss", "bypass"]),
    reason=st.sampled_from([None, "method", "no-store"]),
)
SECONDS = st.sampled_from([0.0, 0.0003, *LATENCY_BUCKETS, 0.3, 11.0])


def told(registry: CollectorRegistry) -> list[str]:
    """All lines but the times of creation; sums of seconds without the last digits, which depend on the order."""
    lines = [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]
    parts = [(line, *line.rpartition(" ")) for line in lines]
    return sorted(f"{name} {float(value):.9f}" if "_sum{" in line else line for line, name, _, value in parts)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(ENDINGS, SECONDS), max_size=20))
def test_both_ways_to_count_expose_the_same(requests: list[tuple[Ending, float]]) -> None:
    own, shared = CollectorRegistry(), CollectorRegistry()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
        rows = route_metrics(own)
        patch.setenv("PROMETHEUS_MULTIPROC_DIR", "set")
        children = route_metrics(shared)
    assert isinstance(rows, RouteMetrics)
    assert not isinstance(children, RouteMetrics)
    for ending, seconds in requests:
        rows.count(ending, seconds)
        children.count(ending, seconds)
    assert told(own) == told(shared)


def test_each_family_can_be_asked_alone() -> None:
    registry = CollectorRegistry()
    rows = RouteMetrics(registry)
    rows.count(("/a", "GET", 2, "hit", None), 0.002)
    rows.count(("/a", "GET", 2, "bypass", "method"), 0.002)
    seen: dict[str, Any] = {}
    for family in (rows.requests, rows.cache, rows.bypass):
        for metric in family.collect():
            seen |= {(sample.name, *sample.labels.values()): sample.value for sample in metric.samples}
    assert seen == {
        ("tidegate_requests_total", "/a", "GET", "2xx"): 2,
        ("tidegate_cache_requests_total", "/a", "hit"): 1,
        ("tidegate_cache_requests_total", "/a", "bypass"): 1,
        ("tidegate_cache_bypass_total", "method"): 1,
    }
