"""Hold while Prometheus is down: neither forward nor back, said once, and on again when it answers."""

from collections.abc import Callable

from tests.e2e.crowd import Crowd, hit_ratio
from tests.e2e.stage import Controller, Stage, metric, steps
from tests.services import wait_until


def test_a_rollout_holds_while_prometheus_is_down_says_so_once_and_goes_on_afterwards(
    set_stage: Callable[..., Stage],
) -> None:
    stage = set_stage()
    with stage.controller() as controller, Crowd(stage.app.port) as crowd:
        stage.start("outage", steps=steps(50, 100))
        stage.wait_for("outage", lambda rollout: rollout.percent == 50, 20, "the first step")
        wait_until(lambda: sum(one.hit for one in crowd.samples) > 50, 20, "the cache is in use")
        stage.prometheus.kill()
        held = stage.wait_for("outage", lambda rollout: rollout.cause == "metrics", 10, "the rollout holds")
        assert held.state == "holding"
        assert held.percent == 50
        assert stage.prometheus.url in held.reason
        holds = ticks_held(controller)
        wait_until(lambda: ticks_held(controller) >= holds + 5, 15, "five more ticks, longer than the step's dwell")
        still = stage.rollout("outage")
        assert (still.state, still.percent, still.entered) == ("holding", 50, held.entered)
        assert stage.flag() == (True, 50), "neither forward nor back"
        assert len(said(stage)) == 1, "the journal says it once"
        assert sum(stage.prometheus.url in line for line in controller.log_lines()) == 1, "and so does the log"
        assert hit_ratio([one for one in crowd.next(100) if one.gated]) > 0.3, "those who were let in keep their cache"

        stage.prometheus.start()
        over = stage.wait_for_end("outage", 40)
        print(stage.story("outage"))
        assert over.state == "done"
        assert len(said(stage)) == 1
    assert stage.changes() == ["on", 50, 100]
    assert {one.status for one in crowd.samples} == {200}


def ticks_held(controller: Controller) -> float:
    return metric(controller.metrics(), "tidegate_rollout_holds_total", cause="metrics")


def said(stage: Stage) -> list[str]:
    return [one.reason for one in stage.entries("outage") if stage.prometheus.url in one.reason]
