"""`tidegate kill`: shut a flag now, with nothing else running."""

import argparse
import asyncio

from tidegate.commands.shared import Commands, say, settings_of

__all__ = ["register"]


def register(families: Commands, common: argparse.ArgumentParser) -> None:
    """Add `tidegate kill`."""
    kill = families.add_parser("kill", parents=[common], help="shut a flag now: environment off first, then 0 %%")
    kill.add_argument("flag", metavar="FLAG")
    kill.add_argument("--environment", metavar="E", help="default: flags.environment")
    kill.add_argument("--reason", default="killed by a person", help="kept in the journal")
    kill.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from tidegate import control

    # Shutting must not wait until a mistake in some other section is mended.
    settings = settings_of(arguments, only=("flags", "rollout"))
    asyncio.run(control.kill(arguments.flag, arguments.environment, arguments.reason, settings, say))
    return 0
