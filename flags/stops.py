"""The port between the gates and the stop records, which shut a flag whatever its provider says (P8)."""

from typing import Protocol

__all__ = ["Stops"]


class Stops(Protocol):
    """Which flags are stopped: a record overrides every provider until it is lifted or past its `until`."""

    @property
    def version(self) -> int:
        """Grows after a change of what is stopped, or of `known`, is in force; while it stands still, so do they."""
        ...

    @property
    def known(self) -> bool:
        """Whether the records could be read at least once. Until then every flag is shut: nobody can say that none is
        stopped."""
        ...

    def stopped(self, flag: str) -> bool:
        """Whether the flag is stopped. Never waits."""
        ...

    async def start(self) -> None:
        """Begin to follow the records. Never raises for a place that cannot be reached, and never waits long."""
        ...

    async def aclose(self) -> None:
        """Stop following them, within a bounded time. What was stopped stays so."""
        ...
