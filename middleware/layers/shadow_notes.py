"""What shadow mode has seen: counts per route, causes of differences, a few examples. Of one process, bounded.

A difference is no mismatch yet. A write changes the data first and purges afterwards, before its own answer starts; an
app that is asked in between answers with what is new, while what is stored is still good by every rule. So a difference
waits (`settle`), and counts only if what it differs from is still valid then: what a purge has cleared meanwhile was
nobody's mistake. Differences that wait are looked at when later requests come, or the report is asked for.
"""

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final, Literal, TypeVar

from tidegate.middleware.core.shadow import VOLATILE, Named, Sight
from tidegate.middleware.core.shadow_kinds import ADVICE, Finding, tell
from tidegate.middleware.metrics import Metrics

__all__ = ["Difference", "Result", "Ring", "ShadowNotes"]

Result = Literal["match", "mismatch", "would-miss", "uncompared"]

MAX_ASKERS: Final = 8
MAX_SIGHTS: Final = 32
"""Of one key: the newest of the askers who came first, shared out evenly. To see an asker again tells more than to see
a further one."""
MAX_LEARNED: Final = 32
"""Response fields of one route that were seen to change without meaning anything."""

T = TypeVar("T")


class Ring:
    """The sights of one key since its record was made; begun at the first difference."""

    __slots__ = ("askers", "basis", "next_look", "record", "seen", "told")

    def __init__(self, record: bytes, basis: Sight) -> None:
        self.record = record
        self.basis = basis
        self.askers: dict[str, deque[tuple[int, Sight]]] = {}
        self.seen = 1
        self.next_look = 2
        self.told: tuple[Finding, ...] = ()

    def add(self, sight: Sight) -> None:
        """Take a sight, if its asker is among the first."""
        own = self.askers.get(sight.who)
        if own is None:
            if len(self.askers) >= MAX_ASKERS:
                return
            own = self.askers[sight.who] = deque()
        self.seen += 1
        own.append((self.seen, sight))
        if sum(map(len, self.askers.values())) > MAX_SIGHTS:
            max(self.askers.values(), key=len).popleft()

    def until(self, number: int) -> list[Sight]:
        """The sights up to a number of `seen`, oldest first."""
        kept = [pair for own in self.askers.values() for pair in own if pair[0] <= number]
        return [self.basis, *(sight for _, sight in sorted(kept, key=itemgetter(0)))]


@dataclass(slots=True, kw_only=True)
class Difference:
    """An answer that is not what the cache would have served, until it is known whether that was anybody's mistake.

    due: wall-clock seconds from when on it may be looked at.
    number: of its sight in the ring, or the last before it.
    holds: asks the store whether the record that the answer differs from is still valid.
    """

    route: str
    path: str
    due: float
    sight: Sight
    ring: Ring
    number: int
    holds: Callable[[], Awaitable[bool]]


@dataclass(slots=True)
class _Seen:
    """One finding on one route."""

    count: int = 0
    first: float = 0.0
    last: float = 0.0
    examples: deque[dict[str, Any]] = field(default_factory=deque[dict[str, Any]])


class ShadowNotes:
    """Counts, sights and findings of one process.

    settle: seconds that a difference waits: longer than a write takes from its change of the data to its answer.
    max_keys: keys whose sights are kept, the least recently used go first.
    max_waiting: differences that may wait; beyond, new ones are not compared.
    max_findings: findings that are kept apart (route, kind, field); `max_examples` of each, the newest.
    keep_bodies: bytes of each body that are kept with its sight and shown in examples.
    analysis: the part of this process's time that looking for causes may take; beyond, mismatches are counted only.
    burst: seconds of it that may be taken at once.
    clock, timer: wall-clock seconds; seconds of the processor.
    """

    def __init__(
        self,
        *,
        settle: float = 2.0,
        max_keys: int = 512,
        max_waiting: int = 1000,
        max_findings: int = 200,
        max_examples: int = 5,
        keep_bodies: int = 0,
        analysis: float = 0.01,
        burst: float = 1.0,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.thread_time,
    ) -> None:
        self.settle = settle
        self.keep_bodies = keep_bodies
        self._max_keys = max_keys
        self._max_waiting = max_waiting
        self._max_findings = max_findings
        self._max_examples = max_examples
        self._metrics = metrics if metrics is not None else Metrics.of()
        self._clock = clock
        self._budget = _Budget(analysis, burst, clock, timer)
        self._rings: OrderedDict[bytes, Ring] = OrderedDict()
        self._waiting: deque[Difference] = deque()
        self._counts: dict[str, Counter[str]] = {}
        self._bound: dict[tuple[str, Result], Callable[[], None]] = {}
        self._findings: dict[tuple[str, Finding], _Seen] = {}
        self._learned: dict[str, frozenset[str]] = {}
        limits = self._metrics.limits
        self._limit_keys = limits.labels("shadow-keys").inc
        self._limit_waiting = limits.labels("shadow-waiting").inc
        self._limit_findings = limits.labels("shadow-findings").inc
        self._limit_analysis = limits.labels("shadow-analysis").inc

    def count(self, route: str, result: Result) -> None:
        """Count one request."""
        counts = self._counts.get(route)
        if counts is None:
            counts = self._counts[route] = Counter()
        counts[result] += 1
        bound = self._bound.get((route, result))
        if bound is None:
            bound = self._bound[route, result] = self._metrics.shadow.labels(route, result).inc
        bound()

    def learned(self, route: str) -> frozenset[str]:
        """Response fields that were seen to change on this route though everything else was the same."""
        return self._learned.get(route, frozenset())

    def ring(self, key: bytes, record: bytes) -> Ring | None:
        """The sights of a key, if any are kept for this very record."""
        ring = self._rings.get(key)
        if ring is None or ring.record == record:
            return ring
        del self._rings[key]
        return None

    def open_ring(self, key: bytes, record: bytes, basis: Sight) -> Ring:
        """As `ring`, begun if there is none."""
        ring = self.ring(key, record)
        if ring is None:
            ring = self._rings[key] = Ring(record, basis)
        self._rings.move_to_end(key)
        while len(self._rings) > self._max_keys:
            self._rings.popitem(last=False)
            self._limit_keys()
        return ring

    def wait(self, difference: Difference) -> None:
        """Take a difference, to be looked at when it is due."""
        if len(self._waiting) >= self._max_waiting:
            self._limit_waiting()
            self.count(difference.route, "uncompared")
            return
        self._waiting.append(difference)

    async def look(self, most: int = 4) -> None:
        """Look at the differences that are due, at most so many of them, oldest first."""
        now = self._clock()
        for _ in range(min(most, len(self._waiting))):
            if not self._waiting or self._waiting[0].due > now:
                return
            difference = self._waiting.popleft()
            if await difference.holds():
                self.count(difference.route, "mismatch")
                if self._explain(difference):
                    await asyncio.sleep(0)  # the longest step of all: never two of them in one turn of the loop
            else:
                self.count(difference.route, "uncompared")

    def within_budget(self, work: Callable[[], T], otherwise: T) -> T:
        """What looking into an answer gives, unless too much time went into that lately."""
        if not self._budget.left():
            self._limit_analysis()
            return otherwise
        with self._budget:
            return work()

    def _explain(self, difference: Difference) -> bool:
        """Count the findings of a mismatch; whether its key's sights were looked into for that."""
        ring, route = difference.ring, difference.route
        due = difference.number >= ring.next_look
        if due:
            sights = ring.until(difference.number)
            told = self.within_budget(lambda: tell(sights, self.learned(route)), None)
            if told is not None:
                ring.told = tuple(dict.fromkeys((*ring.told, *told.findings)))
                ring.next_look = difference.number + max(1, difference.number // 4)
                learned = self.learned(route) | told.volatile
                if told.volatile and len(learned) <= MAX_LEARNED:
                    self._learned[route] = learned
        for finding in ring.told:
            self._note(difference, finding)
        return due

    def _note(self, difference: Difference, finding: Finding) -> None:
        self._metrics.shadow_findings.labels(difference.route, finding.kind).inc()
        name = (difference.route, finding)
        seen = self._findings.get(name)
        if seen is None:
            if len(self._findings) >= self._max_findings:
                self._limit_findings()
                return
            seen = self._findings[name] = _Seen(first=difference.sight.at, examples=deque(maxlen=self._max_examples))
        seen.count += 1
        seen.last = difference.sight.at
        seen.examples.append(_example(difference))

    def report(self) -> dict[str, Any]:
        """Everything that was seen, as JSON has it. For operators only: paths and response fields are somebody's."""
        findings = [
            {
                "route": route,
                "kind": finding.kind,
                "field": finding.field,
                "advice": ADVICE[finding.kind],
                "count": seen.count,
                "first": seen.first,
                "last": seen.last,
                "examples": list(seen.examples),
            }
            for (route, finding), seen in self._findings.items()
        ]
        return {
            "routes": {route: dict(counts) for route, counts in sorted(self._counts.items())},
            "findings": sorted(findings, key=lambda one: (one["route"], one["kind"], one["field"])),
            "waiting": len(self._waiting),
            "ignored_fields": sorted(VOLATILE),
            "learned_fields": {route: sorted(names) for route, names in sorted(self._learned.items())},
        }


class _Budget:
    """Seconds of the processor that may be spent: they come back as time goes by, up to `burst`. A context manager."""

    def __init__(self, share: float, burst: float, clock: Callable[[], float], timer: Callable[[], float]) -> None:
        self._share = share
        self._burst = self._left = burst
        self._clock = clock
        self._timer = timer
        self._filled = clock()
        self._began = 0.0

    def left(self) -> bool:
        """Whether there is any."""
        now = self._clock()
        self._left = min(self._burst, self._left + max(0.0, now - self._filled) * self._share)
        self._filled = now
        return self._left > 0

    def __enter__(self) -> None:
        self._began = self._timer()

    def __exit__(self, *_error: object) -> None:
        self._left -= self._timer() - self._began


def _example(difference: Difference) -> dict[str, Any]:
    """How one answer differed from what the cache would have served; bodies only where they were asked for."""
    cached, given = difference.ring.basis, difference.sight
    example: dict[str, Any] = {
        "path": difference.path,
        "at": given.at,
        "cached_at": cached.at,
        "same_asker": cached.who == given.who,
        "request_fields": _names_that_differ(cached.asked, given.asked),
        "status": [cached.status, given.status],
        "body": [cached.body, given.body],
        "length": [cached.length, given.length],
        "headers": _headers_that_differ(cached.headers, given.headers),
    }
    if cached.excerpt or given.excerpt:
        example["excerpts"] = [cached.excerpt, given.excerpt]
    return example


def _names_that_differ(one: Named, other: Named) -> list[str]:
    return sorted({name for name, _ in set(one) ^ set(other)})


def _headers_that_differ(one: Named, other: Named) -> dict[str, Sequence[str | None]]:
    before, after = dict(one), dict(other)
    return {name: [before.get(name), after.get(name)] for name in _names_that_differ(one, other)}
