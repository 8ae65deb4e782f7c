"""Unleash's Admin API as far as flags are moved and made by it: one request, its refusals, the shapes of its answers.

Open-source edition. Each request has its own deadline; an answer that is not understood is a FlagError like any other.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any, Final, cast
from urllib.parse import quote

import httpx2

from tidegate.errors import FlagError

__all__ = [
    "GRADUAL",
    "Json",
    "Refused",
    "UnleashApi",
    "active",
    "ids",
    "objects",
    "ours",
    "percentage_of",
    "understood",
]

GRADUAL: Final = "flexibleRollout"
"""Unleash's name of a gradual rollout."""

Json = Mapping[str, Any]

_RIGHT: Final = {
    "TIDEGATE_ROLLOUT_ADMIN_TOKEN": "it must be an admin token, or of a user who is an Editor",
    "TIDEGATE_FLAGS_UNLEASH_TOKEN": "it must be a backend token (tidegate flags init --token prints one)",
}
"""What a token must be, by the variable that it is given in."""


class Refused(FlagError):
    """Unleash answered, and said no. status: of HTTP. reason: Unleash's own words, empty where it gave none."""

    def __init__(self, told: str, *, status: int, reason: str) -> None:
        super().__init__(told)
        self.status = status
        self.reason = reason


class UnleashApi:
    """One project of one Unleash server.

    url: as clients have it, with or without `/api`. token: an admin token or a personal access token. timeout: seconds
    for an answer. setting: where the token is set, to be named when it will not do.

    shown: the address without user name and password.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        project: str = "default",
        timeout: float = 2.0,
        setting: str = "TIDEGATE_ROLLOUT_ADMIN_TOKEN",
    ) -> None:
        self._setting = setting
        self.url = url.rstrip("/").removesuffix("/api")
        self.shown = re.sub("//[^/]*@", "//***@", self.url)
        self.project = project
        self.features = f"/api/admin/projects/{quote(project, safe='')}/features"
        self._timeout = timeout
        self._client = httpx2.AsyncClient(
            base_url=self.url,
            headers={"Authorization": token},
            timeout=timeout,
            follow_redirects=False,
            # Loading the machine's certificates takes tens of milliseconds, and http needs none.
            verify=not self.url.lower().startswith("http://"),
        )

    def at(self, flag: str, environment: str | None = None) -> str:
        """The path of a flag, or of a flag in one environment."""
        path = f"{self.features}/{quote(flag, safe='')}"
        return path if environment is None else f"{path}/environments/{quote(environment, safe='')}"

    async def names(self) -> list[str]:
        """The flags of the project, archived ones left out."""
        listed = await self.request("GET", self.features)
        return [str(one.get("name")) for one in objects((listed or {}).get("features"))]

    async def request(self, method: str, path: str, body: Any = None, *, missing_ok: bool = False) -> Json | None:
        """The answer's JSON object; None for an empty answer, and for a 404 if that is allowed.

        Raises:
            Refused: if Unleash says no; FlagError: if it does not answer, or with no JSON.
        """
        answer = await self._answer(method, path, body, missing_ok=missing_ok)
        return cast(Json, answer) if isinstance(answer, dict) else None

    async def listed(self, path: str) -> list[Json]:
        """The JSON objects of the list at `path`. Raises as `request` does."""
        return objects(await self._answer("GET", path))

    async def _answer(self, method: str, path: str, body: Any = None, *, missing_ok: bool = False) -> object:
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._client.request(method, path, json=body)
        except TimeoutError as error:
            raise FlagError(f"Unleash at {self.shown} did not answer within {self._timeout:g} s") from error
        except httpx2.HTTPError as error:
            raise FlagError(
                f"Unleash at {self.shown} could not be asked: {str(error) or type(error).__name__}"
            ) from error
        status = response.status_code
        if status == 404 and missing_ok:
            return None
        if status >= 300:
            raise self._refusal(method, path, status, response.text)
        if not response.content:
            return None
        try:
            return cast(object, response.json())
        except ValueError as error:
            raise FlagError(f"Unleash at {self.shown} answered {method} {path} with no JSON") from error

    def _refusal(self, method: str, path: str, status: int, text: str) -> Refused:
        told = f"Unleash at {self.shown} answered {status} to {method} {path}"
        why = {
            401: f": it does not know the token; set {self._setting}",
            403: f": the token may not do this; {_RIGHT.get(self._setting, 'use another')}",
            404: "; by itself that does not mean that the flag is gone (its database may be down)",
        }.get(status, f": {_details(text) or text[:200]}")
        return Refused(told + why, status=status, reason=_reason(text))

    async def close(self) -> None:
        """Let go of connections."""
        await self._client.aclose()


def _reason(text: str) -> str:
    try:
        answer = json.loads(text)
    except ValueError:
        return ""
    return str(cast(Json, answer).get("message", "")) if isinstance(answer, dict) else ""


def _details(text: str) -> str:
    """What is wrong with a request; Unleash says so behind a general remark."""
    try:
        answer = json.loads(text)
    except ValueError:
        return ""
    told = objects(cast(Json, answer).get("details")) if isinstance(answer, dict) else []
    return "; ".join(str(one["message"]) for one in told if one.get("message"))[:300]


def ours(flag: str, environment: str, state: Json) -> Json:
    """The one strategy that a rollout moves.

    Raises:
        FlagError: unless exactly one strategy is active and it is a gradual rollout; any other would open the flag
            beside ours.
    """
    live = active(state)
    if len(live) == 1 and live[0].get("name") == GRADUAL:
        return live[0]
    have = ", ".join(f"{one.get('name')} ({one.get('id')})" for one in live) or "none"
    raise FlagError(
        f"flag {flag!r} in {environment} needs exactly one active strategy, a {GRADUAL}; it has {have}. "
        f"Add or remove strategies in Unleash, then try again"
    )


def objects(value: object) -> list[Json]:
    """The JSON objects of a list; nothing where there is no list. A proxy or a newer Unleash may answer otherwise."""
    if not isinstance(value, list):
        return []
    return [cast(Json, one) for one in cast(list[object], value) if isinstance(one, dict)]


def understood(state: Json) -> bool:
    """Whether an environment has what is relied on: strategies that are objects, with parameters that are."""
    strategies = state.get("strategies")
    if not isinstance(state.get("enabled"), bool) or not isinstance(strategies, list):
        return False
    found = objects(cast(object, strategies))
    return len(found) == len(cast(list[object], strategies)) and all(
        isinstance(one.get("parameters", {}), dict) for one in found
    )


def active(state: Json) -> list[Json]:
    """The strategies of an environment that count."""
    return [one for one in cast(list[Json], state["strategies"]) if not one.get("disabled")]


def ids(state: Json) -> list[str]:
    """What tells whether strategies came or went."""
    return sorted(str(one.get("id")) for one in active(state))


def percentage_of(strategy: Json) -> int | None:
    """The percentage of a gradual rollout; None where no whole number from 0 to 100 stands."""
    text = str(strategy.get("parameters", {}).get("rollout", "")) if strategy.get("name") == GRADUAL else ""
    return int(text) if text.isascii() and text.isdigit() and int(text) <= 100 else None
