"""Moves flags through Unleash's Admin API (open-source edition).

The API has hazards, each met here and tested against a real server:
percentages are not checked (only whole numbers 0..100 are ever sent); turning an environment on without an active
strategy adds one that is open to everybody (never done, and undone if it happens); a strategy's id is taken from the
environment that it is changed through (else production's path changes development); a PUT resets what it does not
name (only PATCH is used, of one value); there is no concurrency control (one writer, and what is written is read
back by the caller); with its database down a flag answers 404 after a minute (short time-outs, and a lone 404 is never
taken for a deletion).
"""

import asyncio
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Final, cast
from urllib.parse import quote

import httpx2

from tidegate.errors import FlagError
from tidegate.rollout.actuator import STICKINESS, FlagState
from tidegate.vocabulary import Unit

__all__ = ["UnleashActuator"]

_GRADUAL: Final = "flexibleRollout"
_MOVES: Final = ("feature-strategy-", "feature-environment-")

_Json = Mapping[str, Any]


class UnleashActuator:
    """An Actuator on one Unleash project.

    url: as clients have it, with or without `/api`. token: an admin token, or better a personal access token of an
    Editor that only the controller uses, so that the audit log tells it from people. timeout: seconds for an answer.
    """

    def __init__(self, url: str, token: str, *, project: str = "default", timeout: float = 2.0) -> None:
        self._url = url.rstrip("/").removesuffix("/api")
        self._features = f"/api/admin/projects/{quote(project, safe='')}/features"
        self._timeout = timeout
        self._client = httpx2.AsyncClient(
            base_url=self._url, headers={"Authorization": token}, timeout=timeout, follow_redirects=False
        )

    async def check(self, flag: str, environment: str, unit: Unit) -> FlagState:
        """See Actuator."""
        found = await self._request("GET", self._at(flag), missing_ok=True)
        if found is None:
            raise await self._unknown(flag)
        names = [str(one.get("name")) for one in _objects(found.get("environments"))]
        if environment not in names:
            raise FlagError(f"flag {flag!r} has no environment {environment!r} in Unleash; it has {', '.join(names)}")
        state = await self._environment(flag, environment)
        strategy = _ours(flag, environment, state)
        stickiness = strategy.get("parameters", {}).get("stickiness")
        if stickiness != STICKINESS[unit]:
            raise FlagError(
                f"the {_GRADUAL} strategy of {flag!r} in {environment} is sticky by {stickiness!r}, "
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
        strategy = _ours(flag, environment, await self._environment(flag, environment))
        path = f"{self._at(flag, environment)}/strategies/{quote(str(strategy['id']), safe='')}"
        await self._request("PATCH", path, [{"op": "replace", "path": "/parameters/rollout", "value": str(percentage)}])

    async def enable(self, flag: str, environment: str) -> None:
        """See Actuator. If a strategy appears by it that was not there before, the environment is turned off again."""
        before = await self._environment(flag, environment)
        _ours(flag, environment, before)
        await self._request("POST", f"{self._at(flag, environment)}/on")
        after = await self._environment(flag, environment)
        if _ids(after) != _ids(before):
            await self.disable(flag, environment)
            raise FlagError(f"turning on {flag!r} in {environment} changed its strategies; it was turned off again")

    async def disable(self, flag: str, environment: str) -> None:
        """See Actuator."""
        await self._request("POST", f"{self._at(flag, environment)}/off")

    async def last_editor(self, flag: str, environment: str) -> str | None:
        """See Actuator. From Unleash's event log."""
        found = await self._request("GET", f"/api/admin/search/events?feature=IS:{quote(flag, safe='')}&limit=20")
        for event in _objects((found or {}).get("events")):
            if event.get("environment") == environment and str(event.get("type", "")).startswith(_MOVES):
                return f"{event.get('createdBy')} at {event.get('createdAt')}"
        return None

    async def close(self) -> None:
        """See Actuator."""
        await self._client.aclose()

    def _at(self, flag: str, environment: str | None = None) -> str:
        path = f"{self._features}/{quote(flag, safe='')}"
        return path if environment is None else f"{path}/environments/{quote(environment, safe='')}"

    async def _environment(self, flag: str, environment: str) -> _Json:
        found = await self._request("GET", self._at(flag, environment))
        if found is None or not _understood(found):
            raise FlagError(f"Unleash at {self._url} described {flag!r} in {environment} in a way not understood")
        return found

    async def _unknown(self, flag: str) -> FlagError:
        """A 404 alone proves nothing: with its database down Unleash answers so for every flag. Ask for the list."""
        listed = await self._request("GET", self._features)
        known = [str(one.get("name")) for one in _objects((listed or {}).get("features"))]
        if flag in known:
            return FlagError(f"Unleash at {self._url} answers 404 for {flag!r} but lists it; try again")
        near = get_close_matches(flag, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(known)[:20]) or 'none'}"
        return FlagError(f"Unleash at {self._url} has no flag {flag!r}; {hint}")

    async def _request(self, method: str, path: str, body: Any = None, *, missing_ok: bool = False) -> _Json | None:
        """The answer's JSON object; None for an empty answer, and for a 404 if that is allowed."""
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._client.request(method, path, json=body)
        except TimeoutError as error:
            raise FlagError(f"Unleash at {self._url} did not answer within {self._timeout:g} s") from error
        except httpx2.HTTPError as error:
            raise FlagError(f"Unleash at {self._url} could not be asked: {error or type(error).__name__}") from error
        status = response.status_code
        if status == 404 and missing_ok:
            return None
        if status >= 300:
            raise FlagError(self._refusal(method, path, status, response.text))
        if not response.content:
            return None
        try:
            answer = response.json()
        except ValueError as error:
            raise FlagError(f"Unleash at {self._url} answered {method} {path} with no JSON") from error
        return cast(_Json, answer) if isinstance(answer, dict) else None

    def _refusal(self, method: str, path: str, status: int, text: str) -> str:
        told = f"Unleash at {self._url} answered {status} to {method} {path}"
        if status == 401:
            return f"{told}: it does not know the token; set TIDEGATE_ROLLOUT_ADMIN_TOKEN"
        if status == 403:
            return f"{told}: the token may not do this; it must be an admin token, or of a user who is an Editor"
        if status == 404:
            return f"{told}; by itself that does not mean that the flag is gone (its database may be down)"
        return f"{told}: {text[:200]}"


def _ours(flag: str, environment: str, state: _Json) -> _Json:
    """The one strategy that a rollout moves.

    Raises:
        FlagError: unless exactly one strategy is active and it is a gradual rollout; any other would open the flag
            beside ours.
    """
    active = _active(state)
    if len(active) == 1 and active[0].get("name") == _GRADUAL:
        return active[0]
    have = ", ".join(f"{one.get('name')} ({one.get('id')})" for one in active) or "none"
    raise FlagError(
        f"flag {flag!r} in {environment} needs exactly one active strategy, a {_GRADUAL}; it has {have}. "
        f"Add or remove strategies in Unleash, then try again"
    )


def _objects(value: object) -> list[_Json]:
    """The JSON objects of a list; nothing where there is no list. A proxy or a newer Unleash may answer otherwise."""
    if not isinstance(value, list):
        return []
    return [cast(_Json, one) for one in cast(list[object], value) if isinstance(one, dict)]


def _understood(state: _Json) -> bool:
    """Whether an environment has what is relied on: strategies that are objects, with parameters that are."""
    strategies = state.get("strategies")
    if not isinstance(state.get("enabled"), bool) or not isinstance(strategies, list):
        return False
    objects = _objects(cast(object, strategies))
    return len(objects) == len(cast(list[object], strategies)) and all(
        isinstance(one.get("parameters", {}), dict) for one in objects
    )


def _active(state: _Json) -> list[_Json]:
    return [one for one in cast(list[_Json], state["strategies"]) if not one.get("disabled")]


def _ids(state: _Json) -> list[str]:
    return sorted(str(one.get("id")) for one in _active(state))


def _state(state: _Json) -> FlagState:
    active = _active(state)
    text = str(active[0].get("parameters", {}).get("rollout", "")) if len(active) == 1 else ""
    gradual = len(active) == 1 and active[0].get("name") == _GRADUAL
    whole = gradual and text.isascii() and text.isdigit() and int(text) <= 100
    return FlagState(enabled=cast(bool, state["enabled"]), percentage=int(text) if whole else None)
