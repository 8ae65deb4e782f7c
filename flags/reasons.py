"""Why a flag is shut for somebody, in words for a person who asks."""

from tidegate.flags.provider import Reach

__all__ = ["why_shut"]


def why_shut(flag: str, reach: Reach, *, known: bool, stopped: bool, stale: bool, max_staleness: float) -> str:
    """The first reason that holds, in the order in which they are looked at.

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
    return f"{flag} is open for some, and its percentage or conditions do not let this unit in"
