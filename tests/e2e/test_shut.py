"""Shut by itself: errors of open gates, and a hit ratio that is missed."""

import time
from collections import Counter
from collections.abc import Callable

from tests.e2e.crowd import Crowd, hit_ratio, is_canary
from tests.e2e.stage import Stage, steps
from tests.services import wait_until

POLL_INTERVAL = 2.0
"""Seconds; the default, for which P8 gives its bound."""
P8 = POLL_INTERVAL + 1.0


def test_errors_of_open_gates_shut_the_flag_and_no_control_user_ever_sees_one(set_stage: Callable[..., Stage]) -> None:
    stage = set_stage(TIDEGATE_FLAGS_POLL_INTERVAL=str(POLL_INTERVAL))
    # Few tenants, so that canary and control users are colleagues, and whatever is kept by tenant meets both.
    with stage.controller(), Crowd(stage.app.port, tenants=2) as crowd:
        open_and_in_use(stage, crowd, "faulty")
        stage.app.switch(trouble="errors")
        struck = time.time()
        over = stage.wait_for_end("faulty")
        decided = next(entry for entry in stage.entries("faulty") if entry.kind == "bad")
        print(stage.story("faulty"))
        assert over.state == "rolled_back"
        assert stage.flag() == (False, 0)
        assert stage.changes() == ["on", 50, "off", 0], "the environment is off before the percentage moves"

        later = crowd.next(200, since=decided.at + P8)
        assert not any(one.gated for one in later), "P8: after the poll interval and a second the layer serves nobody"
        last = max(one.began for one in crowd.samples if one.gated)
        print(
            f"fault to decision {decided.at - struck:.1f} s, decision to last gated request {last - decided.at:.1f} s"
        )
    errors = [one for one in crowd.samples if one.status != 200]
    print(f"{len(errors)} errors in {len(crowd.between(struck))} requests since the fault")
    assert errors
    strangers = Counter((one.status, one.path) for one in errors if not is_canary(one.user, 50))
    assert not strangers, "control users saw no error"
    control = [one for one in crowd.between(struck) if not is_canary(one.user, 50)]
    assert len(control) > 100
    assert {one.status for one in later} == {200}, "shut, the fault strikes nobody"
    assert_numbers(over.reason, "errors", "> 2%", "control meets it")
    assert decided.evidence["canary"]["errors"] > 0
    assert decided.evidence["control"]["errors"] == 0


def test_an_app_that_suddenly_forbids_storing_shuts_the_flag(set_stage: Callable[..., Stage]) -> None:
    stage = set_stage()
    with stage.controller(), Crowd(stage.app.port) as crowd:
        open_and_in_use(stage, crowd, "forbidden")
        # A release of the application: it forbids storing, and every address is new.
        stage.app.switch(trouble="no-store")
        crowd.unique = True
        assert_missed_hit_ratio_shuts(stage, "forbidden", crowd)


def open_and_in_use(stage: Stage, crowd: Crowd, name: str) -> None:
    """A rollout that is open to half of the users, who get hits."""
    stage.start(name, steps=steps(50, 100, dwell="20s"))
    stage.wait_for(name, lambda rollout: rollout.percent == 50, 20, "the first step")
    wait_until(lambda: sum(one.hit for one in crowd.samples) > 50, 20, "the cache is in use")
    assert hit_ratio([one for one in crowd.samples if one.gated]) > 0.2


def assert_missed_hit_ratio_shuts(stage: Stage, name: str, crowd: Crowd) -> None:
    over = stage.wait_for_end(name)
    print(stage.story(name))
    assert over.state == "rolled_back"
    assert stage.flag() == (False, 0)
    assert stage.changes()[-2:] == ["off", 0]
    assert_numbers(over.reason, "hits in", "storable requests", "< 5%")
    assert {one.status for one in crowd.samples} == {200}, "nobody saw an error"


def assert_numbers(reason: str, *words: str) -> None:
    assert all(word in reason for word in words), reason
    assert any(character.isdigit() for character in reason), reason
