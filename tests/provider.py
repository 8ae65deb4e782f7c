"""A flag provider whose every flag is open for everybody, or shut for everybody, for tests that are not about flags."""

from tidegate.flags import FlagContext, ProviderHealth, Reach

__all__ = ["FixedFlags"]


class FixedFlags:
    """Never changes its mind. started, ended: how often it was told to begin and to end."""

    version = 1

    def __init__(self, *, is_open: bool) -> None:
        self.is_open = is_open
        self.started = 0
        self.ended = 0

    def is_enabled(self, flag: str, context: FlagContext) -> bool:
        """For everybody the same."""
        return self.is_open

    def reach(self, flag: str) -> Reach:
        """All or none."""
        return "everybody" if self.is_open else "nobody"

    def health(self) -> ProviderHealth:
        """Well."""
        return ProviderHealth(ready=True, staleness=0.0, detail="")

    async def start(self) -> None:
        """Count it."""
        self.started += 1

    async def aclose(self) -> None:
        """Count it."""
        self.ended += 1
