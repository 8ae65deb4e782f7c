"""The machine is its table: every pair of state and event is walked."""

import itertools
from typing import Any

import pytest

from tidegate.errors import RolloutError
from tidegate.rollout.analysis import Verdict
from tidegate.rollout.machine import ACTIVE, FINAL, JUDGED, TABLE, Event, State, after, decide, diagram
from tidegate.rollout.spec import RolloutSpec

EXPECTED = """
              opened     good       unknown       bake    finish  bad           alert         abort         drift   pause   resume     shut         stopped
pending       observing  .          pending       .       .       .             rolling_back  rolling_back  .       .       .          .            aborted
observing     observing  observing  holding       baking  .       rolling_back  rolling_back  rolling_back  paused  paused  .          .            aborted
holding       observing  observing  holding       baking  .       rolling_back  rolling_back  rolling_back  paused  paused  .          .            aborted
paused        .          .          .             .       .       .             rolling_back  rolling_back  .       .       observing  .            aborted
baking        .          baking     baking        .       done    rolling_back  rolling_back  rolling_back  paused  paused  .          .            aborted
done          .          .          .             .       .       .             .             .             .       .       .          .            .
rolling_back  .          .          rolling_back  .       .       .             .             rolling_back  .       .       .          rolled_back  aborted
rolled_back   .          .          .             .       .       .             .             .             .       .       .          .            .
aborted       .          .          .             .       .       .             .             .             .       .       .          .            .
"""  # noqa: E501


def expected() -> dict[tuple[State, Event], State | None]:
    header, *rows = [line.split() for line in EXPECTED.strip().splitlines()]
    return {
        (State(row[0]), Event(event)): None if cell == "." else State(cell)
        for row in rows
        for event, cell in zip(header, row[1:], strict=True)
    }


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_pair_leads_where_it_should(state: State, event: Event) -> None:
    target = expected()[state, event]
    if target is None:
        with pytest.raises(RolloutError, match=f"{state} cannot take {event}"):
            after(state, event)
    else:
        assert after(state, event) is target


def test_the_final_states_are_the_ones_without_a_way_out() -> None:
    assert {State.DONE, State.ROLLED_BACK, State.ABORTED} == FINAL
    assert set(State) - FINAL == ACTIVE
    assert JUDGED < ACTIVE


def test_once_it_shuts_it_only_shuts() -> None:
    reached = {State.ROLLING_BACK}
    while True:
        more = reached | {target for state in reached for target in TABLE[state].values()}
        if more == reached:
            break
        reached = more
    assert reached == {State.ROLLING_BACK, State.ROLLED_BACK, State.ABORTED}


@pytest.mark.parametrize("state", sorted(ACTIVE))
def test_a_person_can_end_it_from_every_active_state(state: State) -> None:
    assert after(state, Event.ABORT) is State.ROLLING_BACK
    assert after(state, Event.STOPPED) is State.ABORTED


def test_the_diagram_names_every_state_and_every_way_between_them() -> None:
    drawn = diagram()
    for state, events in TABLE.items():
        for event, target in events.items():
            way = f"{state} stays" if state is target else f"{state} -> {target}"
            (line,) = [line for line in drawn.splitlines() if line.startswith(f"{way} ")]
            assert event in line.split(" on ")[1].split(", ")
    assert "done (final)" in drawn


SPEC = RolloutSpec.parse(
    {
        "name": "canary",
        "flag": "tidegate.cache",
        "steps": [{"percent": 10, "dwell": 60}, {"percent": 50, "dwell": 90}],
        "objectives": {"errors": {"max": "1%"}},
        "bake": 30,
    }
)


def verdict(outcome: Any, reason: str = "why", cause: Any = "") -> Verdict:
    return Verdict(objective="errors", outcome=outcome, reason=reason, cause=cause, limit=0.01)


@pytest.mark.parametrize(
    ("state", "step", "age", "outcome", "event", "percent"),
    [
        (State.OBSERVING, 0, 59, "good", Event.GOOD, None),
        (State.OBSERVING, 0, 60, "good", Event.OPENED, 50),
        (State.HOLDING, 0, 60, "good", Event.OPENED, 50),
        (State.OBSERVING, 1, 60, "good", Event.GOOD, None),
        (State.OBSERVING, 1, 90, "good", Event.BAKE, None),
        (State.BAKING, 1, 29, "good", Event.GOOD, None),
        (State.BAKING, 1, 30, "good", Event.FINISH, None),
        (State.OBSERVING, 0, 9999, "unknown", Event.UNKNOWN, None),
        (State.BAKING, 1, 9999, "unknown", Event.UNKNOWN, None),
        (State.OBSERVING, 0, 0, "bad", Event.BAD, None),
        (State.BAKING, 1, 9999, "bad", Event.BAD, None),
    ],
)
def test_a_decision_follows_the_worst_verdict_and_the_dwell(
    state: State, step: int, age: float, outcome: str, event: Event, percent: int | None
) -> None:
    decision = decide(SPEC, state, step=step, entered=100, verdicts=(verdict("good"), verdict(outcome)), now=100 + age)
    assert (decision.event, decision.percent) == (event, percent)
    assert decision.reason


def test_a_decision_tells_the_reasons_of_the_worst_verdicts_only() -> None:
    verdicts = (verdict("good", "fine"), verdict("bad", "7 > 5"), verdict("unknown", "cold", "warm_up"))
    assert decide(SPEC, State.OBSERVING, step=0, entered=0, verdicts=verdicts, now=1).reason == "7 > 5"


def test_a_hold_names_its_cause() -> None:
    verdicts = (verdict("good"), verdict("unknown", "cold", "warm_up"))
    assert decide(SPEC, State.OBSERVING, step=0, entered=0, verdicts=verdicts, now=1).cause == "warm_up"


@pytest.mark.parametrize("state", sorted(JUDGED))
@pytest.mark.parametrize("outcome", ["good", "bad", "unknown"])
@pytest.mark.parametrize("age", [0, 9999])
def test_every_decision_is_one_that_the_machine_can_take(state: State, outcome: str, age: float) -> None:
    decision = decide(SPEC, state, step=1, entered=0, verdicts=(verdict(outcome),), now=age)
    after(state, decision.event)
