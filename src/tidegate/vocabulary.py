"""Names that the layers, the flags and the controller must agree on: layers, cohorts, metrics, labels.

The layers write these metrics and the controller reads them, in another process and through Prometheus;
neither may import the other, so the words live here.
"""

from typing import Final, Literal

__all__ = [
    "BAND_EDGES",
    "CANARY",
    "COHORTS",
    "COHORT_BUCKETS",
    "COHORT_ERRORS",
    "COHORT_HITS",
    "COHORT_LABELS",
    "COHORT_REQUESTS",
    "COHORT_SECONDS",
    "COHORT_STORABLE",
    "CONTROL",
    "FLAGS",
    "LAYERS",
    "NO_COHORT",
    "Cohort",
    "Layer",
    "Unit",
]

Layer = Literal["telemetry", "cache", "coalesce", "breaker", "etag"]
Cohort = Literal["canary", "control", "none"]
Unit = Literal["tenant", "user", "session"]

LAYERS: Final[tuple[Layer, ...]] = ("telemetry", "cache", "coalesce", "breaker", "etag")
"""The five layers, outermost first."""

FLAGS: Final[dict[Layer, str]] = {layer: f"tidegate.{layer}" for layer in LAYERS}
"""The flag that gates each layer, unless settings say otherwise."""

CANARY: Final = "canary"
"""The unit's gate is open."""
CONTROL: Final = "control"
"""The unit is known and its gate is shut."""
NO_COHORT: Final = "none"
"""No unit (a health check, a login): shut, and judged by nobody."""
COHORTS: Final[tuple[Cohort, ...]] = (CANARY, CONTROL, NO_COHORT)

BAND_EDGES: Final[tuple[int, ...]] = (1, 5, 10, 25, 50, 100)
"""Upper edges, in percent, of the bands that a unit's hash falls into: the band is the first step that admits it."""

COHORT_LABELS: Final = ("flag", "band", "cohort")
"""Labels of every cohort series. `band` is an upper edge as text ("10"), or "none" where there is no unit."""

# Counters over finished HTTP requests. Not gated; each flag x band x cohort starts at 0; summed over workers.
COHORT_REQUESTS: Final = "tidegate_cohort_requests_total"
COHORT_ERRORS: Final = "tidegate_cohort_errors_total"
"""Responses of 500 and above, and requests that ended in an exception; but not after the client left."""
COHORT_STORABLE: Final = "tidegate_cohort_storable_total"
"""Requests that policy makes storable, bypasses included: the denominator of the hit ratio."""
COHORT_HITS: Final = "tidegate_cohort_hits_total"
"""Storable requests that the cache answered without asking the app."""
COHORT_SECONDS: Final = "tidegate_cohort_duration_seconds"
"""Histogram of seconds from the first byte of work to the end of the response (_bucket with `le`, _sum, _count)."""
COHORT_BUCKETS: Final[tuple[float, ...]] = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds: upper bounds of the buckets of COHORT_SECONDS, but +Inf. A slow-response objective names one of them."""
