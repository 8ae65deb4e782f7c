"""The state that Unleash gave last: what the SDK keeps it in, and what it tells about the reach of each flag.

The SDK's own cache, a folder that all clients of one app name share, mixed the environments of two clients. The engine
reads its state from the cache, so an answer that cannot be meant ends here: one that is no list of flags, or one with
no flag at all after one with some.
"""

import json
from collections.abc import Mapping
from typing import Any, cast

from UnleashClient.cache import BaseCache
from UnleashClient.constants import ETAG, FEATURES_URL

from tidegate.flags.provider import Extent, Reach

__all__ = ["StateCache"]


class StateCache(BaseCache):
    """The SDK's cache, in memory, one per provider. The engine reads its state from here, so bad states end here.

    refused: why the last body was not taken; empty if it was.
    reaches: whom each flag of the last state admits. extents: how far, where one gradual rollout says so.
    varied: flags that have, or once had, variants.
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._changed = False
        self.refused = ""
        self.reaches: Mapping[str, Reach] = {}
        self.extents: Mapping[str, Extent] = {}
        self.varied: frozenset[str] = frozenset()

    def set(self, key: str, value: Any) -> None:
        if key == FEATURES_URL:
            # A 200 without an ETag would leave the former one in force, and the next 304 the wrong state with it.
            self._values[ETAG] = ""
            self.refused = self._take(value)
        elif key == ETAG and self.refused:
            return  # else the next poll would be a 304 for what was not taken
        else:
            self._values[key] = value

    def _take(self, body: str) -> str:
        try:
            features: list[dict[str, Any]] = json.loads(body)["features"]
            own: dict[str, Reach] = {feature["name"]: _own_reach(feature) for feature in features}
            reaches: dict[str, Reach] = {feature["name"]: _reach(feature, own) for feature in features}
            extents = {feature["name"]: extent for feature in features if (extent := _extent(feature)) is not None}
            varied = frozenset(feature["name"] for feature in features if _has_variants(feature))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return f"an answer that is no list of flags ({type(error).__name__}: {error})"
        if self.reaches and not reaches:
            return f"an answer without any flag, after one with {len(self.reaches)}; the last state is kept"
        self._values[FEATURES_URL] = body
        self.varied |= varied  # before the engine has this state, and while it still has the last one
        self.reaches, self.extents, self._changed = reaches, extents, True
        self.bootstrapped = True  # a later client of this provider begins with the last state
        return ""

    def take_change(self) -> bool:
        """Whether a new state arrived since the last call."""
        changed, self._changed = self._changed, False
        return changed

    def mset(self, data: dict[str, Any]) -> None:
        for key, value in data.items():
            self.set(key, value)

    def get(self, key: str, default: Any = None) -> Any:
        return self._values.get(key, default)

    def exists(self, key: str) -> Any:
        return key in self._values

    def destroy(self) -> None:
        """Nothing to remove: the memory goes with the client."""


def _has_variants(feature: dict[str, Any]) -> bool:
    return bool(feature.get("variants")) or any(strategy.get("variants") for strategy in feature["strategies"])


def _reach(feature: dict[str, Any], own: Mapping[str, Reach]) -> Reach:
    """Whom a flag may admit, the flags that it depends on considered: nobody where one must be open and never is."""
    dependencies: list[dict[str, Any]] = feature.get("dependencies") or []
    if not dependencies or own[feature["name"]] == "nobody":
        return own[feature["name"]]
    barred = any(one.get("enabled", True) and own.get(one["feature"], "nobody") == "nobody" for one in dependencies)
    return "nobody" if barred else "some"


def _own_reach(feature: dict[str, Any]) -> Reach:
    """Whom a flag's own strategies may admit: nobody where that is certain, everybody likewise."""
    strategies: list[dict[str, Any]] = feature["strategies"]
    if not feature["enabled"] or (bool(strategies) and all(_rollout(strategy) == "0" for strategy in strategies)):
        return "nobody"
    if not strategies or any(
        not strategy.get("constraints")
        and not strategy.get("segments")
        and (strategy["name"] == "default" or _rollout(strategy) == "100")
        for strategy in strategies
    ):
        return "everybody"
    return "some"


def _rollout(strategy: dict[str, Any]) -> object:
    parameters: dict[str, Any] = strategy.get("parameters") or {}
    return parameters.get("rollout") if strategy["name"] == "flexibleRollout" else None


def _extent(feature: dict[str, Any]) -> Extent | None:
    strategies: list[dict[str, Any]] = feature["strategies"]
    if not feature["enabled"] or len(strategies) != 1:
        return None
    rollout, parameters = _rollout(strategies[0]), cast(dict[str, object], strategies[0].get("parameters") or {})
    if not isinstance(rollout, str) or not rollout.isdecimal():
        return None
    return Extent(
        percentage=int(rollout), stickiness=str(parameters.get("stickiness")), group=str(parameters.get("groupId"))
    )
