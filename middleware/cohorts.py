"""The counters by which a rollout is judged: per flag, band and cohort, never gated, exact over workers and crashes.

Each worker counts in memory that is mapped to a file of its own, so an increment costs tens of nanoseconds and survives
`kill -9`; a scrape adds up all files of the folder, dead workers' included. Without a folder the counts are this
process's own. Every series starts at 0, because Prometheus cannot see an increase before a series' first sample.

Guaranteed: no request that was answered is missing; a request is counted before its last byte leaves.
Not guaranteed: exactness when one process runs several event loops in threads on one folder (an increment is not atomic
across threads); a machine crash (the file is not flushed to disk on purpose).
"""

import json
import mmap
import os
import struct
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final
from uuid import uuid4

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tidegate.errors import Problems
from tidegate.vocabulary import (
    COHORT_BUCKETS,
    COHORT_ERRORS,
    COHORT_HITS,
    COHORT_LABELS,
    COHORT_REQUESTS,
    COHORT_SECONDS,
    COHORT_STORABLE,
)

__all__ = ["CohortCounters"]

Labels = tuple[str, str, str]

_MAGIC: Final = b"TGCOHORT"
_HEADER: Final = struct.Struct("<8sI4x")
_SUFFIX: Final = ".cohorts"

_REQUESTS, _ERRORS, _STORABLE, _HITS, _SECONDS, _FIRST_BUCKET = range(6)
_WIDTH: Final = _FIRST_BUCKET + len(COHORT_BUCKETS) + 1
"""Doubles per series: the five counts, then one bucket per bound and one for +Inf (not cumulative)."""


class CohortCounters(Collector):
    """Counts finished requests per (flag, band, cohort) and exposes the sum over workers.

    labels: every series that can occur; requests of another one are counted under nothing and noted in `unknown`.
    directory: folder shared by the workers of one server; it is made if missing. None: this process only.

    Raises:
        ConfigError: if the folder cannot be made or written.
    """

    def __init__(self, labels: Sequence[Labels], *, directory: str | None = None) -> None:
        self._labels = tuple(dict.fromkeys(labels))
        self._offsets = {label: index * _WIDTH for index, label in enumerate(self._labels)}
        self._of_cohorts: dict[tuple[Labels, ...], tuple[int, ...]] = {}
        self._directory = Path(directory) if directory is not None else None
        self._file: Path | None = None
        self.unknown = 0
        try:
            self._open()
        except OSError as error:
            problems = Problems("cohort counters")
            told = f"cannot be used: {error.strerror or error}"
            problems.add("metrics_dir", directory, told, "name a folder that the workers may write")
            problems.raise_if_any()
        if self._directory is not None:
            # A forked child must not count into its parent's file: both would write the same numbers.
            os.register_at_fork(after_in_child=self._open)

    def register(self, registry: CollectorRegistry) -> None:
        """Expose the counters on a registry."""
        registry.register(self)

    def _open(self) -> None:
        size = len(self._labels) * _WIDTH
        if self._directory is None:
            self._counts = memoryview(bytearray(size * 8)).cast("d")
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        names = json.dumps(self._labels).encode()
        names += b" " * (-len(names) % 8)
        head = _HEADER.pack(_MAGIC, len(names)) + names
        file = self._directory / f"{os.getpid()}-{uuid4().hex[:8]}{_SUFFIX}"
        draft = file.with_suffix(".new")
        draft.write_bytes(head + bytes(size * 8))
        draft.rename(file)  # readers see whole files only
        with file.open("r+b") as opened:
            mapped = mmap.mmap(opened.fileno(), 0)
        self._file = file
        self._counts = memoryview(mapped)[len(head) :].cast("d")

    def count(self, cohorts: tuple[Labels, ...], *, seconds: float, error: bool, storable: bool, hit: bool) -> None:
        """Count one finished request in each of its cohorts (one per flag)."""
        offsets = self._of_cohorts.get(cohorts)
        if offsets is None:
            offsets = self._resolve(cohorts)
        counts = self._counts
        bucket = _FIRST_BUCKET + bisect_left(COHORT_BUCKETS, seconds)
        for offset in offsets:
            counts[offset] += 1.0
            if error:
                counts[offset + _ERRORS] += 1.0
            if storable:
                counts[offset + _STORABLE] += 1.0
                if hit:
                    counts[offset + _HITS] += 1.0
            counts[offset + _SECONDS] += seconds
            counts[offset + bucket] += 1.0

    def _resolve(self, cohorts: tuple[Labels, ...]) -> tuple[int, ...]:
        found = tuple(self._offsets[label] for label in cohorts if label in self._offsets)
        self.unknown += len(cohorts) - len(found)
        if len(self._of_cohorts) > 4096:  # bands x cohorts over five flags: far fewer occur
            self._of_cohorts.clear()
        self._of_cohorts[cohorts] = found
        return found

    def totals(self) -> dict[Labels, list[float]]:
        """The sum over workers, per series; a file that is not ours or is being made is passed over."""
        sums = {label: [0.0] * _WIDTH for label in self._labels}
        for labels, counts in self._parts():
            for index, label in enumerate(labels):
                into = sums.setdefault(label, [0.0] * _WIDTH)
                for slot in range(_WIDTH):
                    into[slot] += counts[index * _WIDTH + slot]
        return sums

    def _parts(self) -> Iterator[tuple[Sequence[Labels], Sequence[float]]]:
        if self._directory is None:
            yield self._labels, self._counts
            return
        for file in sorted(self._directory.glob(f"*{_SUFFIX}")):
            part = _read(file)
            if part is not None:
                yield part

    def collect(self) -> Iterator[Metric]:
        """The metric families, as prometheus_client asks for them."""
        totals = self.totals()
        for name, slot, text in (
            (COHORT_REQUESTS, _REQUESTS, "Finished requests by flag, band and cohort."),
            (COHORT_ERRORS, _ERRORS, "Responses of 500 and above, and exceptions."),
            (COHORT_STORABLE, _STORABLE, "Requests that policy makes storable, bypasses included."),
            (COHORT_HITS, _HITS, "Storable requests answered without the app."),
        ):
            family = CounterMetricFamily(name.removesuffix("_total"), text, labels=COHORT_LABELS)
            for label, values in totals.items():
                family.add_metric(label, values[slot])
            yield family
        yield _histogram(totals)

    def close(self) -> None:
        """Let go of the mapping. The file stays: its counts belong to the totals."""
        self._counts.release()
        self._counts = memoryview(bytearray(len(self._labels) * _WIDTH * 8)).cast("d")


def _histogram(totals: Mapping[Labels, Sequence[float]]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(COHORT_SECONDS, "Seconds from start to end of a request.", labels=COHORT_LABELS)
    bounds = [*(str(bound) for bound in COHORT_BUCKETS), "+Inf"]
    for label, values in totals.items():
        running = 0.0
        buckets: list[tuple[str, float]] = []
        for bound, value in zip(bounds, values[_FIRST_BUCKET:], strict=True):
            running += value
            buckets.append((bound, running))
        family.add_metric(label, buckets, sum_value=values[_SECONDS])
    return family


def _read(file: Path) -> tuple[list[Labels], Sequence[float]] | None:
    try:
        data = file.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return None
    if len(data) < _HEADER.size:
        return None
    magic, length = _HEADER.unpack_from(data)
    body = memoryview(data)[_HEADER.size + length :]
    if magic != _MAGIC:
        return None
    try:
        named = json.loads(data[_HEADER.size :][:length])
        labels = [(str(flag), str(band), str(cohort)) for flag, band, cohort in named]
    except (ValueError, TypeError):
        return None
    if len(body) != len(labels) * _WIDTH * 8:
        return None
    return labels, body.cast("d")
