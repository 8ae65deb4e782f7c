"""P4: what was purged is not served, whatever becomes of connections; and a process that cannot know serves nothing.

Readers and writers are processes of their own (`tests.promises.chaos`). CHAOS_SEED=number plays the same dice again;
the processes' times differ all the same.
"""

import asyncio
import os
import random
from collections.abc import Sequence

import pytest

from tests.promises.chaos import Call, Done, Failover, Kind, Plan, Silence, judge, play
from tests.promises.chaos.board import Source
from tests.services import Redis, RedisCluster, SentinelTrio, Valkey


def whole(server: Kind, plan: Plan) -> None:
    """Play it, print the figures, and see that the promise was kept and that there was something to see."""
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(1 << 32))
    print(f"CHAOS_SEED={seed}")
    played = asyncio.run(play(server, plan, seed))
    print(played.table())
    verdict = played.verdict
    assert not verdict.broken
    assert played.purges >= plan.purges
    assert played.kills >= plan.kills
    assert played.silences >= plan.silences
    assert verdict.asked_in_silence >= 20 * plan.silences
    assert verdict.sources[Source.MEMORY] >= plan.from_memory
    assert verdict.sources[Source.REDIS] >= plan.from_redis
    assert verdict.judged >= plan.from_memory / 2
    assert verdict.settled[Source.MEMORY] >= 90
    assert len(verdict.failovers) == plan.failover
    if isinstance(server, SentinelTrio):
        assert played.reissued > 0, "the failover lost some"


def test_chaos_on_valkey(valkey: Valkey) -> None:
    whole(valkey, Plan())


def test_chaos_on_redis(redis_server: Redis) -> None:
    whole(redis_server, Plan(purges=600, kills=20, silences=1, from_memory=800, from_redis=100))


def test_chaos_over_a_stream(valkey: Valkey) -> None:
    whole(valkey, Plan(purges=600, kills=20, silences=1, from_memory=800, from_redis=100, stream=True))


def test_chaos_with_a_failover_that_loses_purges() -> None:
    with SentinelTrio() as trio:
        whole(trio, Plan(purges=600, kills=20, silences=0, failover=True, from_memory=800, from_redis=100))


def test_chaos_with_a_failover_from_a_master_that_lives_on() -> None:
    with SentinelTrio() as trio:
        plan = Plan(purges=400, kills=10, silences=0, failover=True, forced=True, from_memory=800, from_redis=100)
        whole(trio, plan)


def test_chaos_in_a_cluster_on_a_channel_with_a_master_that_dies() -> None:
    with RedisCluster() as cluster:
        plan = Plan(purges=300, kills=10, silences=0, failover=True, stream=True, from_memory=800, from_redis=100)
        whole(cluster, plan)


# --- the judge ---------------------------------------------------------------------------

MEMORY, REDIS, APP = Source.MEMORY, Source.REDIS, Source.APP


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (Call(0, 10.2, 10.19, 7, 1, MEMORY), {"late"}),
        (Call(0, 10.2, 10.19, 7, 2, MEMORY), set[str]()),
        (Call(0, 10.04, 10.03, 7, 1, MEMORY), set[str]()),
        (Call(0, 10.2, 9.99, 7, 1, MEMORY), set[str]()),
        (Call(0, 10.2, 10.19, 8, 1, MEMORY), set[str]()),
        (Call(0, 10.01, 10.0, 7, 1, REDIS), {"wrong"}),
        (Call(0, 9.99, 9.9, 7, 1, REDIS), set[str]()),
        (Call(2, 21.1, 20.0, 8, 1, MEMORY), {"deaf"}),
        (Call(2, 20.9, 20.0, 8, 1, MEMORY), set[str]()),
        (Call(2, 22.1, 20.0, 8, 1, MEMORY), set[str]()),
        (Call(0, 21.1, 20.0, 8, 1, MEMORY), set[str]()),
        (Call(2, 21.1, 20.0, 8, 1, APP), set[str]()),
        (Call(0, 30.0, 29.9, 8, 0, APP, final=True), {"unsettled"}),
        (Call(0, 30.0, 29.9, 8, 1, MEMORY, final=True), set[str]()),
    ],
)
def test_the_judge_sees_each_way_to_break_the_promise(call: Call, parts: set[str]) -> None:
    purges = [Done(10.0, 7, 2), Done(11.0, 7, 3)]
    found = judge([call], purges, [Silence(2, 20.0, 22.0)], {7: 3, 8: 1})
    assert set(found.broken) == parts


@pytest.mark.parametrize(
    ("began", "writers", "parts"),
    [
        (10.2, {0: [12.1, 12.2], 1: [12.1, 12.2]}, set[str]()),
        (12.4, {0: [12.1, 12.2], 1: [12.1, 12.2]}, {"late"}),
        (12.4, {0: [12.1, 12.2], 1: [12.1, 12.5]}, set[str]()),
        (12.4, {0: [12.1, 12.2], 1: [12.1]}, set[str]()),
        (10.05, {0: [12.1, 12.2], 1: [12.1, 12.2]}, {"late"}),
    ],
    ids=["during it", "after it", "until both writers are back", "one never is", "before it"],
)
def test_the_judge_asks_nothing_from_a_failover_until_both_writers_have_purged_again(
    began: float, writers: dict[int, list[float]], parts: set[str]
) -> None:
    purges = [Done(10.0, 0, 2), *(Done(at, 12 + writer, 1) for writer, times in writers.items() for at in times)]
    found = judge([Call(0, began, began, 0, 1, MEMORY)], purges, [], {}, [Failover(10.1, 12.0)])
    assert set(found.broken) == parts


@pytest.mark.parametrize(
    ("seen", "worst"), [([(10.03, 1)], 0.03), ([(10.03, 1), (10.5, 1)], 0.5), ([(9.9, 1), (10.5, 2)], None)]
)
def test_the_worst_window_is_the_longest_time_that_something_purged_was_given(
    seen: Sequence[tuple[float, int]], worst: float | None
) -> None:
    calls = [Call(0, began, 0.0, 7, version, MEMORY) for began, version in seen]
    found = judge(calls, [Done(10.0, 7, 2)], [], {}).worst.get(0)
    assert found == (None if worst is None else pytest.approx(worst))


def test_the_worst_window_of_a_silent_link_stands_alone() -> None:
    calls = [Call(0, 10.4, 9.9, 7, 1, MEMORY), Call(1, 10.02, 9.9, 7, 1, MEMORY)]
    found = judge(calls, [Done(10.0, 7, 2)], [Silence(0, 9.95, 11.0)], {})
    assert (found.worst, found.worst_silent) == ({1: pytest.approx(0.02)}, pytest.approx(0.4))
    assert found.beyond == calls[:1]
