"""A spec is read whole or refused whole: every problem at once, each with its path, value and fix."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import ConfigError
from tidegate.rollout.fields import REQUIRED, Refusal, duration, ratio, show_duration
from tidegate.rollout.loading import load_spec
from tidegate.rollout.spec import OBJECTIVES, SPEC_FIELDS, STEP_FIELDS, HitRatio, RolloutSpec, Slow, Step
from tidegate.vocabulary import COHORT_BUCKETS

EXAMPLE = """\
name: cache-canary
flag: tidegate.cache
environment: production
unit: tenant
steps:
  - {percent: 1,  dwell: 10m, min_requests: 300}
  - {percent: 10, dwell: 10m, min_requests: 500}
  - {percent: 100}
window: 5m
interval: 15s
objectives:
  errors: {max: 1%}
  slow: {over: 500ms, max: 5%}
  hit_ratio: {min: 60%, warm_up: 2m}
alerts:
  - {alertname: HighErrorRate, service: api}
select: {job: api}
bake: 10m
"""


def minimal(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": "canary",
        "flag": "tidegate.cache",
        "steps": [{"percent": 10}],
        "objectives": {"errors": {"max": 0.01}},
    }
    return {**made, **changes}


def problems_of(raw: object) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        RolloutSpec.parse(raw, "canary.yaml")
    return [(problem.path, problem.problem) for problem in caught.value.problems]


def load(tmp_path: Path, text: str) -> RolloutSpec:
    file = tmp_path / "canary.yaml"
    file.write_text(text, encoding="utf-8")
    return load_spec(file)


def test_a_whole_yaml_file_is_read(tmp_path: Path) -> None:
    spec = load(tmp_path, EXAMPLE)
    assert (spec.name, spec.flag, spec.environment, spec.unit) == (
        "cache-canary", "tidegate.cache", "production", "tenant",
    )  # fmt: skip
    assert spec.steps == (
        Step(percent=1, dwell=600, min_requests=300),
        Step(percent=10, dwell=600, min_requests=500),
        Step(percent=100, dwell=600, min_requests=300),
    )
    assert (spec.window, spec.interval, spec.bake) == (300, 15, 600)
    assert spec.objectives.errors is not None
    assert spec.objectives.errors.max == 0.01
    assert spec.objectives.slow == Slow(over=0.5, max=0.05)
    assert spec.objectives.hit_ratio == HitRatio(min=0.6, warm_up=120)
    assert spec.alerts == ({"alertname": "HighErrorRate", "service": "api"},)
    assert spec.select == {"job": "api"}


def test_every_problem_is_reported_at_once_with_its_path() -> None:
    raw = {
        "nmae": "x",
        "flag": " cache ",
        "unit": "galaxy",
        "steps": [{"percent": 10}, {"percent": 5.5}, {"percent": 10, "dwel": "1m"}, {"min_requests": 0}, 7],
        "window": "5 parsecs",
        "interval": "1ms",
        "objectives": {"errors": {"max": 5}, "slow": {"over": "300ms"}, "hit": {}},
        "alerts": [{}, {"a-b": "x"}, {"service": 3}, "x"],
        "select": {"flag": "other"},
        "bake": True,
    }
    found = problems_of(raw)
    assert [path for path, _ in found] == [
        "nmae", "name", "flag", "unit", "window", "interval", "select", "bake",
        "steps[1].percent", "steps[2].dwel", "steps[2].percent", "steps[3].percent", "steps[3].min_requests",
        "steps[4]",
        "objectives.hit", "objectives.errors.max", "objectives.slow.over", "objectives.slow.max",
        "alerts[0]", "alerts[1]", "alerts[2]", "alerts[3]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "path", "says"),
    [
        ({"stepz": []}, "stepz", "did you mean steps?"),
        ({"objectives": {"hit_rate": {}}}, "objectives.hit_rate", "did you mean hit_ratio?"),
        ({"steps": [{"percent": 10}, {"percent": 10}]}, "steps[1].percent", "write more than 10"),
        ({"steps": [{"percent": 100}, {"percent": 100}]}, "steps[1].percent", "drop the steps after 100"),
        ({"steps": [{"percent": 101}]}, "steps[0].percent", "from 1 to 100"),
        ({"steps": [{"percent": "10"}]}, "steps[0].percent", "whole"),
        ({"steps": [{"percent": True}]}, "steps[0].percent", "whole"),
        ({"steps": []}, "steps", "at least one"),
        ({"steps": {"percent": 1}}, "steps", "list"),
        ({"steps": [{"percent": 1, "dwell": "1s"}]}, "steps[0].dwell", "at least one interval, 15s"),
        ({"window": "20s"}, "window", "at least two intervals, 30s"),
        ({"objectives": {}}, "objectives", "set one of errors, slow, hit_ratio"),
        ({"objectives": {"errors": None}}, "objectives.errors", "is not a mapping"),
        ({"objectives": {"slow": {"over": "400ms", "max": 0}}}, "objectives.slow.over", "the nearest is 500ms"),
        ({"objectives": {"errors": {"max": "1"}}}, "objectives.errors.max", "1% or 0.01"),
        ({"select": {"cohort": "canary"}}, "select", "leave cohort out"),
        ({"alerts": [{}]}, "alerts[0]", "every alert would match"),
        ({"name": "a b"}, "name", "letters, digits"),
    ],
)
def test_a_problem_says_what_to_write_instead(changes: dict[str, Any], path: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RolloutSpec.parse(minimal(**changes))
    (problem,) = [found for found in caught.value.problems if found.path == path]
    assert says in str(problem)


@pytest.mark.parametrize("raw", [None, [], "text", 3])
def test_a_document_that_is_no_mapping_is_refused(raw: object) -> None:
    assert ("(top)", "is not a mapping") in problems_of(raw)


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        ("name: [1\nflag: x\n", "line 2, column 5", "is not YAML"),
        ("name: a\nflag: b\nname: c\n", "line 3, column 1", "name stands there twice"),
        ("steps:\n  - {percent: 1, percent: 2}\n", "line 2, column 18", "percent stands there twice"),
        ("name: a\n---\nname: b\n", "line 2, column 1", "is not YAML"),
    ],
)
def test_yaml_that_cannot_be_read_is_refused_with_line_and_column(
    tmp_path: Path, text: str, where: str, says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    (problem,) = caught.value.problems
    assert problem.path == where
    assert says in problem.problem


@pytest.mark.parametrize("value", ["2026-13-45", "!!int ''", "!!bool maybe", "!!timestamp soon", "9" * 5000])
def test_a_value_that_yaml_itself_cannot_make_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match="holds a value that cannot be read"):
        load(tmp_path, f"name: {value}\n")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.yaml.* does not exist"):
        load_spec(tmp_path / "nowhere.yaml")


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "latin.yaml"
    file.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match="UTF-8 at byte 9"):
        load_spec(file)


@pytest.mark.parametrize(
    ("raw", "seconds"), [("500ms", 0.5), ("15s", 15), ("1.5m", 90), ("2h", 7200), ("1d", 86400), (30, 30), (0.25, 0.25)]
)
def test_a_duration_is_read_in_seconds(raw: object, seconds: float) -> None:
    assert duration(raw) == seconds


@pytest.mark.parametrize(
    "raw",
    ["", "5", "m", "-5s", "1m30s", -1, True, None, float("nan"), float("inf"), [1], 10**400, "9" * 400 + "s", "4000d"],
)
def test_what_is_no_duration_is_refused(raw: object) -> None:
    with pytest.raises(Refusal):
        duration(raw)


@pytest.mark.parametrize(("raw", "value"), [("1%", 0.01), ("0.5 %", 0.005), (0.01, 0.01), (0, 0), (1, 1), ("100%", 1)])
def test_a_ratio_is_read_from_percent_or_number(raw: object, value: float) -> None:
    assert ratio(raw) == pytest.approx(value)


@pytest.mark.parametrize("raw", ["1", "101%", "-1%", 5, 1.01, -0.1, True, None, float("nan"), 10**400])
def test_what_is_no_ratio_is_refused(raw: object) -> None:
    with pytest.raises(Refusal):
        ratio(raw)


@given(st.integers(1, 10_000_000))
def test_a_shown_duration_reads_back(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert duration(show_duration(seconds)) == pytest.approx(seconds, rel=1e-5)


_RATIOS = st.floats(0, 1)
_SPECS = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[a-z][a-z0-9._-]{0,20}", fullmatch=True),
        "flag": st.just("tidegate.cache"),
        "steps": st.lists(st.integers(1, 100), min_size=1, unique=True).map(
            lambda percents: [{"percent": percent, "min_requests": percent} for percent in sorted(percents)]
        ),
        "objectives": st.fixed_dictionaries(
            {"errors": st.fixed_dictionaries({"max": _RATIOS})},
            optional={
                "slow": st.fixed_dictionaries({"over": st.sampled_from(COHORT_BUCKETS), "max": _RATIOS}),
                "hit_ratio": st.fixed_dictionaries({"min": _RATIOS, "warm_up": st.integers(0, 1000)}),
            },
        ),
    },
    optional={
        "environment": st.sampled_from(["development", "production"]),
        "unit": st.sampled_from(["tenant", "user", "session"]),
        "window": st.integers(30, 3600),
        "bake": st.floats(0, 1e6),
        "alerts": st.lists(st.dictionaries(st.sampled_from(["alertname", "service"]), st.text(), min_size=1)),
        "select": st.dictionaries(st.sampled_from(["job", "region"]), st.text()),
    },
)


@given(_SPECS)
def test_what_the_journal_keeps_reads_back_equal(raw: dict[str, Any]) -> None:
    spec = RolloutSpec.parse(raw)
    assert RolloutSpec.parse(json.loads(json.dumps(spec.to_mapping()))) == spec


_KEYS = st.sampled_from([*SPEC_FIELDS, *STEP_FIELDS, *OBJECTIVES, "max", "min", "over"])
_NONSENSE = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(_KEYS, inner)
)


@given(_NONSENSE)
def test_nonsense_is_refused_and_never_crashes(raw: object) -> None:
    with pytest.raises(ConfigError):
        RolloutSpec.parse(raw)


def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files("tidegate.rollout").joinpath("spec.schema.json").read_text())
    return found


def test_the_published_schema_has_the_parsers_fields_required_fields_and_defaults() -> None:
    top = schema()
    tables = {"": (top, SPEC_FIELDS), "steps": (top["properties"]["steps"]["items"], STEP_FIELDS)}
    objectives = top["properties"]["objectives"]["properties"]
    assert set(objectives) == set(OBJECTIVES)
    tables |= {name: (objectives[name], fields) for name, (_, fields) in OBJECTIVES.items()}
    for where, (table, fields) in tables.items():
        assert set(table["properties"]) == set(fields), where
        assert table["additionalProperties"] is False, where
        assert set(table["required"]) == {name for name, field in fields.items() if field.default is REQUIRED}, where
        for name, field in fields.items():
            published = table["properties"][name]
            if field.default is REQUIRED or field.default is None:
                assert "default" not in published, name
            elif field.parse is None:
                assert list(field.default) == published["default"]  # type: ignore[call-overload]
            else:
                assert field.parse(published["default"]) == field.default, name
