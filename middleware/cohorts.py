"""The counters by which a rollout is judged: per flag, band and cohort, never gated, exact over workers and crashes.

Each worker counts in memory that is mapped to a file of its own, so an increment costs tens of nanoseconds and survives
`kill -9`; a scrape adds up all files of the folder, dead workers' too (`cohort_files`). Without a folder the counts
are this process's own. Every series starts at 0, because Prometheus cannot see an increase before a series' first
sample. How many series there are is settled by flags and bands, whoever asks for what.

Guaranteed: no request that was answered is missing, and none is there twice; a request is counted before its last byte
leaves; several event loops in threads of one process may share the counters (with the GIL).
Not guaranteed: what a machine that crashes had counted. A worker that is killed while it counts leaves one request that
some of its flags know and others do not, or that has no duration yet.
"""

import logging
import os
import threading
import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tidegate.errors import Problems
from tidegate.middleware.cohort_files import Labels, Layout, Part, WorkerFile, compact, read_all
from tidegate.vocabulary import (
    COHORT_BUCKETS,
    COHORT_ERRORS,
    COHORT_HITS,
    COHORT_LABELS,
    COHORT_REQUESTS,
    COHORT_SECONDS,
    COHORT_STORABLE,
)

__all__ = ["ASKED", "FIRST_BUCKET", "HITS", "CohortCounters", "CohortTotals"]

OnError = Callable[[str, Exception], None]

# What is kept for a series. Each request is in one bucket, and at most one of `asked` and `hits`, so that a sum over
# buckets is the number of requests, and no count has to be kept twice.
_SECONDS, _ERRORS, ASKED, HITS, FIRST_BUCKET = range(5)
_FIRST_BOUND: Final = COHORT_BUCKETS[0]
_BOUNDS: Final = (*(str(bound) for bound in COHORT_BUCKETS), "+Inf")
_SLOTS: Final = ("seconds", "errors", "asked", "hits", *(f"le={bound}" for bound in _BOUNDS))
_WIDTH: Final = len(_SLOTS)

_GROUPS: Final = 512
"""Sets of cohorts, one a flag, that have a row of their own: a request counts in one row instead of five. Those of more
units count as exactly, a little slower. 100 KiB a worker."""

_log = logging.getLogger("tidegate")


class CohortTotals(NamedTuple):
    """One series over all workers. `buckets`: requests per bucket of COHORT_BUCKETS and one above; not cumulative."""

    requests: float
    errors: float
    storable: float
    hits: float
    seconds: float
    buckets: tuple[float, ...]


class CohortCounters(Collector):
    """Counts finished requests per (flag, band, cohort) and exposes the sum over workers.

    labels: every series that can occur; requests of another one are counted under nothing and noted in `unknown`.
    directory: folder shared by the workers of one server; it is made if missing. None: this process only.
    on_error: hears, as "cohorts", of a folder that fails later on. Default: the log.

    Raises:
        ConfigError: if the folder cannot be made or written.
    """

    def __init__(
        self, labels: Sequence[Labels], *, directory: str | None = None, on_error: OnError | None = None
    ) -> None:
        self._labels = tuple(dict.fromkeys(labels))
        self._offsets = {label: index * _WIDTH for index, label in enumerate(self._labels)}
        flags = {flag for flag, _, _ in self._labels}
        self._layout = Layout(labels=self._labels, slots=_SLOTS, groups=_GROUPS, members=len(flags))
        self._of_cohorts: dict[tuple[Labels, ...], tuple[int, ...]] = {}
        self._recent: dict[int, tuple[tuple[Labels, ...], tuple[int, ...]]] = {}
        self._groups = 0
        self._directory = Path(directory) if directory is not None else None
        self._on_error = on_error if on_error is not None else _logged
        self._lock = threading.Lock()
        self._file: WorkerFile | None = None
        self.counts = self._private()
        """All that was counted; others once a file was opened or let go of."""
        self._is_forked = False
        self.unknown = 0
        if self._directory is not None:
            try:
                self._open(self._directory)
            except OSError as error:
                problems = Problems("cohort counters")
                told = f"cannot be used: {error.strerror or error}"
                problems.add("metrics_dir", directory, told, "name a folder that the workers may write")
                problems.raise_if_any()
            _counting.add(self)

    def register(self, registry: CollectorRegistry) -> None:
        """Expose the counters on a registry."""
        registry.register(self)

    def _private(self) -> "list[float] | memoryview[float]":
        return [0.0] * self._layout.size  # twice as quick as what a file is mapped to

    def _open(self, directory: Path) -> None:
        self._file = WorkerFile.create(directory, self._labels, _SLOTS, groups=_GROUPS, members=self._layout.members)
        self.counts = self._file.counts
        try:
            compact(directory, _SLOTS)
        except OSError as error:
            self._on_error("cohorts", error)

    def forked(self) -> None:
        """In a forked child: let go of the parent's file. The first count makes one of its own."""
        self._lock = threading.Lock()  # a thread that the child does not have may hold the old one
        self._forget()
        if self._file is not None:
            self.counts = self._private()
            self._file.close()
            self._file = None
            self._is_forked = True

    def count(self, cohorts: tuple[Labels, ...], seconds: float, error: bool, storable: bool, hit: bool) -> None:
        """Count one finished request in each of its cohorts (one per flag)."""
        try:
            offsets = self._recent[id(cohorts)][1]  # a third of what hashing five labels costs
        except KeyError:
            offsets = self._resolve(cohorts)
        bucket = FIRST_BUCKET
        if seconds > _FIRST_BOUND:  # few are, and the search takes as long as a count
            bucket += bisect_left(COHORT_BUCKETS, seconds)
        served = (HITS if hit else ASKED) if storable else 0
        seconds = 0.0 + seconds  # a plain number: the addition of another could let other threads in
        counts = self.counts
        # No lock, which would cost half of the rest: CPython hands over the GIL at calls and at the loop's end only,
        # not within `+=` on numbers, so that no count is lost, and a row has all of a request or nothing.
        try:
            for offset in offsets:
                counts[offset + bucket] += 1.0  # first: whoever is killed here has counted a request, and no more
                if served:
                    counts[offset + served] += 1.0
                if error:
                    counts[offset + _ERRORS] += 1.0
                counts[offset] += seconds
        except ValueError:
            return  # they were closed meanwhile, by another thread

    def place(self, cohorts: tuple[Labels, ...]) -> int | None:
        """Where in `counts` the one row begins that counts for all of these; None: there is none, or not yet."""
        known = self._recent.get(id(cohorts))
        return known[1][0] if known is not None and len(known[1]) == 1 else None

    def _resolve(self, cohorts: tuple[Labels, ...]) -> tuple[int, ...]:
        with self._lock:
            if self._is_forked and self._directory is not None:
                self._is_forked = False
                try:
                    self._open(self._directory)
                except OSError as error:  # P5: the app answers; what this worker counts is lost
                    self._on_error("cohorts", error)
            found = self._of_cohorts.get(cohorts)
            if found is None:
                known = tuple(self._offsets[label] for label in cohorts if label in self._offsets)
                self.unknown += len(cohorts) - len(known)
                found = self._group(known)
                if len(self._of_cohorts) >= 4096:  # bands x cohorts over five flags: fewer than units, mostly
                    self._of_cohorts.clear()
                self._of_cohorts[cohorts] = found
            if len(self._recent) >= 4096:
                self._recent.clear()
            self._recent[id(cohorts)] = (cohorts, found)  # which keeps it, so that nobody else gets its id
        return found

    def _group(self, offsets: tuple[int, ...]) -> tuple[int, ...]:
        """The one row that counts for all of these, while there is room for such; else their own rows."""
        if self._groups == _GROUPS or not 1 < len(offsets) <= self._layout.members:
            return offsets
        at = self._layout.group(self._groups)
        self._groups += 1
        for place, offset in enumerate(offsets):
            self.counts[at + place] = float(offset // _WIDTH + 1)
        return (at + self._layout.members,)

    def _forget(self) -> None:
        """The counts are others from now on: where they stand has to be found out anew."""
        self._of_cohorts = {}
        self._recent = {}
        self._groups = 0

    def totals(self) -> dict[Labels, CohortTotals]:
        """The sum over workers, per series. Reads files; call it off the event loop.

        Raises:
            OSError: if the folder cannot be read.
        """
        sums = {label: [0.0] * _WIDTH for label in self._labels}
        for part in self._parts():
            places = [(index, place) for index, slot in enumerate(part.slots) if (place := _place(slot)) is not None]
            for label, row in part.rows():
                into = sums.setdefault(label, [0.0] * _WIDTH)
                for index, place in places:
                    into[place] += row[index]
        return {label: _totals(values) for label, values in sums.items()}

    def _parts(self) -> Iterator[Part]:
        with self._lock:
            # A copy: a view would keep the file from being closed, at the end or in a forked child.
            file, counts = self._file, list(self.counts)
        if file is not None or self._directory is None:
            # From memory: the file itself may have been removed by somebody who tidied up.
            yield self._layout.part(counts)
        if self._directory is not None:
            yield from read_all(self._directory, but=file.path if file is not None else None)

    def collect(self) -> Iterator[Metric]:
        """The metric families, as prometheus_client asks for them."""
        totals = self.totals()
        for name, text, values in (
            (COHORT_REQUESTS, "Finished requests by flag, band and cohort.", [t.requests for t in totals.values()]),
            (COHORT_ERRORS, "Responses of 500 and above, and exceptions.", [t.errors for t in totals.values()]),
            (
                COHORT_STORABLE,
                "Requests that policy makes storable, bypasses included.",
                [t.storable for t in totals.values()],
            ),
            (COHORT_HITS, "Storable requests answered without the app.", [t.hits for t in totals.values()]),
        ):
            family = CounterMetricFamily(name.removesuffix("_total"), text, labels=COHORT_LABELS)
            for label, value in zip(totals, values, strict=True):
                family.add_metric(label, value)
            yield family
        yield _histogram(totals)

    def close(self) -> None:
        """Let go of the file. It stays: its counts belong to the totals."""
        with self._lock:
            self._forget()
            self.counts = self._private()
            if self._file is not None:
                self._file.close()
                self._file = None


_counting: "weakref.WeakSet[CohortCounters]" = weakref.WeakSet()


def _let_go_of_the_parents_files() -> None:
    for counters in list(_counting):
        counters.forked()


os.register_at_fork(after_in_child=_let_go_of_the_parents_files)


def _logged(component: str, error: Exception) -> None:
    _log.warning("%s failed: %s: %s", component, type(error).__name__, error)


def _place(slot: str) -> int | None:
    """Where a slot of some version's file belongs; a bucket that we do not have, in the next larger one that we do."""
    if slot in _SLOTS:
        return _SLOTS.index(slot)
    if not slot.startswith("le="):
        return None
    try:
        return FIRST_BUCKET + bisect_left(COHORT_BUCKETS, float(slot.removeprefix("le=")))
    except ValueError:
        return None


def _totals(values: Sequence[float]) -> CohortTotals:
    return CohortTotals(
        requests=sum(values[FIRST_BUCKET:]),
        errors=values[_ERRORS],
        storable=values[ASKED] + values[HITS],
        hits=values[HITS],
        seconds=values[_SECONDS],
        buckets=tuple(values[FIRST_BUCKET:]),
    )


def _histogram(totals: Mapping[Labels, CohortTotals]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(COHORT_SECONDS, "Seconds from start to end of a request.", labels=COHORT_LABELS)
    for label, values in totals.items():
        running = 0.0
        buckets: list[tuple[str, float]] = []
        for bound, value in zip(_BOUNDS, values.buckets, strict=True):
            running += value
            buckets.append((bound, running))
        family.add_metric(label, buckets, sum_value=values.seconds)
    return family
