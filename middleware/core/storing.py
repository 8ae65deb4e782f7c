"""May a request use the cache, and may a response be stored: RFC 9111 section 3 as pure decisions.

Two modes. With a policy that gives a ttl, the route is ours to cache where the response is silent. Without one (RFC
mode) only the response's own fields decide. In both, what the response forbids stays forbidden.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from tidegate.middleware.core.freshness import lifetime_of, window_of
from tidegate.middleware.core.identity import REWRITING, Identity
from tidegate.middleware.core.message import (
    delta_seconds,
    directives,
    field_values,
    list_members,
    seconds_of,
    vary_names,
)
from tidegate.middleware.core.policy import RoutePolicy, Share
from tidegate.middleware.core.targeted import control_of

__all__ = [
    "Bypass",
    "Kept",
    "Refused",
    "RequestDirectives",
    "Usable",
    "as_strict",
    "client_cache_control",
    "client_fields",
    "judge_request",
    "judge_response",
    "request_directives",
    "told",
]

Pairs = Sequence[tuple[bytes, bytes]]

_BYPASSING_FIELDS: Final = frozenset({b"if-match", b"if-unmodified-since"})
"""Only the app can answer these from here (RFC 9110 13.1)."""

UNSTORABLE_STATUSES: Final = frozenset({206, 304, 416})
"""About a Range or a condition of one request: under the URL they would answer everybody's (RFC 9110 15.5.17)."""

_ESSENTIAL: Final = frozenset({b"cache-control", b"content-encoding", b"content-range", b"content-type", b"vary"})
"""Fields without which the content, or for whom it is, cannot be told."""

_BREAK: Final = re.compile(rb"[\r\n\x00]")
"""What ends a field on the wire: a stored one would begin a response of its own in every hit (RFC 9110 5.5)."""

UNDERSTOOD: Final = frozenset({200, 203, 204, 300, 301, 302, 303, 307, 308, 404, 405, 410, 414, 501})
"""Statuses whose rules of caching are known here, as must-understand asks (RFC 9111 5.2.2.3)."""


@dataclass(frozen=True, slots=True)
class Usable:
    """The request may be answered from the cache within this share, and its response stored there if `stores`."""

    share: Share
    stores: bool = True


@dataclass(frozen=True, slots=True)
class Bypass:
    """The request goes to the app, and its response is not stored. `reason` is a metric label."""

    reason: Literal[
        "method", "policy-off", "body", "conditional", "credential", "no-identity", "no-user", "no-store", "path"
    ]


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
    """A response may be stored: how long it is fresh, and how long it may be used when it is not.

    no_cache: it is to be validated before every use. dropped: fields that are not to be stored with it.
    """

    lifetime: float
    stale_while_revalidate: float
    stale_if_error: float
    must_revalidate: bool
    vary: tuple[bytes, ...]
    rule: str
    no_cache: bool = False
    dropped: frozenset[bytes] = frozenset()

    @property
    def reusable(self) -> bool:
        """Whether it can ever be served without asking the app."""
        return self.lifetime > 0 and not self.no_cache


@dataclass(frozen=True, slots=True)
class Refused:
    """A response may not be stored; `reason` says why in words of the RFC."""

    reason: str


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
        max_stale=2**31 if found.get(b"max-stale", b"") is None else delta_seconds(found.get(b"max-stale")),
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
    only_cookies: bool = False,
    climbs: bool = False,
) -> Usable | Bypass:
    """Whether a request may use the cache at all, and for whom its response would be kept (P2).

    only_cookies: the credential is a cookie, which browsers send to everything. Where the mount is public and no policy
        speaks, only the responses' own fields count (RFC mode): what is stored for everybody may be served, and the
        answer to this request is not stored.
    climbs: the path has dot segments, see `climbs` in core.keys. What the app makes of it may be another route than the
        one whose policy says that somebody known shares the answer with others.
    """
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
            spared = only_cookies and share == "public" and policy is None
            return Usable(share, stores=False) if spared else Bypass("credential")
        if share != "public":
            return Bypass("no-identity")
    elif share == "user" and identity.user is None:
        return Bypass("no-user")
    elif climbs and share != "user":
        return Bypass("path")
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
    known: bool = True,
    validator: bool = False,
) -> Kept | Refused:
    """Whether a complete response to GET may be stored (RFC 9111 3), and its freshness lifetime (4.2.1).

    known: an identity was resolved for the request. validator: the app can be asked whether the response still holds.
    """
    if status < 200 or status in UNSTORABLE_STATUSES:
        return Refused(f"status {status}")
    control = control_of(headers)
    said = control.directives
    vary, refusal = _forbidden(status, headers, said, share)
    if refusal is not None:
        return Refused(refusal)
    if _shares_authorized(request, said, share, policy, known=known):
        return Refused("authorization (RFC 9111 3.5)")
    no_cache = _is_about_all(said, b"no-cache")
    if no_cache and not validator:
        return Refused("no-cache")
    lifetime, rule = lifetime_of(status, headers, control, policy, default_ttl, now)
    if lifetime is None:
        # Asked about before every use, it needs no lifetime.
        if not no_cache:
            return Refused(rule)
        lifetime, rule = 0.0, "no-cache"
    strict = no_cache or b"must-revalidate" in said or b"proxy-revalidate" in said or b"s-maxage" in said
    named = [name.lower().encode() for name in (policy.vary if policy else ())]
    kept = Kept(
        lifetime=lifetime,
        stale_while_revalidate=0.0 if strict else window_of(control, b"stale-while-revalidate", policy),
        stale_if_error=0.0 if strict else window_of(control, b"stale-if-error", policy),
        must_revalidate=strict,
        vary=tuple(dict.fromkeys([*vary, *named, *sorted(name for name, _ in request if name in REWRITING)])),
        rule=rule,
        no_cache=no_cache,
        dropped=_dropped(said, share),
    )
    if kept.lifetime <= 0 and kept.stale_if_error <= 0 and kept.stale_while_revalidate <= 0 and not validator:
        return Refused(f"not fresh ({rule})")
    return kept


def _forbidden(
    status: int, headers: Pairs, said: Mapping[bytes, bytes | None], share: Share
) -> tuple[list[bytes], str | None]:
    """The fields that Vary names, and what forbids to store, if anything does."""
    if b"must-understand" in said:
        # Its rule takes the place of no-store for those who know it (RFC 9111 5.2.2.3).
        if status not in UNDERSTOOD:
            return [], "must-understand"
    elif b"no-store" in said:
        return [], "no-store"
    if share != "user" and _is_about_all(said, b"private"):
        return [], "private"
    vary = vary_names(headers)
    if vary is None:
        return [], "Vary: *"
    lengths = 0
    for name, value in headers:
        if name == b"set-cookie":
            return [], "Set-Cookie"
        lengths += name == b"content-length"
        if lengths > 1 or _BREAK.search(value) or _BREAK.search(name):
            return [], "malformed"
        if name == b"access-control-allow-origin" and value.strip() != b"*":
            vary.append(b"origin")  # it was made for that one, though the app does not say so (Fetch 3.2.1)
    return vary, None


def _dropped(said: Mapping[bytes, bytes | None], share: Share) -> frozenset[bytes]:
    """Fields that no-cache="..." and private="..." name: left out of what is stored (RFC 9111 5.2.2.4, 5.2.2.7)."""
    kinds = (b"no-cache",) if share == "user" else (b"no-cache", b"private")
    return frozenset(name for kind in kinds if not _is_about_all(said, kind) for name in _named(said, kind))


def _named(said: Mapping[bytes, bytes | None], kind: bytes) -> frozenset[bytes]:
    value = said.get(kind)
    return frozenset(member.lower() for member in list_members([value])) if value else frozenset()


def _is_about_all(said: Mapping[bytes, bytes | None], kind: bytes) -> bool:
    """Whether no-cache or private is there and names no fields, or ones without which the rest is of no use."""
    return kind in said and (not said[kind] or not _ESSENTIAL.isdisjoint(_named(said, kind)))


def _shares_authorized(
    request: Pairs, said: Mapping[bytes, bytes | None], share: Share, policy: RoutePolicy | None, *, known: bool
) -> bool:
    """A public copy of an authorized answer needs the response's leave, or a policy that says public (RFC 9111 3.5)."""
    if share != "public" or (policy is not None and known):
        return False
    if not any(name == b"authorization" for name, _ in request):
        return False
    return not (b"public" in said or b"s-maxage" in said or b"must-revalidate" in said)


def client_cache_control(
    policy: RoutePolicy | None, share: Share, *, no_cache: bool, must_revalidate: bool
) -> bytes | None:
    """What the client is told about a response that a policy made fresh; None: leave the response's own field.

    A policy's ttl is ours. A browser that kept a tenant's answer for as long could not be purged.
    no_cache, must_revalidate: what the response says; of it as much holds for the client as for us.
    """
    if policy is None:
        return None
    if policy.client_ttl is not None and not no_cache:
        scope = b"public" if share == "public" else b"private"
        strict = b", must-revalidate" if must_revalidate else b""
        return b"%s, max-age=%d%s" % (scope, int(policy.client_ttl), strict)
    return None if share == "public" else b"private, no-cache"


def client_fields(
    headers: Pairs, kept: Kept, policy: RoutePolicy | None, share: Share
) -> tuple[tuple[bytes, bytes], ...]:
    """What the client is told beyond the app's fields about a response that is kept.

    The Cache-Control of `client_cache_control`, where the policy made it fresh; and a Vary line with the policy's names
    that the app's own does not have: what selects here selects in a browser and a proxy too (RFC 9110 12.5.5).
    """
    ours: list[tuple[bytes, bytes]] = []
    field = None
    if kept.rule == "policy ttl":
        field = client_cache_control(policy, share, no_cache=kept.no_cache, must_revalidate=kept.must_revalidate)
    if field is not None:
        ours.append((b"cache-control", field))
    if policy is not None and policy.vary:
        known = vary_names(headers) or ()
        missing = [name for name in dict.fromkeys(name.lower().encode() for name in policy.vary) if name not in known]
        if missing:
            ours.append((b"vary", b", ".join(missing)))
    return tuple(ours)


def as_strict(kept: Kept, *, no_cache: bool, must_revalidate: bool) -> Kept:
    """The same verdict about a response that said no-cache or must-revalidate, though its fields do not any more."""
    if not must_revalidate:
        return kept
    return replace(
        kept,
        no_cache=kept.no_cache or no_cache,
        must_revalidate=True,
        stale_while_revalidate=0.0,
        stale_if_error=0.0,
    )


def told(headers: Pairs, ours: Pairs) -> list[tuple[bytes, bytes]]:
    """The app's fields with ours: a Cache-Control of ours takes the place of the app's."""
    replaced = any(name == b"cache-control" for name, _ in ours)
    return [*(pair for pair in headers if not (replaced and pair[0] == b"cache-control")), *ours]
