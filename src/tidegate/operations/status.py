"""`tidegate flags status`: each flag with everything that decides for whom its layer is open."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from tidegate.errors import FlagError, RolloutError
from tidegate.flags import UNIT_FIELDS, band_of, normalized
from tidegate.flags.provider import Reach
from tidegate.flags.stop_records import StopRecord, decode
from tidegate.flags.views import FlagView, StrategyView
from tidegate.operations.make import owner_of
from tidegate.operations.sources import Source, read_flags
from tidegate.settings import Settings
from tidegate.stopping import in_thread, show_time, stop_home
from tidegate.vocabulary import FLAGS, Unit

__all__ = ["FlagStatus", "flag_status", "lines_of", "read_status", "shown", "stopped_flags", "told_reach"]

_STOPS_WITHIN = 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagStatus:
    """One flag.

    view: None if there is no such flag. stopped: by whom and why, empty if it is not. rollout: that owns it.
    unit, place, band, admitted: of the one unit that was asked for; admitted is None if it cannot be told here.
    """

    name: str
    view: FlagView | None
    stopped: str
    rollout: str
    faults: tuple[str, ...]
    unit: str | None = None
    place: int | None = None
    band: str | None = None
    admitted: bool | None = None

    @property
    def reach(self) -> Reach:
        """Whom the layer is open for, stops counted."""
        return "nobody" if self.view is None or self.stopped else self.view.reach


async def read_status(
    settings: Settings, environment: str, names: Sequence[str], unit: str | None
) -> tuple[str, list[FlagStatus]]:
    """Where the flags were read from, and each of them.

    Raises:
        FlagError, ConfigError: if they cannot be read.
    """
    source = await read_flags(settings, environment, names)
    stopped = await _stopped(settings, environment, names)
    return source.origin, [
        flag_status(source, name, settings, environment, stopped.get(name, ""), unit) for name in names
    ]


def flag_status(
    source: Source, name: str, settings: Settings, environment: str, stopped: str, unit: str | None
) -> FlagStatus:
    """One flag of a source that was read."""
    field = UNIT_FIELDS[settings.flags.unit]
    view = source.view(name)
    asked: dict[str, Any] = {}
    if unit is not None:
        place = normalized(name, unit)
        admitted = False if stopped or view is None else source.admits(name, {field: unit})
        asked = {
            "unit": unit, "place": place, "band": band_of(place, settings.flags.bands), "admitted": admitted,
        }  # fmt: skip
    try:
        owner = owner_of(name, environment, settings)
        rollout = "" if owner is None else f"{owner.name} ({owner.state} at {owner.percent} %)"
    except RolloutError as error:
        rollout = f"unknown: {error}"
    faults = [_missing(name)] if view is None else view.faults(field)
    return FlagStatus(name=name, view=view, stopped=stopped, rollout=rollout, faults=tuple(faults), **asked)


def _missing(name: str) -> str:
    near = get_close_matches(name, FLAGS.values(), n=1)
    if near and near[0] != name:
        return f"does not exist, and is the flag of no layer; did you mean {near[0]}?"
    return f"does not exist, so its layer is shut: tidegate flags init {name}"


async def stopped_flags(settings: Settings, environment: str, names: Sequence[str]) -> dict[str, str]:
    """What stops each flag that is stopped, for a person.

    Raises:
        FlagError: if the records cannot be read.
    """

    def read() -> dict[str, str]:
        home = stop_home(settings, environment)
        try:
            held = home.read(tuple(names))
        finally:
            home.close()
        return {name: told for name, raw in held.items() if (told := _told(raw, name, environment))}

    return await in_thread(read, _STOPS_WITHIN, "the stop records")


async def _stopped(settings: Settings, environment: str, names: Sequence[str]) -> dict[str, str]:
    """The same; records that cannot be read stop all of them, as they do in an app that starts now."""
    try:
        return await stopped_flags(settings, environment, names)
    except FlagError as error:
        return dict.fromkeys(names, f"unknown, and so by every app that starts now: {error}")


def _told(raw: bytes, name: str, environment: str) -> str:
    try:
        record: StopRecord = decode(raw, name, environment)
    except FlagError as error:
        return str(error)
    if not record.in_force(time.time()):
        return ""
    until = "until it is lifted" if record.until is None else f"until {show_time(record.until)}"
    return f"by {record.by or 'somebody'} at {show_time(record.since)}, {until}: {record.reason}"


def _of_those(strategy: StrategyView) -> str:
    return " (of those who meet the conditions)" if strategy.constraints or strategy.segments else ""


def told_reach(reach: Reach, unit: Unit) -> str:
    """Whom a layer is open for. A gate is shut for requests without a unit, however far its flag is open."""
    return f"every {unit}, but not for requests without one" if reach == "everybody" else reach


def lines_of(status: FlagStatus, bands: Sequence[int], unit: Unit) -> list[str]:
    """A flag for the terminal. unit: what percentages are drawn over."""
    lines = [f"{status.name}: {status.view or 'no such flag'}; open for {told_reach(status.reach, unit)}"]
    strategies = status.view.strategies if status.view else ()
    inside = [band for band in bands if strategies and band <= (strategies[0].percentage or 0)]
    if status.reach == "some" and len(strategies) == 1 and inside:
        lines.append(f"  bands that are in: {', '.join(map(str, inside))}{_of_those(strategies[0])}")
    if status.unit is not None:
        untold = "cannot be told here (it takes a backend token and tidegate[unleash])"
        in_or_out = {True: "in", False: "out", None: untold}
        told = in_or_out[status.admitted]
        lines.append(f"  {status.unit}: {told}; place {status.place} of 100, band {status.band}")
    if status.stopped:
        lines.append(f"  stopped {status.stopped}")
    if status.rollout:
        lines.append(f"  moved by the rollout {status.rollout}")
    return lines + [f"  ! {fault}" for fault in status.faults]


def shown(status: FlagStatus) -> dict[str, Any]:
    """A flag as JSON."""
    view = status.view
    found: dict[str, Any] = {
        "flag": status.name,
        "exists": view is not None,
        "enabled": view is not None and view.enabled,
        "reach": status.reach,
        "strategies": [
            {
                "name": one.name,
                "percentage": one.percentage,
                "stickiness": one.stickiness,
                "group": one.group,
                "constraints": [str(constraint) for constraint in one.constraints],
                "variant": one.variant or None,
            }
            for one in (view.strategies if view else ())
        ],
        "stopped": status.stopped or None,
        "rollout": status.rollout or None,
        "faults": list(status.faults),
    }
    if status.unit is not None:
        found["unit"] = {
            "unit": status.unit, "in": status.admitted, "place": status.place, "band": status.band,
        }  # fmt: skip
    return found
