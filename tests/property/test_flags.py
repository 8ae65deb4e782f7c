"""Laws: a smaller percentage admits nobody whom a larger one does not. A flag of the local file admits just those whom
Unleash's own engine admits, at every percentage. What the file cannot say as the engine understands it, it refuses.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yggdrasil_engine.engine import UnleashEngine

from tidegate.errors import ConfigError
from tidegate.flags import Constraint, Flag, FlagContext, Strategy, is_open, parse_flags

Properties = Mapping[str, str]

FIELDS = ("tenantId", "userId", "sessionId", "region")
PERCENTAGES = range(101)
IDS = 1000


def requests(seed: int, number: int = IDS) -> list[dict[str, str]]:
    """Requests that know some fields each; few regions, many tenants, users and sessions, some of them odd."""
    chosen = random.Random(seed)
    pools: dict[str, Callable[[], str]] = {
        "tenantId": lambda: f"tenant-{chosen.randrange(300)}",
        "userId": lambda: chosen.choice(["", "ünï", "名前", f"user {chosen.randrange(10_000)}"]),
        "sessionId": lambda: f"{chosen.getrandbits(64):x}",
        "region": lambda: chosen.choice(["eu", "us", "EU", ""]),
    }
    return [{name: pools[name]() for name in FIELDS if chosen.random() < 0.8} for _ in range(number)]


constraints = st.builds(
    Constraint,
    field=st.sampled_from(FIELDS),
    operator=st.sampled_from(["IN", "NOT_IN"]),
    values=st.frozensets(st.sampled_from(["eu", "us", "", *(f"tenant-{number}" for number in range(9))]), max_size=4),
)
rollouts = st.builds(
    Strategy,
    percentage=st.integers(0, 100),
    group=st.text(st.characters(exclude_categories=["Cs"], exclude_characters='"\\'), min_size=1, max_size=6),
    stickiness=st.sampled_from(FIELDS),
    constraints=st.lists(constraints, max_size=2).map(tuple),
)
flags = st.builds(
    Flag, name=st.just("f"), enabled=st.just(True), strategies=st.lists(rollouts, min_size=1, max_size=3).map(tuple)
)

RICH = Flag(
    name="f",
    enabled=True,
    strategies=(
        Strategy(
            percentage=0,
            group="tidegate.cache",
            constraints=(Constraint(field="region", operator="NOT_IN", values=frozenset(["us", ""])),),
        ),
        Strategy(
            percentage=0,
            group="tidegate.cache",
            stickiness="userId",
            constraints=(
                Constraint(field="region", operator="IN", values=frozenset(["us", "EU"])),
                Constraint(field="tenantId", operator="NOT_IN", values=frozenset(f"tenant-{n}" for n in range(100))),
            ),
        ),
        Strategy(percentage=0, group="another group", stickiness="sessionId"),
    ),
)
"""A flag with every kind of thing that the local file can say."""


def at(flag: Flag, percentage: int) -> Flag:
    """The flag with all its strategies at this percentage."""
    return replace(flag, strategies=tuple(replace(one, percentage=percentage) for one in flag.strategies))


def admits(flag: Flag, properties: Properties) -> bool:
    """What the local file says."""
    return is_open(flag, FlagContext(unit=None, properties=properties))


class Engine:
    """Unleash's engine with a flag at every percentage, each under a name of its own."""

    def __init__(self, flag: Flag) -> None:
        features = [self._feature(at(flag, percentage), str(percentage)) for percentage in PERCENTAGES]
        self._engine = UnleashEngine()
        self._engine.take_state(json.dumps({"version": 2, "features": features}))

    def admits(self, percentage: int, properties: Properties) -> bool:
        """What the engine says; it is asked as the Unleash provider asks it."""
        return bool(self._engine.check_enabled(str(percentage), {"properties": properties}).is_enabled)

    @staticmethod
    def _feature(flag: Flag, name: str) -> dict[str, Any]:
        strategies = [
            {
                "name": "flexibleRollout",
                "parameters": {"rollout": str(one.percentage), "stickiness": one.stickiness, "groupId": one.group},
                "constraints": [
                    {"contextName": known.field, "operator": known.operator, "values": sorted(known.values)}
                    for known in one.constraints
                ],
            }
            for one in flag.strategies
        ]
        return {"name": name, "type": "release", "enabled": flag.enabled, "strategies": strategies}


def first_that(admitting: Callable[[int], bool]) -> int:
    """The smallest percentage that admits, by halving; 101 if none does. Right for what is monotone."""
    low, high = 0, 101
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if admitting(middle) else (middle + 1, high)
    return low


@given(flag=flags, percentages=st.tuples(st.integers(0, 100), st.integers(0, 100)), seed=st.integers())
@settings(deadline=None)
def test_of_two_percentages_the_smaller_cohort_is_contained_in_the_larger(
    flag: Flag, percentages: tuple[int, int], seed: int
) -> None:
    smaller, larger = (at(flag, percentage) for percentage in sorted(percentages))
    for properties in requests(seed, 100):
        assert not admits(smaller, properties) or admits(larger, properties)


def test_file_and_engine_admit_the_same_of_a_thousand_at_every_percentage() -> None:
    asked = requests(seed=20)
    engine, local = Engine(RICH), [at(RICH, percentage) for percentage in PERCENTAGES]
    sizes: list[int] = []
    before: set[int] = set()
    for percentage in PERCENTAGES:
        ours = {number for number, properties in enumerate(asked) if admits(local[percentage], properties)}
        theirs = {number for number, properties in enumerate(asked) if engine.admits(percentage, properties)}
        assert ours == theirs, percentage
        assert before <= ours
        before = ours
        sizes.append(len(ours))
    assert sizes[0] == 0
    assert sizes[50] > IDS // 4
    assert IDS // 2 < sizes[100] < IDS


@given(flag=flags, seed=st.integers())
@settings(deadline=None, max_examples=8)
def test_file_and_engine_let_each_of_a_thousand_in_at_the_same_percentage(flag: Flag, seed: int) -> None:
    engine, local = Engine(flag), [at(flag, percentage) for percentage in PERCENTAGES]
    for properties in requests(seed):
        ours = first_that(lambda percentage, known=properties: admits(local[percentage], known))
        # Admitted from there on and not before: with the law of containment, the same at every percentage.
        assert ours > 100 or engine.admits(ours, properties)
        assert ours == 0 or not engine.admits(ours - 1, properties)


@given(flag=flags, seed=st.integers())
@settings(deadline=None, max_examples=25)
def test_file_and_engine_agree_about_strategies_of_different_percentages(flag: Flag, seed: int) -> None:
    engine = UnleashEngine()
    engine.take_state(json.dumps({"version": 2, "features": [Engine._feature(flag, "f")]}))
    for properties in requests(seed, 200):
        assert admits(flag, properties) is engine.check_enabled("f", {"properties": properties}).is_enabled


def file_with(strategy: Mapping[str, Any], **flag: Any) -> str:
    return json.dumps({"version": 1, "flags": {"f": {"enabled": True, "strategies": [strategy], **flag}}})


def constraint(**more: Any) -> dict[str, Any]:
    return {"percentage": 100, "constraints": [{"field": "region", "operator": "IN", "values": ["eu"], **more}]}


OPERATORS = [
    *("STR_CONTAINS", "STR_STARTS_WITH", "STR_ENDS_WITH", "REGEX"),
    *("NUM_EQ", "NUM_GT", "NUM_GTE", "NUM_LT", "NUM_LTE"),
    *("DATE_AFTER", "DATE_BEFORE", "SEMVER_EQ", "SEMVER_GT", "SEMVER_LT", "SEMVER_GTE", "SEMVER_LTE"),
    *("in", "NOT IN", ""),
]
AT = 'flags["f"]'
FIRST = f"{AT}.strategies[0]"


@pytest.mark.parametrize(
    ("content", "paths"),
    [
        *((file_with(constraint(operator=name)), [f"{FIRST}.constraints[0].operator"]) for name in OPERATORS),
        *(
            (file_with({"percentage": 1, "stickiness": name}), [f"{FIRST}.stickiness"])
            for name in ("default", "random")
        ),
        *(
            (file_with(constraint(field=name)), [f"{FIRST}.constraints[0].field"])
            for name in ("appName", "environment", "currentTime")
        ),
        (file_with(constraint(inverted=True)), [f"{FIRST}.constraints[0].inverted"]),
        (file_with(constraint(caseInsensitive=True)), [f"{FIRST}.constraints[0].caseInsensitive"]),
        (file_with(constraint(value="eu")), [f"{FIRST}.constraints[0].value"]),
        (file_with(constraint(values=[1])), [f"{FIRST}.constraints[0].values[0]"]),
        (file_with({"percentage": 1, "segments": [1]}), [f"{FIRST}.segments"]),
        (file_with({"percentage": 1, "variants": []}), [f"{FIRST}.variants"]),
        (file_with({"percentage": 1, "disabled": True}), [f"{FIRST}.disabled"]),
        (file_with({"percentage": 1, "variant": "blue"}), [f"{FIRST}.variant"]),
        (file_with({"name": "userWithId", "percentage": 1}), [f"{FIRST}.name"]),
        (file_with({"percentage": 1, "parameters": {"rollout": "1"}}), [f"{FIRST}.parameters"]),
        (file_with({"percentage": 1}, variants=[]), [f"{AT}.variants"]),
        (file_with({"percentage": 1}, dependencies=[{"feature": "g"}]), [f"{AT}.dependencies"]),
        (file_with({"percentage": 1}, impressionData=True), [f"{AT}.impressionData"]),
        (file_with({}, strategies=[]), [f"{AT}.strategies"]),
        (
            file_with({**constraint(operator="NUM_GT"), "segments": [1], "percentage": "1"}, variants=[]),
            [
                f"{AT}.variants",
                f"{FIRST}.segments",
                f"{FIRST}.constraints[0].operator",
                f"{FIRST}.percentage",
            ],
        ),
    ],
)
def test_what_the_file_cannot_say_as_the_engine_means_it_is_refused_with_its_path(
    content: str, paths: Sequence[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_flags(content, "flags.json")
    assert [problem.path for problem in caught.value.problems] == paths
