"""Four uvicorn workers, two of them killed: no request goes uncounted, and all share what is stored."""

from collections import Counter
from collections.abc import Callable, Sequence

import psutil

from tests.e2e.crowd import Sample, batch, hit_ratio
from tests.e2e.stage import FLAG, REPLACED_WITHIN, Stage, metric, open_by_hand
from tests.services import wait_until

WORKERS = 4
BATCH = 600


def test_with_four_workers_and_two_of_them_killed_the_counters_equal_the_requests_sent(
    set_stage: Callable[..., Stage],
) -> None:
    # Four workers that are asked by 32 at once on a small machine are slow; this is not about the store's deadline.
    stage = set_stage(workers=WORKERS, TIDEGATE_STORE_BUDGET="2")
    open_by_hand(stage.unleash, 100)
    everything: list[Sample] = []

    def send(count: int, seed: int) -> list[Sample]:
        """`count` requests, a share for each worker."""
        sent: list[Sample] = []
        pids = stage.app.worker_pids()
        for number, pid in enumerate(pids):
            with stage.app.only(pid):
                sent += batch(stage.app.port, count // len(pids), seed=10 * seed + number)
        everything.extend(sent)
        return sent

    def all_are_gated() -> bool:
        return len(stage.app.answering()) == WORKERS and all(one.gated for one in send(60, 1))

    wait_until(all_are_gated, 40, "four workers answer and know the flags")
    first = send(BATCH, 2)
    assert counted(stage, "requests") == len(everything)
    by_worker = Counter(one.worker for one in first)
    victims = [int(pid) for pid, _ in by_worker.most_common(2)]
    print(f"requests by worker: {dict(by_worker)}; killed: {victims}")
    assert sorted(by_worker.values()) == [BATCH // WORKERS] * WORKERS, "the work was shared"
    for pid in victims:
        psutil.Process(pid).kill()
    wait_until(lambda: not set(victims) & set(stage.app.worker_pids()), 20, "the dead are gone")
    assert counted(stage, "requests") == len(everything), "what the dead had counted is not lost"

    wait_until(all_are_gated, REPLACED_WITHIN, "uvicorn has replaced them")
    second = send(BATCH, 3)
    assert {one.status for one in everything} == {200}
    assert counted(stage, "requests") == len(everything)
    assert counted(stage, "hits") == sum(one.hit for one in everything), "hits too, as the answers say"
    print(f"{len(everything)} requests sent and counted")
    assert_stored_responses_are_shared(second, {str(pid) for pid in victims})


def assert_stored_responses_are_shared(samples: Sequence[Sample], dead: set[str]) -> None:
    hits = [one for one in samples if one.hit]
    others = [one for one in hits if one.worker != one.maker]
    print(f"hit ratio {hit_ratio(samples):.1%}; {len(others)} of {len(hits)} hits were made by another worker")
    assert hit_ratio(samples) > 0.6
    assert len(others) > 50
    assert any(one.maker in dead for one in hits), "what a dead worker stored is still served"


def counted(stage: Stage, what: str) -> float:
    """The cohort counter of the cache's flag over all users; scrapes and health checks are in no cohort."""
    page = stage.app.metrics()
    name = f"tidegate_cohort_{what}_total"
    return sum(metric(page, name, flag=FLAG, cohort=cohort) for cohort in ("canary", "control"))
