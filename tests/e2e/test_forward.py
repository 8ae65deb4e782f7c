"""Forward on health: the gate opens step by step while the numbers hold."""

import time
from collections.abc import Callable

from tests.e2e.crowd import Crowd, hit_ratio, is_canary
from tests.e2e.stage import Stage


def test_a_healthy_cache_opens_step_by_step_to_everybody_and_spares_the_app(set_stage: Callable[..., Stage]) -> None:
    stage = set_stage()
    with stage.controller(), Crowd(stage.app.port) as crowd:
        calls_shut = calls_per_request(stage, crowd)
        assert not any(sample.gated for sample in crowd.samples), "shut, the layer leaves no trace"

        stage.start("forward")
        at_ten = stage.wait_for("forward", lambda rollout: rollout.percent == 50, 30, "the second step")
        first_step = [one for one in crowd.between(0, at_ten.opened) if one.gated]
        assert first_step
        assert all(is_canary(one.user, 10) for one in first_step), "at 10 % only those whom 10 % admits"
        done = stage.wait_for_end("forward")
        print(stage.story("forward"))
        assert done.state == "done"
        assert stage.flag() == (True, 100)

        since = time.time()
        calls_open = calls_per_request(stage, crowd)
        served = crowd.between(since)
        print(
            f"handler calls a request: {calls_shut:.2f} shut, {calls_open:.2f} open; hit ratio {hit_ratio(served):.1%}"
        )
        assert calls_shut > 0.9
        assert calls_open < 0.4, "one request in five may not be stored at all"
        assert hit_ratio(served) > 0.8
    assert stage.changes() == ["on", 10, 50, 100]
    assert stage.authors() == {"rollout-controller@example.com"}
    assert {one.status for one in crowd.samples} == {200}


def calls_per_request(stage: Stage, crowd: Crowd) -> float:
    """The share of requests that reach a handler, over the next two seconds' worth."""
    calls, asked = stage.app.handler_calls(), len(crowd.samples)
    crowd.next(200)
    return (stage.app.handler_calls() - calls) / (len(crowd.samples) - asked)
