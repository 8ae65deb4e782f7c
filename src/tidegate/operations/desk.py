"""The port through which flags are made and, for a few named units, opened by hand.

Guaranteed: what is made is off at 0 %, and what exists is never widened by making; a flag's constraints and percentage
change in one write. Not guaranteed: that nobody else writes at the same time (Unleash has no concurrency control), so
callers read back.
"""

from collections.abc import Collection, Mapping
from typing import Protocol

from tidegate.flags.views import FlagView

__all__ = ["ANSWER_SECONDS", "Desk"]

ANSWER_SECONDS = 5.0
"""Seconds that a person waits for a source of flags."""


class Desk(Protocol):
    """Flags of one environment. Every method may raise FlagError: no answer in time, a refusal, no such environment."""

    environment: str

    async def look(self, names: Collection[str]) -> Mapping[str, FlagView | None]:
        """The flags as they are now; None for one that does not exist."""
        ...

    async def knows_field(self, field: str) -> bool:
        """Whether the source knows the context field, or needs no knowledge of it."""
        ...

    async def make_field(self, field: str) -> None:
        """Make the context field known as one to be sticky by; fine if somebody else just did."""
        ...

    async def make_flag(self, name: str, field: str) -> None:
        """Make the flag, off, with one gradual rollout by `field` at 0 %; fine if somebody else just did."""
        ...

    async def make_strategy(self, name: str, field: str) -> None:
        """Give a flag that is off and has no strategy a gradual rollout by `field` at 0 %."""
        ...

    async def aim(self, name: str, field: str, values: Collection[str], percentage: int) -> None:
        """Set the one strategy's percentage, and `field IN values` as its one constraint (no values: none)."""
        ...

    async def turn(self, name: str, *, on: bool) -> None:
        """Turn the environment on or off; on is refused where nothing limits whom the flag is open for."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
