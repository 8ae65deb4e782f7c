"""The port through which the controller moves a flag, and the three sequences that are safe to move it by.

Guaranteed: shutting turns the environment off before it touches the percentage, and only `begin` turns it on; so a
write that arrives late, from a former leader, cannot open a flag that was shut (P9). Every sequence reads back.
Not guaranteed: that nobody else writes at the same time. Unleash has no concurrency control, so a person's edit in the
same instant may win; the next tick notices.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from tidegate.errors import FlagError
from tidegate.vocabulary import Unit

__all__ = ["STICKINESS", "Actuator", "FlagState", "begin", "open_to", "shut"]

STICKINESS: Final[dict[Unit, str]] = {"tenant": "tenantId", "user": "userId", "session": "sessionId"}
"""The flag's stickiness that draws a percentage over each unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagState:
    """A flag in one environment.

    percentage: of the one strategy that is ours; None if it is no whole number 0..100. limited: whether that strategy
    has conditions too, which no rollout touches; two states that differ in it alone are equal.
    """

    enabled: bool
    percentage: int | None
    limited: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"{'on' if self.enabled else 'off'} at {'?' if self.percentage is None else self.percentage} %"


class Actuator(Protocol):
    """Moves flags. Every method may raise FlagError: no answer in time, a refusal, or the flag is gone."""

    async def check(self, flag: str, environment: str, unit: Unit) -> FlagState:
        """The flag, if it can be moved.

        Raises:
            FlagError: naming an unknown flag or environment, a missing or ambiguous gradual rollout strategy, or a
                stickiness that does not fit the unit.
        """
        ...

    async def read(self, flag: str, environment: str) -> FlagState:
        """The flag as it is now."""
        ...

    async def set_percentage(self, flag: str, environment: str, percentage: int) -> None:
        """Set the percentage and nothing else; never turns the environment on."""
        ...

    async def enable(self, flag: str, environment: str) -> None:
        """Turn the environment on; refused when no strategy of the flag limits whom it is open for."""
        ...

    async def disable(self, flag: str, environment: str) -> None:
        """Turn the environment off, whatever else is wrong with the flag."""
        ...

    async def last_editor(self, flag: str, environment: str) -> str | None:
        """Who changed the flag last, if the service knows: 'ann@example.com at 2026-11-22 14:00'."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


async def begin(
    actuator: Actuator, flag: str, environment: str, percentage: int, *, confirm: Callable[[], object] | None = None
) -> FlagState:
    """Turn the flag on at 0 % and open it to `percentage`. The only sequence that turns an environment on.

    confirm: called when the flag is on and still admits nobody; raises if it must not be opened any more. A person who
        shuts the flag in that very moment is so not overruled, whatever happens to the caller afterwards.
    """
    await actuator.set_percentage(flag, environment, 0)
    await _expect(actuator, flag, environment, percentage=0)
    await actuator.enable(flag, environment)
    if confirm is not None:
        confirm()
    return await open_to(actuator, flag, environment, percentage)


async def open_to(actuator: Actuator, flag: str, environment: str, percentage: int) -> FlagState:
    """Set the percentage of a flag that is on.

    Raises:
        FlagError: if it does not read back as on at `percentage`.
    """
    await actuator.set_percentage(flag, environment, percentage)
    return await _expect(actuator, flag, environment, percentage=percentage, enabled=True)


async def shut(actuator: Actuator, flag: str, environment: str) -> FlagState:
    """Turn the environment off, then set 0 %; in this order (P9).

    Raises:
        FlagError: if it does not read back as off at 0 %. The environment may be off all the same.
    """
    await actuator.disable(flag, environment)
    await actuator.set_percentage(flag, environment, 0)
    return await _expect(actuator, flag, environment, percentage=0, enabled=False)


async def _expect(
    actuator: Actuator, flag: str, environment: str, *, percentage: int, enabled: bool | None = None
) -> FlagState:
    found = await actuator.read(flag, environment)
    if found.percentage != percentage or (enabled is not None and found.enabled != enabled):
        wanted = FlagState(enabled=found.enabled if enabled is None else enabled, percentage=percentage)
        raise FlagError(f"{flag} in {environment} was set to {wanted}, but reads back as {found}")
    return found
