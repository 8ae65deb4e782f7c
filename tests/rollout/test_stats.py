"""Increases from raw counters. Law: what truly happened between the first and the last scrape is found again, however
often the process began anew between two scrapes that saw it, and missing data is never zero."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.rollout.stats import Increase, Sample, Series, increase, is_fresh, total


def series(*values: float, start: float = 0.0, step: float = 15.0, **labels: str) -> Series:
    samples = tuple((start + index * step, value) for index, value in enumerate(values))
    return Series(name="requests", labels=labels, samples=samples)


@pytest.mark.parametrize(
    ("values", "grown"),
    [
        ([5, 7, 12], 7),
        ([0, 0, 0], 0),
        ([100, 103, 2, 5], 8),  # a restart at 0, then 2 and 3 more
        ([100, 0, 0], 0),
        ([100, 100, 100, 40], 40),
    ],
)
def test_an_increase_is_what_was_seen_to_happen(values: list[float], grown: float) -> None:
    found = increase(series(*values).samples, 0, 1000)
    assert found is not None
    assert found.value == grown


@pytest.mark.parametrize("samples", [[], [(10.0, 5.0)], [(10.0, 5.0), (20.0, math.nan)], [(10.0, -1.0), (20.0, 5.0)]])
def test_less_than_two_usable_samples_are_no_data(samples: list[Sample]) -> None:
    assert increase(samples, 0, 1000) is None


def test_samples_outside_the_window_do_not_count() -> None:
    found = increase([(0, 0), (10, 10), (20, 30), (30, 60)], 10, 20)
    assert found == Increase(value=20, last=20, spacing=10)


def test_nan_and_infinity_count_as_scrapes_that_are_missing() -> None:
    found = increase([(0, 1), (10, math.nan), (20, math.inf), (30, 4)], 0, 30)
    assert found == Increase(value=3, last=30, spacing=30)


@given(
    st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=8), min_size=1, max_size=5),
    st.data(),
)
def test_growth_is_found_again_across_restarts(lives: list[list[int]], data: st.DataObject) -> None:
    """Each life of the process counts from 0; a scrape at its start makes every restart visible."""
    samples: list[Sample] = []
    true_growth = 0
    at = 0.0
    for number, growth in enumerate(lives):
        value = 0
        for grown in [0, *growth]:
            value += grown
            at += data.draw(st.floats(0.1, 60))
            samples.append((at, float(value)))
        true_growth += value if number else value - samples[0][1]
    found = increase(samples, 0, at)
    assert found is not None
    assert found.value == pytest.approx(true_growth)


@given(st.lists(st.tuples(st.floats(allow_nan=True), st.floats(allow_nan=True, allow_infinity=True))))
def test_an_increase_is_never_negative_and_never_nan(samples: list[Sample]) -> None:
    samples = sorted((sample for sample in samples if math.isfinite(sample[0])), key=lambda sample: sample[0])
    found = increase(samples, -1e300, 1e300)
    assert found is None or found.value >= 0


@given(st.lists(st.integers(0, 9), min_size=4, max_size=30), st.data())
def test_a_lost_scrape_does_not_change_a_growth_without_restarts(growth: list[int], data: st.DataObject) -> None:
    values = [float(sum(growth[: index + 1])) for index in range(len(growth))]
    samples = list(enumerate(values))
    lost = data.draw(st.sets(st.integers(1, len(values) - 2), max_size=len(values) - 3))
    kept = [sample for sample in samples if sample[0] not in lost]
    whole, thinned = increase(samples, 0, 1e9), increase(kept, 0, 1e9)
    assert whole is not None
    assert thinned is not None
    assert whole.value == thinned.value


@pytest.mark.parametrize(("late", "fresh"), [(0, True), (15, True), (37.5, True), (38, False), (300, False)])
def test_one_scrape_may_be_missing_but_not_two(late: float, fresh: bool) -> None:
    assert is_fresh(Increase(value=1, last=1000, spacing=15), 1000 + late, 15) is fresh


def test_sparse_scrapes_are_given_their_own_time() -> None:
    assert is_fresh(Increase(value=1, last=1000, spacing=60), 1100, 15)


def test_several_series_add_up() -> None:
    assert total([series(0, 5), series(10, 17)], 0, 15, 15) == 12


def test_no_series_is_no_data() -> None:
    assert total([], 0, 100, 15) is None


def test_a_cohort_without_traffic_is_zero_and_not_missing() -> None:
    assert total([series(7, 7, 7)], 0, 30, 15) == 0


def test_numbers_that_stopped_coming_are_no_data() -> None:
    assert total([series(0, 5, 9)], 0, 300, 15) is None


def test_a_process_that_ended_still_counts_beside_one_that_lives() -> None:
    ended, alive = series(0, 5, 9), series(*range(21))
    assert total([ended, alive], 0, 300, 15) == 29
