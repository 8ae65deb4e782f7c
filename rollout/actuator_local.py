"""Moves flags in the local flag file, the one that `tidegate.flags.local` reads (its format is described there)."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from tidegate.errors import FlagError, UnknownFlagError
from tidegate.rollout.actuator import STICKINESS, FlagState
from tidegate.rollout.flag_file import FlagFile, JsonObject
from tidegate.vocabulary import Unit

__all__ = ["LocalActuator"]


class LocalActuator:
    """An Actuator on one file, which stands for one environment."""

    def __init__(self, path: str | Path, environment: str) -> None:
        self._path = Path(path)
        self._file = FlagFile(path)
        self._environment = environment

    async def check(self, flag: str, environment: str, unit: Unit) -> FlagState:
        """See Actuator."""
        self._mine(environment)
        found = await asyncio.to_thread(self._find, flag)
        strategy = self._strategy(flag, found)
        stickiness = strategy.get("stickiness", STICKINESS["tenant"])
        if stickiness != STICKINESS[unit]:
            raise FlagError(
                f"{self._path}: the strategy of {flag!r} is sticky by {stickiness!r}, "
                f"but the unit {unit} needs {STICKINESS[unit]!r}"
            )
        return _state(found)

    async def read(self, flag: str, environment: str) -> FlagState:
        """See Actuator."""
        return _state(await asyncio.to_thread(self._find, flag))

    async def set_percentage(self, flag: str, environment: str, percentage: int) -> None:
        """See Actuator."""
        if not 0 <= percentage <= 100:
            raise FlagError(f"{percentage} is not a whole percentage from 0 to 100")

        def change(found: JsonObject) -> None:
            self._strategy(flag, found)["percentage"] = percentage

        await asyncio.to_thread(self._change, flag, change)

    async def enable(self, flag: str, environment: str) -> None:
        """See Actuator."""

        def change(found: JsonObject) -> None:
            self._strategy(flag, found)
            found["enabled"] = True

        await asyncio.to_thread(self._change, flag, change)

    async def disable(self, flag: str, environment: str) -> None:
        """See Actuator."""
        self._mine(environment)

        def change(found: JsonObject) -> None:
            found["enabled"] = False

        await asyncio.to_thread(self._change, flag, change)

    async def last_editor(self, flag: str, environment: str) -> str | None:
        """A file does not say who wrote it."""
        return None

    async def close(self) -> None:
        """Nothing is held open."""

    def _mine(self, environment: str) -> None:
        if environment != self._environment:
            raise UnknownFlagError(
                f"{self._path} holds the environment {self._environment!r}, not {environment!r}; "
                f"write environment: {self._environment} or name another flag file"
            )

    def _find(self, flag: str) -> JsonObject:
        return self._flag(self._file.load(), flag)

    def _change(self, flag: str, change: Callable[[JsonObject], None]) -> None:
        self._file.change(lambda document: change(self._flag(document, flag)))

    def _flag(self, document: dict[str, Any], flag: str) -> JsonObject:
        flags = document.get("flags")
        known = sorted(cast(JsonObject, flags)) if isinstance(flags, dict) else []
        if flag not in known:
            raise UnknownFlagError(f"{self._path}: there is no flag {flag!r}; it has {', '.join(known) or 'none'}")
        found = cast(JsonObject, flags)[flag]
        if not isinstance(found, dict) or not isinstance(cast(JsonObject, found).get("enabled"), bool):
            raise FlagError(f'{self._path}: flag {flag!r} does not say "enabled": true or false')
        return cast(JsonObject, found)

    def _strategy(self, flag: str, found: JsonObject) -> JsonObject:
        strategies = _strategies(found)
        if len(strategies) != 1:
            have = f"{len(strategies)} strategies, so which one to move is unclear" if strategies else "no strategy"
            raise FlagError(f'{self._path}: flag {flag!r} has {have}; give it one: {{"percentage": 0}}')
        return strategies[0]


def _strategies(found: JsonObject) -> Sequence[JsonObject]:
    raw = found.get("strategies")
    items = cast(list[object], raw) if isinstance(raw, list) else []
    return [cast(JsonObject, item) for item in items if isinstance(item, dict)]


def _state(found: JsonObject) -> FlagState:
    strategies = _strategies(found)
    raw = strategies[0].get("percentage") if len(strategies) == 1 else None
    whole = isinstance(raw, int) and not isinstance(raw, bool) and 0 <= raw <= 100
    return FlagState(
        enabled=cast(bool, found["enabled"]),
        percentage=cast(int, raw) if whole else None,
        limited=len(strategies) == 1 and bool(strategies[0].get("constraints")),
    )
