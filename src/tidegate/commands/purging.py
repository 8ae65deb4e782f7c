"""`tidegate cache purge`: purge tags, or everything, in the store that processes share, or say what that would take."""

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

from tidegate.commands.shared import Commands, say, settings_of
from tidegate.errors import ConfigError, Problem, Problems, StoreError, TidegateError
from tidegate.middleware.core.explain_text import hidden, printable, shown_tag

if TYPE_CHECKING:  # the extra `redis`
    from tidegate.middleware.stores.redis import RedisStore

__all__ = ["register"]

WITHIN: Final = 5.0
"""Seconds that the store has."""

_AGAIN: Final = "nothing is known to be purged, and nothing is kept to be purged later: ask again once it answers"

_NOTHING: Final = "no response of Tidegate's is stored there at all; is store.url that of the app, database and all?"


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `tidegate cache purge`."""
    summary = "purge what carries a tag, in the store that all processes share"
    purge = commands.add_parser("purge", parents=[common], help=summary, description=summary)
    purge.add_argument("tags", metavar="TAG", nargs="*", help="as policy or handler gave it to responses")
    purge.add_argument("--everything", action="store_true", help="all of the tenant and its users, or of everybody")
    purge.add_argument("--tenant", metavar="TENANT", help="whose tags (default: those that belong to nobody)")
    purge.add_argument("--soft", action="store_true", help="make it stale, to be served while the app is asked")
    purge.add_argument("--all-of", action="store_true", help="only what carries all of the tags")
    purge.add_argument(
        "--anyway", action="store_true", help="also where nothing that was looked at in Redis has this command's keys"
    )
    purge.add_argument("--dry-run", action="store_true", help="change nothing: how many, and a few of them")
    purge.add_argument("--json", action="store_true", help="the same for programs")
    purge.set_defaults(run=_purge)


def _purge(arguments: argparse.Namespace) -> int:
    from tidegate.middleware.core.records import WHOLE_SCOPE, aimed
    from tidegate.purging import scope_of_tenant

    settings = settings_of(arguments, only=("store",))
    if settings.store.url is None or not settings.store.enabled:
        problem = Problem(
            path="store.url",
            value="",
            problem="names no store that processes share",
            fix="what an app keeps in its own memory is purged there: tide.purge",
        )
        raise ConfigError("cache purge", [problem])
    problems = Problems("cache purge")
    if "" in arguments.tags:
        problems.add("TAG", "", "is empty", "name a tag")
    if arguments.tenant == "":
        problems.add("--tenant", "", "is empty", "name a tenant, or leave it out")
    if arguments.everything and (arguments.tags or arguments.all_of):
        problems.add("--everything", True, "leaves nothing to name", "name tags, or purge everything")
    if not arguments.everything and not arguments.tags:
        problems.add("TAG", "", "is missing", "name a tag, or give --everything")
    problems.raise_if_any()
    tags: list[str] = [WHOLE_SCOPE] if arguments.everything else arguments.tags
    try:
        together, each = (tags, []) if arguments.all_of else ([], tags)
        targets = {scope_of_tenant(arguments.tenant): aimed(each, all_of=together, soft=arguments.soft)}
    except ValueError as error:
        problem = Problem(path="--all-of", value=len(tags), problem=str(error), fix="name fewer tags")
        raise ConfigError("cache purge", [problem]) from None
    told = asyncio.run(_in_store(settings, targets, dry=arguments.dry_run, anyway=arguments.anyway))
    told["scope"] = next(iter(targets))
    if arguments.json:
        for one in told.get("sample", ()):
            one["tags"] = hidden(one["tags"])
        say(json.dumps(told, indent=2))
        return 0
    for line in _lines(told, _what(arguments)):
        say(printable(line))
    return 0


def _what(arguments: argparse.Namespace) -> str:
    """What was to be purged, and whose: a forgotten --tenant is seen here."""
    tenant = arguments.tenant
    if arguments.everything:
        what = "everything of everybody" if tenant is None else f"everything of the tenant {tenant} and its users"
    elif len(arguments.tags) == 1:
        what = "1 public tag" if tenant is None else f"1 tag of the tenant {tenant}"
    else:
        together = ", together" if arguments.all_of else ""
        what = f"{len(arguments.tags)} {'public tags' if tenant is None else f'tags of the tenant {tenant}'}{together}"
    return f"{what}, made stale" if arguments.soft else what


async def _in_store(settings: Any, targets: Mapping[str, Sequence[Any]], *, dry: bool, anyway: bool) -> dict[str, Any]:
    """Purge, or look; what came of it.

    Raises:
        TidegateError: if the store did not answer in time.
        ConfigError: if what lies there is sealed with other keys, or with none, so that nothing would be purged; not
            if it is to be purged anyway.
    """
    from prometheus_client import CollectorRegistry

    from tidegate.adapters import seals_of, shared_store_of
    from tidegate.middleware.metrics import Metrics

    metrics = Metrics.of(CollectorRegistry())
    store = shared_store_of(settings, metrics, seals_of(settings, metrics))
    so = "nothing was changed" if dry else _AGAIN
    try:
        async with asyncio.timeout(WITHIN):
            note = await _looked(store, anyway=anyway)
            if dry:
                return {"dry_run": True, **asdict(await store.affected(targets)), "note": note}
            purge = await store.purge(targets)
            try:
                durable = await store.settled(targets)
            except StoreError:  # what is done is done
                durable = False
            return {"state": purge.state, "durable": durable, "note": note}
    except TimeoutError:
        raise TidegateError(f"the store did not answer within {WITHIN:g} s; {so}") from None
    except StoreError as error:
        raise TidegateError(f"{str(error).rstrip('.')}; {so}") from error
    finally:
        await store.aclose()


async def _looked(store: "RedisStore", *, anyway: bool) -> str | None:
    """What to say of what lies there.

    Raises:
        ConfigError: if this process' purges do not reach it.
    """
    try:
        held = await store.held(thorough=True)
    except StoreError as error:  # a user who may purge and not look; if Redis is away, the purge says so
        return f"whether it reaches what is stored there could not be seen: {error}"
    if (problem := held.problem()) is not None:
        if anyway or held.unreached() is None:
            return str(problem)
        fix = problem.fix if held.all else f"{problem.fix}; --anyway where these keys were given or replaced just now"
        raise ConfigError("cache purge: nothing was purged", [replace(problem, fix=fix)])
    return _NOTHING if held.is_nothing else None


def _lines(told: Mapping[str, Any], what: str) -> list[str]:
    note = [f"note: {told['note']}"] if told["note"] is not None else []
    if "state" in told:
        durable = {True: "; a replica has it", False: "; no replica has said that it has it", None: ""}
        lines = [f"{told['state']}: {what}{durable[told['durable']]}"]
        return [*lines, *note]
    count = f"{'' if told['exact'] else 'at least '}{told['entries']}"
    lines = [f"{count} would be purged ({what}), of {told['looked_at']} that were looked at; nothing was changed"]
    for one in told["sample"]:
        tags = ", ".join(f"{scope}/{shown_tag(tag)}" for scope, tag in one["tags"])
        # A tag may have in it what any client wrote into a URL: `printable` is for all lines.
        lines.append(f"  status {one['status']}, {one['size']} bytes, {one['age']:.0f} s old: {tags}")
    return [*lines, *note]
