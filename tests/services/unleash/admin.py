"""The calls of Unleash's Admin API that tests need: to set the stage and to see what happened.

Not the adapter under test: that one has its own client.
"""

import itertools
import json
from typing import Any
from urllib.parse import quote

from tests.services.server import ServiceError, http_request

__all__ = ["UnleashAdmin"]

FEATURES = "/api/admin/projects/default/features"
REQUEST_SECONDS = 10.0
PASSWORD = "Very-l0ng-Passw0rd!x"

_numbers = itertools.count(1)


class UnleashAdmin:
    """A hand on the flags of one Unleash server, with the rights of `token`.

    Every method raises ServiceError when Unleash answers otherwise than expected, and OSError when it does not answer.
    """

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token

    def request(self, method: str, path: str, body: object = None, *, expect: tuple[int, ...] = (200, 201, 202)) -> Any:
        """One call; the decoded answer, None where there is none."""
        status, content, _ = http_request(
            self._port, method, path, body=body, headers={"Authorization": self._token}, seconds=REQUEST_SECONDS
        )
        if status not in expect:
            raise ServiceError(f"Unleash answered {method} {path} with {status}: {content[:400]!r}")
        return json.loads(content) if content else None

    def fresh_name(self, stem: str = "flag") -> str:
        """A flag name that no other test of this session uses."""
        return f"{stem}-{next(_numbers)}"

    def create_flag(self, name: str, *, kind: str = "release") -> None:
        """Create a flag, off in every environment and without strategies."""
        self.request("POST", FEATURES, {"name": name, "type": kind})

    def create_context_field(self, name: str) -> None:
        """Make `name` known as a field that flags may be sticky by; fine if it is already."""
        self.request("POST", "/api/admin/context", {"name": name, "stickiness": True}, expect=(201, 409))

    def add_strategy(
        self,
        flag: str,
        percentage: int,
        *,
        environment: str = "development",
        stickiness: str = "tenantId",
        constraints: tuple[dict[str, Any], ...] = (),
        group_id: str | None = None,
        variant: str | None = None,
    ) -> str:
        """Add a gradual rollout, for all of it under the variant if there is one; the strategy's id."""
        body = {
            "name": "flexibleRollout",
            "constraints": list(constraints),
            "parameters": {"rollout": str(percentage), "stickiness": stickiness, "groupId": group_id or flag},
            "segments": [],
            "variants": []
            if variant is None
            else [{"name": variant, "weight": 1000, "weightType": "variable", "stickiness": stickiness}],
            "disabled": False,
        }
        made = self.request("POST", f"{self._path(flag, environment)}/strategies", body)
        return str(made["id"])

    def set_percentage(
        self, flag: str, strategy: str, percentage: int | str, *, environment: str = "development"
    ) -> None:
        """Change the percentage of one strategy, as a person would. Unleash checks nothing: "101" is stored too."""
        patch = [{"op": "replace", "path": "/parameters/rollout", "value": str(percentage)}]
        self.request("PATCH", f"{self._path(flag, environment)}/strategies/{strategy}", patch)

    def turn_on(self, flag: str, *, environment: str = "development") -> None:
        """Enable the environment. Unleash adds a 100 % strategy if there is none."""
        self.request("POST", f"{self._path(flag, environment)}/on")

    def turn_off(self, flag: str, *, environment: str = "development") -> None:
        """Disable the environment."""
        self.request("POST", f"{self._path(flag, environment)}/off")

    def archive(self, flag: str) -> None:
        """Remove the flag as the user interface does."""
        self.request("DELETE", f"{FEATURES}/{quote(flag)}")

    def roll_out(
        self, flag: str, percentage: int, *, environment: str = "development", stickiness: str = "tenantId"
    ) -> str:
        """Create a flag with one gradual rollout and turn it on; the strategy's id."""
        self.create_context_field(stickiness)
        self.create_flag(flag)
        strategy = self.add_strategy(flag, percentage, environment=environment, stickiness=stickiness)
        self.turn_on(flag, environment=environment)
        return strategy

    def environment(self, flag: str, *, environment: str = "development") -> dict[str, Any]:
        """The flag in one environment: `enabled`, `strategies`, …"""
        found: dict[str, Any] = self.request("GET", self._path(flag, environment))
        return found

    def enabled(self, flag: str, *, environment: str = "development") -> bool:
        """Whether the environment is turned on."""
        return bool(self.environment(flag, environment=environment)["enabled"])

    def strategies(self, flag: str, *, environment: str = "development") -> list[dict[str, Any]]:
        """The flag's strategies in one environment."""
        found: list[dict[str, Any]] = self.environment(flag, environment=environment)["strategies"]
        return found

    def percentage(self, flag: str, *, environment: str = "development") -> str:
        """What stands in `rollout` of the flag's only strategy, as stored (a string)."""
        (only,) = self.strategies(flag, environment=environment)
        return str(only["parameters"]["rollout"])

    def events(self, flag: str, *, limit: int = 50) -> list[dict[str, Any]]:
        """The audit log of one flag, newest first: `type`, `createdBy`, `data`, `preData`, …"""
        found = self.request("GET", f"/api/admin/search/events?feature=IS:{quote(flag)}&limit={limit}")
        events: list[dict[str, Any]] = found["events"]
        return events

    def personal_token(self, username: str) -> str:
        """A new user with role Editor, and a token whose changes the audit log shows under that user's address.

        Unleash allows ten logins a minute, and this needs one.
        """
        address = f"{username}@example.com"
        user = {
            "username": username,
            "email": address,
            "name": username,
            "rootRole": 2,
            "password": PASSWORD,
            "sendEmail": False,
        }
        self.request("POST", "/api/admin/user-admin", user)
        login = {"username": address, "password": PASSWORD}
        status, content, headers = http_request(self._port, "POST", "/auth/simple/login", body=login)
        if status != 200:
            raise ServiceError(f"Unleash refused the login of {address} with {status}: {content[:400]!r}")
        cookie = headers["set-cookie"].split(";")[0]
        token = {"description": "tests", "expiresAt": "2099-01-01T00:00:00.000Z"}
        status, content, _ = http_request(
            self._port, "POST", "/api/admin/user/tokens", body=token, headers={"Cookie": cookie}
        )
        if status != 201:
            raise ServiceError(f"Unleash refused a personal token with {status}: {content[:400]!r}")
        return str(json.loads(content)["secret"])

    def _path(self, flag: str, environment: str) -> str:
        return f"{FEATURES}/{quote(flag)}/environments/{quote(environment)}"
