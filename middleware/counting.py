"""Counts what most requests are in one go, where their cohorts and their route are counted for themselves otherwise.

Where to count is found once for each set of cohorts and each route, and remembered: a request pays for one call and one
look-up instead of two and four. There are no more places than cohorts by routes.
"""

from bisect import bisect_left
from collections.abc import MutableSequence
from typing import Final

from tidegate.middleware.cohort_files import Labels
from tidegate.middleware.cohorts import ASKED, FIRST_BUCKET, HITS, CohortCounters
from tidegate.middleware.routes import LATENCY_BUCKETS, ROUTE_SECONDS, CountsRoutes
from tidegate.vocabulary import COHORT_BUCKETS

__all__ = ["Aside", "Together"]

_COHORTS_SOON: Final = COHORT_BUCKETS[0]
_ROUTES_SOON: Final = LATENCY_BUCKETS[0]

_REMEMBERED: Final = 8192
"""Places of one kind, about 0.4 KiB each; when there are more, they are found anew."""

_Place = tuple[tuple[Labels, ...], "MutableSequence[float] | memoryview[float]", int, int, int, list[float]]
"""The cohorts, whose id nobody else can have while they are kept here; the numbers of all cohorts, and where among them
the first bucket, what was served and the seconds stand; the row of the route."""

_Row = tuple[tuple[Labels, ...], "MutableSequence[float] | memoryview[float]", int, int, int]
"""As a `_Place`, without the route's row."""


class Aside:
    """Counts answers that no layer had a part in, and that were no errors: as `CohortCounters.count` does."""

    def __init__(self, cohorts: CohortCounters) -> None:
        self._cohorts = cohorts
        self._rows: dict[int, _Row] = {}

    def count(self, cohorts: tuple[Labels, ...], seconds: float, storable: bool) -> None:
        """Count one request."""
        try:
            _, counts, bucket, asked, total = self._rows[id(cohorts)]
        except KeyError:
            self._find(cohorts, seconds, storable)
            return
        if counts is not self._cohorts.counts:
            self._rows.clear()  # a fork, or the end
            self._find(cohorts, seconds, storable)
            return
        if seconds > _COHORTS_SOON:
            bucket += bisect_left(COHORT_BUCKETS, seconds)
        seconds = 0.0 + seconds
        # Without a lock, and in this order, for the reasons that are given in `CohortCounters.count`.
        try:
            counts[bucket] += 1.0
            if storable:
                counts[asked] += 1.0
            counts[total] += seconds
        except ValueError:
            return  # they were closed meanwhile, by another thread

    def _find(self, cohorts: tuple[Labels, ...], seconds: float, storable: bool) -> None:
        """Let the counters count it, and remember where, if one place is all that it takes."""
        self._cohorts.count(cohorts, seconds, False, storable, False)
        counts = self._cohorts.counts  # first: whoever puts others there makes the rows void before
        offset = self._cohorts.place(cohorts)
        if offset is None:
            return
        if len(self._rows) >= _REMEMBERED:
            self._rows.clear()
        self._rows[id(cohorts)] = (cohorts, counts, offset + FIRST_BUCKET, offset + ASKED, offset)


class Together:
    """Counts GETs that were answered with 200 and that all had one outcome: as the two do one after the other.

    outcome: as RequestContext has it. storable: as `CohortCounters.count` has it.
    """

    def __init__(self, cohorts: CohortCounters, routes: CountsRoutes, *, outcome: str, storable: bool) -> None:
        self._cohorts = cohorts
        self._routes = routes
        self._outcome = outcome
        self._storable = storable
        self._is_hit = outcome == "hit"
        self._places: dict[tuple[int, str], _Place] = {}

    def count(self, cohorts: tuple[Labels, ...], route: str, seconds: float) -> None:
        """Count one request."""
        try:
            _, counts, bucket, served, total, row = self._places[id(cohorts), route]
        except KeyError:
            self._one_by_one(cohorts, route, seconds)
            return
        if counts is not self._cohorts.counts:
            self._places.clear()  # a fork, or the end
            self._one_by_one(cohorts, route, seconds)
            return
        at = 0
        if seconds > _ROUTES_SOON:
            at = bisect_left(LATENCY_BUCKETS, seconds)
            if seconds > _COHORTS_SOON:
                bucket += bisect_left(COHORT_BUCKETS, seconds)
        seconds = 0.0 + seconds
        # Without a lock, and in this order, for the reasons that are given in `CohortCounters.count`.
        try:
            counts[bucket] += 1.0
            if served:
                counts[served] += 1.0
            counts[total] += seconds
        except ValueError:
            pass  # they were closed meanwhile, by another thread
        row[at] += 1.0
        row[ROUTE_SECONDS] += seconds

    def _one_by_one(self, cohorts: tuple[Labels, ...], route: str, seconds: float) -> None:
        """Count it in the two ways, and remember where, if one place in each is all that it takes."""
        ending = (route, "GET", 2, self._outcome, None)
        self._cohorts.count(cohorts, seconds, False, self._storable, self._is_hit)
        self._routes.count(ending, seconds)
        counts = self._cohorts.counts  # first: whoever puts others there makes the places void before
        offset, row = self._cohorts.place(cohorts), self._routes.row(ending)
        if offset is None or row is None:
            return
        served = (offset + (HITS if self._is_hit else ASKED)) if self._storable else 0
        if len(self._places) >= _REMEMBERED:
            self._places.clear()
        self._places[id(cohorts), route] = (cohorts, counts, offset + FIRST_BUCKET, served, offset, row)
