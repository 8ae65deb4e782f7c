"""The counters that a rollout is judged by: exact, over workers and crashes."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tidegate.errors import ConfigError
from tidegate.middleware.cohorts import CohortCounters

CANARY = ("tidegate.cache", "10", "canary")
CONTROL = ("tidegate.cache", "50", "control")


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


def test_a_forked_child_counts_into_a_file_of_its_own(tmp_path: Path) -> None:
    counters = CohortCounters([CANARY], directory=str(tmp_path))
    counters.count((CANARY,), seconds=0.01, error=False, storable=False, hit=False)
    child = os.fork()
    if child == 0:
        counters.count((CANARY,), seconds=0.01, error=False, storable=False, hit=False)
        os._exit(0)
    os.waitpid(child, 0)
    counters.count((CANARY,), seconds=0.01, error=False, storable=False, hit=False)
    assert exposed(counters)["tidegate_cohort_requests_total", "canary", ""] == 3
    assert len(list(tmp_path.glob("*.cohorts"))) == 2


def test_what_is_not_a_counter_file_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "junk.cohorts").write_bytes(b"not ours at all, but long enough")
    (tmp_path / "short.cohorts").write_bytes(b"x")
    (tmp_path / "names.cohorts").write_bytes(b"TGCOHORT\x08\0\0\0\0\0\0\0[[1,2]]x")
    (tmp_path / "torn.cohorts").write_bytes(b"TGCOHORT\xff\xff\xff\xff" + b"\xff" * 40)
    (tmp_path / "folder.cohorts").mkdir()
    counters = CohortCounters([CANARY], directory=str(tmp_path))
    counters.count((CANARY,), seconds=0.01, error=False, storable=False, hit=False)
    assert exposed(counters)["tidegate_cohort_requests_total", "canary", ""] == 1


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"metrics_dir: '.*/file/counters' cannot be used: Not a directory; name a"):
        CohortCounters([CANARY], directory=str(tmp_path / "file" / "counters"))
