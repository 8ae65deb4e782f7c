"""How a cost is measured: CPU time of this thread, the loop's own cost subtracted, in interleaved rounds, medians.

Interleaved: every case runs once in every round, so that what slows the machine for a while strikes all of them.
Ratios and differences are taken within a round and the median over rounds is reported; they say more than microseconds,
which are those of one machine.
"""

import asyncio
import gc
import time
import timeit
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any, Self

from tests.driver import Answer, App, call

__all__ = ["BARE", "RAW", "Bench", "Case", "Figure", "Target", "measure"]

RAW = "raw function"
"""An ASGI function that returns the bytes: the limit of a Python server."""
BARE = "bare handler"
"""A Starlette route that returns the same bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a case may cost: `microseconds` of CPU, or that much more than the bare handler; or how many times as many
    requests it serves as the raw function, at least.
    """

    microseconds: float = 0.0
    above_bare: bool = False
    of_raw: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing that is measured.

    seconds: CPU seconds that so many operations took, loop subtracted.
    verify: raises unless the operation does what the name says; asked before the first round and after the last.
    size: cases of one size are compared with the raw function and the bare handler of that size.
    longer: times as long as other cases it is to be measured.
    """

    name: str
    seconds: Callable[[int], float]
    verify: Callable[[], None] = lambda: None
    size: str = ""
    target: Target | None = None
    longer: float = 1.0

    @property
    def title(self) -> str:
        """The name with the size, as in tables."""
        return f"{self.name}, {self.size}" if self.size else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What a case cost: medians over the rounds.

    times_raw: its cost over that of the raw function. above_bare: microseconds more than the bare handler. None where
    there is nothing to compare with, or it is that itself.
    """

    case: Case
    microseconds: float
    times_raw: float | None
    above_bare: float | None

    @property
    def missed(self) -> str:
        """What it costs and what it may, where it costs more than its target; else nothing."""
        target = self.case.target
        if target is None:
            return ""
        if target.of_raw is not None:
            reached = 1 / self.times_raw if self.times_raw else target.of_raw
            told = f"{self.case.title}: {reached:.2f} x raw, target {target.of_raw:g}"
            return told if reached < target.of_raw else ""
        spent = self.above_bare if target.above_bare else self.microseconds
        if spent is None or spent <= target.microseconds:
            return ""
        terms = " above the bare handler" if target.above_bare else ""
        return f"{self.case.title}: {spent:.3f} µs{terms}, target {target.microseconds:g}"


class Bench:
    """What cases are made with: an event loop that lives as long as the bench, and what must be closed after it."""

    def __enter__(self) -> Self:
        self._runner = asyncio.Runner()
        self.closing = AsyncExitStack()
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self.closing.aclose())
        self._runner.close()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine on the bench's loop."""
        self._runner.run(work)

    def statement(self, name: str, statement: str, names: Mapping[str, Any], **of: Any) -> Case:
        """A case that runs a Python statement, compiled into the loop as `timeit` does."""
        timer = timeit.Timer(statement, timer=time.thread_time, globals=dict(names))
        empty = timeit.Timer("pass", timer=time.thread_time)
        return Case(name=name, seconds=lambda count: timer.timeit(count) - empty.timeit(count), **of)

    def requests(
        self,
        name: str,
        app: App,
        scopes: Callable[[int], Sequence[dict[str, Any]]],
        expected: Callable[[Answer], bool],
        **of: Any,
    ) -> Case:
        """A case that sends requests to an ASGI app, one after the other.

        scopes: that many fresh scopes; made outside of the time that is measured.
        expected: whether an answer is what the case is about.
        """

        async def drive(driven: App, count: int) -> float:
            made = scopes(count)
            began = time.thread_time()
            for scope in made:
                await driven(scope, _receive, _send)
            return time.thread_time() - began

        def verify() -> None:
            answer = self._runner.run(call(app, scope=scopes(1)[0]))
            if not expected(answer):
                raise AssertionError(f"{name}: answered {answer.status} {answer.headers}, which is something else")

        def seconds(count: int) -> float:
            return self._runner.run(drive(app, count)) - self._runner.run(drive(_nothing, count))

        return Case(name=name, seconds=seconds, verify=verify, **of)

    def warm(self, app: App, scopes: Iterable[dict[str, Any]]) -> None:
        """Send these requests once, so that what they ask for is stored."""

        async def send_all() -> None:
            for scope in scopes:
                await call(app, scope=scope)

        self._runner.run(send_all())


async def _receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(message: Any) -> None:
    pass


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    pass


def measure(cases: Sequence[Case], *, rounds: int, seconds: float) -> list[Figure]:
    """Measure the cases in interleaved rounds, each for about `seconds` a round."""
    for case in cases:
        case.verify()
    counts = [_count_for(case, seconds * case.longer) for case in cases]
    taken: list[list[float]] = [[] for _ in cases]
    for _ in range(rounds):
        gc.collect()
        for case, count, into in zip(cases, counts, taken, strict=True):
            into.append(case.seconds(count) / count * 1e6)
    for case in cases:
        case.verify()
    by_title = {case.title: rows for case, rows in zip(cases, taken, strict=True)}
    return list(_figures(cases, by_title))


def _count_for(case: Case, seconds: float) -> int:
    """How many operations take about this long; also warms them up."""
    count = 10
    while (took := case.seconds(count)) < seconds / 10 and count < 10_000_000:
        count *= 4
    return max(10, min(10_000_000, int(count * seconds / max(took, 1e-9))))


def _figures(cases: Sequence[Case], taken: Mapping[str, Sequence[float]]) -> Iterator[Figure]:
    for case in cases:
        own = taken[case.title]
        raw, bare = taken.get(f"{RAW}, {case.size}"), taken.get(f"{BARE}, {case.size}")
        compared = raw is not None and case.name != RAW
        above = bare is not None and case.name not in (RAW, BARE)
        yield Figure(
            case=case,
            microseconds=median(own),
            times_raw=median(a / b for a, b in zip(own, raw, strict=True)) if compared else None,
            above_bare=median(a - b for a, b in zip(own, bare, strict=True)) if above else None,
        )
