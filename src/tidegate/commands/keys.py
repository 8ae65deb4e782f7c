"""`tidegate keys new` and `tidegate keys check`: the keys that seal the records in Redis."""

import argparse
import time
from datetime import UTC, datetime
from pathlib import Path

from tidegate.commands.shared import Commands, say, settings_of
from tidegate.errors import ConfigError, Problem

__all__ = ["register"]


def register(families: Commands, common: argparse.ArgumentParser) -> None:
    """Add `tidegate keys`."""
    summary = "the keys that seal the records in Redis"
    keys = families.add_parser("keys", help=summary, description=summary)
    commands = keys.add_subparsers(title="commands", metavar="COMMAND", required=True)
    summary = "add a key to the key file; the file is made if it is not there"
    new = commands.add_parser("new", parents=[common], help=summary, description=summary)
    new.add_argument("file", metavar="FILE", nargs="?", help="default: store.key_file")
    new.add_argument(
        "--lead", metavar="SECONDS", default=None, help="it seals from then on (default: 3600); 90m and 2h will do too"
    )
    new.add_argument("--print", action="store_true", dest="printed", help="write no file: print a first ring's items")
    new.set_defaults(run=_new)
    summary = "which key seals, which only open, and which may go; 1 if something is wrong"
    check = commands.add_parser("check", parents=[common], help=summary, description=summary)
    check.add_argument("file", metavar="FILE", nargs="?", help="default: the settings' keys")
    check.set_defaults(run=_check)


def _seconds(text: str) -> float:
    """The lead that is given, in seconds or as a duration."""
    from tidegate.rollout.fields import Refusal, duration

    try:
        lead = float(text)
    except ValueError:
        try:
            lead = duration(text)
        except Refusal:
            lead = -1.0
    if not 0 <= lead <= 30 * 86_400:
        problem = Problem(path="--lead", value=text, problem="is no lead", fix="give 0 to 2592000 seconds, or 90m, 2h")
        raise ConfigError("keys new", [problem])
    return lead


def _new(arguments: argparse.Namespace) -> int:
    from tidegate.keyfile import LEAD, add_key, fresh_items, states_of

    lead = LEAD if arguments.lead is None else _seconds(arguments.lead)
    if arguments.printed:
        for item in fresh_items():
            say(item)
        return 0
    path = arguments.file or settings_of(arguments, only=("store",)).store.key_file
    if path is None:
        fix = "tidegate keys new FILE, or --print for a secret store"
        raise ConfigError("keys new", [Problem(path="FILE", value="", problem="is not given", fix=fix)])
    now = time.time()
    try:
        ring = add_key(Path(path), now=now, lead=lead)
    except OSError as error:
        problem = Problem(path="FILE", value=path, problem=f"cannot be written: {error.strerror}", fix="name another")
        raise ConfigError("keys new", [problem]) from error
    newest = states_of(ring, now)[-1]
    say(f"{path}: key {newest.key.id.hex()} {'seals' if newest.seals else f'will seal from {_shown(newest.since)}'}")
    if len(ring.keys) == 1:
        say(f'name it in the settings of every process: [store] key_file = "{path}"')
    else:
        say("every process must have read it by then: those that follow the file do within seconds")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from tidegate.keyfile import is_readable_by_others, ring_reader, states_of

    store = settings_of(arguments, only=("store",)).store
    if arguments.file is not None:
        store = replace(store, key_file=arguments.file, keys=())
    reader = ring_reader(store)
    if reader is None:
        say("FAIL  no keys are configured: whoever may read Redis can read the responses; tidegate keys new FILE")
        return 1
    ring, now, wrong = reader(), time.time(), 0
    for state in states_of(ring, now):
        if state.seals:
            told = "seals, and opens"
        elif state.since > now:
            told = f"opens; will seal from {_shown(state.since)}"
        elif state.gone_from is not None and state.gone_from <= now:
            told = "opens; may be removed"
        else:
            told = "opens" + (f"; may be removed from {_shown(state.gone_from)}" if state.gone_from else "")
        say(f"ok    key {state.key.id.hex()}: {told}")
    if ring.naming_key:
        say("ok    naming key: there")
    else:
        say("warn  naming key: none; names of tenants can be guessed by whoever may read Redis")
    if store.key_file is not None and is_readable_by_others(Path(store.key_file)):
        say(f"FAIL  {store.key_file} may be read by others: chmod 600 {store.key_file}")
        wrong = 1
    return wrong


def _shown(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
