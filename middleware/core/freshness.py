"""How long a response is fresh, how old it is, and for how long it may be used when it is stale.

RFC 9111 4.2 (freshness, age), RFC 5861 (the two windows past it), RFC 9213 (what a targeted field says goes first).
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from tidegate.middleware.core.message import (
    delta_seconds,
    field_values,
    list_members,
    parse_date,
    seconds_of,
    single_value,
)
from tidegate.middleware.core.policy import RoutePolicy
from tidegate.middleware.core.targeted import TARGETED, Control

__all__ = ["HEURISTIC_STATUSES", "POLICY_STATUSES", "born_at", "for_client", "is_too_old", "lifetime_of", "window_of"]

Pairs = Sequence[tuple[bytes, bytes]]

HEURISTIC_STATUSES: Final = frozenset({200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501})
"""Statuses that may be given a lifetime when they state none (RFC 9110 15.1; 206 is not stored here)."""

POLICY_STATUSES: Final = frozenset({200, 203, 204, 300, 301, 308})
"""Statuses to which a policy's ttl applies. An error is never made fresh by a policy: only by its own headers."""

HEURISTIC_FRACTION: Final = 0.1
"""Of the time since Last-Modified (RFC 9111 4.2.2)."""
HEURISTIC_MAX: Final = 86_400.0
"""Seconds. A guess is not trusted for longer than a day."""


def lifetime_of(
    status: int, headers: Pairs, control: Control, policy: RoutePolicy | None, default_ttl: float | None, now: float
) -> tuple[float | None, str]:
    """Seconds that the response is fresh and what said so; None and why there are none (RFC 9111 4.2.1)."""
    said = control.directives
    for name in (b"s-maxage", b"max-age"):
        seconds = seconds_of(said, name)
        if seconds is not None:
            return float(seconds), name.decode()
    if control.targeted is None and any(name == b"expires" for name, _ in headers):
        expires = parse_date(single_value(headers, b"expires"), now=now)
        date = parse_date(single_value(headers, b"date"), now=now)
        return (0.0 if expires is None else max(0.0, expires - (now if date is None else date))), "expires"
    if policy is not None:
        ttl = policy.ttl if policy.ttl is not None else default_ttl
        if ttl is not None and status in POLICY_STATUSES:
            return float(ttl), "policy ttl"
    modified = parse_date(single_value(headers, b"last-modified"))
    if modified is not None and (status in HEURISTIC_STATUSES or b"public" in said):
        date = parse_date(single_value(headers, b"date"))
        since = (now if date is None else date) - modified
        return min(HEURISTIC_MAX, max(0.0, since * HEURISTIC_FRACTION)), "heuristic"
    return None, "no freshness given"


def window_of(control: Control, name: bytes, policy: RoutePolicy | None) -> float:
    """Seconds of `stale-while-revalidate` or `stale-if-error`, from the response or else the policy."""
    seconds = seconds_of(control.directives, name)
    if seconds is not None:
        return float(seconds)
    given: float | None = None
    if policy is not None:
        given = policy.stale_while_revalidate if name == b"stale-while-revalidate" else policy.stale_if_error
    return given if given is not None else 0.0


def born_at(headers: Iterable[tuple[bytes, bytes]], *, asked: float, answered: float) -> float:
    """When the response had age 0: response time less its corrected initial age (RFC 9111 4.2.3).

    Of several Ages the first counts, and one that is no delta-seconds is not there (RFC 9111 5.1).
    """
    pairs = [pair for pair in headers if pair[0] == b"date" or pair[0] == b"age"]
    if not pairs:
        return answered - max(0.0, answered - asked)
    ages = next(list_members(field_values(pairs, b"age")), None)
    date = parse_date(single_value(pairs, b"date"))
    apparent = max(0.0, answered - date) if date is not None else 0.0
    corrected = (delta_seconds(ages) or 0) + (answered - asked)
    return answered - max(apparent, corrected)


def is_too_old(headers: Iterable[tuple[bytes, bytes]], lasts: float, *, asked: float, now: float) -> bool:
    """Whether a response that comes now was of use only before. lasts: seconds from its birth for which it is."""
    return born_at(headers, asked=asked, answered=now) + lasts <= now


def for_client(headers: Pairs, policy: RoutePolicy, age: int, lifetime: float) -> Pairs:
    """The fields of a stored response, for a client that may keep it for the policy's `client_ttl`.

    It counts what it is given as that old already (RFC 9111 4.2): so from now on it is to have that many seconds. Only
    what is ours is changed (see `client_cache_control`), where we keep it for longer than that, while it is fresh.
    age: whole seconds, as Age says.
    """
    keeps = int(policy.client_ttl or 0.0)
    if not 0 < keeps < lifetime or not 0 < age < lifetime:
        return headers
    longer: list[tuple[bytes, bytes]] = []
    for pair in headers:
        name, value = pair
        if name == b"cache-control":
            pair = name, _longer(value, policy.share == "public", keeps, age)
        elif name in TARGETED:
            return headers  # it is the app's word
        longer.append(pair)
    return longer


@lru_cache(maxsize=4096)
def _longer(told: bytes, public: bool, keeps: int, age: int) -> bytes:
    """Our Cache-Control, see `client_cache_control`, with `age` seconds more; any other as it is."""
    ours = b"%s, max-age=%d" % (b"public" if public else b"private", keeps)
    if not told.startswith(ours) or told[len(ours) :] not in (b"", b", must-revalidate"):
        return told
    return told.replace(b"max-age=%d" % keeps, b"max-age=%d" % (keeps + age))
