"""Makes flags in the local flag file, and opens them by hand."""

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast

from tidegate.errors import FlagError
from tidegate.flags import parse_flags
from tidegate.flags.views import FlagView, view_of_flag
from tidegate.rollout.actuator_local import LocalActuator
from tidegate.rollout.flag_file import FlagFile, JsonObject

__all__ = ["LocalDesk"]


class LocalDesk:
    """A Desk on one file, which stands for one environment. The file is made by the first flag."""

    def __init__(self, path: str | Path, environment: str) -> None:
        self.environment = environment
        self._file = FlagFile(path)
        self._actuator = LocalActuator(path, environment)

    async def look(self, names: Collection[str]) -> Mapping[str, FlagView | None]:
        """See Desk.

        Raises:
            ConfigError: with every problem of the file.
        """
        try:
            content = await asyncio.to_thread(self._file.path.read_bytes)
        except FileNotFoundError:
            return dict.fromkeys(names)
        except OSError as error:
            raise FlagError(f"{self._file.path} could not be read: {error.strerror or error}") from error
        flags = parse_flags(content, str(self._file.path))
        return {name: view_of_flag(flags[name]) if name in flags else None for name in names}

    async def knows_field(self, field: str) -> bool:
        """See Desk. A file needs no list of fields."""
        return True

    async def make_field(self, field: str) -> None:
        """See Desk."""

    async def make_flag(self, name: str, field: str) -> None:
        """See Desk."""

        def change(document: JsonObject) -> None:
            flags = cast(JsonObject, document["flags"])
            flags.setdefault(name, {"enabled": False, "strategies": [_strategy(field)]})

        await asyncio.to_thread(self._file.change, change, create=True)

    async def make_strategy(self, name: str, field: str) -> None:
        """See Desk."""

        def change(document: JsonObject) -> None:
            flag = document["flags"][name]
            if not flag["enabled"] and not flag["strategies"]:
                flag["strategies"] = [_strategy(field)]

        await asyncio.to_thread(self._file.change, change)

    async def aim(self, name: str, field: str, values: Collection[str], percentage: int) -> None:
        """See Desk."""
        constraints = [{"field": field, "operator": "IN", "values": sorted(values)}] if values else []

        def change(document: JsonObject) -> None:
            strategies = document["flags"][name]["strategies"]
            if len(strategies) != 1:
                raise FlagError(f"{self._file.path}: flag {name!r} was changed meanwhile: look at it, and try again")
            strategies[0] |= {"percentage": percentage, "constraints": constraints}

        await asyncio.to_thread(self._file.change, change)

    async def turn(self, name: str, *, on: bool) -> None:
        """See Desk."""
        await (self._actuator.enable if on else self._actuator.disable)(name, self.environment)

    async def close(self) -> None:
        """See Desk."""
        await self._actuator.close()


def _strategy(field: str) -> JsonObject:
    return {"percentage": 0, "stickiness": field}
