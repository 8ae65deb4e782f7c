"""Settings of the layers, the flags and the controller: from `tidegate.toml`, then from the environment.

Every field has a default that works with nothing but Python. The environment overrides the file, so that secrets need
not be written down: `TIDEGATE_<SECTION>_<FIELD>` (`TIDEGATE_FLAGS_UNLEASH_TOKEN`), and four names of longer standing:
`REDIS_URL`, `REDIS_ENABLED`, `REDIS_DEFAULT_TTL`, `CACHE_VERSION`.
"""

import os
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, cast

from tidegate.errors import Problems
from tidegate.middleware.core.policy import Authorization, RoutePolicy, Share
from tidegate.settings_rules import RULES, FlagProviderName, items_of
from tidegate.vocabulary import BAND_EDGES, Unit

__all__ = [
    "CacheSettings",
    "FlagSettings",
    "RolloutSettings",
    "Settings",
    "StoreSettings",
    "TelemetrySettings",
    "variable_names",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """The cache layer.

    share: who may be served a response of a route without a policy. "user" is the narrowest: nothing is shared
        by accident.
    version: part of every key (`CACHE_VERSION`): change it and the cache starts cold. Also set it when two apps share
        one Redis.
    default_ttl: seconds that a policy without its own `ttl` gives (`REDIS_DEFAULT_TTL`); None: only response headers.
    authorization: requests with Authorization that no identity is known for. "strict": nothing of them is stored or
        served from the cache. "rfc9111": as RFC 9111 3.5 has it, for apps that say public where they mean it.
    max_body: bytes; larger responses pass unstored. One of them would push out hundreds of usual ones.
    shadow_bodies: bytes of each body that shadow mode keeps and shows; 0: only digests.
    show_key: Cache-Status names the key, as a hash with a secret of the process: whoever can guess a tenant's name
        cannot make it. For comparing what two requests are stored under; clients have no use for it.
    policies: one table per route, see RoutePolicy.
    """

    share: Share = "user"
    version: str = "v1"
    default_ttl: float | None = None
    authorization: Authorization = "strict"
    max_body: int = 1024 * 1024
    shadow_bodies: int = 0
    show_key: bool = False
    policies: tuple[RoutePolicy, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """Where stored responses live.

    url: `redis://host:port/0`, `rediss://`, `unix:///path`, `redis+sentinel://host:port,host:port/service/0` or
        `redis+cluster://host:port,host:port`, see `tidegate.addresses`; None: this process's memory (`REDIS_URL`).
    enabled: False keeps to memory although `url` is set (`REDIS_ENABLED`).
    keys: what seals the records in Redis, each as `tidegate keys new --print` gives it. For secrets that come in the
        environment.
    key_file: the same in a file, a line each, which running processes read again when it changes. Not both. Neither:
        whoever may read Redis can read the responses.
    max_bytes: bytes of the memory store. 64 MiB holds about 30,000 responses of 2 KiB.
    budget: seconds that a request waits for the store at most, before it goes on as a miss (P5).
    """

    url: str | None = None
    enabled: bool = True
    keys: tuple[str, ...] = ()
    key_file: str | None = None
    max_bytes: int = 64 * 1024 * 1024
    budget: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagSettings:
    """For whom the layers are open.

    provider: `none` (no gates: every layer is open), `local` (a file) or `unleash`.
    file: the local flag file.
    unleash_url, unleash_token, app_name, environment: the Unleash server (".../api"), a backend token, how we call
        ourselves there, and the environment that the token belongs to.
    poll_interval: seconds between looks at the provider. 2: a shut gate is shut everywhere within 3 s (P8).
    max_staleness: seconds without news after which a flag shuts that is open for some but not for all (P8).
    stops: where stop records lie, which shut a flag whatever the provider says: a file, or the address of a Redis, as
        `store.url` has it. None: the store's Redis if `store.url` is set and enabled, else
        `tidegate-stops.json` beside `file`. The same for the apps, the controller and `tidegate kill`.
    stops_namespace: first part of their keys in Redis; apps on one Redis whose flags are not the same need different
        ones.
    unit: what a percentage is drawn over. Tenants by default: everybody at one customer sees one behaviour.
    bands: upper edges of the cohort counters' bands; the steps of a rollout should be among them.
    """

    provider: FlagProviderName = "none"
    file: str = "flags.json"
    unleash_url: str = "http://127.0.0.1:4242/api"
    unleash_token: str = ""
    app_name: str = "tidegate"
    environment: str = "development"
    poll_interval: float = 2.0
    max_staleness: float = 60.0
    stops: str | None = None
    stops_namespace: str = "tidegate"
    unit: Unit = "tenant"
    bands: tuple[int, ...] = BAND_EDGES


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySettings:
    """What is measured and shown.

    metrics_dir: a folder in which each worker keeps its cohort counters, so that they are summed over workers, dead
        ones included; None: this process only. Defaults to `PROMETHEUS_MULTIPROC_DIR` if that is set. Empty it before
        the server starts, as prometheus_client asks.
    debug_headers: add `X-Cache-Hits` and `X-Cache-Misses` to responses.
    """

    metrics_dir: str | None = None
    debug_headers: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSettings:
    """The controller.

    journal: SQLite file with every rollout's state and decisions. Keep it on a local disk.
    admin_token: token for Unleash's Admin API; a personal access token of its own Editor user shows in the audit log.
    prometheus_url: base URL of Prometheus; None: read `metrics_urls` ourselves.
    metrics_urls: the app's own /metrics, one per instance.
    listen: `host:port` for alerts and status; None: do not listen.
    alert_token: bearer token that a sender of alerts must show. Needed when `listen` is set.
    """

    journal: str = "tidegate-journal.sqlite3"
    admin_token: str = ""
    prometheus_url: str | None = None
    metrics_urls: tuple[str, ...] = ()
    listen: str | None = None
    alert_token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings. `Settings()` is the zero-configuration default; `Settings.load()` reads file and environment."""

    cache: CacheSettings = field(default_factory=CacheSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    flags: FlagSettings = field(default_factory=FlagSettings)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)

    @classmethod
    def load(
        cls, path: str | None = None, environ: Mapping[str, str] = os.environ, *, only: Sequence[str] | None = None
    ) -> "Settings":
        """Read `path` (default: `TIDEGATE_CONFIG`, else `tidegate.toml` if it is there), then the environment.

        A relative path in the file is seen from the file's folder, one in the environment from the working directory.

        only: the sections to read; the others keep their defaults, and what stands there is not looked at. For what
            cannot wait until a mistake somewhere else is mended.

        Raises:
            ConfigError: with every problem in file and environment, each with its path, value and fix.
        """
        named = path or environ.get("TIDEGATE_CONFIG")
        file = Path(named or "tidegate.toml")
        problems = Problems(str(file) if named or file.exists() else "settings")
        found: Mapping[str, Any] = _read_toml(file, problems) if named or file.exists() else {}
        table = _seen_from(file.parent, found)
        return _build(table, environ, problems, _SECTIONS if only is None else only)

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> "Settings":
        """Settings from nested mappings of the same shape as the file.

        Raises:
            ConfigError: with every problem.
        """
        return _build(table, {}, Problems("settings"), _SECTIONS)


def _read_toml(file: Path, problems: Problems) -> Mapping[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.add("file", str(file), "does not exist", "create it, or name another with --config or TIDEGATE_CONFIG")
    except RecursionError:
        problems.add("file", str(file), "is nested too deeply", "settings have two levels")
    except ValueError as error:  # not TOML, not UTF-8, or a number too long to be read
        problems.add("file", str(file), f"is not TOML: {error}", "correct that line")
    except OSError as error:
        problems.add("file", str(file), f"cannot be read: {error.strerror}", "make it readable")
    return {}


_PATHS: Final = (
    ("store", "key_file"),
    ("flags", "file"),
    ("flags", "stops"),
    ("telemetry", "metrics_dir"),
    ("rollout", "journal"),
)


def _seen_from(folder: Path, table: Mapping[str, Any]) -> Mapping[str, Any]:
    """The table of a file in this folder, with its relative paths as they are seen from here."""
    seen = dict(table)
    for section, name in _PATHS:
        found = seen.get(section)
        if isinstance(found, Mapping):
            given = dict(cast(Mapping[str, Any], found))
            path = given.get(name)
            if isinstance(path, str) and path and "://" not in path:
                seen[section] = given | {name: str(folder / path)}
    return seen


_LEGACY: Mapping[str, tuple[str, str]] = {
    "REDIS_URL": ("store", "url"),
    "REDIS_ENABLED": ("store", "enabled"),
    "REDIS_DEFAULT_TTL": ("cache", "default_ttl"),
    "CACHE_VERSION": ("cache", "version"),
    "PROMETHEUS_MULTIPROC_DIR": ("telemetry", "metrics_dir"),
}

_SECTIONS: Mapping[str, type] = {
    "cache": CacheSettings,
    "store": StoreSettings,
    "flags": FlagSettings,
    "telemetry": TelemetrySettings,
    "rollout": RolloutSettings,
}


def _build(
    table: Mapping[str, Any], environ: Mapping[str, str], problems: Problems, wanted: Collection[str]
) -> Settings:
    for name in table:
        if name not in _SECTIONS and wanted is _SECTIONS:
            problems.add(name, "***", "is not a section", _did_you_mean(name, _SECTIONS))
    made: dict[str, Any] = {}
    for name in wanted:
        kind = _SECTIONS[name]
        section = table.get(name, {})
        if not isinstance(section, Mapping):
            problems.add(name, section, "is not a table", f"write [{name}]")
            section = {}
        given = dict(cast(Mapping[str, Any], section))
        made[name] = _section(name, kind, given, _from_environ(name, kind, environ), problems)
    settings = Settings(**made) if not problems else None
    problems.raise_if_any()
    assert settings is not None
    return settings


def _from_environ(section: str, kind: type, environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for variable, (its_section, name) in _LEGACY.items():
        if its_section == section and environ.get(variable):
            found[name] = (variable, environ[variable])
    for spec in fields(kind):
        variable = f"TIDEGATE_{section}_{spec.name}".upper()
        if spec.name != "policies" and variable in environ:
            found[spec.name] = (variable, environ[variable])
    return found


def variable_names() -> frozenset[str]:
    """Every environment variable that `Settings.load` reads."""
    own = {
        f"TIDEGATE_{section}_{spec.name}".upper()
        for section, kind in _SECTIONS.items()
        for spec in fields(kind)
        if spec.name != "policies"
    }
    return frozenset({"TIDEGATE_CONFIG", *own, *_LEGACY})


def _section(
    section: str, kind: type, given: dict[str, Any], environ: dict[str, tuple[str, str]], problems: Problems
) -> Any:
    known = {spec.name: spec for spec in fields(kind)}
    values: dict[str, Any] = {}
    for name, raw in given.items():
        if name not in known:
            # Its value is not shown: it may be a token under a misspelled name.
            problems.add(f"{section}.{name}", "***", "is not a setting", _did_you_mean(name, known))
        elif name == "policies":
            values[name] = _policies(f"{section}.{name}", raw, problems)
        else:
            _check(f"{section}.{name}", name, raw, values, problems)
    for name, (variable, text) in environ.items():
        _check(variable, name, _from_text(text, known[name].default), values, problems)
    return kind(**values)


def _did_you_mean(name: str, known: Mapping[str, Any]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"use one of {', '.join(sorted(known))}"


def _from_text(text: str, default: Any) -> Any:
    """A value from the environment, by the kind of its default; text that does not fit stays text and is refused."""
    if isinstance(default, bool):
        lowered = text.strip().lower()
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(lowered, text)
    if isinstance(default, tuple):
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return [int(part) if part.isdecimal() and len(part) <= 3 else part for part in parts]
    try:
        return (
            float(text)
            if isinstance(default, float) or (default is None and _numeric(text))
            else _int_like(text, default)
        )
    except ValueError:
        return text


def _numeric(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def _int_like(text: str, default: Any) -> Any:
    return int(text) if isinstance(default, int) else text


def _check(path: str, name: str, raw: Any, values: dict[str, Any], problems: Problems) -> None:
    valid, problem, fix = RULES[name]
    if valid(raw):
        items = items_of(raw)
        values[name] = raw if items is None else tuple(items)
    else:
        problems.add(path, "***" if name.endswith("token") or name == "keys" else _without_passwords(raw), problem, fix)


def _without_passwords(raw: Any) -> Any:
    def hidden(one: Any) -> Any:
        # To the last @: a password may have a slash in it.
        return re.sub("//.*@", "//***@", one) if isinstance(one, str) else one

    items = items_of(raw)
    return hidden(raw) if items is None else [hidden(item) for item in items]


def _policies(path: str, raw: Any, problems: Problems) -> tuple[RoutePolicy, ...]:
    items = items_of(raw)
    if items is None:
        problems.add(path, raw, "is not a list of tables", f"write [[{path}]]")
        return ()
    known = {spec.name: spec for spec in fields(RoutePolicy)}
    made: list[RoutePolicy] = []
    for index, item in enumerate(items):
        at = f"{path}[{index}]"
        table: dict[str, Any] = dict(cast(Mapping[str, Any], item)) if isinstance(item, Mapping) else {}
        if not isinstance(table.get("route"), str):
            problems.add(at, cast(object, item), "names no route", 'give it route = "/path/{param}"')
            continue
        given: dict[str, Any] = {}
        for name, value in table.items():
            if name in known:
                values = items_of(value)
                given[name] = value if values is None else tuple(values)
        for name in table:
            if name not in known:
                problems.add(f"{at}.{name}", table[name], "is not a field of a policy", _did_you_mean(name, known))
        with problems.under(at):
            made.append(RoutePolicy(**given))
    routes: dict[str, int] = {}
    for index, policy in enumerate(made):
        if policy.route in routes:
            problems.add(f"{path}[{index}].route", policy.route, "has a policy already", "merge the two")
        routes.setdefault(policy.route, index)
    return tuple(made)
