"""The layers' own Prometheus metrics: one object holds them, with children bound once.

Names start with `tidegate_`; labels are route templates and fixed words, never raw paths, tenants or users, so that
cardinality is bounded by configuration. The cohort counters that a rollout is judged by are not here: see
`tidegate.middleware.cohorts`.
"""

import logging
import time
from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, cast
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.values import MutexValue

from tidegate.middleware.routes import LATENCY_BUCKETS, route_metrics

__all__ = ["LATENCY_BUCKETS", "Metrics", "adding", "counting", "observing"]

_log = logging.getLogger("tidegate")


class Metrics:
    """The metrics of one process (or, in tests, of one registry). Use `Metrics.of(registry)`: one object a registry."""

    _known: ClassVar["WeakKeyDictionary[CollectorRegistry, Metrics]"] = WeakKeyDictionary()

    @classmethod
    def of(cls, registry: CollectorRegistry | None = None) -> "Metrics":
        """The metrics on this registry (default: prometheus_client's own), made at the first call."""
        registry = REGISTRY if registry is None else registry
        found = cls._known.get(registry)
        if found is None:
            found = cls._known[registry] = cls(registry)
        return found

    def __init__(self, registry: CollectorRegistry) -> None:
        self.errors = Counter(
            "tidegate_errors",
            "Failures that Tidegate absorbed so that the app could answer.",
            ["component"],
            registry=registry,
        )
        self.limits = Counter("tidegate_limits", "Times that a limit bit, by limit.", ["limit"], registry=registry)
        self.routes = route_metrics(registry)
        self.requests = self.routes.requests
        self.seconds = self.routes.seconds
        self.cache = self.routes.cache
        self.bypass = self.routes.bypass
        self.shadow = Counter(
            "tidegate_shadow",
            "Requests in shadow mode by what the cache would have done: match, mismatch, would-miss, uncompared.",
            ["route", "result"],
            registry=registry,
        )
        self.shadow_findings = Counter(
            "tidegate_shadow_findings",
            "Mismatches in shadow mode whose cause could be told, by kind.",
            ["route", "kind"],
            registry=registry,
        )
        self.store_seconds = Histogram(
            "tidegate_store_operation_seconds",
            "Seconds that a store operation took.",
            ["store", "operation"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.store_operations = Counter(
            "tidegate_store_operations",
            "Store operations by result: ok, error, timeout, rejected.",
            ["store", "operation", "result"],
            registry=registry,
        )
        self.purges = Counter(
            "tidegate_purges",
            "Purges by what became of them: done (no replicas), durable, not-durable, pending; and tags whose"
            " purge a failover had lost, and that were purged again: reissued.",
            ["outcome"],
            registry=registry,
        )
        self.seal_refusals = Counter(
            "tidegate_seal_refusals",
            "Records in the shared store that did not open, by reason; each was a miss.",
            ["reason"],
            registry=registry,
        )
        self.store_bytes = Counter(
            "tidegate_store_bytes",
            "Bytes of records read from the remote store and written to it.",
            ["direction"],
            registry=registry,
        )
        self.memory_entries = Gauge(
            "tidegate_memory_entries",
            "Records in this process's memory, expired and purged ones too until they are dropped; over workers, the"
            " sum.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.memory_bytes = Gauge(
            "tidegate_memory_bytes",
            "Bytes of these records, as the store's limit counts them; over workers, the sum.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.coalesced = Counter(
            "tidegate_coalesce_requests",
            "Requests by their part in coalescing: leader, follower, alone.",
            ["role"],
            registry=registry,
        )
        self.breaker_state = Gauge(
            "tidegate_breaker_state",
            "0 closed, 1 half-open, 2 open; over workers, the worst.",
            ["breaker"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.breaker_transitions = Counter(
            "tidegate_breaker_transitions", "State changes of a circuit breaker.", ["breaker", "to"], registry=registry
        )
        self.breaker_rejected = Counter(
            "tidegate_breaker_rejected", "Calls that an open breaker refused.", ["breaker"], registry=registry
        )
        self.hearing = Gauge(
            "tidegate_purges_heard_by",
            "1 for what tells the memory in front of Redis of purges: tracking, or a stream or channel instead.",
            ["transport"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.flags_ready = Gauge(
            "tidegate_flags_ready",
            "1 once the flags are known, or where there are none; over workers, the least.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.flags_staleness = Gauge(
            "tidegate_flags_staleness_seconds",
            "Seconds since the source of flags last confirmed them, +Inf before it did; over workers, the most.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._last_logged: dict[str, float] = {}
        self._unlogged: dict[str, int] = {}

    def fail(self, component: str, error: BaseException) -> None:
        """Count a failure that the app must not notice, and log it: at most one line a second and component (P5)."""
        self.errors.labels(component).inc()
        now = time.monotonic()
        last = self._last_logged.get(component)
        if last is not None and now - last < 1.0:
            self._unlogged[component] = self._unlogged.get(component, 0) + 1
            return
        self._last_logged[component] = now
        more = self._unlogged.pop(component, 0)
        suffix = f" ({more} more since the last line)" if more else ""
        _log.warning("%s failed: %s: %s%s", component, type(error).__name__, error, suffix)
        # From the line, not from the failure: a process that was held up in between would be early with the next.
        self._last_logged[component] = time.monotonic()


def counting(child: Counter) -> Callable[[], None]:
    """`child.inc`, in a fifth of its time: without what it checks each time. child: with all its labels.

    Without its lock too, where it counts in this process's memory: CPython hands over the GIL at calls and at a loop's
    end only, not within `+=` on numbers.
    """
    value: Any = getattr(child, "_value", None)
    if type(value) is not MutexValue:  # over several processes it counts in a file
        return partial(value.inc, 1.0) if hasattr(value, "inc") else child.inc
    counted: Any = value

    def count() -> None:
        counted._value += 1.0

    return count


def adding(child: Counter) -> Callable[[float], None]:
    """As `counting`, of `child.inc` with an amount."""
    value: Any = getattr(child, "_value", None)
    if type(value) is not MutexValue:
        return cast(Callable[[float], None], getattr(value, "inc", child.inc))
    counted: Any = value

    def add(amount: float) -> None:
        counted._value += amount

    return add


def observing(child: Histogram) -> Callable[[float], None]:
    """As `counting`, of `child.observe`."""
    parts: Any = child
    total, buckets = getattr(parts, "_sum", None), getattr(parts, "_buckets", [])
    if type(total) is not MutexValue or {type(bucket) for bucket in buckets} != {MutexValue}:
        return child.observe
    counted: Any = total
    bounds: list[float] = parts._upper_bounds

    def observe(seconds: float) -> None:
        counted._value += seconds
        buckets[bisect_left(bounds, seconds)]._value += 1.0

    return observe
