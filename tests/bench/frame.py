"""How a cost is measured: CPU time of this thread, the loop's own cost subtracted, in interleaved rounds.

Interleaved: every case runs once in every round, so that what slows the machine for a while strikes all of them. Many
short rounds rather than a few long ones: a machine whose cores others share runs now faster, now half as slow again,
for tenths of a second or seconds, and of seven rounds the median may be of either. Microseconds are the lower quartile
over the rounds, which leaves the slow ones out; ratios and differences are taken within a round, and of them the median
over the rounds is reported: they say more than microseconds, which are those of one machine. Requests are made a few at
a time, outside of the time that is measured: as a server has just made them, they are at hand, and the garbage
collector does not meet thousands of them.
"""

import asyncio
import gc
import time
import timeit
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final, NamedTuple, Self, TypeVar

from tests.driver import Answer, App, call

__all__ = ["BARE", "RAW", "Bench", "Case", "Figure", "Target", "measure"]

RAW = "raw function"
"""An ASGI function that returns the bytes: the limit of a Python server."""
BARE = "bare handler"
"""A Starlette route that returns the same bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a case may cost: `microseconds` of CPU, or that much more than the case of the same size that is named in
    `above`; or how many times as many requests it serves with one core as the raw function, at least; or at most which
    part of what each of some other cases costs, by their titles.
    """

    microseconds: float = 0.0
    above: str = ""
    of_raw: float | None = None
    of_others: tuple[tuple[str, float], ...] = ()

    @property
    def is_ratio(self) -> bool:
        """Whether it is no number of microseconds."""
        return self.of_raw is not None or bool(self.of_others)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing that is measured.

    seconds: CPU seconds that so many operations took, loop subtracted.
    verify: raises unless the operation does what the name says; asked before the first round and after the last.
    size: cases of one size are compared with the raw function and the bare handler of that size.
    longer: times as long as other cases it is to be measured.
    most: operations in a round at most, however quick.
    elapsed: seconds by the clock on the wall that the last call of `seconds` took; for servers, whose rate it is.
    """

    name: str
    seconds: Callable[[int], float]
    verify: Callable[[], None] = lambda: None
    size: str = ""
    target: Target | None = None
    longer: float = 1.0
    most: int = 10_000_000
    elapsed: Callable[[], float] | None = None

    @property
    def title(self) -> str:
        """The name with the size, as in tables."""
        return f"{self.name}, {self.size}" if self.size else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What a case cost: the lower quartile over the rounds, and medians of what compares it with others.

    times_raw: its cost over that of the raw function. above_bare: microseconds more than the bare handler.
    above_other: microseconds more than the case that its target names. times_others: its cost over that of each that
    its target names.
    machine: how many times as long as the machine of the targets this one takes. P11 asks for ratios in one run: what
    may take that many microseconds there may take so many times as many here. 1: that is not known.
    per_second, of_raw: of a server, its requests a second, and over those of the raw function. None where there is
    nothing to compare with, or it is that itself.
    """

    case: Case
    microseconds: float
    times_raw: float | None = None
    above_bare: float | None = None
    above_other: float | None = None
    times_others: Mapping[str, float] = field(default_factory=dict[str, float])
    machine: float = 1.0
    per_second: float | None = None
    of_raw: float | None = None

    @property
    def may_cost(self) -> float:
        """The microseconds of its target, on this machine."""
        return self.case.target.microseconds * self.machine if self.case.target is not None else 0.0

    @property
    def missed(self) -> str:
        """What it costs and what it may, where it costs more than its target; else nothing."""
        target = self.case.target
        if target is None:
            return ""
        if target.of_others:
            return "; ".join(
                f"{self.case.title}: {self.times_others[other]:.2f} of {other}, target {part:g}"
                for other, part in target.of_others
                if self.times_others.get(other, 0.0) > part
            )
        if target.of_raw is not None:
            reached = 1 / self.times_raw if self.times_raw else target.of_raw
            told = f"{self.case.title}: {reached:.2f} x raw, target {target.of_raw:g}"
            return told if reached < target.of_raw else ""
        spent = self.above_other if target.above else self.microseconds
        if spent is None or spent <= self.may_cost:
            return ""
        terms = f" above {target.above}" if target.above else ""
        here = f", which is {self.may_cost:.2f} here" if self.machine != 1 else ""
        return f"{self.case.title}: {spent:.3f} µs{terms}, target {target.microseconds:g}{here}"


T = TypeVar("T")

_AT_A_TIME: Final = 100
_MOST: Final = 20_000
"""Requests in a round: of the raw function more would say nothing that these do not."""


class Bench:
    """What cases are made with: an event loop that lives as long as the bench, and what must be closed after it."""

    def __enter__(self) -> Self:
        self._runner = asyncio.Runner()
        self.closing = AsyncExitStack()
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self.closing.aclose())
        self._runner.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the bench's loop."""
        return self._runner.run(work)

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
            spent = 0.0
            for done in range(0, count, _AT_A_TIME):
                made = scopes(min(_AT_A_TIME, count - done))
                began = time.thread_time()
                for scope in made:
                    await driven(scope, _receive, _send)
                spent += time.thread_time() - began
            return spent

        def verify() -> None:
            answer = self._runner.run(call(app, scope=scopes(1)[0]))
            if not expected(answer):
                raise AssertionError(f"{name}: answered {answer.status} {answer.headers}, which is something else")

        def seconds(count: int) -> float:
            return self._runner.run(drive(app, count)) - self._runner.run(drive(_nothing, count))

        return Case(name=name, seconds=seconds, verify=verify, most=_MOST, **of)

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


_SERVED: Final = 3
"""Of so many rounds servers are measured in one, for so many times as long: to connect takes them a while."""


def measure(
    cases: Sequence[Case], *, rounds: int, seconds: float, progress: Callable[[str], None] = lambda _: None
) -> list[Figure]:
    """Measure the cases in interleaved rounds, each for about `seconds` a round. progress: hears how far it is."""
    progress(f"warming up {len(cases)} cases")
    for case in cases:
        case.verify()
    counts = [_count_for(case, seconds * case.longer * (1 if case.elapsed is None else _SERVED)) for case in cases]
    taken = _Taken({}, {})
    began = time.monotonic()
    for done in range(rounds):
        gc.collect()
        for case, count in zip(cases, counts, strict=True):
            if case.elapsed is not None and done % _SERVED:
                continue
            taken.cpu.setdefault(case.title, []).append(case.seconds(count) / count * 1e6)
            if case.elapsed is not None:
                taken.rate.setdefault(case.title, []).append(count / case.elapsed())
        left = (time.monotonic() - began) / (done + 1) * (rounds - done - 1)
        progress(f"round {done + 1} of {rounds}, {left:.0f} s left")
    for case in cases:
        case.verify()
    return [_figure(case, taken) for case in cases]


def _count_for(case: Case, seconds: float) -> int:
    """How many operations take about this long; also warms them up."""
    count = 10
    while (took := case.seconds(count)) < seconds / 10 and count < case.most:
        count *= 4
    return max(10, min(case.most, int(count * seconds / max(took, 1e-9))))


class _Taken(NamedTuple):
    """What was measured, by title, a value for each round: microseconds of CPU, and requests a second."""

    cpu: dict[str, list[float]]
    rate: dict[str, list[float]]


def _usual(rounds: Sequence[float]) -> float:
    """The lower quartile: what others do on the machine only ever adds."""
    return sorted(rounds)[len(rounds) // 4]


def _figure(case: Case, taken: _Taken) -> Figure:
    own, rate = taken.cpu[case.title], taken.rate.get(case.title)
    is_raw = case.name == RAW

    def above(name: str) -> float | None:
        other = taken.cpu.get(f"{name}, {case.size}")
        return median(a - b for a, b in zip(own, other, strict=True)) if other is not None else None

    def times(title: str) -> float | None:
        other = taken.cpu.get(title)
        return median(a / b for a, b in zip(own, other, strict=True)) if other is not None else None

    def of_raw(values: Mapping[str, Sequence[float]]) -> float | None:
        raw = values.get(f"{RAW}, {case.size}")
        mine = values.get(case.title)
        if raw is None or mine is None or is_raw:
            return None
        return median(a / b for a, b in zip(mine, raw, strict=True))

    return Figure(
        case=case,
        microseconds=_usual(own),
        times_raw=of_raw(taken.cpu),
        above_bare=above(BARE) if case.name not in (RAW, BARE) else None,
        above_other=above(case.target.above) if case.target is not None and case.target.above else None,
        times_others={
            other: ratio
            for other, _ in (case.target.of_others if case.target is not None else ())
            if (ratio := times(other)) is not None
        },
        per_second=median(rate) if rate is not None else None,
        of_raw=of_raw(taken.rate),
    )
