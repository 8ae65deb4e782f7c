"""The scheduler that the Unleash SDK is given."""

import threading
import time
from datetime import timedelta

from tests.services import wait_until
from tidegate.flags.ticker import Ticker


class Every:
    """What the SDK passes as a trigger, as far as it is read."""

    def __init__(self, seconds: float) -> None:
        self.interval = timedelta(seconds=seconds)


class Log:
    """What `after` was told, with the thread that told it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Exception | None]] = []

    def after(self, error: Exception | None) -> None:
        self.seen.append((threading.current_thread().name, error))


def test_a_job_runs_each_interval_in_a_thread_of_the_given_name_and_after_hears_of_it() -> None:
    log, runs = Log(), list[float]()
    ticker = Ticker("poll", log.after)
    ticker.add_job(
        lambda stamp: runs.append(stamp()), trigger=Every(0.05), executor="x", kwargs={"stamp": time.monotonic}
    )
    assert runs == []
    began = time.monotonic()
    ticker.start()
    ticker.start()
    wait_until(lambda: len(log.seen) >= 4, 5, "four runs")
    ticker.shutdown()
    assert all(run >= began + number * 0.05 for number, run in enumerate(runs, start=1))
    assert set(log.seen) == {("poll-x-0", None)}


def test_a_job_that_raises_runs_again_and_after_gets_the_error() -> None:
    log, error = Log(), RuntimeError("the poll broke")

    def poll() -> None:
        raise error

    ticker = Ticker("poll", log.after)
    ticker.add_job(poll, trigger=Every(0.01), executor="x")
    ticker.start()
    wait_until(lambda: len(log.seen) >= 2, 5, "two runs")
    ticker.shutdown()
    assert {seen for _, seen in log.seen} == {error}


def test_a_job_that_overruns_its_interval_is_late_and_never_runs_twice_at_once() -> None:
    running, most, runs = 0, 0, 0

    def poll() -> None:
        nonlocal running, most, runs
        running += 1
        most = max(most, running)
        time.sleep(0.03)
        running -= 1
        runs += 1

    ticker = Ticker("poll", lambda _error: None)
    ticker.add_job(poll, trigger=Every(0.005), executor="x")
    ticker.start()
    wait_until(lambda: runs >= 5, 5, "five runs")
    ticker.shutdown()
    assert most == 1


def test_a_removed_job_does_not_run_again_while_another_goes_on() -> None:
    removed, kept = list[int](), list[int]()
    ticker = Ticker("poll", lambda _error: None)
    ticker.start()
    job = ticker.add_job(lambda: removed.append(1), trigger=Every(0.01), executor="x")
    ticker.add_job(lambda: kept.append(1), trigger=Every(0.01), executor="x")
    wait_until(lambda: removed, 5, "a first run")
    job.remove()
    job.join(5)
    count, others = len(removed), len(kept)
    wait_until(lambda: len(kept) > others + 3, 5, "more runs of the other")
    ticker.shutdown()
    assert len(removed) == count


def test_the_most_frequent_job_runs_at_once_when_hurried_and_the_others_do_not() -> None:
    polls, reports = list[int](), list[int]()
    ticker = Ticker("poll", lambda _error: None)
    ticker.hurry()  # with nothing to run, nothing runs
    ticker.add_job(lambda: reports.append(1), trigger=Every(60), executor="x")
    ticker.add_job(lambda: polls.append(1), trigger=Every(30), executor="x")
    ticker.start()
    for run in range(1, 4):
        ticker.hurry()
        wait_until(lambda run=run: len(polls) == run, 5, "a run")
    ticker.shutdown()
    assert reports == []


def test_shutting_down_waits_for_no_job_that_hangs() -> None:
    release, started = threading.Event(), threading.Event()

    def poll() -> None:
        started.set()
        release.wait(30)

    ticker = Ticker("hang", lambda _error: None)
    ticker.add_job(poll, trigger=Every(0.01), executor="x")
    ticker.start()
    assert started.wait(5)
    began = time.monotonic()
    ticker.shutdown()
    assert time.monotonic() - began < 5
    release.set()
    wait_until(lambda: all(thread.name != "hang-x-0" for thread in threading.enumerate()), 5, "the job ends")
