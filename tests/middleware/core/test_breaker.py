"""When a breaker trips: settings and the sliding window."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import ConfigError
from tidegate.middleware.core.breaker import BreakerSettings, RateWindow


def test_every_setting_that_is_out_of_range_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        BreakerSettings(consecutive=0, failure_rate=1.5, window=-1, minimum=True, open_for=float("inf"))
    assert [problem.path for problem in caught.value.problems] == [
        "consecutive",
        "minimum",
        "window",
        "open_for",
        "failure_rate",
    ]


def test_the_window_counts_what_is_recent_and_forgets_what_is_not() -> None:
    window = RateWindow(10)
    for second in range(10):
        window.add(100.0 + second, failed=second % 2 == 0)
    assert window.counts(109.9) == (5, 10)
    assert window.counts(114.5) == (2, 5)
    assert window.counts(118.9) == (0, 1)
    assert window.counts(121.0) == (0, 0)


def test_a_long_silence_forgets_everything() -> None:
    window = RateWindow(10)
    window.add(0.0, failed=True)
    assert window.counts(10_000.0) == (0, 0)


def test_clearing_forgets_everything() -> None:
    window = RateWindow(10)
    window.add(5.0, failed=True)
    window.clear()
    assert window.counts(5.0) == (0, 0)


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=60))
def test_the_counts_lie_between_those_of_nine_and_of_ten_tenths(steps: list[tuple[float, bool]]) -> None:
    window, now, seen = RateWindow(10), 0.0, list[tuple[float, bool]]()
    for gap, failed in steps:
        now += gap
        window.add(now, failed=failed)
        seen.append((now, failed))
        failures, calls = window.counts(now)
        recent = [f for at, f in seen if at > now - 9]
        older = [f for at, f in seen if at >= now - 10]
        assert len(recent) <= calls <= len(older)
        assert sum(recent) <= failures <= sum(older)
