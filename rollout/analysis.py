"""Verdicts: what the counts of one window say about each objective.

Three words, and worst wins: *bad* rolls back, *unknown* holds, *good* lets go on. No data, no traffic, little traffic
and a cold cache are unknown: never good, never bad (P7). A missed objective is bad if control meets it or cannot tell;
if control misses it too, the trouble strikes both and is unknown. Control has no cache open, so it never speaks about
the hit ratio. Every verdict carries its numbers (P10).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from tidegate.rollout.fields import show_duration, show_ratio
from tidegate.rollout.source import BUCKETS
from tidegate.rollout.spec import RolloutSpec
from tidegate.rollout.stats import Series, total
from tidegate.vocabulary import (
    CANARY,
    COHORT_ERRORS,
    COHORT_HITS,
    COHORT_REQUESTS,
    COHORT_STORABLE,
    CONTROL,
)

__all__ = ["Cause", "Counts", "Evidence", "Judge", "Judgement", "Outcome", "ThresholdJudge", "Verdict", "worst"]

Outcome = Literal["good", "bad", "unknown"]
Cause = Literal["", "no_data", "no_traffic", "little_traffic", "warm_up", "strikes_both"]
"""Why a verdict is unknown; empty otherwise. A label value: fixed words only."""

CONTROL_HEARD: Final = 5
"""Bad control events that are believed even where control has fewer requests than a canary would need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found about one objective.

    ratio, limit: the canary's share of bad events (or hits) and what it is held against; None if it cannot be told.
    control: the same share of the control cohort.
    requests: the canary's denominator in the window.
    """

    objective: str
    outcome: Outcome
    cause: Cause = ""
    reason: str
    ratio: float | None = None
    control: float | None = None
    limit: float
    requests: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Growth of a cohort's counters in one window. None is no data, which is not 0.

    timed: responses in the histogram; slow: those above the objective's bucket.
    """

    requests: float | None = None
    errors: float | None = None
    storable: float | None = None
    hits: float | None = None
    timed: float | None = None
    slow: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything a judge may look at.

    at, opened: seconds since the epoch: now, and when the flag last opened further.
    step: index into `spec.steps`.
    series: the raw samples of the window, by band and cohort, for judges that stratify.
    canary, control: counts over the last window of the step.
    warm: the canary's counts since the caches are warm; all None before.
    """

    at: float
    opened: float
    step: int
    series: Sequence[Series]
    canary: Counts
    control: Counts
    warm: Counts = field(default_factory=Counts)

    @classmethod
    def of(cls, spec: RolloutSpec, series: Sequence[Series], *, step: int, opened: float, at: float) -> "Evidence":
        """Count what the series hold between the later of `opened` and `at - window`, and `at`."""
        start = max(opened, at - spec.window)
        hit_ratio = spec.objectives.hit_ratio
        warm = Counts()
        if hit_ratio is not None and at > opened + hit_ratio.warm_up:
            warm = _count(spec, series, CANARY, max(start, opened + hit_ratio.warm_up), at)
        return cls(
            at=at,
            opened=opened,
            step=step,
            series=series,
            canary=_count(spec, series, CANARY, start, at),
            control=_count(spec, series, CONTROL, start, at),
            warm=warm,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One verdict an objective, and what the judge wants to remember until the next tick (JSON can hold it)."""

    verdicts: tuple[Verdict, ...]
    memory: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Judge(Protocol):
    """Turns evidence into verdicts. Pure: what it must remember goes out with the judgement and comes in again."""

    def judge(self, spec: RolloutSpec, evidence: Evidence, memory: Mapping[str, Any]) -> Judgement:
        """One verdict for each objective of `spec`, in its order."""
        ...


def worst(verdicts: Sequence[Verdict]) -> Outcome:
    """bad before unknown before good; no verdict at all is unknown."""
    outcomes = {verdict.outcome for verdict in verdicts}
    if "bad" in outcomes:
        return "bad"
    return "good" if outcomes == {"good"} else "unknown"


class ThresholdJudge:
    """Plain thresholds over one window, with minimum evidence."""

    def judge(self, spec: RolloutSpec, evidence: Evidence, memory: Mapping[str, Any]) -> Judgement:
        """See Judge; this one remembers nothing."""
        needed = spec.steps[evidence.step].min_requests
        canary, control = evidence.canary, evidence.control
        verdicts: list[Verdict] = []
        if spec.objectives.errors is not None:
            limit = spec.objectives.errors.max
            shares = _Share("errors", "errors", canary.errors, canary.requests), (control.errors, control.requests)
            verdicts.append(_at_most(*shares, limit=limit, needed=needed))
        if spec.objectives.slow is not None:
            slow = spec.objectives.slow
            noun = f"responses over {show_duration(slow.over)}"
            shares = _Share("slow", noun, canary.slow, canary.timed), (control.slow, control.timed)
            verdicts.append(_at_most(*shares, limit=slow.max, needed=needed))
        if spec.objectives.hit_ratio is not None:
            hit_ratio = spec.objectives.hit_ratio
            age = evidence.at - evidence.opened
            share = _Share("hit_ratio", "hits", evidence.warm.hits, evidence.warm.storable)
            verdicts.append(_at_least(share, hit_ratio.min, needed, age, hit_ratio.warm_up))
        return Judgement(verdicts=tuple(verdicts), memory=memory)


@dataclass(frozen=True, slots=True)
class _Share:
    """`part` of `whole`, and what to call it."""

    objective: str
    noun: str
    part: float | None
    whole: float | None

    @property
    def ratio(self) -> float | None:
        return _ratio(self.part, self.whole)

    def __str__(self) -> str:
        ratio = self.ratio
        shown = "-" if ratio is None else show_ratio(ratio)
        return f"{_number(self.part)} {self.noun} in {_number(self.whole)} requests ({shown})"


def _at_most(share: _Share, control: tuple[float | None, float | None], *, limit: float, needed: int) -> Verdict:
    """An objective that bounds the share of bad events from above."""
    against = _ratio(*control)
    lacking = _lacking(share, needed)
    if lacking is not None:
        return _verdict(share, "unknown", limit, lacking[1], cause=lacking[0], control=against)
    ratio = share.ratio
    assert ratio is not None
    if ratio <= limit:
        return _verdict(share, "good", limit, f"{share} <= {show_ratio(limit)}", control=against)
    told = f"{share} > {show_ratio(limit)}"
    bad, requests = control
    if against is None or bad is None or requests is None:
        return _verdict(share, "bad", limit, f"{told}; control cannot tell (no traffic)", control=against)
    beside = f"{_number(bad)} in {_number(requests)} ({show_ratio(against)})"
    if against <= limit:
        return _verdict(share, "bad", limit, f"{told}; control meets it: {beside}", control=against)
    if requests < needed and bad < CONTROL_HEARD:
        return _verdict(share, "bad", limit, f"{told}; control cannot tell: only {beside}", control=against)
    return _verdict(
        share, "unknown", limit, f"{told}, strikes both: control misses it too: {beside}", cause="strikes_both",
        control=against,
    )  # fmt: skip


def _at_least(share: _Share, limit: float, needed: int, age: float, warm_up: float) -> Verdict:
    """The hit ratio: a bound from below, without control, after the warm-up."""
    if age <= warm_up:
        told = f"hit ratio: warming up, {show_duration(int(age))} of {show_duration(warm_up)}"
        return _verdict(share, "unknown", limit, told, cause="warm_up")
    lacking = _lacking(share, needed)
    if lacking is not None:
        return _verdict(share, "unknown", limit, f"hit ratio: {lacking[1]}", cause=lacking[0])
    ratio = share.ratio
    assert ratio is not None
    told = f"{_number(share.part)} hits in {_number(share.whole)} storable requests ({show_ratio(ratio)})"
    if ratio >= limit:
        return _verdict(share, "good", limit, f"{told} >= {show_ratio(limit)}")
    return _verdict(share, "bad", limit, f"{told} < {show_ratio(limit)}")


def _lacking(share: _Share, needed: int) -> tuple[Cause, str] | None:
    """Why this share says nothing yet, or None."""
    storable = "storable " if share.objective == "hit_ratio" else ""
    if share.part is None or share.whole is None or not math.isfinite(share.part + share.whole):
        return "no_data", f"no data about {share.noun} of the canary in the window"
    if share.whole == 0:
        return "no_traffic", f"no {storable}requests from the canary in the window"
    if share.whole < needed:
        return "little_traffic", f"{_number(share.whole)} of {needed} {storable}requests needed from the canary"
    return None


def _verdict(
    share: _Share, outcome: Outcome, limit: float, reason: str, *, cause: Cause = "", control: float | None = None
) -> Verdict:
    return Verdict(
        objective=share.objective,
        outcome=outcome,
        cause=cause,
        reason=reason,
        ratio=share.ratio,
        control=control,
        limit=limit,
        requests=share.whole,
    )


def _ratio(part: float | None, whole: float | None) -> float | None:
    if part is None or whole is None or whole <= 0 or not math.isfinite(part / whole):
        return None
    return part / whole


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}"


def _count(spec: RolloutSpec, series: Sequence[Series], cohort: str, start: float, end: float) -> Counts:
    def of(name: str, le: float | None = None) -> float | None:
        chosen = [
            one
            for one in series
            if one.name == name
            and one.labels.get("cohort") == cohort
            and (le is None or float(one.labels.get("le", "nan")) == le)
        ]
        return total(chosen, start, end, spec.interval)

    timed = slow = None
    if spec.objectives.slow is not None:
        timed, fast = of(BUCKETS, math.inf), of(BUCKETS, spec.objectives.slow.over)
        slow = None if timed is None or fast is None else max(0.0, timed - fast)
    return Counts(
        requests=of(COHORT_REQUESTS),
        errors=of(COHORT_ERRORS),
        storable=of(COHORT_STORABLE),
        hits=of(COHORT_HITS),
        timed=timed,
        slow=slow,
    )
