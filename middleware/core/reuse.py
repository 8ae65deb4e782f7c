"""May a stored response be used now: RFC 9111 4.2.4 and 5.2.1, RFC 5861, as one pure decision."""

from dataclasses import dataclass
from typing import Final, Protocol

from tidegate.middleware.core.records import Entry
from tidegate.middleware.core.storing import Kept, RequestDirectives
from tidegate.middleware.core.updating import has_validator

__all__ = ["DISCONNECTED", "VALIDATED_FOR", "Age", "Reuse", "is_refused", "judge_reuse", "kept_until", "of_use_past"]

DISCONNECTED: Final = 60.0
"""Seconds past its lifetime in which a stored response stands in for a 502 or 504: the app says that it could not reach
what it asks, and a cache that is disconnected may serve what is stale (RFC 9111 4.2.4)."""

VALIDATED_FOR: Final = 3600.0
"""Seconds past its lifetime for which a response that the app can be asked about is kept for asking."""


class Age(Protocol):
    """What of a stored response decides whether it may be used."""

    @property
    def born(self) -> float: ...
    @property
    def lifetime(self) -> float: ...
    @property
    def stale_while_revalidate(self) -> float: ...
    @property
    def stale_if_error(self) -> float: ...
    @property
    def must_revalidate(self) -> bool: ...
    @property
    def no_cache(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Reuse:
    """Whether a stored response may be used now.

    `fresh`: serve it. Not fresh, but: `stale_on_error`: may be served if the app fails (RFC 5861 4);
    `while_revalidating`: may be served while somebody asks the app (RFC 5861 3); `disconnected`: may be served if the
    app cannot reach what it asks. `insists`: it is fresh, and only the request does not take it (RFC 9211 2.2).
    `age` and `ttl` in whole seconds; ttl is negative when stale (RFC 9211 2.3).
    """

    fresh: bool
    stale_on_error: bool
    age: int
    ttl: int
    while_revalidating: bool = False
    disconnected: bool = False
    insists: bool = False


def judge_reuse(entry: Age, wanted: RequestDirectives, now: float) -> Reuse:
    """Whether a stored response satisfies a request without asking the app (RFC 9111 4)."""
    age = max(0.0, now - entry.born)
    left = entry.lifetime - age
    age_s, ttl = int(age), int(left) if left >= 0 else -int(-left)
    yielding = not wanted.no_cache and not entry.no_cache and (wanted.max_age is None or age <= wanted.max_age)
    stale = yielding and left <= 0
    may_be_stale = not entry.must_revalidate and not entry.no_cache
    fresh = yielding and left > 0 and (wanted.min_fresh is None or left >= wanted.min_fresh)
    accepted = stale and may_be_stale and wanted.max_stale is not None and -left <= wanted.max_stale
    if fresh or accepted:
        return Reuse(True, False, age_s, ttl)
    insists = left > 0 and not entry.no_cache
    if not may_be_stale:
        return Reuse(False, False, age_s, ttl, insists=insists)
    return Reuse(
        fresh=False,
        stale_on_error=0 < entry.stale_if_error >= -left,
        age=age_s,
        ttl=ttl,
        while_revalidating=stale and wanted.min_fresh is None and -left < entry.stale_while_revalidate,
        disconnected=-left <= DISCONNECTED,
        insists=insists,
    )


def is_refused(reuse: Reuse | None, wanted: RequestDirectives) -> bool:
    """Whether the answer is 504: the client wants what is stored or nothing (only-if-cached, RFC 9111 5.2.1.7), and it
    may not be served what is stored. reuse: None: nothing is.
    """
    return wanted.only_if_cached and (reuse is None or not (reuse.fresh or reuse.while_revalidating))


def of_use_past(what: Kept | Entry, *, validator: bool) -> float:
    """Seconds past its lifetime for which a response can be of use: stale, or to ask about if there is a validator."""
    past = max(what.stale_while_revalidate, what.stale_if_error)
    if validator:
        return max(past, VALIDATED_FOR)
    return max(past, DISCONNECTED) if not what.must_revalidate and what.lifetime > 0 else past


def kept_until(entry: Entry) -> float:
    """Wall-clock seconds until which an entry can be of use."""
    asked = [pair for pair in entry.headers if pair[0] != b"etag"] if entry.own_etag else entry.headers
    return entry.born + entry.lifetime + of_use_past(entry, validator=has_validator(asked))
