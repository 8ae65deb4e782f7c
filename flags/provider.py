"""The port between the gates and a source of flags: what a provider must answer."""

from dataclasses import dataclass
from typing import Final, Literal, Protocol, runtime_checkable

from tidegate.flags.evaluate import FlagContext

__all__ = ["SHADOW", "Extent", "FlagProvider", "HasExtents", "HasVariants", "PollsNow", "ProviderHealth", "Reach"]

Reach = Literal["nobody", "some", "everybody"]
"""Whom the current state of a flag admits. `nobody`: it is off, unknown, or every strategy stands at 0. `everybody`: a
strategy admits whoever has the field that it is sticky by. `some`: anything else, and where a provider cannot tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderHealth:
    """How well a provider knows its flags.

    ready: it has a state to decide by.
    staleness: seconds since it last knew that the state was current; infinite before the first.
    detail: what is wrong, for a person; empty where nothing is.
    """

    ready: bool
    staleness: float
    detail: str


class FlagProvider(Protocol):
    """A source of flags: Unleash, a local file."""

    @property
    def version(self) -> int:
        """Grows after each change of the flags is in force; while it stands still, so do the answers."""
        ...

    def is_enabled(self, flag: str, context: FlagContext) -> bool:
        """Whether the flag is open for this context; False for a flag that is not known. Never waits."""
        ...

    def reach(self, flag: str) -> Reach:
        """Whom the flag admits, as far as its state tells; "nobody" for a flag that is not known. Never waits.

        "nobody" must be certain: the gates then ask no further.
        """
        ...

    def health(self) -> ProviderHealth:
        """How well the flags are known at this moment. Never waits."""
        ...

    async def start(self) -> None:
        """Begin to follow the flags. Never raises for a source that cannot be reached, and never waits for one long."""
        ...

    async def aclose(self) -> None:
        """Stop following them, within a bounded time. The last state stays in force."""
        ...


SHADOW: Final = "shadow"
"""The variant of a flag under which its layer compares and does not act."""


@runtime_checkable
class HasVariants(Protocol):
    """A provider whose flags may be open under a variant."""

    def open_as(self, flag: str, context: FlagContext) -> str | None:
        """None if the flag is shut for this context; else the variant's name, or "" for none.

        Both from one state of the flags, so that nobody is let in by one state under the variant of another.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How far the one gradual rollout of a flag opens it.

    percentage: of the places 1..100. stickiness: the context field that is hashed, together with group.
    """

    percentage: int
    stickiness: str
    group: str


@runtime_checkable
class HasExtents(Protocol):
    """A provider that can say how far its flags are open, for a person who asks; nothing is decided by it."""

    def extent(self, flag: str) -> Extent | None:
        """None for a flag that is not known, is off, or has another number of strategies than one. Never waits."""
        ...


@runtime_checkable
class PollsNow(Protocol):
    """A provider that can be told to look at its source at once, because somebody knows of a change."""

    def poll_now(self) -> None:
        """Look now instead of at the end of the interval. Returns at once; from any thread."""
        ...
