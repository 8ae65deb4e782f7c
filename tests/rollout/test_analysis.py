"""Verdicts: evidence is needed to go on, cause to go back, and everything else is *unknown*."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.rollout.analysis import Counts, Evidence, ThresholdJudge, Verdict, worst
from tidegate.rollout.spec import RolloutSpec
from tidegate.rollout.stats import Series

SPEC = RolloutSpec.parse(
    {
        "name": "canary",
        "flag": "tidegate.cache",
        "steps": [{"percent": 10, "min_requests": 100}],
        "window": 60,
        "interval": 5,
        "objectives": {
            "errors": {"max": "1%"},
            "slow": {"over": "500ms", "max": "5%"},
            "hit_ratio": {"min": "60%", "warm_up": 30},
        },
    }
)
EMPTY = Counts(requests=0, errors=0, storable=0, hits=0, timed=0, slow=0)


def counts(requests: float | None = 1000, **changes: float | None) -> Counts:
    whole: dict[str, Any] = {
        "requests": requests,
        "errors": 0,
        "storable": requests,
        "hits": requests,
        "timed": requests,
        "slow": 0,
    }
    return Counts(**{**whole, **changes})


def judged(canary: Counts, control: Counts, *, age: float = 60) -> dict[str, Verdict]:
    warm = canary if age > 30 else Counts()
    evidence = Evidence(at=1000 + age, opened=1000, step=0, series=(), canary=canary, control=control, warm=warm)
    judgement = ThresholdJudge().judge(SPEC, evidence, {})
    return {verdict.objective: verdict for verdict in judgement.verdicts}


@pytest.mark.parametrize(
    ("canary", "control", "outcome", "cause", "says"),
    [
        (counts(errors=10), counts(), "good", "", "10 errors in 1000 requests (1%) <= 1%"),
        (counts(errors=11), counts(), "bad", "", "11 errors in 1000 requests (1.1%) > 1%; control meets it: 0 in 1000"),
        (counts(errors=11), EMPTY, "bad", "", "control cannot tell (no traffic)"),
        (counts(errors=11), Counts(), "bad", "", "control cannot tell (no traffic)"),
        (counts(errors=50), counts(errors=50), "unknown", "strikes_both", "control misses it too: 50 in 1000 (5%)"),
        (counts(errors=50), counts(20, errors=1), "bad", "", "control cannot tell: only 1 in 20 (5%)"),
        (counts(errors=50), counts(20, errors=9), "unknown", "strikes_both", "9 in 20 (45%)"),
        (counts(99, errors=99), counts(), "unknown", "little_traffic", "99 of 100 requests needed"),
        (counts(100, errors=99), counts(), "bad", "", "99 errors in 100"),
        (EMPTY, counts(), "unknown", "no_traffic", "no requests from the canary"),
        (Counts(), counts(), "unknown", "no_data", "no data about errors"),
        (counts(errors=None), counts(), "unknown", "no_data", "no data about errors"),
        (counts(None), counts(), "unknown", "no_data", "no data"),
    ],
)  # fmt: skip
def test_errors_are_judged_against_the_limit_and_beside_control(
    canary: Counts, control: Counts, outcome: str, cause: str, says: str
) -> None:
    verdict = judged(canary, control)["errors"]
    assert (verdict.outcome, verdict.cause) == (outcome, cause)
    assert says in verdict.reason


@pytest.mark.parametrize(
    ("canary", "control", "outcome"),
    [
        (counts(slow=50), counts(), "good"),
        (counts(slow=51), counts(slow=50), "bad"),
        (counts(slow=51), counts(slow=51), "unknown"),
        (counts(slow=None), counts(), "unknown"),
        (counts(timed=0, slow=0), counts(), "unknown"),
    ],
)
def test_slow_responses_are_judged_like_errors(canary: Counts, control: Counts, outcome: str) -> None:
    assert judged(canary, control)["slow"].outcome == outcome


@pytest.mark.parametrize(
    ("canary", "age", "outcome", "cause"),
    [
        (counts(hits=600), 60, "good", ""),
        (counts(hits=599), 60, "bad", ""),
        (counts(hits=0), 30, "unknown", "warm_up"),
        (counts(hits=0), 31, "bad", ""),
        (counts(storable=99, hits=0), 60, "unknown", "little_traffic"),
        (counts(storable=0, hits=0), 60, "unknown", "no_traffic"),
        (counts(storable=None, hits=0), 60, "unknown", "no_data"),
    ],
)
def test_the_hit_ratio_is_judged_alone_and_after_the_warm_up(
    canary: Counts, age: float, outcome: str, cause: str
) -> None:
    """Control has no cache open and hits nothing: were it asked, every miss would strike both."""
    verdict = judged(canary, counts(hits=0), age=age)["hit_ratio"]
    assert (verdict.outcome, verdict.cause) == (outcome, cause)


def test_errors_are_judged_during_the_warm_up() -> None:
    assert judged(counts(errors=500), counts(), age=1)["errors"].outcome == "bad"


def test_a_verdict_carries_its_numbers() -> None:
    verdict = judged(counts(errors=30), counts(errors=5))["errors"]
    assert (verdict.ratio, verdict.control, verdict.limit, verdict.requests) == (0.03, 0.005, 0.01, 1000)


def verdict(outcome: Any) -> Verdict:
    return Verdict(objective="errors", outcome=outcome, reason="", limit=0)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["good", "good"], "good"),
        (["good", "unknown"], "unknown"),
        (["unknown", "bad", "good"], "bad"),
        ([], "unknown"),
    ],
)
def test_the_worst_verdict_wins(outcomes: Sequence[str], expected: str) -> None:
    assert worst([verdict(outcome) for outcome in outcomes]) == expected


_NUMBER = st.none() | st.sampled_from([0.0, float("nan"), float("inf")]) | st.floats(0, 1e6)
_COUNTS = st.builds(
    Counts, requests=_NUMBER, errors=_NUMBER, storable=_NUMBER, hits=_NUMBER, timed=_NUMBER, slow=_NUMBER
)


@given(_COUNTS, _COUNTS, st.floats(0, 1000))
def test_without_enough_canary_evidence_nothing_is_good_or_bad(canary: Counts, control: Counts, age: float) -> None:
    wholes = {"errors": canary.requests, "slow": canary.timed, "hit_ratio": canary.storable}
    for name, found in judged(canary, control, age=age).items():
        whole = wholes[name]
        if found.outcome != "unknown":
            assert whole is not None
            assert whole >= 100
        assert found.reason


def counter(name: str, cohort: str, growth: float, *, until: float = 100, **labels: str) -> Series:
    """A counter that is scraped every 5 s from 0 on and grows by `growth` each time."""
    samples = tuple((at, at / 5 * growth) for at in map(float, range(0, int(until) + 1, 5)))
    return Series(name=name, labels={"cohort": cohort, **labels}, samples=samples)


def test_counts_are_of_the_last_window_of_the_step_and_by_cohort() -> None:
    series = [
        counter("tidegate_cohort_requests_total", "canary", 10, band="1"),
        counter("tidegate_cohort_requests_total", "canary", 5, band="10"),
        counter("tidegate_cohort_requests_total", "control", 7, band="10"),
        counter("tidegate_cohort_errors_total", "canary", 1, band="1"),
        counter("tidegate_cohort_duration_seconds_bucket", "canary", 4, band="1", le="0.5"),
        counter("tidegate_cohort_duration_seconds_bucket", "canary", 10, band="1", le="+Inf"),
        counter("tidegate_cohort_storable_total", "canary", 8, band="1"),
        counter("tidegate_cohort_hits_total", "canary", 6, band="1"),
    ]
    early = Evidence.of(SPEC, series, step=0, opened=80, at=100)
    assert early.canary == Counts(requests=60, errors=4, storable=32, hits=24, timed=40, slow=24)
    assert early.control.requests == 28
    assert early.control.errors is None
    assert early.warm == Counts()
    late = Evidence.of(SPEC, series, step=0, opened=20, at=100)
    assert late.canary.requests == 60 * 3
    assert late.warm.storable == 8 * 10  # from 50 on: 30 s after the flag opened


def test_counts_after_an_outage_are_no_data() -> None:
    series = [counter("tidegate_cohort_requests_total", "canary", 10, until=60)]
    assert Evidence.of(SPEC, series, step=0, opened=0, at=100).canary.requests is None
