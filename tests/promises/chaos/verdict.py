"""Says of what calls saw, and when, whether P4 was kept."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tests.promises.chaos.board import WRITERS, Call, Done, Source, writer_of

__all__ = ["DEAF_AFTER", "SOON", "Call", "Done", "Failover", "Silence", "Verdict", "judge"]

SOON: Final = 0.050
"""Seconds after a purge returned done from which memory must honour it."""

DEAF_AFTER: Final = 1.0
"""Seconds after a link went silent from which memory must answer nothing."""


class Silence(NamedTuple):
    """From when to when a reader's link brought nothing."""

    reader: int
    began: float
    ended: float


class Failover(NamedTuple):
    """From when the master's purges may be lost, and when another was master."""

    began: float
    promoted: float

    def over(self, purges: Iterable[Done]) -> float:
        """When what was lost had been made again: a writer that has purged twice since is connected to the new master,
        to which it first made its purges again. (The first of the two may have been answered late.)"""
        since: dict[int, set[float]] = {writer: set() for writer in range(WRITERS)}
        for purge in purges:
            if purge.at > self.promoted:
                since[writer_of(purge.entity)].add(purge.at)
        return max(sorted(times)[1] if len(times) > 1 else float("inf") for times in since.values())


@dataclass(slots=True, kw_only=True)
class Verdict:
    """late: answers from memory that a purge, done 50 ms before they were asked for, had made old, although the server
        was heard since: the promise is broken.
    beyond: the same where nothing shows that the network had brought the push by then.
    wrong: answers from Redis older than a purge that was done when they were asked for.
    deaf: answers from memory more than a second after the link went silent.
    unsettled: answers older than the truth after everything had come to rest.
    judged: answers from memory of which an older version had been purged, and would have been late.
    meanwhile: answers, from memory or Redis, that would be late or wrong, from when a master began to lose purges until
        they had been made again by another. Not promised then.
    worst: by reader, the longest time in seconds after a purge was done at which memory was still asked and gave what
        was older; while its link was not silent.
    worst_silent: the same of all readers, while it was.
    """

    late: list[Call] = field(default_factory=list[Call])
    beyond: list[Call] = field(default_factory=list[Call])
    wrong: list[Call] = field(default_factory=list[Call])
    deaf: list[Call] = field(default_factory=list[Call])
    unsettled: list[Call] = field(default_factory=list[Call])
    meanwhile: list[Call] = field(default_factory=list[Call])
    worst_meanwhile: float = 0.0
    failovers: list[float] = field(default_factory=list[float])
    """How many seconds each took."""
    judged: int = 0
    asked_in_silence: int = 0
    """Calls more than a second after the link went silent."""
    worst: dict[int, float] = field(default_factory=dict[int, float])
    worst_silent: float = 0.0
    sources: Counter[Source] = field(default_factory=Counter[Source])
    settled: Counter[Source] = field(default_factory=Counter[Source])
    """Where answers came from after everything had come to rest."""

    @property
    def broken(self) -> dict[str, list[Call]]:
        """What breaks the promise, by its part, a few of each."""
        found = {"late": self.late, "wrong": self.wrong, "deaf": self.deaf, "unsettled": self.unsettled}
        return {part: calls[:3] for part, calls in found.items() if calls}

    def table(self) -> str:
        """The figures."""
        windows = ", ".join(
            f"reader {reader}: {seconds * 1000:.1f} ms" for reader, seconds in sorted(self.worst.items())
        )
        took = ", ".join(f"{seconds:.1f} s" for seconds in self.failovers)
        failovers = [
            f"failover over after {took}; answers meanwhile that had been purged: {len(self.meanwhile)}, up to"
            f" {self.worst_meanwhile * 1000:.1f} ms before"
        ]
        return "\n".join(
            [
                *failovers[: len(self.failovers)],
                "answers from " + ", ".join(f"{source.name.lower()}: {self.sources[source]}" for source in Source),
                f"  of memory, with an older version purged 50 ms before or earlier: {self.judged}",
                f"worst window in which memory gave what was purged: {windows or 'none'}",
                f"late: {len(self.late)}; not heard by then: {len(self.beyond)}; wrong from Redis: {len(self.wrong)}",
                f"from memory over a link that was silent for a second: {len(self.deaf)} of {self.asked_in_silence}"
                f" calls; before that, what had been purged up to {self.worst_silent * 1000:.1f} ms before",
                f"stale after everything had come to rest: {len(self.unsettled)} of {self.settled.total()}"
                f" ({self.settled[Source.MEMORY]} from memory)",
            ]
        )


class _Purges:
    """Of one entity: versions rise with time, because it has one writer."""

    def __init__(self) -> None:
        self.versions: list[int] = []
        self.times: list[float] = []

    def next_after(self, version: int) -> float | None:
        """When the first purge that voids this version was done."""
        place = bisect_right(self.versions, version)
        return self.times[place] if place < len(self.times) else None


def judge(
    calls: Iterable[Call],
    purges: Sequence[Done],
    silences: Sequence[Silence],
    truth: Mapping[int, int],
    failovers: Sequence[Failover] = (),
) -> Verdict:
    """Look at each call. `truth`: the entities' versions in the end."""
    verdict = Verdict()
    known: dict[int, _Purges] = {}
    losing = [(failover.began, failover.over(purges)) for failover in failovers]
    verdict.failovers = [over - began for began, over in losing]
    for purge in sorted(purges):
        of = known.setdefault(purge.entity, _Purges())
        of.versions.append(purge.version)
        of.times.append(purge.at)
    for call in calls:
        of = known.get(call.entity, _Purges())
        verdict.sources[call.source] += 1
        if call.final:
            verdict.settled[call.source] += 1
            if call.version != truth[call.entity]:
                verdict.unsettled.append(call)
        done = of.next_after(call.version)
        if any(began <= call.began and min(call.began - SOON, call.proved) <= over for began, over in losing):
            if call.source is not Source.APP and done is not None and done <= call.began:
                verdict.meanwhile.append(call)
                verdict.worst_meanwhile = max(verdict.worst_meanwhile, call.began - done)
            continue
        if call.source is Source.REDIS and done is not None and done <= call.began:
            verdict.wrong.append(call)
        if call.source is Source.MEMORY:
            silent = any(one.reader == call.reader and one.began <= call.began < one.ended for one in silences)
            _from_memory(verdict, call, of.times, done, silent=silent)
        for silence in silences:
            if silence.reader == call.reader and silence.began + DEAF_AFTER <= call.began < silence.ended:
                verdict.asked_in_silence += 1
                if call.source is Source.MEMORY:
                    verdict.deaf.append(call)
    return verdict


def _from_memory(verdict: Verdict, call: Call, times: list[float], done: float | None, *, silent: bool) -> None:
    verdict.judged += bool(times) and times[0] <= min(call.began - SOON, call.proved)
    if done is None or done > call.began:
        return
    late_by = call.began - done
    if silent:
        verdict.worst_silent = max(verdict.worst_silent, late_by)
    else:
        verdict.worst[call.reader] = max(verdict.worst.get(call.reader, 0.0), late_by)
    if late_by >= SOON:
        (verdict.late if done <= call.proved else verdict.beyond).append(call)
