"""Resume after `kill -9`: whoever comes next goes on where the journal stands, and the end is the same."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable

from tests.e2e.crowd import Crowd, hit_ratio
from tests.e2e.stage import ENVIRONMENT, FLAG, Controller, Stage, steps
from tests.services import UnleashAdmin, wait_until
from tidegate.rollout.records import Rollout

DWELL = 6
"""Seconds; longer than a dead controller's lease (5 s), so that a successor finds the step that the dead one was in."""
IN_A_STEP = ("observing", "holding")
STEPS = steps(50, 100, dwell=f"{DWELL}s")


def test_controllers_that_are_killed_at_any_moment_leave_a_rollout_that_ends_as_if_nothing_had_happened(
    set_stage: Callable[..., Stage],
) -> None:
    seed = int(os.environ.get("E2E_SEED") or random.randrange(10**6))
    chance = random.Random(seed)
    print(f"E2E_SEED={seed}")
    stage = set_stage()
    controller = stage.controller().start()
    found: list[tuple[Rollout, Rollout]] = []
    with Crowd(stage.app.port) as crowd:
        start = threading.Thread(target=stage.start, args=("killed",), kwargs={"steps": STEPS})
        start.start()  # while we watch the journal: a beginning is over within a quarter of a second
        for moment in ("begin", "random", "open", "random"):
            if moment == "random":
                time.sleep(chance.uniform(0.0, 2.0))  # not for something to happen: the moment is the input
                controller.kill()
            else:
                kill_between_intent_and_result(stage, controller, moment)
            left = stage.rollout("killed")
            if moment == "open":
                arrive_late(stage)
            controller = stage.controller().start()
            next_one = stage.wait_for("killed", lambda now, left=left: now.version > left.version, 15, "a successor")
            found.append((left, next_one))
            print(f"killed ({moment}) in {shown(left)}; its successor found {shown(next_one)}")
        start.join()
        done = stage.wait_for_end("killed", 60)
        print(stage.story("killed"))
        assert hit_ratio(crowd.next(200)) > 0.8
    controller.stop()
    assert done.state == "done"
    assert stage.flag() == (True, 100)
    assert all(next_one.step - left.step in (0, 1) for left, next_one in found)
    resumed = [pair for pair in found if all(one.state in IN_A_STEP for one in pair) and pair[0].step == pair[1].step]
    assert resumed, "some successor found the step that its predecessor was in"
    for left, next_one in resumed:
        assert (next_one.entered, next_one.opened, next_one.percent) == (left.entered, left.opened, left.percent)
    opened = [one for one in stage.entries("killed") if one.kind == "opened"]
    assert len(opened) == len(STEPS), "each step is entered once"
    assert_nothing_was_opened_out_of_order(stage)
    assert stage.authors() == {"rollout-controller@example.com"}
    assert {one.status for one in crowd.samples} == {200}


def kill_between_intent_and_result(stage: Stage, controller: Controller, do: str) -> None:
    """Kill it when it has written what it is about to do, and is doing it."""
    pid = controller.pid
    wait_until(lambda: is_about_to(stage, do), 30, f"the controller is about to {do}")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not controller.running, 5, "the controller is dead")
    assert is_about_to(stage, do), "it was killed before it wrote the result"


def arrive_late(stage: Stage) -> None:
    """The dead one's last request reaches Unleash all the same, if it has not yet."""
    hand = UnleashAdmin(stage.unleash.port, stage.settings["TIDEGATE_ROLLOUT_ADMIN_TOKEN"])
    (strategy,) = hand.strategies(FLAG, environment=ENVIRONMENT)
    hand.set_percentage(FLAG, strategy["id"], 100, environment=ENVIRONMENT)


def is_about_to(stage: Stage, do: str) -> bool:
    return any(rollout.intent is not None and rollout.intent.do == do for rollout in stage.journal.active())


def assert_nothing_was_opened_out_of_order(stage: Stage) -> None:
    """As without a kill; but a beginning that was interrupted may be made again, from 0 % on."""
    changes = stage.changes()
    print(f"changes of the flag: {changes}")
    begun = len(changes) - changes[::-1].index(0) if 0 in changes else 0
    assert set(changes[:begun]) <= {"on", 50, 0}
    assert [one for one in changes[begun:] if one != "on"] == [50, 100]
    intents = [one.reason for one in stage.entries("killed") if one.kind == "intent"]
    known = [int(reason.rpartition("open to ")[2].removesuffix(" %")) for reason in intents]
    assert known == sorted(known), "an intent may be written again, but not out of order"
    assert set(known) == {50, 100}, "no percentage that the journal did not know before"


def shown(rollout: Rollout) -> str:
    intent = f", about to {rollout.intent.do}" if rollout.intent else ""
    return f"step {rollout.step + 1}, {rollout.state}{intent}"
