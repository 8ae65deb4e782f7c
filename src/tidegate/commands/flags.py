"""`tidegate flags …`: make the flags, open one for a few, see them."""

import argparse
import asyncio
import json
import sys
from typing import cast

from tidegate.commands.shared import Commands, Run, say, settings_of
from tidegate.errors import FlagError

__all__ = ["register"]

_SECTIONS = ("flags", "store", "rollout")
"""What these commands need: a mistake in some other section must not keep a flag open."""


def register(families: Commands, common: argparse.ArgumentParser) -> None:
    """Add `tidegate flags …`."""
    parser = families.add_parser("flags", help="make the flags, open one for a few units, see them")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Run, summary: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, parents=[common], help=summary.replace("%", "%%"), description=summary)
        made.add_argument("--environment", metavar="E", help="default: flags.environment")
        made.set_defaults(run=run)
        return made

    init = add("init", _init, "make what is missing: context field, flags, a strategy at 0 %; never widens what exists")
    init.add_argument("flags", metavar="FLAG", nargs="*", help="default: the flag of each layer")
    init.add_argument("--dry-run", action="store_true", help="show what would be made, and make nothing")
    init.add_argument(
        "--token", action="store_true", help="print a backend token for apps, and nothing else, on stdout (Unleash)"
    )
    status = add("status", _status, "each flag: percentage, conditions, stops, who moves it, and whether a unit is in")
    status.add_argument("flags", metavar="FLAG", nargs="*", help="default: the flag of each layer")
    status.add_argument("--unit", metavar="NAME", help="a tenant, user or session (flags.unit): is it in?")
    status.add_argument("--json", action="store_true", help="the same for programs")
    opening = add("open", _open, "open a flag for the named units, and for nobody else")
    opening.add_argument("flag", metavar="FLAG")
    opening.add_argument(
        "--only", metavar="FIELD=VALUE", action="append", required=True, help="tenantId=acme; may be given again"
    )
    shutting = add("shut", _shut, "turn a flag off and take it back to 0 % without conditions")
    shutting.add_argument("flag", metavar="FLAG")
    shutting.add_argument(
        "--clear", action="store_true", help="take away conditions that may be somebody else's, too (as after a kill)"
    )


def _complain(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _init(arguments: argparse.Namespace) -> int:
    from tidegate.flags import UNIT_FIELDS
    from tidegate.operations.make import make_desk
    from tidegate.operations.provision import chosen, init

    settings = settings_of(arguments, only=("flags", "rollout"))

    async def run() -> None:
        names = chosen(arguments.flags)
        desk = make_desk(settings, arguments.environment)
        tell = _complain if arguments.token else say
        try:
            if arguments.token and settings.flags.provider != "unleash":
                raise FlagError("--token: a flag file needs no token")
            await init(desk, names, UNIT_FIELDS[settings.flags.unit], tell, dry_run=arguments.dry_run)
            if arguments.token and arguments.dry_run:
                tell(f"would print a backend token for {desk.environment}")
            elif arguments.token:
                from tidegate.operations.desk_unleash import UnleashDesk

                say(await cast(UnleashDesk, desk).backend_token())
        finally:
            await desk.close()

    asyncio.run(run())
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from tidegate.operations.status import lines_of, read_status, shown
    from tidegate.vocabulary import FLAGS

    settings = settings_of(arguments, only=_SECTIONS)
    environment = arguments.environment or settings.flags.environment
    names = list(dict.fromkeys(arguments.flags or FLAGS.values()))
    origin, flags = asyncio.run(read_status(settings, environment, names, arguments.unit))
    if arguments.json:
        say(
            json.dumps({"environment": environment, "origin": origin, "flags": [shown(one) for one in flags]}, indent=2)
        )
    else:
        say(f"{environment}, read now from {origin}")
        for line in [line for one in flags for line in lines_of(one, settings.flags.bands, settings.flags.unit)]:
            say(line)
    return int(bool(arguments.flags) and any(one.view is None for one in flags))


def _open(arguments: argparse.Namespace) -> int:
    from tidegate.flags import UNIT_FIELDS
    from tidegate.operations.make import make_desk, refuse_to_open
    from tidegate.operations.opening import only, open_for

    settings = settings_of(arguments, only=_SECTIONS)

    async def run() -> None:
        whom = only(arguments.only)
        desk = make_desk(settings, arguments.environment)
        try:
            await refuse_to_open(arguments.flag, desk.environment, settings)
            await open_for(desk, arguments.flag, whom, UNIT_FIELDS[settings.flags.unit], say)
        finally:
            await desk.close()

    asyncio.run(run())
    return 0


def _shut(arguments: argparse.Namespace) -> int:
    from tidegate.operations.make import make_desk, refuse_if_owned
    from tidegate.operations.opening import shut

    settings = settings_of(arguments, only=_SECTIONS)

    async def run() -> None:
        desk = make_desk(settings, arguments.environment)
        try:
            refuse_if_owned(arguments.flag, desk.environment, settings)
            await shut(desk, arguments.flag, say, clear=arguments.clear)
        finally:
            await desk.close()

    asyncio.run(run())
    return 0
