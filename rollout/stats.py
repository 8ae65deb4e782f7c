"""From raw counter samples to increases, with resets handled and missing scrapes told apart from zero.

Prometheus' own `increase` loses a series' first value and extrapolates to the window's edges; here an increase is the
sum of what was seen to happen between the samples inside the window, no more. Less than two samples, or a newest
sample that is too old, is *no data* (None), which is not zero.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Increase", "Sample", "Series", "increase", "is_fresh", "total"]

Sample = tuple[float, float]
"""Seconds since the epoch, and the counter's value then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One counter of one process: its name, its labels, its samples in order of time."""

    name: str
    labels: Mapping[str, str]
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Increase:
    """What one counter, or several together, grew by.

    value: the growth between the first and the last sample seen.
    last: time of the newest sample.
    spacing: typical seconds between two samples, which tells how late the next may be.
    """

    value: float
    last: float
    spacing: float


def increase(samples: Iterable[Sample], start: float, end: float) -> Increase | None:
    """Growth of one counter over the samples with start <= time <= end; None if fewer than two are usable.

    A value below the one before means that the process began again at 0, so all of it is growth. NaN, infinite and
    negative values cannot come from a counter and count as scrapes that are missing.
    """
    usable = [(at, value) for at, value in samples if start <= at <= end and math.isfinite(value) and value >= 0]
    if len(usable) < 2:
        return None
    grown = 0.0
    gaps: list[float] = []
    for (before, low), (after, high) in pairwise(usable):
        grown += high - low if high >= low else high
        gaps.append(after - before)
    gaps.sort()
    return Increase(value=grown, last=usable[-1][0], spacing=gaps[len(gaps) // 2])


def is_fresh(found: Increase, end: float, interval: float) -> bool:
    """Whether the newest sample is young enough to speak for `end`: one scrape may be missing, two may not."""
    return end - found.last <= 2.5 * max(found.spacing, interval)


def total(series: Sequence[Series], start: float, end: float, interval: float) -> float | None:
    """Growth of all these series together, or None if there is no data.

    A series that ended (its process is gone) still counts with what it did; but when none is fresh, scraping has
    stopped, and the old numbers say nothing about now.
    """
    found = [grown for one in series if (grown := increase(one.samples, start, end)) is not None]
    if not any(is_fresh(one, end, interval) for one in found):
        return None
    return math.fsum(one.value for one in found)
