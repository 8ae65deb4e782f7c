"""What the demo shows each second: how far the gate is open, and how both cohorts fare, as the controller sees them."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tidegate.rollout.records import Rollout
from tidegate.vocabulary import (
    CANARY,
    COHORT_ERRORS,
    COHORT_HITS,
    COHORT_REQUESTS,
    COHORT_SECONDS,
    COHORT_STORABLE,
    CONTROL,
)

__all__ = ["Frame", "Meter", "draw", "line"]

WINDOW = 4.0
"""Seconds over which rates are shown."""

Counts = dict[tuple[str, str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortView:
    """One cohort over the last seconds; ratios are None where there was nothing to divide by."""

    rate: float
    hit_ratio: float | None
    error_ratio: float | None
    mean: float | None
    p99: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One moment of the demo."""

    elapsed: float
    act: str
    percent: int
    state: str
    reason: str
    cohorts: Mapping[str, CohortView]
    app_calls: float


@dataclass
class Meter:
    """Reads the application's /metrics and remembers the last seconds of it."""

    url: str
    flag: str
    began: float = field(default_factory=time.monotonic)
    _seen: deque[tuple[float, Counts, float]] = field(default_factory=deque[tuple[float, Counts, float]])

    async def read(self, client: httpx2.AsyncClient, act: str, rollout: Rollout | None) -> Frame:
        """The present frame."""
        text = (await client.get(self.url)).text
        counts, calls = self._parse(text)
        now = time.monotonic()
        self._seen.append((now, counts, calls))
        while len(self._seen) > 2 and now - self._seen[1][0] >= WINDOW:
            self._seen.popleft()
        then, before, _ = self._seen[0]
        seconds = max(now - then, 1e-9)
        return Frame(
            elapsed=now - self.began,
            act=act,
            percent=rollout.percent if rollout is not None else 0,
            state=str(rollout.state) if rollout is not None else "shut",
            reason=rollout.reason if rollout is not None else "",
            cohorts={cohort: _view(cohort, before, counts, seconds) for cohort in (CANARY, CONTROL)},
            app_calls=calls,
        )

    def _parse(self, text: str) -> tuple[Counts, float]:
        counts: Counts = {}
        calls = 0.0
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "demo_handler_calls_total":
                    calls = sample.value
                elif sample.labels.get("flag") == self.flag:
                    name = sample.name + sample.labels.get("le", "")
                    key = (sample.labels["cohort"], name)
                    counts[key] = counts.get(key, 0.0) + sample.value
        return counts, calls


def _view(cohort: str, before: Counts, now: Counts, seconds: float) -> CohortView:
    def grown(name: str) -> float:
        return now.get((cohort, name), 0.0) - before.get((cohort, name), 0.0)

    requests, storable = grown(COHORT_REQUESTS), grown(COHORT_STORABLE)
    bucket = f"{COHORT_SECONDS}_bucket"
    bounds = [name.removeprefix(bucket) for who, name in now if who == cohort and name.startswith(bucket)]
    p99 = next((float(bound) for bound in sorted(bounds, key=float) if grown(bucket + bound) >= 0.99 * requests), None)
    return CohortView(
        rate=requests / seconds,
        hit_ratio=grown(COHORT_HITS) / storable if storable else None,
        error_ratio=grown(COHORT_ERRORS) / requests if requests else None,
        mean=grown(f"{COHORT_SECONDS}_sum") / requests if requests else None,
        p99=p99 if requests else None,
    )


def _bar(percent: int, width: int = 40) -> str:
    filled = round(percent * width / 100)
    return "█" * max(filled, 1 if percent else 0) + "·" * (width - max(filled, 1 if percent else 0))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:.0f} ms"


def line(frame: Frame) -> str:
    """One line, for output that is not a terminal."""
    parts = [f"{frame.elapsed:6.1f} s  {frame.act:8} {frame.percent:3} % [{_bar(frame.percent, 20)}] {frame.state:12}"]
    for name, view in frame.cohorts.items():
        parts.append(
            f"{name} {view.rate:5.1f}/s hits {_percent(view.hit_ratio):>6} errors {_percent(view.error_ratio):>6}"
            f" mean {_milliseconds(view.mean):>6} p99 ≤ {_milliseconds(view.p99):>7}"
        )
    return " | ".join(parts)


def draw(frame: Frame, said: list[str]) -> Group:
    """A picture of the moment, for a terminal."""
    colour = {"rolling_back": "red", "rolled_back": "red", "done": "green"}.get(frame.state, "cyan")
    gate = Text.assemble(
        (f" {frame.act}  ", "bold"), (_bar(frame.percent), colour), f" {frame.percent:3} %  ", (frame.state, colour)
    )
    table = Table(box=None, pad_edge=True)
    for head in ("cohort", "requests/s", "hit ratio", "errors", "mean", "p99 ≤"):
        table.add_column(head, justify="left" if head == "cohort" else "right", min_width=10)
    for name, view in frame.cohorts.items():
        failing = view.error_ratio is not None and view.error_ratio > 0.01
        table.add_row(
            name,
            f"{view.rate:.1f}",
            _percent(view.hit_ratio),
            Text(_percent(view.error_ratio), style="bold red" if failing else ""),
            _milliseconds(view.mean),
            _milliseconds(view.p99),
        )
    return Group(gate, Text(f" {frame.elapsed:5.1f} s  {frame.reason}", style="dim"), table, Text("\n".join(said[-6:])))
