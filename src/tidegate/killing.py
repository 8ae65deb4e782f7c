"""Shutting a flag now, by two ways at once that do not need each other; and taking the stop back.

The stop record overrides every source of flags and works while Unleash or its database hangs; turning the flag off
works while Redis is away. Each way has its own deadline, and what becomes of it is said as soon as it is known. The
flag is called shut only if at least one of the two surely shuts it.

A flag file, and a record in a file, need no extra; Unleash needs `rollout`, a record in Redis `redis`.
"""

import asyncio
import getpass
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, Literal

from tidegate.control import make_actuator, mark_stopped
from tidegate.errors import ConfigError, FlagError, Problem, TidegateError, UnknownFlagError
from tidegate.flags.stop_records import StopRecord
from tidegate.rollout.actuator import Actuator, FlagState
from tidegate.settings import Settings
from tidegate.stopping import in_thread, place_of, show_time, stop_home, why_stopped, write_stop
from tidegate.vocabulary import FLAGS

__all__ = ["Order", "kill", "lift"]

_MOVE_WITHIN: Final = 3.0
_JOURNAL_WITHIN: Final = 4.0

Say = Callable[[str], None]
_Off = Literal["off", "unknown", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be shut, until when, and why.

    environment: None: that of the settings. until: seconds since the epoch; None: until it is lifted.
    """

    flag: str
    environment: str | None = None
    until: float | None = None
    reason: str = "killed by a person"


async def kill(
    order: Order, settings: Settings, say: Say, warn: Say, *, unread: Mapping[str, str] | None = None
) -> None:
    """Write the stop record and turn the flag's environment off, both at once; then tell the journal, and set 0 %.

    say, warn: hear what was done, and what was not. unread: sections of the settings that could not be read, and why.

    Raises:
        FlagError: if neither way surely shut the flag, or if nobody knows a flag of this name.
        ConfigError: if the settings name no source of flags at all: there is no gate to shut. Also, before anything is
            done, if the flag is named as that of a layer and there is no such layer.
    """
    _refuse_without_gates(settings)
    _refuse_misspelt(order.flag)
    environment = order.environment or settings.flags.environment
    killing = _Killing(order, environment, settings, say, warn, unread or {})
    stopped, off = await asyncio.gather(killing.write_record(), killing.turn_off())
    await killing.tell_journal(stopped=stopped, off=off == "off")
    if off == "off":
        off = await killing.set_to_nothing()
    await killing.close()
    ours = order.flag in FLAGS.values() and environment == settings.flags.environment
    if off == "unknown" and not ours:
        near = get_close_matches(f"tidegate.{order.flag.removeprefix('tidegate.')}", FLAGS.values(), n=1)
        raise FlagError(
            f"nothing is known to be shut: no flag {order.flag!r} in {environment}"
            f"{f'; did you mean {near[0]}?' if near and near[0] != order.flag else ''}"
            # It stays: Unleash without its database says of every flag that there is none.
            f"{f'; its stop record stands: {killing.lifting}' if killing.written else ''}"
        )
    if off != "off" and not stopped:
        why = "neither way succeeded"
        if killing.written:
            why = "the flag was not turned off, and its stop record is not sure to reach every worker"
        raise FlagError(f"{order.flag} in {environment} is NOT known to be shut: {why}, see above")
    killing.say_what_follows(stopped=stopped, off=off)


class _Killing:
    """One kill in its steps. None of them raises what concerns it alone: the others go on."""

    def __init__(
        self, order: Order, environment: str, settings: Settings, say: Say, warn: Say, unread: Mapping[str, str]
    ) -> None:
        self._flag = order.flag
        self._order = order
        self._environment = environment
        self._settings = settings
        self._say = say
        self._warn = warn
        self._unread = unread
        self._actuator: Actuator | None = None
        self.written = False
        other = "" if environment == settings.flags.environment else f" --environment {environment}"
        self.lifting = f"tidegate lift {order.flag}{other}"

    async def write_record(self) -> bool:
        """Write the stop record. Whether the flag is surely shut by it."""
        settings, flag = self._settings, self._flag
        if "store" in self._unread and settings.flags.stops is None:
            self._warn(f"no stop record: where it belongs is not known, {self._unread['store']}")
            return False
        record = StopRecord(
            flag=flag,
            environment=self._environment,
            stopped=True,
            number=1,
            since=time.time(),
            until=self._order.until,
            reason=self._order.reason,
            by=_who(),
        )
        try:
            home = stop_home(settings, self._environment)
            heard = await write_stop(home, record)
        except Exception as error:  # noqa: BLE001 - the other way must not end with this one; it is told
            self._warn(f"no stop record was written: {error}")
            return False
        self.written = True
        until = "until it is lifted" if record.until is None else f"until {show_time(record.until)}"
        told = "" if heard is None else f"; told {heard} listening process{'' if heard == 1 else 'es'} at once"
        self._say(f"{flag} in {self._environment} is stopped {until}: record in {home}{told}")
        if heard is None and "://" in place_of(settings):
            self._warn("nobody could be told of it at once, for this user of Redis may not publish: tidegate doctor")
        return self._counts(heard)

    def _counts(self, heard: int | None) -> bool:
        """Whether a record that was written surely reaches the workers; what speaks against it is told."""
        flags = self._settings.flags
        if self._environment != flags.environment and not heard:
            self._warn(
                f"nobody was heard to follow the stops of {self._environment}, and with these settings workers follow "
                f"those of {flags.environment} (flags.environment)"
            )
            return False
        if "://" in place_of(self._settings) or flags.stops is not None or flags.provider == "local":
            return True
        self._warn(
            "that file shuts the flag only for processes that read it, on this machine and with these settings; "
            "name a Redis or a file as flags.stops"
        )
        return False

    async def turn_off(self) -> _Off:
        """Turn the flag's environment off."""
        flag, environment = self._flag, self._environment
        if self._settings.flags.provider == "none":
            self._warn("flags.provider is none here, so the stop record alone shuts the flag")
            return "failed" if flag in FLAGS.values() else "unknown"
        if "rollout" in self._unread:
            self._warn(f"settings that may be needed cannot be read: {self._unread['rollout']}")
        try:
            self._actuator = make_actuator(self._settings)
            async with asyncio.timeout(_MOVE_WITHIN):
                await self._actuator.disable(flag, environment)
        except UnknownFlagError as error:
            self._warn(str(error))
            return "unknown"
        except TimeoutError:
            self._warn(f"{flag} in {environment} was not turned off: no answer within {_MOVE_WITHIN:g} s")
            return "failed"
        except ModuleNotFoundError as error:
            told = f"{error.name} is not installed: pip install 'tidegate[rollout]'"
            self._warn(f"{flag} in {environment} was not turned off: {told}")
            return "failed"
        except Exception as error:  # noqa: BLE001 - the other way must not end with this one; it is told
            self._warn(f"{flag} in {environment} was not turned off: {error}")
            return "failed"
        self._say(f"{flag} in {environment} is off")
        return "off"

    async def tell_journal(self, *, stopped: bool, off: bool) -> None:
        """Mark the flag's rollout as ended by a person, or leave it to a controller that has still to shut it."""
        if not (stopped or off) or "rollout" in self._unread:
            return
        flag, environment, reason, settings = self._flag, self._environment, self._order.reason, self._settings
        try:
            for line in await in_thread(
                lambda: mark_stopped(flag, environment, reason, settings, off=off), _JOURNAL_WITHIN, "the journal"
            ):
                self._say(line)
        except Exception as error:  # noqa: BLE001 - the flag is shut whatever becomes of this; it is told
            self._warn(f"the journal could not be told: {error}")

    async def set_to_nothing(self) -> _Off:
        """Set 0 % and read back: whoever turns the flag on again then opens it for nobody."""
        flag, environment, actuator = self._flag, self._environment, self._actuator
        assert actuator is not None
        try:
            async with asyncio.timeout(_MOVE_WITHIN):
                await actuator.set_percentage(flag, environment, 0)
        except (TidegateError, TimeoutError) as error:
            told = str(error) or f"no answer within {_MOVE_WITHIN:g} s"
            self._warn(f"{flag} in {environment} was not set to 0 %: {told}")
        else:
            self._say(f"{flag} in {environment} is at 0 %")
        try:
            async with asyncio.timeout(_MOVE_WITHIN):
                found = await actuator.read(flag, environment)
        except (TidegateError, TimeoutError) as error:
            told = str(error) or f"no answer within {_MOVE_WITHIN:g} s"
            self._warn(f"{flag} in {environment} was turned off, which was not seen in reading it back: {told}")
            return "off"
        if found.enabled:
            self._warn(f"{flag} in {environment} was turned off, but reads back as {found}")
            return "failed"
        return "off"

    async def close(self) -> None:
        """Let go of the connections."""
        if self._actuator is not None:
            await self._actuator.close()

    def _of_the_record(self) -> str:
        if self.written:
            return f"the record stands for those who read that file, too: {self.lifting}"
        return "there is no stop record"

    def say_what_follows(self, *, stopped: bool, off: _Off) -> None:
        """What a person can rely on now, and how to take it back."""
        within = f"within {self._settings.flags.poll_interval + 1:g} s"
        if stopped:
            self._say(f"shut in every worker {within}; it opens again only after: {self.lifting}")
        else:
            self._say(f"shut in every worker {within}, as long as its source answers; {self._of_the_record()}")
        if off == "failed":
            self._warn(f"the flag itself is still as it was: turn it off before you lift {self._flag}")


async def lift(flag: str, environment: str | None, settings: Settings, say: Say, warn: Say) -> None:
    """Take the stop of a flag back; the flag itself is left as it is, and its state is told.

    Raises:
        FlagError: if it could not be written that the stop is over.
        ConfigError: if the place of the stop records cannot be used.
    """
    _refuse_without_gates(settings)
    environment = environment or settings.flags.environment
    try:
        before = await why_stopped(settings, flag, environment)
        told = f"is not stopped any more (was {before}); in every worker"
        if before is None:
            told = "was not stopped; a worker that remembers a stop all the same lets go of it"
    except FlagError as error:
        told = f"is not stopped any more (what it was could not be read: {error}); in every worker"
    home = stop_home(settings, environment)
    record = StopRecord(
        flag=flag,
        environment=environment,
        stopped=False,
        number=1,
        since=time.time(),
        reason="lifted",
        by=_who(),
    )
    await write_stop(home, record)
    say(f"{flag} in {environment} {told} within {settings.flags.poll_interval + 1:g} s")
    try:
        actuator = make_actuator(settings)
    except ConfigError as error:
        warn(f"the state of the flag is not known: {error}")
        return
    except ModuleNotFoundError as error:
        warn(f"the state of the flag is not known: {error.name} is not installed: pip install 'tidegate[rollout]'")
        return
    try:
        async with asyncio.timeout(_MOVE_WITHIN):
            found = await _read(actuator, flag, environment, settings)
    except UnknownFlagError as error:
        warn(f"there is no such flag: {error}")
    except (TidegateError, TimeoutError) as error:
        warn(f"the state of the flag is not known: {str(error) or 'no answer'}")
    else:
        opens = found.enabled and found.percentage != 0
        say(f"the flag is {found}: its layer {'opens again' if opens else 'stays shut'}")
        if not opens and found.limited:
            say(f"it keeps its conditions; if nobody needs them: tidegate flags shut {flag} --clear")
    finally:
        await actuator.close()


def _refuse_without_gates(settings: Settings) -> None:
    """Without a source of flags there are no gates; unless the app has a provider of its own, and a place is named.

    Raises:
        ConfigError: if nothing says that anybody follows the stop records.
    """
    if settings.flags.provider != "none" or settings.flags.stops is not None or "://" in place_of(settings):
        return
    fix = "use local or unleash, or name flags.stops if the app has a provider of its own"
    told = "has no flag to move, and no place for its stop record is named"
    raise ConfigError("settings", [Problem(path="flags.provider", value="none", problem=told, fix=fix)])


def _refuse_misspelt(flag: str) -> None:
    """In an emergency a misspelt name must be loud, and leave nothing.

    Raises:
        ConfigError: naming the flag that may be meant.
    """
    if flag.startswith("tidegate.") and flag not in FLAGS.values():
        near = get_close_matches(flag, FLAGS.values(), n=1)
        fix = f"did you mean {near[0]}?" if near else f"use {', '.join(FLAGS.values())}"
        problem = Problem(path="FLAG", value=flag, problem="is the flag of no layer, so nothing was shut", fix=fix)
        raise ConfigError("kill", [problem])


async def _read(actuator: Actuator, flag: str, environment: str, settings: Settings) -> FlagState:
    """The flag; a refusal is looked into, because to a person a misspelt name is not an outage."""
    try:
        return await actuator.read(flag, environment)
    except FlagError as error:
        try:
            await actuator.check(flag, environment, settings.flags.unit)
        except UnknownFlagError:
            raise
        except FlagError:
            pass
        raise error


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # no entry for this user, as in some containers
        user = "somebody"
    return f"{user}@{socket.gethostname()}"
