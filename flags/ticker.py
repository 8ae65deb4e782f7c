"""Recurring jobs in daemon threads, by the monotonic clock: what the Unleash SDK gets in place of APScheduler.

The SDK takes a scheduler and calls `add_job`, `start`, `remove_all_jobs` and `shutdown` on it. APScheduler plans by the
wall clock, so that a clock set back by an hour would stop the polling for an hour; its threads are joined when the
interpreter ends, so that a server that hangs delays it; it logs a line for each poll that overruns; and it tells nobody
that a poll has ended. Here a job that overruns its interval is simply late, and `after` is called when it ends.
"""

import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Protocol

__all__ = ["Job", "Ticker"]


class _Trigger(Protocol):
    @property
    def interval(self) -> timedelta: ...


class Job:
    """One recurring call; `remove` ends it after the run in progress."""

    def __init__(self, run: Callable[[], None], interval: float, name: str) -> None:
        self._run = run
        self.interval = interval
        self._removed = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> None:
        """Run for the first time one interval from now."""
        self._thread.start()

    def remove(self) -> None:
        """Do not run again."""
        self._removed.set()
        self._wake.set()

    def hurry(self) -> None:
        """Run now, or once more when the run in progress is over; the interval begins anew. From any thread."""
        self._wake.set()

    def join(self, seconds: float) -> None:
        """Wait for the end of the run in progress, but no longer than this."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(seconds)

    def _loop(self) -> None:
        wait = self.interval
        while True:
            self._wake.wait(wait)
            self._wake.clear()
            if self._removed.is_set():
                return
            began = time.monotonic()
            self._run()
            wait = max(0.0, self.interval - (time.monotonic() - began))


class Ticker:
    """A scheduler for one SDK client.

    name: begins the names of the threads.
    after: called in a job's own thread after each of its runs, with the error if it raised one.
    """

    def __init__(self, name: str, after: Callable[[Exception | None], None]) -> None:
        self._name = name
        self._after = after
        self._jobs: list[Job] = []
        self._running = False

    def add_job(
        self, func: Callable[..., Any], *, trigger: _Trigger, executor: str, kwargs: Mapping[str, Any] | None = None
    ) -> Job:
        """Call `func(**kwargs)` once per interval of the trigger, whose jitter is ignored."""

        def run() -> None:
            failed: Exception | None = None
            try:
                func(**(kwargs or {}))
            except Exception as error:  # noqa: BLE001 - handed to `after`, which reports it; polling must go on
                failed = error
            self._after(failed)

        job = Job(run, trigger.interval.total_seconds(), f"{self._name}-{executor}-{len(self._jobs)}")
        self._jobs.append(job)
        if self._running:
            job.start()
        return job

    def start(self) -> None:
        """Start what was added so far; what is added later starts at once."""
        if not self._running:
            self._running = True
            for job in self._jobs:
                job.start()

    def hurry(self) -> None:
        """Run the most frequent job now: the poll, whatever else the SDK does now and then. From any thread."""
        for job in sorted(self._jobs, key=lambda one: one.interval)[:1]:
            job.hurry()

    def remove_all_jobs(self) -> None:
        """Let no job run again."""
        for job in self._jobs:
            job.remove()

    def shutdown(self, wait: bool = True) -> None:
        """End all jobs; `wait` for those in progress, at most a second each."""
        self.remove_all_jobs()
        if wait:
            for job in self._jobs:
                job.join(1.0)
