"""What a rollout is: a flag, the steps it opens by, what it must keep to, and what shuts it.

`RolloutSpec.parse` takes the mapping that stands in the YAML file and reports every problem at once;
`RolloutSpec.to_mapping` gives the same mapping back, in plain seconds and ratios, for the journal.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast, get_args

from tidegate.errors import Problems
from tidegate.rollout.fields import Field, Refusal, duration, ratio, read_table, show_duration
from tidegate.vocabulary import COHORT_BUCKETS, Unit

__all__ = [
    "OBJECTIVES",
    "SPEC_FIELDS",
    "STEP_FIELDS",
    "Errors",
    "HitRatio",
    "Objectives",
    "RolloutSpec",
    "Slow",
    "Step",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step.

    percent: how far the flag opens, 1..100.
    dwell: seconds to stay at least.
    min_requests: evidence an objective needs in the canary, in the window, to be judged at all.
    """

    percent: int
    dwell: float = 600.0
    min_requests: int = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """At most `max` of the requests may fail (5xx or exception)."""

    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """At most `max` of the requests may take longer than `over` seconds."""

    over: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HitRatio:
    """At least `min` of the storable requests must be hits, `warm_up` seconds after each step began."""

    min: float
    warm_up: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """What the canary must keep to; at least one is set."""

    errors: Errors | None = None
    slow: Slow | None = None
    hit_ratio: HitRatio | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSpec:
    """A rollout, as read and checked.

    name: names the rollout in the journal, in metrics and on the command line.
    flag, environment: what is moved. environment None: the one that the settings name.
    unit: what the percentage is drawn over; the flag's stickiness must agree.
    steps: strictly rising.
    window: seconds; evidence is judged over the last window of the step.
    interval: seconds between two ticks.
    objectives: see Objectives.
    alerts: label sets; a firing alert that has all labels of one of them shuts the flag.
    select: more label matchers for the series that are read (`job: api`).
    bake: seconds to keep watch at the last step before the rollout is done.
    """

    name: str
    flag: str
    environment: str | None = None
    unit: Unit = "tenant"
    steps: tuple[Step, ...]
    window: float = 300.0
    interval: float = 15.0
    objectives: Objectives
    alerts: tuple[Mapping[str, str], ...] = ()
    select: Mapping[str, str]
    bake: float = 600.0

    @classmethod
    def parse(cls, raw: object, source: str = "rollout") -> "RolloutSpec":
        """The rollout that a mapping describes.

        Raises:
            ConfigError: with every problem, each with its path (`steps[2].percent`), value and fix.
        """
        problems = Problems(source)
        values = read_table("", raw, SPEC_FIELDS, problems)
        if "steps" in values:
            values["steps"] = _steps(values["steps"], values.get("interval"), problems)
        if "objectives" in values:
            values["objectives"] = _objectives(values["objectives"], problems)
        if "alerts" in values:
            values["alerts"] = _alerts(values["alerts"], problems)
        _check_window(values.get("window"), values.get("interval"), problems)
        problems.raise_if_any()
        return cls(**values)

    def to_mapping(self) -> dict[str, Any]:
        """A mapping that `parse` reads back to an equal value. JSON can hold it."""
        objectives: dict[str, Any] = {}
        if self.objectives.errors:
            objectives["errors"] = {"max": self.objectives.errors.max}
        if self.objectives.slow:
            objectives["slow"] = {"over": self.objectives.slow.over, "max": self.objectives.slow.max}
        if self.objectives.hit_ratio:
            hit_ratio = self.objectives.hit_ratio
            objectives["hit_ratio"] = {"min": hit_ratio.min, "warm_up": hit_ratio.warm_up}
        return {
            "name": self.name,
            "flag": self.flag,
            **({"environment": self.environment} if self.environment is not None else {}),
            "unit": self.unit,
            "steps": [
                {"percent": step.percent, "dwell": step.dwell, "min_requests": step.min_requests} for step in self.steps
            ],
            "window": self.window,
            "interval": self.interval,
            "objectives": objectives,
            "alerts": [dict(labels) for labels in self.alerts],
            "select": dict(self.select),
            "bake": self.bake,
        }


# --- one parser a field -------------------------------------------------------

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_LABEL: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OURS: Final = frozenset({"flag", "band", "cohort", "le", "__name__"})


def _name(raw: object) -> str:
    if isinstance(raw, str) and _NAME.fullmatch(raw):
        return raw
    raise Refusal("is not a name", "use up to 63 letters, digits, dots, dashes and underscores")


def _flag(raw: object) -> str:
    if isinstance(raw, str) and raw and raw == raw.strip():
        return raw
    raise Refusal("is not a flag's name", "write it as Unleash shows it, such as tidegate.cache")


def _environment(raw: object) -> str:
    if isinstance(raw, str) and raw and raw == raw.strip():
        return raw
    raise Refusal("is not an environment", "write it as Unleash shows it, such as production")


def _unit(raw: object) -> Unit:
    if raw in get_args(Unit):
        return cast(Unit, raw)
    raise Refusal("is not a unit", "use tenant, user or session")


def _percent(raw: object) -> int:
    if isinstance(raw, int) and not isinstance(raw, bool) and 1 <= raw <= 100:
        return raw
    raise Refusal("is not a whole percentage", "write a whole number from 1 to 100 (Unleash takes no fractions)")


def _count(raw: object) -> int:
    if isinstance(raw, int) and not isinstance(raw, bool) and raw >= 1:
        return raw
    raise Refusal("is not a number of requests", "write a whole number >= 1")


def _interval(raw: object) -> float:
    seconds = duration(raw)
    if 0.1 <= seconds <= 3600:
        return seconds
    raise Refusal("is not a usable interval", "write 100ms to 1h; 15s is usual")


def _bucket(raw: object) -> float:
    seconds = duration(raw)
    if seconds in COHORT_BUCKETS:
        return seconds
    near = min(COHORT_BUCKETS, key=lambda bucket: abs(bucket - seconds))
    known = ", ".join(show_duration(bucket) for bucket in COHORT_BUCKETS)
    raise Refusal(
        "is not a bucket of the latency histogram", f"the nearest is {show_duration(near)}; there are {known}"
    )


def _labels(raw: object) -> Mapping[str, str]:
    fix = "write labels and their text, such as {job: api}"
    if not isinstance(raw, Mapping):
        raise Refusal("is not a set of labels", fix)
    labels = cast(Mapping[object, object], raw)
    for name, value in labels.items():
        if not isinstance(name, str) or not _LABEL.fullmatch(name):
            raise Refusal(f"has {name!r}, which is not a label's name", fix)
        if not isinstance(value, str):
            raise Refusal(f"gives {name} the value {value!r}, which is not text", f'write {name}: "{value}"')
    return cast(Mapping[str, str], dict(labels))


def _select(raw: object) -> Mapping[str, str]:
    labels = _labels(raw)
    for name in sorted(_OURS & labels.keys()):
        raise Refusal(f"matches on {name}, which the controller sets itself", f"leave {name} out")
    return labels


SPEC_FIELDS: Final[Mapping[str, Field]] = {
    "name": Field(parse=_name, fix="name the rollout, such as cache-canary"),
    "flag": Field(parse=_flag, fix="name the flag that is to open, such as tidegate.cache"),
    "environment": Field(parse=_environment, default=None),
    "unit": Field(parse=_unit, default="tenant"),
    "steps": Field(parse=None, fix="list the percentages, such as [{percent: 1}, {percent: 10}, {percent: 100}]"),
    "window": Field(parse=duration, default=300.0),
    "interval": Field(parse=_interval, default=15.0),
    "objectives": Field(parse=None, fix="say what must hold, such as {errors: {max: 1%}}"),
    "alerts": Field(parse=None, default=()),
    "select": Field(parse=_select, default={}),
    "bake": Field(parse=duration, default=600.0),
}

STEP_FIELDS: Final[Mapping[str, Field]] = {
    "percent": Field(parse=_percent, fix="write a whole number from 1 to 100"),
    "dwell": Field(parse=duration, default=600.0),
    "min_requests": Field(parse=_count, default=300),
}

OBJECTIVES: Final[Mapping[str, tuple[type, Mapping[str, Field]]]] = {
    "errors": (Errors, {"max": Field(parse=ratio, fix="write the largest share that may fail, such as 1%")}),
    "slow": (
        Slow,
        {
            "over": Field(parse=_bucket, fix="write from when on a response is slow, such as 500ms"),
            "max": Field(parse=ratio, fix="write the largest share that may be slow, such as 5%"),
        },
    ),
    "hit_ratio": (
        HitRatio,
        {
            "min": Field(parse=ratio, fix="write the smallest share of hits, such as 60%"),
            "warm_up": Field(parse=duration, default=120.0),
        },
    ),
}


# --- lists and what spans several fields ---------------------------------------


def _steps(raw: object, interval: float | None, problems: Problems) -> tuple[Step, ...]:
    items: list[object] = list(cast(list[object], raw)) if isinstance(raw, list | tuple) else []
    if not items:
        problems.add("steps", cast(Any, raw), "is not a list of steps", "write at least one, such as {percent: 10}")
    steps: list[Step] = []
    highest = 0
    for index, item in enumerate(items):
        values = read_table(f"steps[{index}]", item, STEP_FIELDS, problems)
        percent = values.get("percent")
        if percent is not None and percent <= highest:
            fix = f"write more than {highest}" if highest < 100 else "drop the steps after 100"
            problems.add(f"steps[{index}].percent", percent, f"does not rise above {highest}", fix)
        highest = max(highest, percent or 0)
        dwell = values.get("dwell")
        if dwell is not None and interval is not None and dwell < interval:
            fix = f"write at least one interval, {show_duration(interval)}"
            problems.add(f"steps[{index}].dwell", dwell, "is shorter than one tick", fix)
        if len(values) == len(STEP_FIELDS):
            steps.append(Step(**values))
    return tuple(steps)


def _objectives(raw: object, problems: Problems) -> Objectives:
    absent = object()
    values = read_table("objectives", raw, {name: Field(parse=None, default=absent) for name in OBJECTIVES}, problems)
    given = {name: value for name, value in values.items() if value is not absent}
    made: dict[str, Any] = {}
    for name, value in given.items():
        kind, fields = OBJECTIVES[name]
        limits = read_table(f"objectives.{name}", value, fields, problems)
        if len(limits) == len(fields):
            made[name] = kind(**limits)
    if isinstance(raw, Mapping) and not given:
        problems.add("objectives", cast(object, raw), "sets no objective", f"set one of {', '.join(OBJECTIVES)}")
    return Objectives(**made)


def _alerts(raw: object, problems: Problems) -> tuple[Mapping[str, str], ...]:
    if not isinstance(raw, list | tuple):
        problems.add("alerts", raw, "is not a list of label sets", "write [{alertname: HighErrorRate}]")
        return ()
    alerts: list[Mapping[str, str]] = []
    for index, item in enumerate(cast(list[object], raw)):
        try:
            labels = _labels(item)
            if not labels:
                raise Refusal("names no label, so every alert would match", "write {alertname: HighErrorRate}")
            alerts.append(labels)
        except Refusal as refusal:
            problems.add(f"alerts[{index}]", item, refusal.problem, refusal.fix)
    return tuple(alerts)


def _check_window(window: float | None, interval: float | None, problems: Problems) -> None:
    if window is not None and interval is not None and window < 2 * interval:
        fix = f"write at least two intervals, {show_duration(2 * interval)}"
        problems.add("window", window, "holds less than two ticks", fix)
