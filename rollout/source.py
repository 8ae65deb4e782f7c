"""The port through which the controller reads the cohort counters, and what it reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tidegate.rollout.stats import Series
from tidegate.vocabulary import COHORT_ERRORS, COHORT_HITS, COHORT_REQUESTS, COHORT_SECONDS, COHORT_STORABLE

__all__ = ["BUCKETS", "COUNTERS", "CohortQuery", "MetricsSource"]

COUNTERS: Final = (COHORT_REQUESTS, COHORT_ERRORS, COHORT_STORABLE, COHORT_HITS)
BUCKETS: Final = f"{COHORT_SECONDS}_bucket"


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortQuery:
    """Which series: all cohort counters of `flag`, and of the histogram the +Inf bucket and the bucket `le`.

    select: labels that Prometheus adds to a target (`job`), to match as well. They are not on the app's own /metrics,
        where the addresses themselves are the selection.
    le: a bucket's bound in seconds; None: no latency is asked for.
    """

    flag: str
    select: Mapping[str, str]
    le: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The sample names that are wanted."""
        return COUNTERS if self.le is None else (*COUNTERS, BUCKETS)

    def wants(self, name: str, labels: Mapping[str, str]) -> bool:
        """Whether a series answers this query, `select` apart."""
        if name not in self.names or labels.get("flag") != self.flag:
            return False
        return name != BUCKETS or float(labels.get("le", "nan")) in (self.le, float("inf"))


class MetricsSource(Protocol):
    """Where raw counter samples come from: Prometheus, or the app's own /metrics."""

    async def samples(self, query: CohortQuery, start: float, end: float) -> Sequence[Series]:
        """The samples with start <= time <= end of every series that answers `query`; none at all is an empty answer.

        Raises:
            MetricsError: if the source could not be read; the message names it and says why.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
