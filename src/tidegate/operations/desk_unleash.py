"""Makes flags in Unleash through its Admin API, and opens them by hand.

The hazards of that API are met as in `tidegate.rollout.actuator_unleash`. Besides: two that make the same flag at once
both succeed, for the one who finds it made (409) leaves the strategy to the other, and of two equal strategies the
later goes; an archived flag keeps its name, which is said and not mended.
"""

import asyncio
import time
from collections.abc import Collection, Mapping
from typing import Any, Final, cast
from urllib.parse import quote

from tidegate.errors import FlagError
from tidegate.flags.views import FlagView, view_of_unleash
from tidegate.operations import desk
from tidegate.rollout.actuator_unleash import UnleashActuator
from tidegate.rollout.unleash_api import GRADUAL, Json, Refused, UnleashApi, objects, ours, understood

__all__ = ["TOKEN_NAME", "UnleashDesk"]

TOKEN_NAME: Final = "tidegate"
"""Under which Unleash shows the backend token that is made here."""

_OTHER_MAKER = 3.0
"""Seconds in which another who is making the same flag is expected to have given it its strategy."""


class UnleashDesk:
    """A Desk on one environment of one Unleash project. timeout: seconds for an answer, desk.ANSWER_SECONDS if none."""

    def __init__(self, url: str, token: str, environment: str, *, timeout: float | None = None) -> None:
        self.environment = environment
        self._api = UnleashApi(url, token, timeout=desk.ANSWER_SECONDS if timeout is None else timeout)
        self.shown = self._api.shown
        self._actuator = UnleashActuator(url, token, api=self._api)

    async def look(self, names: Collection[str]) -> Mapping[str, FlagView | None]:
        """See Desk."""
        states = await self.states(names)
        return {name: view_of_unleash(name, states[name]) if name in states else None for name in names}

    async def states(self, names: Collection[str]) -> Mapping[str, Json]:
        """Those of the flags that exist, as Unleash describes them in our environment.

        What exists is told from the list of flags: a 404 alone proves nothing.
        """
        known = await self._api.names()
        made = [name for name in names if name in known]
        states = await asyncio.gather(*(self._state(name) for name in made))
        told = ("enabled", "strategies", "dependencies")
        return {
            name: {"name": name, "type": "release"} | {key: state[key] for key in told}
            for name, state in zip(made, states, strict=True)
        }

    async def knows_field(self, field: str) -> bool:
        """See Desk. One that is not marked for stickiness will do: only Unleash's pages heed that mark."""
        return any(one.get("name") == field for one in await self._api.listed("/api/admin/context"))

    async def make_field(self, field: str) -> None:
        """See Desk."""
        body = {"name": field, "stickiness": True, "description": "Whom Tidegate's rollouts are drawn over"}
        try:
            await self._api.request("POST", "/api/admin/context", body)
        except Refused as error:
            if error.status != 409:
                raise

    async def make_flag(self, name: str, field: str) -> None:
        """See Desk."""
        try:
            await self._api.request("POST", self._api.features, {"name": name, "type": "release"})
        except Refused as error:
            if error.status != 409:
                raise
            if name not in await self._api.names():
                raise FlagError(
                    f"Unleash has no flag {name!r} in the project {self._api.project!r}, but does not free its name: "
                    f"{error.reason}. Delete or revive it in Unleash, then try again"
                ) from error
            if await self._made_by_another(name):
                return
        await self.make_strategy(name, field)

    async def make_strategy(self, name: str, field: str) -> None:
        """See Desk."""
        state = await self._state(name)
        if state["enabled"] or state["strategies"]:
            return
        path = f"{self._api.at(name, self.environment)}/strategies"
        await self._api.request("POST", path, _strategy(name, field))
        equal = [one for one in objects((await self._state(name))["strategies"]) if _same(one, _strategy(name, field))]
        for later in sorted(equal, key=lambda one: str(one["id"]))[1:]:  # ids rise with time
            await self._api.request("DELETE", f"{path}/{quote(str(later['id']), safe='')}", missing_ok=True)

    async def aim(self, name: str, field: str, values: Collection[str], percentage: int) -> None:
        """See Desk."""
        strategy = ours(name, self.environment, await self._state(name))
        constraints = [{"contextName": field, "operator": "IN", "values": sorted(values)}] if values else []
        # One PATCH: at no instant is the percentage there without the constraint.
        patch = [
            {"op": "replace", "path": "/constraints", "value": constraints},
            {"op": "replace", "path": "/parameters/rollout", "value": str(percentage)},
        ]
        path = f"{self._api.at(name, self.environment)}/strategies/{quote(str(strategy['id']), safe='')}"
        await self._api.request("PATCH", path, patch)

    async def turn(self, name: str, *, on: bool) -> None:
        """See Desk."""
        await (self._actuator.enable if on else self._actuator.disable)(name, self.environment)

    async def backend_token(self) -> str:
        """The secret of a token with which an app reads the flags of this environment; made at the first call.

        Raises:
            FlagError: if the Admin token may not make tokens (an Editor's may not).
        """
        answer = await self._api.request("GET", f"/api/admin/api-tokens/{TOKEN_NAME}")
        for one in objects((answer or {}).get("tokens")):
            reads = one.get("type") in ("client", "backend") and one.get("projects") in ([self._api.project], ["*"])
            if reads and one.get("environment") == self.environment and not one.get("expiresAt"):
                return str(one["secret"])
        asked = {"type": "backend", "environment": self.environment, "projects": [self._api.project]}
        try:
            made = await self._api.request("POST", "/api/admin/api-tokens", asked | {"tokenName": TOKEN_NAME})
        except Refused as error:
            if error.status != 403:
                raise
            raise FlagError(
                f"{error}. An Editor may not make tokens: use an admin token for this one command, or make a backend "
                f"token for {self.environment} in Unleash's pages"
            ) from error
        return str((made or {})["secret"])

    async def close(self) -> None:
        """See Desk."""
        await self._api.close()

    async def _state(self, name: str) -> Json:
        """The flag in our environment, with the flags that it depends on in each; it is known to exist."""
        found = await self._api.request("GET", self._api.at(name))
        environments = objects((found or {}).get("environments"))
        for one in environments:
            if one.get("name") == self.environment:
                if not understood(one):
                    break
                return {**one, "dependencies": objects((found or {}).get("dependencies"))}
        else:
            have = ", ".join(str(one.get("name")) for one in environments) or "none"
            raise FlagError(
                f"Unleash's project {self._api.project!r} has no environment {self.environment!r}; it has {have}"
            )
        raise FlagError(
            f"Unleash at {self._api.shown} described {name!r} in {self.environment} in a way not understood"
        )

    async def _made_by_another(self, name: str) -> bool:
        deadline = time.monotonic() + _OTHER_MAKER
        while time.monotonic() < deadline:
            if (await self._state(name))["strategies"]:
                return True
            await asyncio.sleep(0.1)
        return False


def _strategy(name: str, field: str) -> dict[str, Any]:
    return {
        "name": GRADUAL,
        "constraints": [],
        "parameters": {"rollout": "0", "stickiness": field, "groupId": name},
        "segments": [],
        "variants": [],
        "disabled": False,
    }


def _same(found: Json, wanted: Mapping[str, Any]) -> bool:
    return all(found.get(key, cast(object, [])) == value for key, value in wanted.items())
