"""The command `tidegate`.

Exit codes: 0 it went as it should; 1 it failed, was refused, or the rollout did not end well; 2 bad input.
"""

import argparse
import asyncio
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

from tidegate.errors import ConfigError, TidegateError
from tidegate.settings import Settings

__all__ = ["main"]

_EXAMPLES = """\
examples:
  tidegate rollout validate canary.yaml          every problem of a spec at once
  tidegate controller &                          the daemon that moves the flags
  tidegate rollout start canary.yaml             hand it a rollout
  tidegate rollout watch cache-canary            see it open, or shut
  tidegate rollout abort cache-canary            end it and shut its flag
  tidegate kill tidegate.cache                   shut a flag now, with nothing else running

settings come from --config (or tidegate.toml) and from TIDEGATE_* in the environment.
exit codes: 0 as it should, 1 failed or refused, 2 bad input.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Errors are one message on stderr, never a traceback."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except TidegateError as error:
        print(f"tidegate: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"tidegate: {error.name} is not installed: pip install 'tidegate[rollout]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", metavar="FILE", help="settings (default: TIDEGATE_CONFIG, else tidegate.toml)")
    common.add_argument("--journal", metavar="FILE", help="the controller's journal (default: rollout.journal)")
    parser = argparse.ArgumentParser(
        prog="tidegate",
        description="Cache layers that open behind feature flags, and shut by themselves.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _rollout_commands(commands.add_parser("rollout", help="describe, start, watch and end rollouts"), common)

    controller = commands.add_parser("controller", parents=[common], help="run the controller (the daemon)")
    controller.add_argument("--once", action="store_true", help="do what is due now, then end")
    controller.set_defaults(run=_controller)

    kill = commands.add_parser("kill", parents=[common], help="shut a flag now: environment off first, then 0 %%")
    kill.add_argument("flag", metavar="FLAG")
    kill.add_argument("--environment", metavar="E", help="default: flags.environment")
    kill.add_argument("--reason", default="killed by a person", help="kept in the journal")
    kill.set_defaults(run=_kill)
    return parser


def _rollout_commands(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Any, summary: str, argument: str | None = None) -> argparse.ArgumentParser:
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


def _settings(arguments: argparse.Namespace, only: Sequence[str] | None = None) -> Settings:
    settings = Settings.load(arguments.config, only=only)
    if arguments.journal:
        return replace(settings, rollout=replace(settings.rollout, journal=arguments.journal))
    return settings


def _say(line: str) -> None:
    print(line, flush=True)


# The commands import what they need themselves: the extra `rollout` may be absent, and `--help` must work all the same.


def _validate(arguments: argparse.Namespace) -> int:
    from tidegate import control
    from tidegate.rollout.loading import load_spec

    spec = load_spec(arguments.spec)
    for note in control.notes(spec, _settings(arguments)):
        _say(f"note: {note}")
    _say(f"{arguments.spec}: ok, {spec.flag} in {len(spec.steps)} steps")
    return 0


def _start(arguments: argparse.Namespace) -> int:
    from tidegate import control
    from tidegate.rollout.loading import load_spec

    asyncio.run(control.start(load_spec(arguments.spec), _settings(arguments), _say))
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from tidegate.rollout.machine import State
    from tidegate.rollout.store import Journal
    from tidegate.rollout.view import entry_line, headline, summary, verdict_lines

    with Journal(_settings(arguments).rollout.journal, make=False) as journal:
        rollouts = [journal.get(arguments.name)] if arguments.name else journal.all()
        if arguments.json:
            _say(json.dumps([summary(one, journal.entries(one.id, 1000)) for one in rollouts], indent=2))
        for rollout in [] if arguments.json else rollouts:
            _say(headline(rollout))
            for line in verdict_lines(rollout.latest):
                _say(f"  {line}")
            for entry in journal.entries(rollout.id, 10 if arguments.name else 3):
                _say(f"    {entry_line(entry)}")
        if not rollouts and not arguments.json:
            holder = journal.holder(time.time())
            _say(f"no rollouts; {f'controller {holder} runs' if holder else 'no controller runs'}")
    ended_badly = {State.ROLLED_BACK, State.ABORTED}
    return int(bool(arguments.name) and rollouts[0].state in ended_badly)


def _watch(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from tidegate.rollout.machine import State
    from tidegate.rollout.store import Journal
    from tidegate.rollout.watch import watch

    with Journal(_settings(arguments).rollout.journal, make=False) as journal:
        return int(watch(journal, arguments.name, Console()) is not State.DONE)


def _command(arguments: argparse.Namespace) -> int:
    from tidegate import control
    from tidegate.rollout.machine import Event

    settings = _settings(arguments)
    if arguments.command == "abort":
        asyncio.run(control.abort(arguments.name, arguments.reason, settings, _say))
    else:
        asyncio.run(control.ask(arguments.name, Event(arguments.command), arguments.reason, settings, _say))
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    _say(files("tidegate.rollout").joinpath("spec.schema.json").read_text(encoding="utf-8").rstrip())
    return 0


def _controller(arguments: argparse.Namespace) -> int:
    from tidegate import control

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    if asyncio.run(control.run_controller(_settings(arguments), once=arguments.once)):
        return 0
    print("tidegate: another controller holds the lease", file=sys.stderr)
    return 1


def _kill(arguments: argparse.Namespace) -> int:
    from tidegate import control

    # Shutting must not wait until a mistake in some other section is mended.
    settings = _settings(arguments, only=("flags", "rollout"))
    asyncio.run(control.kill(arguments.flag, arguments.environment, arguments.reason, settings, _say))
    return 0


if __name__ == "__main__":
    sys.exit(main())
