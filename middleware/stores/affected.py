"""What a purge would take, counted without doing it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from tidegate.middleware.core.records import WHOLE_SCOPE, Aim, Entry, ScopedTag, Target

__all__ = ["SAMPLE", "Affected", "Affects", "Sampled", "Tally"]

SAMPLE: Final = 10
"""Entries that are shown of those that a purge would take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One entry that a purge would take: status, tags with their scopes, age in seconds, bytes of its body."""

    status: int
    tags: tuple[ScopedTag, ...]
    age: float
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Affected:
    """What a purge would take, void or stale, as far as this process can see.

    entries: how many; at least as many if not `exact` (a shared store is looked through up to a limit).
    looked_at: how many records were looked at for that.
    in_memory: of those, how many this process has in its memory in front of a shared store; None where it has none.
    sample: a few of them.
    """

    entries: int = 0
    exact: bool = False
    looked_at: int = 0
    in_memory: int | None = None
    sample: tuple[Sampled, ...] = ()


@runtime_checkable
class Affects(Protocol):
    """A store that can tell what a purge would take."""

    async def affected(self, tags: Mapping[str, Sequence[Target]]) -> Affected:
        """What a purge of these would take. Nothing is changed.

        Raises:
            StoreError: if the store cannot answer.
        """
        ...


class Tally:
    """Counts what a purge of these would take among the entries that it is shown."""

    def __init__(self, tags: Mapping[str, Sequence[Target]]) -> None:
        self._plain = {(scope, target) for scope, targets in tags.items() for target in targets if target}
        self._wholes = {scope for scope, targets in tags.items() if WHOLE_SCOPE in targets}
        self._aims = [(scope, aim) for scope, targets in tags.items() for aim in targets if isinstance(aim, Aim)]
        self._clock = time.time
        self.entries = 0
        self.looked_at = 0
        self.exact = True
        self._sample: list[Sampled] = []

    def concerns(self, entry: Entry) -> bool:
        """Whether the purge would take it."""
        return (
            not self._plain.isdisjoint(entry.tags)
            or any(scope in self._wholes for scope, _ in entry.positions)
            or any(aim.hits(scope, entry) for scope, aim in self._aims)
        )

    def count(self, entry: Entry) -> None:
        """One that it would take."""
        self.entries += 1
        if len(self._sample) < SAMPLE:
            age = max(0.0, self._clock() - entry.born)
            self._sample.append(Sampled(status=entry.status, tags=entry.tags, age=age, size=len(entry.body)))

    def told(self) -> Affected:
        """What was counted."""
        return Affected(entries=self.entries, exact=self.exact, looked_at=self.looked_at, sample=tuple(self._sample))
