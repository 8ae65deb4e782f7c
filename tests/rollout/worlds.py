"""Worlds to run a controller in: a flag in memory, counters as functions of time, a clock that a test turns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tidegate.errors import FlagError, MetricsError
from tidegate.rollout.actuator import FlagState
from tidegate.rollout.source import BUCKETS, CohortQuery
from tidegate.rollout.spec import RolloutSpec
from tidegate.rollout.stats import Series
from tidegate.vocabulary import Unit

START = 1_000_000.0
FLAG = "tidegate.cache"


def make_spec(**changes: Any) -> RolloutSpec:
    """1 %, 10 %, 50 %, a minute each, ticks of 10 s."""
    raw: dict[str, Any] = {
        "name": "canary",
        "flag": FLAG,
        "environment": "production",
        "steps": [{"percent": percent, "dwell": 60, "min_requests": 100} for percent in (1, 10, 50)],
        "window": 60,
        "interval": 10,
        "objectives": {
            "errors": {"max": "1%"},
            "slow": {"over": "500ms", "max": "5%"},
            "hit_ratio": {"min": "60%", "warm_up": 20},
        },
        "alerts": [{"alertname": "HighErrorRate", "service": "api"}],
        "bake": 30,
    }
    return RolloutSpec.parse({**raw, **changes})


@dataclass
class Clock:
    """Seconds since the epoch, as the test says."""

    now: float = START

    def __call__(self) -> float:
        return self.now


@dataclass
class MemoryActuator:
    """A flag in memory. `fails` names methods that raise; `did` is what was written."""

    enabled: bool = False
    percentage: int | None = 0
    editor: str | None = None
    fails: set[str] = field(default_factory=set)
    did: list[str] = field(default_factory=list)
    before: Callable[[str], None] = lambda method: None

    def _enter(self, method: str) -> None:
        self.before(method)
        if method in self.fails or "all" in self.fails:
            raise FlagError(f"{method} did not answer")

    async def check(self, flag: str, environment: str, unit: Unit) -> FlagState:
        return await self.read(flag, environment)

    async def read(self, flag: str, environment: str) -> FlagState:
        self._enter("read")
        return FlagState(enabled=self.enabled, percentage=self.percentage)

    async def set_percentage(self, flag: str, environment: str, percentage: int) -> None:
        self._enter("set_percentage")
        self.percentage = percentage
        self.did.append(f"{percentage} %")

    async def enable(self, flag: str, environment: str) -> None:
        self._enter("enable")
        self.enabled = True
        self.did.append("on")

    async def disable(self, flag: str, environment: str) -> None:
        self._enter("disable")
        self.enabled = False
        self.did.append("off")

    async def last_editor(self, flag: str, environment: str) -> str | None:
        self._enter("last_editor")
        return self.editor

    async def close(self) -> None:
        pass


@dataclass
class SteadySource:
    """Counters that are scraped every 5 s and grow steadily; rates in events a second, by cohort.

    `changes` sets other rates from a time on: `{time: {("canary", "errors"): 5}}`. `silent` spans have no scrapes.
    """

    rates: dict[tuple[str, str], float] = field(
        default_factory=lambda: {
            (cohort, name): rate
            for cohort, hits in (("canary", 9.0), ("control", 0.0))
            for name, rate in {"requests": 10.0, "errors": 0.0, "storable": 10.0, "hits": hits, "slow": 0.0}.items()
        }
    )
    changes: dict[float, dict[tuple[str, str], float]] = field(default_factory=dict)
    silent: list[tuple[float, float]] = field(default_factory=list)
    fails: bool = False
    asked: int = 0

    async def samples(self, query: CohortQuery, start: float, end: float) -> Sequence[Series]:
        self.asked += 1
        if self.fails:
            raise MetricsError("http://prometheus:9090 did not answer within 2 s")
        times = [float(at) for at in range(int(-(-start // 5) * 5), int(end) + 1, 5)]
        times = [at for at in times if not any(low <= at < high for low, high in self.silent)]
        found: list[Series] = []
        for cohort, name in self.rates:
            if name == "slow":
                continue
            found.append(self._series(f"tidegate_cohort_{name}_total", cohort, times, {}, name))
        for cohort in ("canary", "control"):
            found.append(self._series(BUCKETS, cohort, times, {"le": "+Inf"}, "requests"))
            found.append(self._series(BUCKETS, cohort, times, {"le": str(query.le)}, "requests", less="slow"))
        return found

    async def close(self) -> None:
        pass

    def _series(
        self, metric: str, cohort: str, times: list[float], labels: dict[str, str], name: str, less: str | None = None
    ) -> Series:
        def grown(at: float) -> float:
            return self._grown(cohort, name, at) - (self._grown(cohort, less, at) if less else 0)

        return Series(
            name=metric,
            labels={"flag": FLAG, "cohort": cohort, "band": "10", **labels},
            samples=tuple((at, grown(at)) for at in times),
        )

    def _grown(self, cohort: str, name: str, at: float) -> float:
        """The integral of the rate from START on."""
        total, since, rate = 0.0, START - 1000, self.rates[cohort, name]
        for when, change in sorted(self.changes.items()):
            if when >= at:
                break
            if (cohort, name) in change:
                total += rate * (when - since)
                since, rate = when, change[cohort, name]
        return total + rate * (at - since)
