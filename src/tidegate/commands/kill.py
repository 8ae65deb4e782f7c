"""`tidegate kill` and `tidegate lift`: shut a flag now, with nothing else running, and take that back."""

import argparse
import asyncio
import math
import os
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, TextIO

from tidegate.commands.shared import Commands
from tidegate.errors import ConfigError, Problem
from tidegate.settings import Settings

__all__ = ["register", "run_to_the_end", "until_of"]

_INTERRUPTED: Final = 130


def register(families: Commands, common: argparse.ArgumentParser) -> None:
    """Add `tidegate kill` and `tidegate lift`."""
    summary = "shut a flag now: a stop record that overrides its source, and its environment off"
    kill = families.add_parser("kill", parents=[common], help=summary, description=summary)
    kill.add_argument("--until", metavar="WHEN", help="end by itself then: 2h, or 2026-11-28T22:00Z (default: lift)")
    kill.add_argument("--reason", default="killed by a person", help="kept in the record and in the journal")
    kill.set_defaults(run=_kill)
    summary = "take the stop of a flag back; the flag itself is left as it is"
    lift = families.add_parser("lift", parents=[common], help=summary, description=summary)
    lift.set_defaults(run=_lift)
    for command in (kill, lift):
        command.add_argument("flag", metavar="FLAG")
        command.add_argument("--environment", "--env", metavar="E", help="default: flags.environment")


def _kill(arguments: argparse.Namespace) -> int:
    until = until_of(arguments.until, time.time())  # before anything else: a kill that ended at once would be none
    from tidegate.killing import Order, kill

    settings, unread = _settings(arguments)
    order = Order(flag=arguments.flag, environment=arguments.environment, until=until, reason=arguments.reason)
    return run_to_the_end(kill(order, settings, _say, _warn, unread=unread))


def _lift(arguments: argparse.Namespace) -> int:
    from tidegate.killing import lift

    settings, unread = _settings(arguments)
    if "store" in unread and settings.flags.stops is None:
        Settings.load(arguments.config, only=("store",))  # says what is wrong with it
    return run_to_the_end(lift(arguments.flag, arguments.environment, settings, _say, _warn))


def _settings(arguments: argparse.Namespace) -> tuple[Settings, dict[str, str]]:
    """What is needed, each section for itself: shutting must not wait until a mistake in another one is mended.

    Raises:
        ConfigError: if `flags` cannot be read.
    """
    settings, unread = Settings.load(arguments.config, only=("flags",)), dict[str, str]()
    for section in _SECTIONS:
        try:
            found = Settings.load(arguments.config, only=(section,))
        except ConfigError as error:
            unread[section] = str(error)
        else:
            settings = replace(settings, **{section: getattr(found, section)})
    if arguments.journal:
        settings = replace(settings, rollout=replace(settings.rollout, journal=arguments.journal))
    return settings, unread


_SECTIONS: Final[Sequence[str]] = ("store", "rollout")


def until_of(text: str | None, now: float) -> float | None:
    """The end of a stop in seconds since the epoch, from a duration or a date and time with its zone.

    Raises:
        ConfigError: if it is neither, or is past.
    """
    if text is None:
        return None
    from tidegate.rollout.fields import Refusal, duration

    fix = "write a duration such as 30m or 2h, or a time with its zone such as 2026-11-28T22:00Z"
    end = math.nan
    with suppress(Refusal):
        end = now + duration(text)
    if math.isnan(end):
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            raise _bad_until(text, "is neither a duration nor a time", fix) from None
        if at.tzinfo is None:
            raise _bad_until(text, "names no time zone", "add Z, or an offset such as +01:00")
        try:
            end = at.timestamp()
        except (OverflowError, ValueError):
            raise _bad_until(text, "is out of range", fix) from None
    if end <= now:
        raise _bad_until(text, "is past, so nothing would be stopped", fix)
    return end


def _bad_until(text: str, problem: str, fix: str) -> ConfigError:
    return ConfigError("kill", [Problem(path="--until", value=text, problem=problem, fix=fix)])


def run_to_the_end(work: Coroutine[Any, Any, None]) -> int:
    """Run to the end, though Ctrl-C is pressed once: what it takes is bounded, and half of it would be worse."""

    async def main() -> int:
        task = asyncio.ensure_future(work)
        pressed = 0

        def interrupt() -> None:
            nonlocal pressed
            pressed += 1
            if pressed == 1:
                _warn("tidegate: finishing what was begun, which takes seconds; Ctrl-C again leaves it half done")
            else:
                task.cancel()

        with suppress(NotImplementedError, ValueError, RuntimeError):  # not in the main thread
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)
        try:
            await task
        except asyncio.CancelledError:
            _warn("tidegate: interrupted; only what is said above was done")
            return _INTERRUPTED
        return 0

    return asyncio.run(main())


def _say(line: str) -> None:
    _write(sys.stdout, line)


def _warn(line: str) -> None:
    _write(sys.stderr, line)


def _write(stream: TextIO | None, line: str) -> None:
    """Print a line. Who listens may be gone: that is no reason not to shut a flag."""
    try:
        try:
            print(line, file=stream, flush=True)
        except UnicodeEncodeError:  # a terminal without these characters, or a path that is no text
            print(line.encode("ascii", "backslashreplace").decode(), file=stream, flush=True)
    except (OSError, ValueError):
        # Else the interpreter tries once more when it ends, and fails with a status of its own.
        with suppress(OSError, ValueError, AttributeError):
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, stream.fileno())  # type: ignore[union-attr]
            os.close(devnull)
