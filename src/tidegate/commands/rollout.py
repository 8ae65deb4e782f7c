"""`tidegate rollout …`: describe, start, watch and end rollouts."""

import argparse
import asyncio
import json
import time
from importlib.resources import files

from tidegate.commands.shared import Commands, Run, say, settings_of

__all__ = ["register"]


def register(families: Commands, common: argparse.ArgumentParser) -> None:
    """Add `tidegate rollout …`."""
    parser = families.add_parser("rollout", help="describe, start, watch and end rollouts")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Run, summary: str, argument: str | None = None) -> argparse.ArgumentParser:
        made = commands.add_parser(name, parents=[common], help=summary, description=summary)
        if argument is not None:
            made.add_argument(argument.lower(), metavar=argument)
        made.set_defaults(run=run)
        return made

    add("validate", _validate, "check a spec; every problem at once, with its path, value and fix", "SPEC")
    add("start", _start, "check spec and flag, and hand the rollout to the controller", "SPEC")
    status = add("status", _status, "where rollouts are; 1 if the one that is named ended badly")
    status.add_argument("name", metavar="NAME", nargs="?")
    status.add_argument("--json", action="store_true", help="everything, with numbers and log")
    add("watch", _watch, "show a rollout until it is over; 0 if it is done, else 1", "NAME")
    for name, summary in (
        ("abort", "end a rollout and shut its flag"),
        ("pause", "leave the flag where it is and stop judging"),
        ("resume", "go on after a pause"),
    ):
        command = add(name, _command, summary, "NAME")
        command.add_argument("--reason", default=f"{name} by a person", help="kept in the journal")
        command.set_defaults(command=name)
    add("schema", _schema, "print the JSON Schema of a spec")


def _validate(arguments: argparse.Namespace) -> int:
    from tidegate import control
    from tidegate.rollout.loading import load_spec

    spec = load_spec(arguments.spec)
    for note in control.notes(spec, settings_of(arguments)):
        say(f"note: {note}")
    say(f"{arguments.spec}: ok, {spec.flag} in {len(spec.steps)} steps")
    return 0


def _start(arguments: argparse.Namespace) -> int:
    from tidegate import control
    from tidegate.rollout.loading import load_spec

    asyncio.run(control.start(load_spec(arguments.spec), settings_of(arguments), say))
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from tidegate.rollout.machine import State
    from tidegate.rollout.store import Journal
    from tidegate.rollout.view import entry_line, headline, summary, verdict_lines

    with Journal(settings_of(arguments).rollout.journal, make=False) as journal:
        rollouts = [journal.get(arguments.name)] if arguments.name else journal.all()
        if arguments.json:
            say(json.dumps([summary(one, journal.entries(one.id, 1000)) for one in rollouts], indent=2))
        for rollout in [] if arguments.json else rollouts:
            say(headline(rollout))
            for line in verdict_lines(rollout.latest):
                say(f"  {line}")
            for entry in journal.entries(rollout.id, 10 if arguments.name else 3):
                say(f"    {entry_line(entry)}")
        if not rollouts and not arguments.json:
            holder = journal.holder(time.time())
            say(f"no rollouts; {f'controller {holder} runs' if holder else 'no controller runs'}")
    ended_badly = {State.ROLLED_BACK, State.ABORTED}
    return int(bool(arguments.name) and rollouts[0].state in ended_badly)


def _watch(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from tidegate.rollout.machine import State
    from tidegate.rollout.store import Journal
    from tidegate.rollout.watch import watch

    with Journal(settings_of(arguments).rollout.journal, make=False) as journal:
        return int(watch(journal, arguments.name, Console()) is not State.DONE)


def _command(arguments: argparse.Namespace) -> int:
    from tidegate import control
    from tidegate.rollout.machine import Event

    settings = settings_of(arguments)
    if arguments.command == "abort":
        asyncio.run(control.abort(arguments.name, arguments.reason, settings, say))
    else:
        asyncio.run(control.ask(arguments.name, Event(arguments.command), arguments.reason, settings, say))
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    say(files("tidegate.rollout").joinpath("spec.schema.json").read_text(encoding="utf-8").rstrip())
    return 0
