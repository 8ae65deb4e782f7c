"""When a circuit breaker trips: its settings, and failures counted over a sliding window. Pure."""

from dataclasses import dataclass
from math import inf

from tidegate.errors import Problems

__all__ = ["BreakerSettings", "RateWindow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSettings:
    """What opens a breaker, and for how long.

    consecutive: failures in a row that open it. Five: two or three happen to a healthy service.
    failure_rate: share of failures within `window` that opens it, 0 < rate <= 1. Half: a service that fails every
        other call is not up, although its failures never come in a row.
    window: seconds that the rate looks back.
    minimum: calls within `window` below which the rate says nothing.
    open_for: seconds that it stays open before one probe is let through; also how long a probe may take before it is
        given up and the next one let through.

    Raises:
        ConfigError: with every field that is out of range.
    """

    consecutive: int = 5
    failure_rate: float = 0.5
    window: float = 10.0
    minimum: int = 20
    open_for: float = 5.0

    def __post_init__(self) -> None:
        problems = Problems("breaker")
        for name in ("consecutive", "minimum"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                problems.add(name, value, "is not a number of calls", "give a whole number >= 1")
        for name in ("window", "open_for"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 < value < float("inf"):
                problems.add(name, value, "is not a number of seconds", "give a number > 0")
        if not _is_number(self.failure_rate) or not 0 < self.failure_rate <= 1:
            problems.add("failure_rate", self.failure_rate, "is not a share", "give a number > 0 and <= 1")
        problems.raise_if_any()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class RateWindow:
    """Calls and failures of the last `seconds`, in `slices` equal slices: exact to one slice, constant in memory.

    calls: of each slice. at: the current slice, which goes on before `ends`.
    """

    __slots__ = ("_failures", "_slice", "_slices", "_width", "at", "calls", "ends")

    def __init__(self, seconds: float, slices: int = 10) -> None:
        self._width = seconds / slices
        self._slices = slices
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.calls = [0] * self._slices
        self._failures = [0] * self._slices
        self._slice: int | None = None
        self.at = 0
        self.ends = -inf

    def add(self, now: float, *, failed: bool) -> None:
        """Count one call that ended at `now` (seconds of a clock that never goes back)."""
        if now >= self.ends:  # of the current slice, which most calls find as the one before has left it
            self._advance(now)
        self.calls[self.at] += 1
        if failed:
            self._failures[self.at] += 1

    def counts(self, now: float) -> tuple[int, int]:
        """(failures, calls) of the window that ends at `now`."""
        self._advance(now)
        return sum(self._failures), sum(self.calls)

    def _advance(self, now: float) -> None:
        current = int(now // self._width)
        if current == self._slice:
            return
        if self._slice is None:
            self._slice = current
        for passed in range(min(current - self._slice, self._slices)):
            at = (current - passed) % self._slices
            self.calls[at] = self._failures[at] = 0
        self._slice = max(self._slice, current)
        self.at = self._slice % self._slices
        self.ends = (self._slice + 1) * self._width
