"""Why a flag is shut for somebody, in words for a person who asks."""

from tidegate.flags.evaluate import normalized
from tidegate.flags.provider import Extent, Reach

__all__ = ["why_out", "why_shut"]


def why_shut(flag: str, reach: Reach, *, known: bool, stopped: bool, stale: bool, max_staleness: float) -> str | None:
    """The first reason that holds for everybody, in the order in which they are looked at; None if none does.

    known: the stop records were read at least once. stale: the flag's state is older than max_staleness, in seconds.
    reach: whom the provider says that it is open for.
    """
    if not known:
        return f"whether {flag} is stopped is not known yet, so it is shut"
    if stopped:
        return f"{flag} is stopped by a record, whatever its percentage (tidegate lift {flag} takes it back)"
    if reach == "some" and stale:
        return f"{flag} is open for some, but that was said more than {max_staleness:g} s ago, so it is shut"
    if reach == "nobody":
        return f"{flag} is shut for everybody, or not known"
    return None


def why_out(flag: str, extent: Extent | None, unit: str, unit_field: str) -> str:
    """Why a flag that is open for some is not for this unit. extent: how far it is open, where that is known.

    unit_field: the context field that carries the unit.
    """
    if extent is None:
        return f"{flag} is open for some, and its percentage or conditions do not let this unit in"
    told = f"{flag} is open to {extent.percentage} % by {extent.stickiness}"
    if extent.stickiness != unit_field:
        return f"{told}, and neither that nor another condition lets this request in"
    place = normalized(extent.group, unit)
    told += f", and this unit's place is {place} of 100"
    return told if place > extent.percentage else f"{told}; but its conditions do not let the unit in"
