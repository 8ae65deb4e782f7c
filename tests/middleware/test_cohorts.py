"""The counters that a rollout is judged by: exact, over workers and crashes."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from math import inf, nextafter
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.services import wait_until
from tidegate.errors import ConfigError
from tidegate.middleware.cohort_files import Labels, Part, WorkerFile
from tidegate.middleware.cohorts import CohortCounters
from tidegate.vocabulary import COHORT_BUCKETS

CANARY = ("tidegate.cache", "10", "canary")
CONTROL = ("tidegate.cache", "50", "control")
OTHER_FLAG = ("tidegate.etag", "10", "canary")


def exposed(counters: CohortCounters) -> dict[tuple[str, str, str], float]:
    registry = CollectorRegistry()
    counters.register(registry)
    samples: dict[tuple[str, str, str], float] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            samples[sample.name, sample.labels["cohort"], sample.labels.get("le", "")] = sample.value
    return samples


def test_every_series_starts_at_zero() -> None:
    samples = exposed(CohortCounters([CANARY, CONTROL]))
    assert samples["tidegate_cohort_requests_total", "control", ""] == 0
    assert samples["tidegate_cohort_duration_seconds_bucket", "canary", "+Inf"] == 0


@pytest.mark.parametrize("seconds", [0.0, *COHORT_BUCKETS])
def test_a_bucket_holds_what_took_as_long_as_its_bound_and_nothing_above(seconds: float) -> None:
    counters = CohortCounters([CANARY])
    counters.count((CANARY,), seconds=seconds, error=False, storable=False, hit=False)
    counters.count((CANARY,), seconds=nextafter(seconds, inf), error=False, storable=False, hit=False)
    found = [0 if seconds == 0.0 else COHORT_BUCKETS.index(seconds)]
    found.append(found[0] + (seconds > 0.0))
    expected = [float(found.count(bucket)) for bucket in range(len(COHORT_BUCKETS) + 1)]
    assert list(counters.totals()[CANARY].buckets) == expected


def test_a_request_counts_in_what_it_was_and_in_its_bucket_and_all_above() -> None:
    counters = CohortCounters([CANARY, CONTROL])
    counters.count((CANARY,), seconds=0.1, error=True, storable=True, hit=False)
    counters.count((CANARY,), seconds=20.0, error=False, storable=True, hit=True)
    samples = exposed(counters)
    counted = {
        name: samples[f"tidegate_cohort_{name}_total", "canary", ""]
        for name in ("requests", "errors", "storable", "hits")
    }
    assert counted == {"requests": 2, "errors": 1, "storable": 2, "hits": 1}
    buckets = {
        le: samples["tidegate_cohort_duration_seconds_bucket", "canary", le] for le in ("0.05", "0.1", "10.0", "+Inf")
    }
    assert buckets == {"0.05": 0, "0.1": 1, "10.0": 1, "+Inf": 2}
    assert samples["tidegate_cohort_duration_seconds_sum", "canary", ""] == 20.1
    assert samples["tidegate_cohort_requests_total", "control", ""] == 0


def _work(directory: str, requests: int, die: bool) -> None:
    counters = CohortCounters([CANARY], directory=directory)
    for _ in range(requests):
        counters.count((CANARY,), seconds=0.01, error=False, storable=False, hit=False)
    if die:
        os.kill(os.getpid(), signal.SIGKILL)


def test_workers_are_summed_and_one_that_was_killed_still_counts(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(str(tmp_path), 1000 + index, index == 1)) for index in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, -signal.SIGKILL, 0]
    total = exposed(CohortCounters([CANARY], directory=str(tmp_path)))
    assert total["tidegate_cohort_requests_total", "canary", ""] == 3003


def count(counters: CohortCounters, label: tuple[str, str, str] = CANARY) -> None:
    counters.count((label,), seconds=0.01, error=False, storable=False, hit=False)


def in_a_child(work: Callable[[], None]) -> None:
    """Do something in a forked child, and wait for its end."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_forked_child_counts_into_a_file_of_its_own_and_makes_none_if_it_counts_nothing(tmp_path: Path) -> None:
    counters = CohortCounters([CANARY], directory=str(tmp_path))
    count(counters)
    in_a_child(lambda: count(counters))
    assert len(list(tmp_path.glob("*.cohorts"))) == 2
    in_a_child(lambda: None)
    assert len(list(tmp_path.glob("*.cohorts"))) == 2
    count(counters)
    assert exposed(counters)["tidegate_cohort_requests_total", "canary", ""] == 3


def test_a_scrape_in_another_thread_disturbs_neither_a_fork_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = CohortCounters([CANARY, CONTROL], directory=str(tmp_path))
    count(counters)
    reading, go_on, whole = threading.Event(), threading.Event(), Part.rows
    seen: list[float] = []

    def slow(part: Part) -> Iterator[tuple[Labels, Sequence[float]]]:
        for row in whole(part):
            yield row
            reading.set()
            go_on.wait(30)

    with monkeypatch.context() as patched:
        patched.setattr(Part, "rows", slow)
        scrape = threading.Thread(target=lambda: seen.append(counters.totals()[CANARY].requests))
        scrape.start()
        try:
            assert reading.wait(30)
            in_a_child(lambda: count(counters))
            counters.close()
        finally:
            go_on.set()
            scrape.join()
    assert seen[0] in (1, 2), "with or without the child's, which came while it read"
    assert exposed(counters)["tidegate_cohort_requests_total", "canary", ""] == 2


def test_the_files_of_a_hundred_children_become_one(tmp_path: Path) -> None:
    counters = CohortCounters([CANARY], directory=str(tmp_path))
    for _ in range(100):
        in_a_child(lambda: count(counters))
    assert exposed(counters)["tidegate_cohort_requests_total", "canary", ""] == 100
    assert len(list(tmp_path.glob("*.cohorts"))) <= 3, "ours, the last child's, and that of all before it"


def test_a_parents_file_is_a_dead_ones_when_it_is_gone_though_its_children_live(tmp_path: Path) -> None:
    def parent_dies() -> None:
        counters = CohortCounters([CANARY], directory=str(tmp_path))
        count(counters)
        if os.fork() == 0:
            os.close(write)
            os.read(read, 1)  # until the test closes its end, or is no more
            os._exit(0)

    read, write = os.pipe()
    try:
        in_a_child(parent_dies)
        counters = CohortCounters([CANARY], directory=str(tmp_path))
        assert sorted(path.name.rpartition("-")[0] for path in tmp_path.glob("*.cohorts")) == ["", str(os.getpid())]
        assert exposed(counters)["tidegate_cohort_requests_total", "canary", ""] == 1
    finally:
        os.close(write)
        os.close(read)


def test_a_child_that_cannot_make_its_file_answers_all_the_same_and_says_so(tmp_path: Path) -> None:
    told: list[str] = []
    counters = CohortCounters([CANARY], directory=str(tmp_path / "m"), on_error=lambda part, _: told.append(part))

    def work() -> None:
        (tmp_path / "m").rename(tmp_path / "moved")
        (tmp_path / "m").write_text("no folder")
        for _ in range(3):
            count(counters)
        assert told == ["cohorts"]

    in_a_child(work)


def test_one_process_counts_exactly_in_several_threads() -> None:
    class Slow(float):
        """Seconds whose addition lets other threads in: between the reading of a count and its writing."""

        def __radd__(self, other: float) -> float:
            time.sleep(0)
            return float(self) + other

    counters = CohortCounters([CANARY])
    threads = [
        threading.Thread(
            target=lambda: [
                counters.count((CANARY,), seconds=Slow(0.25), error=False, storable=True, hit=True) for _ in range(500)
            ]
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    samples = exposed(counters)
    assert samples["tidegate_cohort_requests_total", "canary", ""] == 2000
    assert samples["tidegate_cohort_duration_seconds_sum", "canary", ""] == 500.0


def _count_for_ever(directory: str) -> None:
    counters = CohortCounters([CANARY, CONTROL], directory=directory)
    while True:
        counters.count((CANARY, CONTROL), seconds=0.5, error=True, storable=True, hit=True)


def test_what_was_counted_for_several_flags_at_once_is_in_the_sum_of_each_whoever_died(tmp_path: Path) -> None:
    labels = [CANARY, OTHER_FLAG, CONTROL]
    for requests in (2, 3):
        dead = CohortCounters(labels, directory=str(tmp_path))
        for _ in range(requests):
            dead.count((CANARY, OTHER_FLAG), seconds=0.5, error=False, storable=True, hit=True)
            dead.count((CONTROL, OTHER_FLAG), seconds=0.25, error=False, storable=False, hit=False)
        dead.close()
    alive = CohortCounters(labels, directory=str(tmp_path))
    alive.count((CANARY, OTHER_FLAG), seconds=0.5, error=True, storable=True, hit=False)
    seen = {label: (row.requests, row.errors, row.hits, row.seconds) for label, row in alive.totals().items()}
    assert seen == {CANARY: (6, 1, 5, 3.0), OTHER_FLAG: (11, 1, 5, 4.25), CONTROL: (5, 0, 0, 1.25)}
    alive.close()


def test_threads_that_are_switched_as_often_as_can_be_lose_no_count(tmp_path: Path) -> None:
    counters = CohortCounters([CANARY, CONTROL, OTHER_FLAG], directory=str(tmp_path))
    every = (CANARY, OTHER_FLAG)

    def count() -> None:
        for _ in range(5000):
            counters.count(every, seconds=0.25, error=True, storable=True, hit=True)
            counters.count((CONTROL,), seconds=0.25, error=False, storable=True, hit=False)

    threads = [threading.Thread(target=count) for _ in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(before)
    totals = counters.totals()
    for label, errors, hits in ((CANARY, 20_000, 20_000), (OTHER_FLAG, 20_000, 20_000), (CONTROL, 0, 0)):
        seen = totals[label]
        assert (seen.requests, seen.errors, seen.storable, seen.hits) == (20_000, errors, 20_000, hits)
        assert seen.seconds == 5_000.0
    counters.close()


def test_a_worker_that_is_killed_while_it_counts_leaves_one_request_half_counted_at_most(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for kill in range(1, 21):
        counters = CohortCounters([CANARY, CONTROL], directory=str(tmp_path))
        before = {label: counters.totals()[label].requests for label in (CANARY, CONTROL)}
        worker = context.Process(target=_count_for_ever, args=(str(tmp_path),))
        worker.start()
        wait_until(lambda: counters.totals()[CONTROL].requests > before[CONTROL] + 10, 30, "it counts")  # noqa: B023
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join(30)
        counters.close()
        for total in counters.totals().values():
            assert 0 <= total.requests - total.storable <= kill
            assert 0 <= total.storable - total.errors <= kill
            assert 0 <= total.errors - total.seconds / 0.5 <= kill
            assert total.hits == total.storable
            assert total.requests == sum(total.buckets)
        assert 0 <= counters.totals()[CANARY].requests - counters.totals()[CONTROL].requests <= kill


def test_counts_of_other_bands_and_flags_from_before_stay_in_the_sum(tmp_path: Path) -> None:
    old = ("tidegate.cache", "20", "canary")
    before = CohortCounters([old, CONTROL], directory=str(tmp_path))
    count(before, old)
    count(before, CONTROL)
    before.close()
    counters = CohortCounters([CANARY, CONTROL], directory=str(tmp_path))
    count(counters, CONTROL)
    assert {label: total.requests for label, total in counters.totals().items()} == {CANARY: 0, CONTROL: 2, old: 1}


def test_counts_of_a_version_with_other_buckets_stay_in_the_sum(tmp_path: Path) -> None:
    other = WorkerFile.create(tmp_path, [CANARY], ["le=0.25", "le=+Inf", "hits", "seconds", "le=0.3"])
    for place, value in enumerate((5, 2, 4, 1.5, 3)):
        other.counts[place] = value
    other.close()
    counters = CohortCounters([CANARY], directory=str(tmp_path))
    count(counters)
    total = counters.totals()[CANARY]
    assert (total.requests, total.storable, total.hits, total.seconds) == (11, 4, 4, 1.51)
    assert dict(zip(COHORT_BUCKETS, total.buckets, strict=False))[0.5] == 3, "what took up to 0.3 s took up to 0.5 s"


def test_a_worker_whose_file_was_tidied_away_still_knows_its_counts(tmp_path: Path) -> None:
    counters = CohortCounters([CANARY], directory=str(tmp_path))
    for file in tmp_path.iterdir():
        file.unlink()
    count(counters)
    assert counters.totals()[CANARY].requests == 1


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"metrics_dir: '.*/file/counters' cannot be used: Not a directory; name a"):
        CohortCounters([CANARY], directory=str(tmp_path / "file" / "counters"))
