"""The tables of docs/ say what the code says: every name, every default, nothing that does not exist."""

import argparse
import asyncio
import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, get_args, get_type_hints

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from tests.docs.pages import Page
from tests.driver import Origin, call
from tidegate import CacheLayer, ConfigError, Identity, MemoryStore, RoutePolicy, Settings, Tidegate, cli
from tidegate.flags import UNIT_FIELDS, Gates, LocalFlags, parse_flags
from tidegate.flags.local import MAX_BYTES
from tidegate.middleware.core.breaker import BreakerSettings
from tidegate.middleware.core.freshness import POLICY_STATUSES
from tidegate.middleware.core.identity import CREDENTIAL_HEADERS, CREDENTIAL_QUERY
from tidegate.middleware.core.policy import Policies
from tidegate.middleware.core.storing import Bypass
from tidegate.middleware.layers.asgi import ContextResolver
from tidegate.middleware.layers.breaker import BreakerLayer
from tidegate.middleware.layers.coalesce import CoalesceLayer
from tidegate.middleware.layers.filling import MAX_HEADER_BYTES, MAX_TAGS, MAX_VARIANTS
from tidegate.middleware.layers.refresh import MAX_REFRESHES
from tidegate.middleware.layers.shadow_notes import ShadowNotes
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.guard import GuardedStore
from tidegate.middleware.stores.ledger import MAX_TOGETHER
from tidegate.middleware.stores.pushes import Pushes
from tidegate.middleware.stores.redis import RedisStore
from tidegate.middleware.stores.redis_purge import MAX_TOGETHER as REDIS_MAX_TOGETHER
from tidegate.rollout.analysis import CONTROL_HEARD, Cause
from tidegate.rollout.controller import LEASE_SECONDS
from tidegate.rollout.fields import REQUIRED, show_duration
from tidegate.rollout.fields import Field as SpecField
from tidegate.rollout.machine import diagram
from tidegate.rollout.metrics import RolloutMetrics
from tidegate.rollout.spec import OBJECTIVES, SPEC_FIELDS, STEP_FIELDS
from tidegate.vocabulary import BAND_EDGES, COHORT_BUCKETS, COHORTS, FLAGS, LAYERS

MOUNTING, FLAG_PAGE, ROLLOUTS = Page.of("docs/mounting.md"), Page.of("docs/flags.md"), Page.of("docs/rollouts.md")


def words(cell: str) -> list[str]:
    """The names in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def default_of(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else MISSING


def shown(value: Any) -> str:
    """How a default stands in a table."""
    if value is MISSING or value is REQUIRED:
        return "required"
    if value is None or value in ((), {}):
        return "none"
    if value == "":
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"`{value}`" if isinstance(value, str) else str(value)


# --- mounting.md -------------------------------------------------------------------


def test_the_settings_table_has_every_setting_with_its_default_and_no_other() -> None:
    told = {words(name)[0]: default for name, default, _ in MOUNTING.table("Settings")}
    wanted = {
        f"{section.name}.{field.name}": shown(default_of(field))
        for section in fields(Settings)
        for field in fields(default_of(section))
    }
    assert told == wanted
    assert shown(BAND_EDGES) in told.values()


def test_the_policies_table_has_every_field_with_its_default_and_no_other() -> None:
    told = {words(name)[0]: default for name, default, _ in MOUNTING.table("Policies")}
    assert told == {field.name: shown(default_of(field)) for field in fields(RoutePolicy)}
    assert all(str(status) in MOUNTING.section("What is never stored") for status in POLICY_STATUSES)
    assert f"more than {MAX_TAGS} tags, more than {MAX_HEADER_BYTES} bytes of header fields" in MOUNTING.section(
        "What is never stored"
    )


def test_the_metrics_table_has_every_exported_metric_with_its_labels_and_no_other(tmp_path: Any) -> None:
    told = {words(name)[0]: labels for name, labels, _ in MOUNTING.table("Metrics")}
    registry = CollectorRegistry()
    tide = Tidegate(provider=LocalFlags(tmp_path / "none.json"), registry=registry)
    wanted: dict[str, str] = {}
    for metric in [*vars(Metrics.of(registry)).values(), *vars(RolloutMetrics()).values()]:
        if hasattr(metric, "describe"):
            (family,) = metric.describe()
            wanted[family.name + "_total" * (family.type == "counter")] = ", ".join(metric._labelnames)
    assert tide.cohorts is not None
    for family in tide.cohorts.collect():
        labels = [name for name in family.samples[0].labels if name != "le"]
        wanted[family.name + "_total" * (family.type == "counter")] = ", ".join(labels)
    assert told == wanted
    # What is really answered at /metrics has no further name of ours.
    answer = asyncio.run(call(tide.metrics_app, "/metrics"))
    exported = {family.name for family in text_string_to_metric_families(answer.body.decode())}
    ours = {name for name in exported if not name.endswith("_created")}
    assert ours == {name.removesuffix("_total") for name in wanted if not name.startswith("tidegate_rollout")}


def _sources(folder: Traversable) -> Iterator[str]:
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name != "__pycache__":
            yield from _sources(entry)
        elif entry.name.endswith(".py"):
            yield entry.read_text(encoding="utf-8")


def test_every_limit_and_every_component_that_fails_is_named() -> None:
    source = "".join([*_sources(files("tidegate.middleware")), *_sources(files("tidegate.flags"))])
    limits = set(re.findall(r'limits\.labels\(\s*"([\w-]+)"', source))
    components = set(re.findall(r'(?:\.fail|_on_error)\(\s*"([\w.-]+)"', source))
    components |= set(re.findall(r'Reporter\(\s*"([\w.-]+)"', source)) | set(
        re.findall(r'\sname: str = "(\w+)"', source)
    )
    assert len(limits) > 8
    assert len(components) > 8
    text = MOUNTING.section("Metrics").rpartition("|\n")[2]
    told_components = text.partition("Limits stand")[0]
    assert set(words(told_components)) - {"tidegate_errors_total"} == components
    assert {words(row[0])[0] for row in MOUNTING.table("Limits")} == limits


def test_the_limits_table_tells_the_defaults_of_the_code() -> None:
    def default(of: Any, name: str) -> str:
        return shown(inspect.signature(of).parameters[name].default)

    told = {words(row[0])[0]: row[1] for row in MOUNTING.table("Limits") if row[1] != "none"}
    assert told == {
        "body": default(CacheLayer, "max_body"),
        "headers": str(MAX_HEADER_BYTES),
        "tags": str(MAX_TAGS),
        "variants": str(MAX_VARIANTS),
        "memory-evicted": default(MemoryStore, "max_bytes"),
        "memory-stamps": default(MemoryStore, "max_stamps"),
        "memory-purged-together": str(MAX_TOGETHER),
        "pushes": default(Pushes, "max_names"),
        "redis-recent-purges": default(RedisStore, "max_recent"),
        "redis-purged-together": str(REDIS_MAX_TOGETHER),
        "redis-entry-bytes": default(RedisStore, "max_entry_bytes"),
        "redis-waiting": default(RedisStore, "max_waiting"),
        "store-writes": default(GuardedStore, "max_writes"),
        "store-pending-purges": default(GuardedStore, "max_pending"),
        "cache-refreshes": str(MAX_REFRESHES),
        "coalesce-followers": default(CoalesceLayer, "max_followers"),
        "coalesce-wait": default(CoalesceLayer, "max_wait"),
        "coalesce-hold": default(CoalesceLayer, "max_hold"),
        "coalesce-body": default(CoalesceLayer, "max_body"),
        "breaker-circuits": default(BreakerLayer, "max_circuits"),
        "shadow-keys": default(ShadowNotes, "max_keys"),
        "shadow-waiting": default(ShadowNotes, "max_waiting"),
        "shadow-findings": default(ShadowNotes, "max_findings"),
    }
    text = MOUNTING.section("Limits")
    assert f"{inspect.signature(MemoryStore).parameters['max_entries'].default:,}, `MemoryStore(max_entries=)`" in text


def test_the_layers_stand_in_their_order_and_every_credential_is_named() -> None:
    assert [words(row[1])[0] for row in MOUNTING.table("Each alone")] == list(LAYERS)
    told = {word.lower().encode() for word in words(MOUNTING.section("Who asks"))}
    assert told >= CREDENTIAL_HEADERS | CREDENTIAL_QUERY


# --- Cache-Status: each value and reason is made to appear ---------------------------

ANN = Identity("acme", "ann")
FRESH = ("cache-control", "max-age=60")
STORED = {
    "no-store": {"headers": [("cache-control", "no-store")]},
    "no-cache": {"headers": [("cache-control", "no-cache, max-age=9")]},
    "private": {"headers": [("cache-control", "private, max-age=9")], "share": "tenant"},
    "Vary: *": {"headers": [FRESH, ("vary", "*")]},
    "Set-Cookie": {"headers": [FRESH, ("set-cookie", "a=b")]},
    "body": {"headers": [FRESH], "reads": b"of the request"},
    "malformed": {"headers": [FRESH, ("x-name", "a\r\nset-cookie: a=b")]},
    "credential": {"headers": [FRESH], "share": "public", "identity": None, "asked": [("cookie", "a=b")]},
    "must-understand": {"headers": [("cache-control", "max-age=9, must-understand")], "status": 418},
    "status 206": {"headers": [FRESH], "status": 206},
    "authorization (RFC 9111 3.5)": {"headers": [FRESH], "share": "public", "asked": [("authorization", "Bearer x")]},
    "no freshness given": {},
    "not fresh (max-age)": {"headers": [("cache-control", "max-age=0")]},
}
ASKED = {
    "no-identity": {"identity": None},
    "no-user": {"identity": Identity("acme")},
    "credential": {"identity": None, "asked": [("authorization", "Bearer x")]},
    "no-store": {"asked": [("cache-control", "no-store")]},
    "conditional": {"asked": [("if-match", '"a"')]},
    "body": {"asked": [("content-length", "3")]},
    "method": {"method": "OPTIONS"},
    "policy-off": {"mode": "off"},
    "path": {"share": "tenant", "path": "/static/../me"},
}


def cache_status(
    *,
    headers: Any = (),
    status: int = 200,
    share: Any = "user",
    identity: Identity | None = ANN,
    asked: Any = (),
    method: str = "GET",
    mode: Any = None,
    path: str = "/",
    times: int = 1,
    reads: bytes = b"",
) -> str | None:
    """What a cache says about the last of some identical requests. reads: a body that the app reads, over HTTP/2."""
    policies = Policies([RoutePolicy(route="/", ttl=9, mode=mode)] if mode else [])
    resolver = ContextResolver(identify=lambda _: identity, policies=policies)
    metrics = Metrics(CollectorRegistry())
    origin = Origin(status=status, headers=headers)

    async def reading(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await origin(scope, receive, send)

    app = reading if reads else origin
    more = {"http_version": "2"} if reads else {}
    layer = CacheLayer(app, store=MemoryStore(metrics=metrics), share=share, resolver=resolver, metrics=metrics)

    async def drive() -> str | None:
        for _ in range(times - 1):
            await call(layer, path, headers=asked, method=method)
        return (await call(layer, path, body=reads, headers=asked, method=method, **more)).header("cache-status")

    return asyncio.run(drive())


@pytest.mark.parametrize("detail", STORED)
def test_a_response_that_is_not_stored_says_why(detail: str) -> None:
    assert cache_status(**STORED[detail]) == f'Tidegate; fwd=miss; detail="{detail}"'


@pytest.mark.parametrize("detail", ASKED)
def test_a_request_that_cannot_use_the_cache_says_why(detail: str) -> None:
    assert cache_status(**ASKED[detail]) == f"Tidegate; fwd=bypass; detail={detail}"


def test_the_page_gives_exactly_these_reasons() -> None:
    told = [word for row in MOUNTING.table("What is never stored") for word in words(row[0])]
    assert told == [*STORED, *ASKED]
    assert set(ASKED) == set(get_args(get_type_hints(Bypass)["reason"]))


def test_the_values_of_cache_status_are_those_of_the_page() -> None:
    told = [words(row[0])[0] for row in MOUNTING.table("Cache-Status")]
    insisting = [("cache-control", "no-cache")]
    seen = [
        re.sub(r"ttl=\d+", "ttl=59", cache_status(headers=[FRESH], times=2) or ""),
        cache_status(headers=[FRESH]),
        cache_status(headers=[FRESH, ("content-location", "/")], method="POST"),
        cache_status(headers=[FRESH], asked=insisting, times=2),
        (cache_status(headers=[("cache-control", "no-store")]) or "").replace("no-store", "…"),
        (cache_status(headers=[FRESH, ("x-large", "x" * 40_000)]) or "").replace("headers", "…"),
        cache_status(headers=[FRESH], method="HEAD"),
        re.sub(r"detail=.*", "detail=…", cache_status(identity=None) or ""),
        cache_status(headers=[FRESH], asked=[("cache-control", "only-if-cached")]),
        # Stale, stand-ins, parts and shared runs need a clock, a fault and a crowd: their parts stand in the source.
        *(value for value in told if re.search("fwd=stale|ttl=-3|collapsed|partial", value)),
    ]
    assert sorted(map(str, seen)) == sorted(told)
    layers = files("tidegate.middleware.layers")
    source = "".join(
        layers.joinpath(f"{name}.py").read_text(encoding="utf-8") for name in ("exchange", "filling", "parted")
    )
    for value in told:
        for part in re.findall(
            r"fwd=stale|fwd=partial|fwd-status=\d+|detail=stale-[\w-]+|detail=disconnected|collapsed", value
        ):
            assert re.search(part.replace("detail=", 'b"').replace("fwd=", 'b"'), source), part


# --- flags.md -----------------------------------------------------------------------


def known_keys(document: str) -> list[str]:
    """The keys that the parser allows where a document has one that it does not know."""
    with pytest.raises(ConfigError) as caught:
        parse_flags(document, "flags.json")
    return re.findall(r"use only ([\w, ]+)", str(caught.value))[0].split(", ")


def test_the_flag_file_table_has_every_key_and_no_other() -> None:
    told: dict[str, list[str]] = {}
    for key, of, _ in FLAG_PAGE.table("The local file"):
        told.setdefault(of, []).append(words(key)[0])
    flag = '{"version": 1, "flags": {"f": {"enabled": false, "strategies": [%s]%s}}}'
    constraint = '{"percentage": 1, "constraints": [{"x": 1, "field": "a", "operator": "IN", "values": []}]}'
    assert told == {
        "file": known_keys('{"version": 1, "flags": {}, "x": 1}'),
        "flag": known_keys(flag % ("", ', "x": 1')),
        "strategy": known_keys(flag % ('{"percentage": 1, "x": 1}', "")),
        "constraint": known_keys(flag % (constraint, "")),
    }


def test_the_flags_units_and_cohorts_are_those_of_the_code() -> None:
    assert set(FLAGS.values()) <= set(words(FLAG_PAGE.text))
    units, cohorts = FLAG_PAGE.table("Units and cohorts")[:3], FLAG_PAGE.table("Units and cohorts")[3:]
    assert {words(unit)[0]: words(field)[0] for unit, field, _ in units} == UNIT_FIELDS
    assert [words(cohort)[0] for cohort, _, _ in cohorts] == list(COHORTS)


# --- rollouts.md ---------------------------------------------------------------------


def spec_default(field: SpecField) -> str:
    if isinstance(field.default, float):
        return show_duration(field.default)
    return shown(field.default)


def test_the_spec_table_has_every_field_with_its_default_and_no_other() -> None:
    told = {words(name)[0]: default for name, default, _ in ROLLOUTS.table("The spec")}
    wanted: dict[str, str] = {}
    for name, field in SPEC_FIELDS.items():
        wanted[name] = spec_default(field)
        if name == "steps":
            wanted |= {f"steps.{inner}": spec_default(one) for inner, one in STEP_FIELDS.items()}
        if name == "objectives":
            for objective, (_, inner_fields) in OBJECTIVES.items():
                wanted |= {f"objectives.{objective}.{key}": spec_default(one) for key, one in inner_fields.items()}
    assert told == wanted
    over = next(row[2] for row in ROLLOUTS.table("The spec") if words(row[0]) == ["objectives.slow.over"])
    assert over.endswith(", ".join(show_duration(bucket) for bucket in COHORT_BUCKETS))


def test_the_diagram_is_the_one_that_the_machine_prints() -> None:
    (drawn,) = ROLLOUTS.of_language("text")
    assert drawn.text.rstrip("\n") == diagram()


def test_the_reasons_to_hold_are_those_of_the_code() -> None:
    told = {word for row in ROLLOUTS.table("How it is judged")[3:] for word in words(row[0])}
    reconciler = files("tidegate.rollout").joinpath("reconciler.py").read_text(encoding="utf-8")
    held = set(re.findall(r'_hold\(.*"(\w+)"\)', reconciler))
    assert held >= {"metrics", "flag_write"}
    assert told == held | set(get_args(Cause)) - {""}


def commands_of(parser: argparse.ArgumentParser, prefix: str = "tidegate") -> Iterator[tuple[str, set[str]]]:
    """Every command with its arguments, and its options."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for group in groups:
        for name, inner in group.choices.items():
            yield from commands_of(inner, f"{prefix} {name}")
    if not groups:
        positional = [str(action.metavar) for action in parser._actions if not action.option_strings]
        yield " ".join([prefix, *positional]), {name for one in parser._actions for name in one.option_strings}


def test_the_commands_table_has_every_command_and_only_options_that_exist() -> None:
    commands = dict(commands_of(cli._parser()))
    told = {words(row[0])[0]: row[1] for row in ROLLOUTS.table("Running it")}
    assert set(told) == set(commands)
    for command, text in told.items():
        assert set(re.findall(r"`(--[\w-]+)`", text)) <= commands[command]
    assert all({"--config", "--journal"} <= options for options in commands.values())


def test_the_readmes_table_names_every_command_and_no_other() -> None:
    told: list[str] = []
    for row in Page.of("README.md").table("Commands"):
        first, *more = words(row[0])
        told += [first, *(f"{first.rpartition(' ')[0]} {name}" for name in more)]
    argument = re.compile(r" [A-Z]+\b")
    assert sorted(told) == sorted(argument.sub("", command) for command, _ in commands_of(cli._parser()))


# --- numbers in the text ---------------------------------------------------------------


def test_the_numbers_in_the_text_are_those_of_the_code() -> None:
    flag_page, mounting, rollouts = (" ".join(page.text.split()) for page in (FLAG_PAGE, MOUNTING, ROLLOUTS))
    staleness = inspect.signature(Gates).parameters["max_staleness"].default
    assert f"older than {staleness:g} s" in flag_page
    assert MAX_BYTES == 1024 * 1024
    assert "at most 1 MiB" in flag_page
    assert f"with 503 and Retry-After for {BreakerSettings().open_for:g} s" in mounting
    assert f"at least {CONTROL_HEARD} bad events" in rollouts
    assert f"within {LEASE_SECONDS:g} s" in rollouts
