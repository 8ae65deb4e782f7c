"""The flags of one environment, read once from where the settings say, for those who only look.

From Unleash they are read as apps read them, with the backend token, if there is one for this environment; else through
the Admin API. Nothing is written, registered or counted: Unleash's usage figures stay those of the apps.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from tidegate.errors import ConfigError, FlagError, Problem
from tidegate.flags import Flag, FlagContext, is_open, parse_flags
from tidegate.flags.views import FlagView, view_of_flag, view_of_unleash
from tidegate.operations import desk
from tidegate.rollout.flag_file import FlagFile
from tidegate.settings import Settings
from tidegate.stopping import in_thread

__all__ = ["Source", "read_flags"]


_Json = Mapping[str, Any]


class Source(Protocol):
    """Flags as they were when they were read. origin: where from, for a person."""

    origin: str

    def view(self, name: str) -> FlagView | None:
        """The flag; None if there is none."""
        ...

    def admits(self, name: str, properties: Mapping[str, str]) -> bool | None:
        """Whether it is open for this context, decided as an app decides it; None if that cannot be told here."""
        ...


class _FromFile:
    def __init__(self, flags: Mapping[str, Flag], origin: str) -> None:
        self.origin = origin
        self._flags = flags

    def view(self, name: str) -> FlagView | None:
        found = self._flags.get(name)
        return None if found is None else view_of_flag(found)

    def admits(self, name: str, properties: Mapping[str, str]) -> bool | None:
        found = self._flags.get(name)
        return found is not None and is_open(found, FlagContext(unit=None, properties=dict(properties)))


class _FromUnleash:
    """features: as the client API gives them; whole: with segments, and the flags that others depend on.

    Those of the Admin API have neither; where they count, nothing is decided.
    """

    def __init__(self, features: Mapping[str, _Json], origin: str, *, whole: bool) -> None:
        self.origin = origin
        self._features = features
        self._whole = whole
        self._engine: Any = None

    def view(self, name: str) -> FlagView | None:
        found = self._features.get(name)
        return None if found is None else view_of_unleash(name, found)

    def admits(self, name: str, properties: Mapping[str, str]) -> bool | None:
        view = self.view(name)
        if view is None or not view.enabled:
            return False
        if not self._whole and (view.needs or any(strategy.segments for strategy in view.strategies)):
            return None
        if self._engine is None:
            try:
                from yggdrasil_engine.engine import UnleashEngine
            except ImportError:
                return None
            self._engine = UnleashEngine()
            features = [_live(feature) for feature in self._features.values()]
            self._engine.take_state(json.dumps({"version": 2, "features": features}))
        return bool(self._engine.is_enabled(name, {"properties": dict(properties)}).is_enabled)


async def read_flags(
    settings: Settings, environment: str, names: Collection[str], *, within: float | None = None
) -> Source:
    """Read the flags. within: seconds for the file, or each answer of Unleash; desk.ANSWER_SECONDS by default.

    Raises:
        FlagError: if the source cannot be read.
        ConfigError: if the settings name none, or the flag file is wrong.
    """
    flags = settings.flags
    if flags.provider == "local":
        seconds = desk.ANSWER_SECONDS if within is None else within
        return await in_thread(lambda: _from_file(flags.file), seconds, f"the flag file {flags.file}")
    if flags.provider != "unleash":
        raise _unusable("flags.provider", flags.provider, "has no flags: every layer is open", "use local or unleash")
    from tidegate.operations.desk_unleash import UnleashDesk
    from tidegate.rollout.unleash_api import UnleashApi, objects

    if flags.unleash_token and environment == flags.environment:
        api = UnleashApi(
            flags.unleash_url,
            flags.unleash_token,
            timeout=desk.ANSWER_SECONDS if within is None else within,
            setting="TIDEGATE_FLAGS_UNLEASH_TOKEN",
        )
        try:
            answer = await api.request("GET", "/api/client/features")
        finally:
            await api.close()
        features = {str(one.get("name")): one for one in objects((answer or {}).get("features"))}
        return _FromUnleash(features, f"Unleash at {api.shown}", whole=True)
    if not settings.rollout.admin_token:
        fix = "set TIDEGATE_FLAGS_UNLEASH_TOKEN, or TIDEGATE_ROLLOUT_ADMIN_TOKEN"
        raise _unusable("flags.unleash_token", "", f"reads no flags of {environment}", fix)
    admin = UnleashDesk(flags.unleash_url, settings.rollout.admin_token, environment, timeout=within)
    try:
        found = await admin.states(names)
    finally:
        await admin.close()
    return _FromUnleash(found, f"Unleash's Admin API at {admin.shown}", whole=False)


def _from_file(path: str) -> Source:
    file = FlagFile(path)
    try:
        content = file.path.read_bytes()
    except FileNotFoundError as error:
        raise FlagError(
            f"there is no flag file {path}, so every layer is shut: tidegate flags init, or name another as flags.file"
        ) from error
    except OSError as error:
        raise FlagError(f"the flag file {path} could not be read: {error.strerror or error}") from error
    return _FromFile(parse_flags(content, path), f"the file {path}")


def _live(feature: _Json) -> _Json:
    """The feature with the strategies that count, as clients get it."""
    from tidegate.rollout.unleash_api import objects

    return {**feature, "strategies": [one for one in objects(feature.get("strategies")) if not one.get("disabled")]}


def _unusable(path: str, value: str, problem: str, fix: str) -> ConfigError:
    return ConfigError("settings", [Problem(path=path, value=value, problem=problem, fix=fix)])
