"""How often each flag was found open and shut: counted by the gates, request by request, reported by a provider.

A remembered decision costs no question to the provider, so nobody but the gates can count it. Each decision holds the
tally of all decisions that open the same flags; there are 32 at most for five flags. A tally only grows, so that no
decision that is forgotten takes its count along, and what has been reported is remembered beside it.

Counting is exact over threads with the GIL, which CPython hands over at calls and loops only, not within
`tally.decisions += 1`; a test holds it to that. A forked child begins at zero: what stood there is its parent's to
report.
"""

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, runtime_checkable
from weakref import WeakSet

__all__ = ["ReportsUsage", "Tally", "Unreported", "Usage"]

Counts = Mapping[str, tuple[int, int]]
"""Flag -> how often it was found open, and how often shut."""


class Tally:
    """The number of decisions with one outcome. Whoever makes one adds 1; nobody takes away."""

    __slots__ = ("decisions",)

    def __init__(self) -> None:
        self.decisions = 0


class Usage:
    """All decisions about some flags since the start."""

    def __init__(self, flags: Iterable[str]) -> None:
        self._flags = tuple(flags)
        self._tallies: dict[frozenset[str], Tally] = {}

    def tally(self, opened: frozenset[str]) -> Tally:
        """The tally of the decisions that open just these flags."""
        return self._tallies.setdefault(opened, Tally())

    def counts(self) -> dict[str, tuple[int, int]]:
        """What has been counted."""
        known = [(opened, tally.decisions) for opened, tally in list(self._tallies.items())]
        total = sum(decisions for _, decisions in known)
        found = {flag: sum(decisions for opened, decisions in known if flag in opened) for flag in self._flags}
        return {flag: (yes, total - yes) for flag, yes in found.items()}


@runtime_checkable
class ReportsUsage(Protocol):
    """A provider whose service wants to know how often its flags are asked for."""

    def report_usage(self, usage: Usage) -> None:
        """Report this usage too, from now on."""
        ...


class Unreported:
    """What of several usages has still to be reported."""

    def __init__(self) -> None:
        self._usages: tuple[Usage, ...] = ()
        self._reported: dict[str, tuple[int, int]] = {}
        self._reporting = threading.Lock()
        _all.add(self)

    def add(self, usage: Usage) -> None:
        """Report this one too."""
        self._usages = (*self._usages, usage)

    def report(self, send: Callable[[Counts], bool]) -> None:
        """Hand over what is new, if anything is. What `send` does not answer True to is handed over again next time.

        One report at a time: two threads that report at once would both report the same.
        """
        with self._reporting:
            now = self._counts()
            new = {flag: _less(count, self._reported.get(flag, (0, 0))) for flag, count in now.items()}
            new = {flag: count for flag, count in new.items() if any(count)}
            if new and send(new):
                self._reported = now

    def _counts(self) -> dict[str, tuple[int, int]]:
        total: dict[str, tuple[int, int]] = {}
        for usage in self._usages:
            for flag, (yes, no) in usage.counts().items():
                before = total.get(flag, (0, 0))
                total[flag] = (before[0] + yes, before[1] + no)
        return total

    def begin_in_child(self) -> None:
        """Take all that was counted for reported, and any report in progress for over: the parent sees to both."""
        self._reporting = threading.Lock()
        self._reported = self._counts()


def _less(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] - other[0], one[1] - other[1]


_all: WeakSet[Unreported] = WeakSet()


def _forked() -> None:
    for unreported in list(_all):
        unreported.begin_in_child()


os.register_at_fork(after_in_child=_forked)
