"""What `start` refuses, and what it names; `kill`, with no controller."""

import time
from collections.abc import Callable

from tests.e2e.crowd import Crowd
from tests.e2e.stage import ENVIRONMENT, FLAG, Stage, open_by_hand
from tests.services import free_port, wait_until


def test_start_refuses_what_unleash_does_not_have_and_names_it(set_stage: Callable[..., Stage]) -> None:
    stage = set_stage()
    admin = stage.unleash.admin
    bare, misfit = admin.fresh_name("bare"), admin.fresh_name("misfit")
    admin.create_flag(bare)
    admin.roll_out(misfit, 0, environment=ENVIRONMENT, stickiness="tenantId")

    said = refused(stage, flag="tidegate.cash")
    assert "no flag 'tidegate.cash'" in said
    assert "did you mean 'tidegate.cache'?" in said
    said = refused(stage, environment="staging")
    assert "no environment 'staging'" in said
    assert "production" in said
    said = refused(stage, flag=bare)
    assert f"flag {bare!r} in {ENVIRONMENT} needs exactly one active strategy" in said
    assert "it has none" in said
    said = refused(stage, flag=misfit)
    assert "sticky by 'tenantId'" in said
    assert "'userId'" in said
    said = refused(stage, settings={"TIDEGATE_ROLLOUT_ADMIN_TOKEN": "*:*.not-a-token"})
    assert "401" in said
    assert "TIDEGATE_ROLLOUT_ADMIN_TOKEN" in said
    nowhere = f"http://127.0.0.1:{free_port()}"
    said = refused(stage, settings={"TIDEGATE_FLAGS_UNLEASH_URL": f"{nowhere}/api"})
    assert f"Unleash at {nowhere} could not be asked" in said

    assert stage.journal.all() == [], "what was refused leaves nothing behind"
    assert stage.changes() == []


def test_kill_shuts_an_open_flag_for_every_request_within_seconds_and_only_then_a_rollout_may_start(
    set_stage: Callable[..., Stage],
) -> None:
    stage = set_stage(TIDEGATE_FLAGS_POLL_INTERVAL="2")
    open_by_hand(stage.unleash, 100)
    with Crowd(stage.app.port) as crowd:
        wait_until(lambda: sum(one.hit for one in crowd.samples) > 100, 20, "the cache is in use")
        assert "is open already (on at 100 %)" in refused(stage)
        said = stage.tidegate("kill", FLAG)
        killed = time.time()
        assert f"{FLAG} in {ENVIRONMENT} is off" in said
        assert stage.flag() == (False, 0)
        later = crowd.next(100, since=killed + 3.0)
        assert not any(one.gated for one in later), "P8: poll interval and a second"
        last = max(one.began for one in crowd.samples if one.gated)
        print(f"kill to last gated request {last - killed:.1f} s")
    assert stage.changes()[-2:] == ["off", 0]
    assert {one.status for one in crowd.samples} == {200}
    said = stage.tidegate("rollout", "start", str(stage.write_spec("first")), expect=1)
    assert "lift it first" in said
    stage.tidegate("lift", FLAG)
    stage.start("first")
    said = stage.tidegate("rollout", "start", str(stage.write_spec("second")), expect=1)
    assert "rollout 'first' of flag 'tidegate.cache' is pending" in said


def refused(stage: Stage, settings: dict[str, str] | None = None, **changes: object) -> str:
    """What `start` says when it refuses (exit status 1)."""
    file = stage.write_spec("refused", **changes)
    said = stage.tidegate("rollout", "start", str(file), expect=1, **(settings or {}))
    print(said.strip())
    assert said.startswith("tidegate: "), "one message"
    return said
