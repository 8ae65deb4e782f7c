"""Where the stop records lie, as the settings say: one answer for the apps, the controller and `tidegate kill`."""

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from tidegate.errors import ConfigError, FlagError, Problem
from tidegate.flags.report import OnError
from tidegate.flags.stop_records import StopRecord, decode
from tidegate.flags.stops_file import FileHome
from tidegate.flags.stops_polled import NudgeSource, PolledStops, WritableHome
from tidegate.settings import Settings

__all__ = [
    "STOP_FILE",
    "follow_stops",
    "in_thread",
    "place_of",
    "show_time",
    "shown_place",
    "stop_home",
    "stop_of",
    "unheard",
    "why_stopped",
    "write_stop",
]

STOP_FILE: Final = "tidegate-stops.json"
"""The name of the file beside the flag file that is used where nothing else is named."""

_READ_WITHIN: Final = 1.5
_WRITE_WITHIN: Final = 2.5

_FIRST_ANSWER: Final = 0.25
"""Seconds that an app which starts waits for Redis' first answer. It opens its layers later if that takes longer."""

_T = TypeVar("_T")


def place_of(settings: Settings) -> str:
    """A file's path, or the address of a Redis."""
    flags, store = settings.flags, settings.store
    if flags.stops is not None:
        return flags.stops
    if store.url is not None and store.enabled:
        return store.url
    return str(Path(flags.file).with_name(STOP_FILE))


def shown_place(settings: Settings) -> str:
    """The same for a person: an address without its password."""
    return re.sub(r"//[^/@\s]*@", "//***@", place_of(settings))


def stop_home(settings: Settings, environment: str, place: str | None = None) -> WritableHome:
    """The stop records of one environment, to read and to write.

    Raises:
        ConfigError: if they lie in a Redis whose address cannot be used, or without the extra `redis`.
    """
    place = place_of(settings) if place is None else place
    if "://" not in place:
        return FileHome(place, environment)
    home: WritableHome = _redis().RedisHome(place, environment, namespace=settings.flags.stops_namespace)
    return home


def follow_stops(
    settings: Settings, *, flags: Iterable[str], on_nudge: Callable[[], None] | None, on_error: OnError
) -> PolledStops:
    """What the gates ask; not started yet.

    on_nudge: called in a thread at each nudge.

    Raises:
        ConfigError: as `stop_home`.
    """
    environment, place = settings.flags.environment, place_of(settings)
    nudges: NudgeSource | None = None
    # A file is read for next to nothing, and at once.
    poll_interval, first_wait = min(0.5, settings.flags.poll_interval), 5.0
    if "://" in place:
        poll_interval, first_wait = settings.flags.poll_interval, _FIRST_ANSWER
        nudges = _redis().RedisNudges(place, environment, namespace=settings.flags.stops_namespace)
    return PolledStops(
        stop_home(settings, environment),
        flags=flags,
        environment=environment,
        nudges=nudges,
        poll_interval=poll_interval,
        first_wait=first_wait,
        on_nudge=on_nudge,
        on_error=on_error,
    )


async def stop_of(settings: Settings, flag: str, environment: str) -> StopRecord | None:
    """The last record of a flag, one that lifts included; None: there is none.

    Raises:
        FlagError: if the records cannot be read within a second and a half, or the record is not one.
    """
    raw = await _raw_stop(settings, flag, environment)
    return None if raw is None else decode(raw, flag, environment)


async def why_stopped(settings: Settings, flag: str, environment: str) -> str | None:
    """What a person needs to know of the stop of a flag; None if it is not stopped now.

    A record that is not one counts as a stop, as it does for the gates.

    Raises:
        FlagError: if the records cannot be read within a second and a half.
    """
    raw = await _raw_stop(settings, flag, environment)
    if raw is None:
        return None
    try:
        record = decode(raw, flag, environment)
    except FlagError as error:
        return f"stopped by a record that cannot be read: {error}"
    if not record.in_force(time.time()):
        return None
    until = f" until {show_time(record.until)}" if record.until is not None else ""
    return f"stopped since {show_time(record.since)}{until} by {record.by or 'somebody'}: {record.reason}"


async def _raw_stop(settings: Settings, flag: str, environment: str) -> bytes | None:
    home = stop_home(settings, environment)

    def read() -> bytes | None:
        try:
            return home.read((flag,)).get(flag)
        finally:
            home.close()

    return await in_thread(read, _READ_WITHIN, f"the stop records in {home}")


async def write_stop(home: WritableHome, record: StopRecord) -> int | None:
    """Write a record; the answer is that of `WritableHome.write`.

    Raises:
        FlagError: if it was not written, or not within two and a half seconds; it may have been all the same.
    """

    def write() -> int | None:
        try:
            return home.write(record)
        finally:
            home.close()

    return await in_thread(write, _WRITE_WITHIN, f"the stop records in {home}")


async def unheard(settings: Settings, environment: str) -> str:
    """What the ACL of the stop records' Redis lacks for a kill to be heard at once; empty: nothing, or it is a file.

    Raises:
        FlagError: if Redis does not answer within a second and a half, or refuses.
        ConfigError: as `stop_home`.
    """
    place = place_of(settings)
    if "://" not in place:
        return ""
    home = _redis().RedisHome(place, environment, namespace=settings.flags.stops_namespace)

    def ask() -> str:
        try:
            lacking = home.lacking()
            return str(home.rights(lacking)) if lacking else ""
        finally:
            home.close()

    return await in_thread(ask, _READ_WITHIN, f"the stop records in {home}")


def show_time(at: float) -> str:
    """A time as a person writes it, in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


async def in_thread(work: Callable[[], _T], seconds: float, what: str) -> _T:
    """Call blocking work in a thread that, should it hang, holds up neither the loop nor the end of the process.

    Raises:
        FlagError: if it has not ended in time; `what` begins the message.
        Exception: what the work raises.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def settle(result: object, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast(_T, result))

    def run() -> None:
        result, failed = None, None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - raised again where it is awaited
            failed = error
        try:
            loop.call_soon_threadsafe(settle, result, failed)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    threading.Thread(target=run, name="tidegate-stop-home", daemon=True).start()
    try:
        async with asyncio.timeout(seconds):
            return await done
    except TimeoutError:
        raise FlagError(f"{what} did not answer within {seconds:g} s") from None


def _redis() -> Any:
    try:
        from tidegate.flags import stops_redis
    except ImportError as error:
        told = "is in Redis, whose package is not here"
        problem = Problem(path="flags.stops", value="redis", problem=told, fix="pip install 'tidegate[redis]'")
        raise ConfigError("settings", [problem]) from error
    return stops_redis
