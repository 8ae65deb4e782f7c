"""What counts in less time counts the same as prometheus_client's own."""

import itertools
import logging
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from tidegate.middleware.metrics import LATENCY_BUCKETS, Metrics, adding, counting, observing

SECONDS = st.lists(st.floats(0, 20) | st.sampled_from(LATENCY_BUCKETS), max_size=30)


@given(SECONDS)
def test_the_same_is_observed_counted_and_added(seconds: list[float]) -> None:
    told: list[bytes] = []
    for shortened in (False, True):
        registry = CollectorRegistry()
        histogram = Histogram("a", "a", ["of"], buckets=LATENCY_BUCKETS, registry=registry).labels("it")
        ones = Counter("b", "b", ["of"], registry=registry).labels("it")
        sums = Counter("c", "c", ["of"], registry=registry).labels("it")
        observe = observing(histogram) if shortened else histogram.observe
        count, add = (counting(ones), adding(sums)) if shortened else (ones.inc, sums.inc)
        for each in seconds:
            observe(each)
            count()
            add(each)
        lines = generate_latest(registry).splitlines()
        told.append(b"\n".join(line for line in lines if b"_created" not in line))
    assert told[0] == told[1]


def test_what_is_not_kept_in_this_processs_memory_is_left_to_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    histogram = Histogram("a", "a", ["of"], registry=CollectorRegistry()).labels("it")
    counter = Counter("b", "b", ["of"], registry=CollectorRegistry()).labels("it")
    monkeypatch.setattr(histogram, "_sum", object())
    monkeypatch.setattr(counter, "_value", object())
    assert observing(histogram) == histogram.observe
    assert adding(counter) == counter.inc


def test_a_process_that_is_held_up_before_its_line_is_not_early_with_the_next(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now, written = [100.0], list[float]()

    class Late(logging.Handler):
        def emit(self, _record: logging.LogRecord) -> None:
            now[0] += 0.0 if written else 0.5
            written.append(now[0])

    monkeypatch.setattr("tidegate.middleware.metrics.time", SimpleNamespace(monotonic=lambda: now[0]))
    log, late = logging.getLogger("tidegate"), Late()
    log.addHandler(late)
    try:
        metrics = Metrics.of(CollectorRegistry())
        for _ in range(40):
            metrics.fail("store", ValueError("it"))
            now[0] += 0.1
    finally:
        log.removeHandler(late)
    assert len(written) > 2
    assert min(b - a for a, b in itertools.pairwise(written)) >= 1.0
