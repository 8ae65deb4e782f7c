"""May a response be stored, for how long, and may a stored one be used: RFC 9111 sections 3 and 4 as pure decisions.

Two modes. With a policy that gives a ttl, the route is ours to cache where the response is silent. Without one (RFC
mode) only the response's own fields decide. In both, what the response forbids stays forbidden.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from tidegate.middleware.core.identity import Identity
from tidegate.middleware.core.message import (
    delta_seconds,
    directives,
    field_values,
    list_members,
    parse_date,
    seconds_of,
    single_value,
)
from tidegate.middleware.core.policy import RoutePolicy, Share

__all__ = [
    "Age",
    "Bypass",
    "Kept",
    "Refused",
    "RequestDirectives",
    "Reuse",
    "Usable",
    "client_cache_control",
    "judge_request",
    "judge_response",
    "judge_reuse",
    "request_directives",
]

Pairs = Sequence[tuple[bytes, bytes]]

HEURISTIC_STATUSES: Final = frozenset({200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501})
"""Statuses that may be given a lifetime when they state none (RFC 9110 15.1; 206 is not stored here)."""

POLICY_STATUSES: Final = frozenset({200, 203, 204, 300, 301, 308})
"""Statuses to which a policy's ttl applies. An error is never made fresh by a policy: only by its own headers."""

_BYPASSING_FIELDS: Final = frozenset({b"range", b"if-range", b"if-match", b"if-unmodified-since"})
"""Only the app can answer these from here (RFC 9110 13.1, 14.2)."""

UNSTORABLE_STATUSES: Final = frozenset({206, 304})

HEURISTIC_FRACTION: Final = 0.1
"""Of the time since Last-Modified (RFC 9111 4.2.2)."""
HEURISTIC_MAX: Final = 86_400.0
"""Seconds. A guess is not trusted for longer than a day."""


@dataclass(frozen=True, slots=True)
class Usable:
    """The request may be answered from the cache and its response stored, within this share."""

    share: Share


@dataclass(frozen=True, slots=True)
class Bypass:
    """The request goes to the app, and its response is not stored. `reason` is a metric label."""

    reason: Literal["method", "policy-off", "body", "conditional", "credential", "no-identity", "no-user", "no-store"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDirectives:
    """A request's Cache-Control (RFC 9111 5.2.1), in seconds; `Pragma: no-cache` counts where it has none."""

    no_store: bool = False
    no_cache: bool = False
    only_if_cached: bool = False
    max_age: int | None = None
    min_fresh: int | None = None
    max_stale: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A response may be stored: how long it is fresh, and how long it may be used when it is not."""

    lifetime: float
    stale_while_revalidate: float
    stale_if_error: float
    must_revalidate: bool
    vary: tuple[bytes, ...]
    rule: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A response may not be stored; `reason` says why in words of the RFC."""

    reason: str


class Age(Protocol):
    """What of a stored response decides whether it may be used."""

    @property
    def born(self) -> float: ...
    @property
    def lifetime(self) -> float: ...
    @property
    def stale_if_error(self) -> float: ...
    @property
    def must_revalidate(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Reuse:
    """Whether a stored response may be used now.

    `fresh`: serve it. `stale_on_error`: not fresh, but may be served if the app fails (RFC 5861 4).
    `age` and `ttl` in whole seconds; ttl is negative when stale (RFC 9211 2.3).
    """

    fresh: bool
    stale_on_error: bool
    age: int
    ttl: int


def request_directives(headers: Pairs) -> RequestDirectives:
    """Read a request's Cache-Control and Pragma."""
    lines = field_values(headers, b"cache-control")
    if not lines:
        pragma = b"no-cache" in {member.lower() for member in list_members(field_values(headers, b"pragma"))}
        return RequestDirectives(no_cache=pragma)
    found = directives(lines)
    return RequestDirectives(
        no_store=b"no-store" in found,
        no_cache=b"no-cache" in found,
        only_if_cached=b"only-if-cached" in found,
        max_age=seconds_of(found, b"max-age"),
        min_fresh=seconds_of(found, b"min-fresh"),
        max_stale=delta_seconds(found[b"max-stale"])
        if found.get(b"max-stale")
        else (2**31 if b"max-stale" in found else None),
    )


def judge_request(
    *,
    method: str,
    headers: Pairs,
    wanted: RequestDirectives,
    policy: RoutePolicy | None,
    default_share: Share,
    identity: Identity | None,
    has_credential: bool,
) -> Usable | Bypass:
    """Whether a request may use the cache at all, and for whom its response would be kept (P2)."""
    if method not in ("GET", "HEAD"):
        return Bypass("method")
    if policy is not None and policy.mode == "off":
        return Bypass("policy-off")
    for name, value in headers:
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0"):
            return Bypass("body")
        if name in _BYPASSING_FIELDS:
            return Bypass("conditional")
    if wanted.no_store:
        return Bypass("no-store")
    share = policy.share if policy is not None else default_share
    if identity is None:
        if has_credential:
            return Bypass("credential")
        if share != "public":
            return Bypass("no-identity")
    elif share == "user" and identity.user is None:
        return Bypass("no-user")
    return Usable(share)


def judge_response(
    *,
    status: int,
    headers: Pairs,
    request: Pairs,
    share: Share,
    policy: RoutePolicy | None,
    default_ttl: float | None,
    now: float,
) -> Kept | Refused:
    """Whether a complete response to GET may be stored (RFC 9111 3), and its freshness lifetime (4.2.1)."""
    if status < 200 or status in UNSTORABLE_STATUSES:
        return Refused(f"status {status}")
    control = directives(field_values(headers, b"cache-control"))
    vary, refusal = _forbidden(headers, control, share)
    if refusal is not None:
        return Refused(refusal)
    if _shares_authorized(request, control, share, policy):
        return Refused("authorization (RFC 9111 3.5)")
    lifetime, rule = _lifetime(status, headers, control, policy, default_ttl, now)
    if lifetime is None:
        return Refused(rule)
    strict = b"must-revalidate" in control or b"proxy-revalidate" in control or b"s-maxage" in control
    kept = Kept(
        lifetime=lifetime,
        stale_while_revalidate=0.0 if strict else _window(control, b"stale-while-revalidate", policy),
        stale_if_error=0.0 if strict else _window(control, b"stale-if-error", policy),
        must_revalidate=strict,
        vary=tuple(dict.fromkeys([*vary, *(name.lower().encode() for name in (policy.vary if policy else ()))])),
        rule=rule,
    )
    if kept.lifetime <= 0 and kept.stale_if_error <= 0:
        return Refused(f"not fresh ({rule})")
    return kept


def _forbidden(headers: Pairs, control: Mapping[bytes, bytes | None], share: Share) -> tuple[list[bytes], str | None]:
    """The fields that Vary names, and what forbids to store, if anything does."""
    if b"no-store" in control:
        return [], "no-store"
    if b"private" in control and share != "user":
        return [], "private"
    if b"no-cache" in control:
        return [], "no-cache"
    vary = [member.lower() for member in list_members(field_values(headers, b"vary"))]
    if any(b"*" in member for member in vary):
        return [], "Vary: *"
    for name, _ in headers:
        if name == b"set-cookie":
            return [], "Set-Cookie"
        if name == b"content-range":
            return [], "Content-Range"
    return vary, None


def _shares_authorized(
    request: Pairs, control: Mapping[bytes, bytes | None], share: Share, policy: RoutePolicy | None
) -> bool:
    """A public copy of an authorized answer needs the response's leave, or a policy that says public (RFC 9111 3.5)."""
    if share != "public" or policy is not None:
        return False
    if not any(name == b"authorization" for name, _ in request):
        return False
    return not (b"public" in control or b"s-maxage" in control or b"must-revalidate" in control)


def _lifetime(
    status: int,
    headers: Pairs,
    control: Mapping[bytes, bytes | None],
    policy: RoutePolicy | None,
    default_ttl: float | None,
    now: float,
) -> tuple[float | None, str]:
    for name in (b"s-maxage", b"max-age"):
        seconds = seconds_of(control, name)
        if seconds is not None:
            return float(seconds), name.decode()
    if any(name == b"expires" for name, _ in headers):
        expires = parse_date(single_value(headers, b"expires"))
        date = parse_date(single_value(headers, b"date"))
        return (0.0 if expires is None else max(0.0, expires - (now if date is None else date))), "expires"
    if policy is not None:
        ttl = policy.ttl if policy.ttl is not None else default_ttl
        if ttl is not None and status in POLICY_STATUSES:
            return float(ttl), "policy ttl"
    modified = parse_date(single_value(headers, b"last-modified"))
    if status in HEURISTIC_STATUSES and modified is not None:
        date = parse_date(single_value(headers, b"date"))
        since = (now if date is None else date) - modified
        return min(HEURISTIC_MAX, max(0.0, since * HEURISTIC_FRACTION)), "heuristic"
    return None, "no freshness given"


def _window(control: Mapping[bytes, bytes | None], name: bytes, policy: RoutePolicy | None) -> float:
    seconds = seconds_of(control, name)
    if seconds is not None:
        return float(seconds)
    given: float | None = None
    if policy is not None:
        given = policy.stale_while_revalidate if name == b"stale-while-revalidate" else policy.stale_if_error
    return given if given is not None else 0.0


def born_at(headers: Iterable[tuple[bytes, bytes]], *, asked: float, answered: float) -> float:
    """When the response had age 0: response time less its corrected initial age (RFC 9111 4.2.3)."""
    pairs = list(headers)
    ages = field_values(pairs, b"age")
    given = delta_seconds(ages[0].strip()) if ages else None
    date = parse_date(single_value(pairs, b"date"))
    apparent = max(0.0, answered - date) if date is not None else 0.0
    corrected = (given or 0) + (answered - asked)
    return answered - max(apparent, corrected)


def judge_reuse(entry: Age, wanted: RequestDirectives, now: float) -> Reuse:
    """Whether a stored response satisfies a request without asking the app (RFC 9111 4)."""
    age = max(0.0, now - entry.born)
    left = entry.lifetime - age
    fresh = left > 0 and not wanted.no_cache
    if fresh and wanted.max_age is not None:
        fresh = age <= wanted.max_age
    if fresh and wanted.min_fresh is not None:
        fresh = left >= wanted.min_fresh
    if not fresh and wanted.max_stale is not None and not entry.must_revalidate and not wanted.no_cache:
        within_age = wanted.max_age is None or age <= wanted.max_age
        fresh = left <= 0 and within_age and -left <= wanted.max_stale
    on_error = not fresh and not entry.must_revalidate and -left <= entry.stale_if_error and entry.stale_if_error > 0
    return Reuse(fresh=fresh, stale_on_error=on_error, age=int(age), ttl=int(left) if left >= 0 else -int(-left))


def client_cache_control(policy: RoutePolicy | None, share: Share) -> bytes | None:
    """What the client is told about a response that a policy made fresh; None: leave the response's own field.

    A policy's ttl is ours. A browser that kept a tenant's answer for as long could not be purged.
    """
    if policy is None:
        return None
    if policy.client_ttl is not None:
        scope = b"public" if share == "public" else b"private"
        return b"%s, max-age=%d" % (scope, int(policy.client_ttl))
    return None if share == "public" else b"private, no-cache"
