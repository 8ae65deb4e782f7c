"""Whom a flag admits: example tables, laws, and the same answers as Unleash's own engine."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from yggdrasil_engine.engine import UnleashEngine

from tidegate.errors import ConfigError
from tidegate.flags import Constraint, Flag, FlagContext, Strategy, band_of, is_open, normalized
from tidegate.flags.evaluate import open_as

IDS = [f"tenant-{number}" for number in range(250)]


def context(**properties: str) -> FlagContext:
    return FlagContext(unit=properties.get("tenantId"), properties=properties)


def rollout(
    percentage: int, *constraints: Constraint, stickiness: str = "tenantId", group: str = "f", variant: Any = None
) -> Strategy:
    return Strategy(percentage=percentage, stickiness=stickiness, group=group, constraints=constraints, variant=variant)


def flag(*strategies: Strategy, enabled: bool = True) -> Flag:
    return Flag(name="f", enabled=enabled, strategies=strategies)


def within(field: str, *values: str) -> Constraint:
    return Constraint(field=field, operator="IN", values=frozenset(values))


def outside(field: str, *values: str) -> Constraint:
    return Constraint(field=field, operator="NOT_IN", values=frozenset(values))


def engine_state(tested: Flag) -> str:
    strategies = [
        {
            "name": "flexibleRollout",
            "parameters": {
                "rollout": str(strategy.percentage),
                "stickiness": strategy.stickiness,
                "groupId": strategy.group,
            },
            "constraints": [
                {"contextName": known.field, "operator": known.operator, "values": sorted(known.values)}
                for known in strategy.constraints
            ],
            "variants": [{"name": strategy.variant, "weight": 1000, "stickiness": strategy.stickiness}]
            if strategy.variant
            else [],
        }
        for strategy in tested.strategies
    ]
    feature = {"name": tested.name, "type": "release", "enabled": tested.enabled, "strategies": strategies}
    return json.dumps({"version": 2, "features": [feature]})


def engine_context(properties: Mapping[str, str]) -> dict[str, Any]:
    top = {name: value for name, value in properties.items() if name in ("userId", "sessionId", "remoteAddress")}
    return {**top, "properties": {name: value for name, value in properties.items() if name not in top}}


@pytest.mark.parametrize(
    ("tested", "properties", "expected"),
    [
        (flag(rollout(100)), {"tenantId": "acme"}, True),
        (flag(rollout(0)), {"tenantId": "acme"}, False),
        (flag(rollout(100), enabled=False), {"tenantId": "acme"}, False),
        (flag(rollout(100)), {"userId": "acme"}, False),
        (flag(rollout(100)), {}, False),
        (flag(rollout(100)), {"tenantId": ""}, True),
        (flag(rollout(24)), {"tenantId": "t1"}, False),
        (flag(rollout(25)), {"tenantId": "t1"}, True),
        (flag(rollout(100, within("tenantId", "acme"))), {"tenantId": "acme"}, True),
        (flag(rollout(100, within("tenantId", "acme"))), {"tenantId": "Acme"}, False),
        (flag(rollout(100, within("region", "eu"))), {"tenantId": "acme"}, False),
        (flag(rollout(100, within("region"))), {"tenantId": "acme", "region": "eu"}, False),
        (flag(rollout(100, outside("region", "eu"))), {"tenantId": "acme", "region": "eu"}, False),
        (flag(rollout(100, outside("region", "eu"))), {"tenantId": "acme", "region": "us"}, True),
        (flag(rollout(100, outside("region", "eu"))), {"tenantId": "acme"}, True),
        (flag(rollout(100, outside("region"))), {"tenantId": "acme"}, True),
        (flag(rollout(100, within("region", "eu"), outside("tenantId", "acme"))), {"tenantId": "acme"}, False),
        (flag(rollout(0), rollout(100, within("tenantId", "acme"))), {"tenantId": "acme"}, True),
        (flag(rollout(100, stickiness="userId")), {"tenantId": "acme", "userId": "ann"}, True),
    ],
)
def test_a_flag_admits_as_the_table_and_the_engine_say(
    tested: Flag, properties: dict[str, str], expected: bool
) -> None:
    assert is_open(tested, context(**properties)) is expected
    engine = UnleashEngine()
    engine.take_state(engine_state(tested))
    assert engine.is_enabled("f", engine_context(properties)).is_enabled is expected


@pytest.mark.parametrize(
    ("tested", "expected"),
    [
        (flag(rollout(100)), ""),
        (flag(rollout(100, variant="shadow")), "shadow"),
        (flag(rollout(100, variant="shadow"), enabled=False), None),
        (flag(rollout(0, variant="shadow")), None),
        (flag(rollout(100, within("tenantId", "other"), variant="shadow"), rollout(100)), ""),
        (flag(rollout(0), rollout(100, variant="shadow")), "shadow"),
        # The first that admits decides, though it may have no variant.
        (flag(rollout(100), rollout(100, variant="shadow")), ""),
        (flag(rollout(100, variant="shadow"), rollout(100)), "shadow"),
    ],
)
def test_a_flag_is_open_under_the_variant_that_the_table_and_the_engine_say(tested: Flag, expected: str | None) -> None:
    assert open_as(tested, context(tenantId="acme")) == expected
    engine = UnleashEngine()
    engine.take_state(engine_state(tested))
    found = engine.get_variant("f", {"properties": {"tenantId": "acme"}}).variant
    assert (found.name if found.enabled else "" if found.feature_enabled else None) == expected


def test_every_percentage_admits_the_same_units_as_the_engine() -> None:
    engine = UnleashEngine()
    for percentage in range(101):
        tested = flag(rollout(percentage))
        engine.take_state(engine_state(tested))
        ours = [name for name in IDS if is_open(tested, context(tenantId=name))]
        engines = [name for name in IDS if engine.check_enabled("f", {"properties": {"tenantId": name}}).is_enabled]
        assert ours == engines
        assert len(ours) == sum(normalized("f", name) <= percentage for name in IDS)


names = st.sampled_from(["tenantId", "userId", "sessionId", "region", "a field"])
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
values = st.sampled_from(["acme", "Acme", "eu", ""]) | texts
groups = st.text(st.characters(exclude_categories=["Cs"], exclude_characters='"\\'), min_size=1, max_size=8)
constraints = st.builds(
    Constraint, field=names, operator=st.sampled_from(["IN", "NOT_IN"]), values=st.frozensets(values, max_size=3)
)
rollouts = st.builds(
    Strategy,
    percentage=st.integers(0, 100),
    stickiness=names,
    group=groups,
    constraints=st.lists(constraints, max_size=2).map(tuple),
)
flags = st.builds(
    Flag, name=st.just("f"), enabled=st.booleans(), strategies=st.lists(rollouts, min_size=1, max_size=3).map(tuple)
)


@given(tested=flags, requests=st.lists(st.dictionaries(names, values, max_size=4), min_size=1, max_size=20))
@settings(deadline=None)
def test_any_flag_decides_as_the_engine_does(tested: Flag, requests: list[dict[str, str]]) -> None:
    engine = UnleashEngine()
    engine.take_state(engine_state(tested))
    for properties in requests:
        expected = engine.check_enabled("f", engine_context(properties)).is_enabled
        assert is_open(tested, FlagContext(unit=None, properties=properties)) is expected


@given(smaller=st.integers(0, 100), larger=st.integers(0, 100), group=groups, tenants=st.lists(values, max_size=30))
def test_a_larger_percentage_keeps_everybody_who_was_in(
    smaller: int, larger: int, group: str, tenants: list[str]
) -> None:
    smaller, larger = sorted((smaller, larger))
    before = {name for name in tenants if is_open(flag(rollout(smaller, group=group)), context(tenantId=name))}
    after = {name for name in tenants if is_open(flag(rollout(larger, group=group)), context(tenantId=name))}
    assert before <= after


@given(group=texts, value=st.text(max_size=8))
@example(group="f", value="\ud800")
def test_every_text_has_a_place_from_1_to_100(group: str, value: str) -> None:
    assert 1 <= normalized(group, value) <= 100


@given(group=texts, value=values, percentage=st.sampled_from([1, 5, 10, 25, 50, 100]))
def test_a_unit_s_band_is_the_first_step_that_admits_it(group: str, value: str, percentage: int) -> None:
    place = normalized(group, value)
    assert (int(band_of(place)) <= percentage) is (place <= percentage)


def test_a_band_without_an_edge_above_it_is_refused() -> None:
    with pytest.raises(ValueError, match="edges must end at 100"):
        band_of(51, (10, 50))


contexts = st.builds(FlagContext, unit=st.none() | values, properties=st.dictionaries(values, values, max_size=3))


@given(one=contexts, other=contexts)
@example(one=FlagContext(unit="t", properties={"a": "bc"}), other=FlagContext(unit="t", properties={"ab": "c"}))
@example(one=FlagContext(unit=None), other=FlagContext(unit=""))
def test_contexts_share_a_key_only_if_they_are_the_same(one: FlagContext, other: FlagContext) -> None:
    same = one.unit == other.unit and list(one.properties.items()) == list(other.properties.items())
    assert (one.key == other.key) is same
    assert (one == other) is same


@pytest.mark.parametrize(
    ("make", "paths"),
    [
        (lambda: Strategy(percentage=101, group="f"), ["percentage"]),
        (lambda: Strategy(percentage=-1, group="f"), ["percentage"]),
        (lambda: Strategy(percentage=True, group="f"), ["percentage"]),
        (lambda: Strategy(percentage=12.5, group="", stickiness=""), ["percentage", "stickiness", "group"]),
        (lambda: Strategy(percentage=1, group='a"b', stickiness="a\\b"), ["stickiness", "group"]),
        (lambda: Strategy(percentage=1, group="f", stickiness="random"), ["stickiness"]),
        (lambda: Strategy(percentage=1, group="f", stickiness="appName"), ["stickiness"]),
        (lambda: Constraint(field="environment", operator="in", values=frozenset()), ["field", "operator"]),
        (lambda: Flag(name="a flag", enabled=1), ["name", "enabled"]),
        (lambda: Flag(name="f", enabled=True), ["strategies"]),
    ],
)
def test_what_unleash_would_read_otherwise_is_refused(make: Any, paths: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert [problem.path for problem in caught.value.problems] == paths


@pytest.mark.parametrize(
    ("tested", "nobody", "everybody"),
    [
        (flag(rollout(10)), False, False),
        (flag(rollout(100)), False, True),
        (flag(rollout(0)), True, False),
        (flag(rollout(10), rollout(100)), False, True),
        (flag(rollout(0), rollout(1)), False, False),
        (flag(rollout(100, within("tenantId", "acme"))), False, False),
        (flag(rollout(100), enabled=False), True, False),
    ],
)
def test_a_flag_tells_whom_it_admits(tested: Flag, nobody: bool, everybody: bool) -> None:
    assert (tested.admits_nobody, tested.admits_everybody) == (nobody, everybody)
