"""A rollout whose flag has a stop record: ended, never judged on; and what happens while nobody can tell."""

from pathlib import Path

import pytest

from tests.rollout.test_controller import World
from tests.rollout.worlds import FLAG, make_spec
from tidegate.errors import FlagError
from tidegate.rollout.controller import Controller
from tidegate.rollout.machine import Event, State

TOLD = "stopped since 2026-11-28T20:00:00Z by ann@desk: fire"


class StoppableWorld(World):
    """A world in which the flag may be stopped, or nobody knows."""

    stop: str | None = None
    away = False

    def new_controller(self, holder: str = "one") -> Controller:
        return Controller(
            journal=self.journal,
            actuator=self.flag,
            source=self.source,
            clock=self.clock,
            holder=holder,
            stopped=self.stopped,
        )

    async def stopped(self, flag: str, environment: str) -> str | None:
        assert (flag, environment) == (FLAG, "production")
        if self.away:
            raise FlagError("the stop records in redis could not be read")
        return self.stop


@pytest.fixture
def world(tmp_path: Path) -> StoppableWorld:
    return StoppableWorld(tmp_path / "journal.sqlite3")


@pytest.mark.parametrize(("seconds", "state"), [(0, State.PENDING), (35, State.OBSERVING), (85, State.HOLDING)])
def test_a_stop_ends_the_rollout_at_its_next_look_with_its_reason(
    world: StoppableWorld, seconds: float, state: State
) -> None:
    world.start()
    world.run(seconds)
    assert world.rollout.state is state
    world.stop = TOLD
    world.run(12)
    assert (world.rollout.state, world.flag.enabled, world.flag.percentage) == (State.ABORTED, False, 0)
    assert world.rollout.reason == f"{FLAG} is {TOLD}"
    assert seconds or "on" not in world.flag.did


def test_a_stop_is_not_taken_for_a_persons_edit_though_the_flag_was_turned_off_with_it(world: StoppableWorld) -> None:
    world.start()
    world.run(35)
    world.stop, world.flag.enabled = TOLD, False
    world.run(12)
    assert world.rollout.state is State.ABORTED
    assert "drift" not in world.log


def test_a_stop_found_while_the_flag_cannot_be_turned_off_is_retried_until_it_is(world: StoppableWorld) -> None:
    world.start()
    world.run(35)
    world.stop = TOLD
    world.flag.fails = {"disable"}
    world.run(15)
    assert (world.rollout.state, world.flag.enabled) == (State.ROLLING_BACK, True)
    world.flag.fails = set()
    world.run(3)
    assert (world.rollout.state, world.flag.enabled) == (State.ABORTED, False)


def test_a_paused_rollout_is_not_resumed_while_its_flag_is_stopped(world: StoppableWorld) -> None:
    world.start()
    world.run(35)
    world.journal.ask(world.rollout, Event.PAUSE, "lunch", world.clock())
    world.run(2)
    assert world.rollout.state is State.PAUSED
    world.stop = TOLD
    number = world.journal.ask(world.rollout, Event.RESUME, "go on", world.clock())
    world.run(2)
    told = f"refused: {FLAG} was stopped, which ended the rollout; lift it, then start anew"
    assert world.journal.answered(number) == told
    assert (world.rollout.state, world.flag.enabled) == (State.ABORTED, False)


def test_while_nobody_can_tell_nothing_is_opened_further(world: StoppableWorld) -> None:
    world.away = True
    world.start()
    world.run(5)
    assert (world.rollout.state, world.rollout.cause, world.flag.did) == (State.PENDING, "stops_unreadable", [])
    world.away = False
    world.run(40)
    assert world.flag.percentage == 1
    world.away = True
    world.run(120)
    assert (world.rollout.state, world.rollout.cause) == (State.HOLDING, "stops_unreadable")
    assert world.flag.percentage == 1
    assert world.metric("errors_total", component="stops") > 5
    world.away = False
    world.run(30, until=lambda: world.flag.percentage == 10)
    assert world.flag.percentage == 10


def test_while_nobody_can_tell_a_missed_objective_still_shuts_the_flag(world: StoppableWorld) -> None:
    world.start(make_spec())
    world.run(35)
    world.away = True
    world.source.changes[world.clock()] = {("canary", "errors"): 5.0}
    world.run(60)
    assert (world.rollout.state, world.flag.enabled) == (State.ROLLED_BACK, False)
