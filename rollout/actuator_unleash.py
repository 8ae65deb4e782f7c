"""Moves flags through Unleash's Admin API (open-source edition).

The API has hazards, each met here and tested against a real server:
percentages are not checked (only whole numbers 0..100 are ever sent); turning an environment on without an active
strategy adds one that is open to everybody (never done, and undone if it happens); a strategy's id is taken from the
environment that it is changed through (else production's path changes development); a PUT resets what it does not
name (only PATCH is used, of one value); there is no concurrency control (one writer, and what is written is read
back by the caller); with its database down a flag answers 404 after a minute (short time-outs, and a lone 404 is never
taken for a deletion).
"""

from difflib import get_close_matches
from typing import Any, Final, cast
from urllib.parse import quote

from tidegate.errors import FlagError, UnknownFlagError
from tidegate.rollout.actuator import STICKINESS, FlagState
from tidegate.rollout.unleash_api import (
    GRADUAL,
    Json,
    Refused,
    UnleashApi,
    active,
    ids,
    objects,
    ours,
    percentage_of,
    understood,
)
from tidegate.vocabulary import Unit

__all__ = ["UnleashActuator"]

_MOVES: Final = ("feature-strategy-", "feature-environment-")


class UnleashActuator:
    """An Actuator on one Unleash project.

    url: as clients have it, with or without `/api`. token: an admin token, or better a personal access token of an
    Editor that only the controller uses, so that the audit log tells it from people. timeout: seconds for an answer.
    api: to share its connections; the others are then not heeded.
    """

    def __init__(
        self, url: str, token: str, *, project: str = "default", timeout: float = 2.0, api: UnleashApi | None = None
    ) -> None:
        self._api = api or UnleashApi(url, token, project=project, timeout=timeout)

    async def check(self, flag: str, environment: str, unit: Unit) -> FlagState:
        """See Actuator."""
        found = await self._request("GET", self._api.at(flag), missing_ok=True)
        if found is None:
            raise await self._unknown(flag)
        _check_environment(flag, environment, found)
        state = await self._environment(flag, environment)
        strategy = ours(flag, environment, state)
        stickiness = strategy.get("parameters", {}).get("stickiness")
        if stickiness != STICKINESS[unit]:
            raise FlagError(
                f"the {GRADUAL} strategy of {flag!r} in {environment} is sticky by {stickiness!r}, "
                f"but the unit {unit} needs {STICKINESS[unit]!r}"
            )
        return _state(state)

    async def read(self, flag: str, environment: str) -> FlagState:
        """See Actuator."""
        return _state(await self._environment(flag, environment))

    async def set_percentage(self, flag: str, environment: str, percentage: int) -> None:
        """See Actuator."""
        if type(percentage) is not int or not 0 <= percentage <= 100:
            raise FlagError(f"{percentage!r} is not a whole percentage from 0 to 100")
        strategy = ours(flag, environment, await self._environment(flag, environment))
        path = f"{self._api.at(flag, environment)}/strategies/{quote(str(strategy['id']), safe='')}"
        await self._request("PATCH", path, [{"op": "replace", "path": "/parameters/rollout", "value": str(percentage)}])

    async def enable(self, flag: str, environment: str) -> None:
        """See Actuator. If a strategy appears by it that was not there before, the environment is turned off again."""
        before = await self._environment(flag, environment)
        ours(flag, environment, before)
        await self._request("POST", f"{self._api.at(flag, environment)}/on")
        after = await self._environment(flag, environment)
        if ids(after) != ids(before):
            await self.disable(flag, environment)
            raise FlagError(f"turning on {flag!r} in {environment} changed its strategies; it was turned off again")

    async def disable(self, flag: str, environment: str) -> None:
        """See Actuator."""
        try:
            await self._request("POST", f"{self._api.at(flag, environment)}/off")
        except Refused as error:
            if error.status != 404:
                raise
            found = await self._request("GET", self._api.at(flag), missing_ok=True)
            if found is None:
                raise await self._unknown(flag) from error
            _check_environment(flag, environment, found)
            raise

    async def last_editor(self, flag: str, environment: str) -> str | None:
        """See Actuator. From Unleash's event log."""
        found = await self._request("GET", f"/api/admin/search/events?feature=IS:{quote(flag, safe='')}&limit=20")
        for event in objects((found or {}).get("events")):
            if event.get("environment") == environment and str(event.get("type", "")).startswith(_MOVES):
                return f"{event.get('createdBy')} at {event.get('createdAt')}"
        return None

    async def close(self) -> None:
        """See Actuator."""
        await self._api.close()

    async def _environment(self, flag: str, environment: str) -> Json:
        found = await self._request("GET", self._api.at(flag, environment))
        if found is None or not understood(found):
            raise FlagError(f"Unleash at {self._api.shown} described {flag!r} in {environment} in a way not understood")
        return found

    async def _unknown(self, flag: str) -> FlagError:
        """A 404 alone proves nothing: with its database down Unleash answers so for every flag. Ask for the list."""
        known = await self._api.names()
        if flag in known:
            return FlagError(f"Unleash at {self._api.shown} answers 404 for {flag!r} but lists it; try again")
        near = get_close_matches(flag, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(known)[:20]) or 'none'}"
        return UnknownFlagError(f"Unleash at {self._api.shown} has no flag {flag!r}; {hint}")

    async def _request(self, method: str, path: str, body: Any = None, *, missing_ok: bool = False) -> Json | None:
        return await self._api.request(method, path, body, missing_ok=missing_ok)


def _check_environment(flag: str, environment: str, found: Json) -> None:
    names = [str(one.get("name")) for one in objects(found.get("environments"))]
    if environment not in names:
        have = ", ".join(names)
        raise UnknownFlagError(f"flag {flag!r} has no environment {environment!r} in Unleash; it has {have}")


def _state(state: Json) -> FlagState:
    live = active(state)
    only: Json = live[0] if len(live) == 1 else {}
    return FlagState(
        enabled=cast(bool, state["enabled"]),
        percentage=percentage_of(only),
        limited=bool(only.get("constraints") or only.get("segments")),
    )
