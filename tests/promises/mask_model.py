"""What one request must lead to under each set of open gates: a small model that calls no code of ours.

The world of the model: one page under a policy (ttl, shared by a tenant), an app that never looks at conditions, and
perhaps an earlier answer in the cache, put there by somebody else whose gates were all open ("all"), or only the
cache's ("plain"). The rules, in the order in which the functions below have them:

1. Without a unit every gate is shut.
2. The cache may answer GET and HEAD for somebody known, a Range from the whole that it has; where its gate is shut it
   does nothing at all. A part that it has not is the app's to give; it is stored as a part, and never
   given to who asks for the whole.
3. The breaker answers for an app that kept failing, where its gate is open.
4. The app's ETag is everybody's. Ours is made for whole answers to GET where the etag gate is open, and sent from the
   cache only where it is open for who asks.
5. A condition is looked at by the cache where it may answer, else by the etag layer; nobody else.
6. A successful unsafe request purges, whatever is open.
7. About what is stale the cache asks by the app's own ETag, where there is one; then a 304 (of the etag layer, where it
   is open: this app makes none) renews what was stored, and it is served.
8. Cohorts are counted whatever is open; a route's metrics only where the telemetry gate is.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["BODY", "KINDS", "LAYERS", "STORED_BODY", "Kind", "Outcome", "expected", "masks"]

LAYERS = ("telemetry", "cache", "coalesce", "breaker", "etag")

STORED_BODY = b"the answer that was stored"
BODY = b"the app's answer of now"

Mask = frozenset[str]


def masks() -> list[Mask]:
    """All 32 sets of open gates."""
    return [frozenset(layer for bit, layer in enumerate(LAYERS) if number >> bit & 1) for number in range(32)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A request, and what went before it.

    known: an identity is resolved; credential: the request carries one; unit: the flags know whom to draw over.
    condition: If-None-Match with our tag (of what is stored and fresh, else of what the app says now), the app's, or
        `*`.
    stored: who filled the cache before; stale: and the answer is past its lifetime, but good for errors.
    failing: the app answers 500. tripped: it did so until the breaker (where open) gave it up; it is well again.
    twins: two of these at the same time.
    """

    name: str
    method: Literal["GET", "HEAD", "POST"] = "GET"
    known: bool = True
    credential: bool = False
    unit: bool = True
    condition: Literal["own", "app", "*"] | None = None
    ranged: bool = False
    stored: Literal["all", "plain"] | None = None
    stale: bool = False
    failing: bool = False
    tripped: bool = False
    twins: bool = False


KINDS = (
    Kind(name="miss"),
    Kind(name="miss of two at once", twins=True),
    Kind(name="miss, If-None-Match: ours", condition="own"),
    Kind(name="miss, If-None-Match: the app's", condition="app"),
    Kind(name="miss, If-None-Match: *", condition="*"),
    Kind(name="miss, the app fails", failing=True),
    Kind(name="miss, the app was given up", tripped=True),
    Kind(name="hit", stored="all"),
    Kind(name="hit of what was stored without our ETag", stored="plain"),
    Kind(name="hit of two at once", stored="all", twins=True),
    Kind(name="hit, If-None-Match: ours", stored="all", condition="own"),
    Kind(name="hit, If-None-Match: the app's", stored="all", condition="app"),
    Kind(name="hit, If-None-Match: *", stored="all", condition="*"),
    Kind(name="hit, If-None-Match: ours, stored without", stored="plain", condition="own"),
    Kind(name="hit, though the app was given up", stored="all", tripped=True),
    Kind(name="stale", stored="all", stale=True),
    Kind(name="stale, If-None-Match: ours", stored="all", stale=True, condition="own"),
    Kind(name="stale, the app fails", stored="all", stale=True, failing=True),
    Kind(name="stale, the app fails, stored without our ETag", stored="plain", stale=True, failing=True),
    Kind(name="stale, the app was given up", stored="all", stale=True, tripped=True),
    Kind(name="HEAD, miss", method="HEAD"),
    Kind(name="HEAD, hit", method="HEAD", stored="all"),
    Kind(name="HEAD, hit, If-None-Match: ours", method="HEAD", stored="all", condition="own"),
    Kind(name="HEAD, hit, If-None-Match: the app's", method="HEAD", stored="all", condition="app"),
    Kind(name="HEAD, miss, If-None-Match: the app's", method="HEAD", condition="app"),
    Kind(name="Range, miss", ranged=True),
    Kind(name="Range, hit", ranged=True, stored="all"),
    Kind(name="credential without identity", known=False, credential=True),
    Kind(name="credential without identity, stored", known=False, credential=True, stored="all"),
    Kind(name="nobody", known=False),
    Kind(name="no unit, miss", unit=False),
    Kind(name="no unit, hit", unit=False, stored="all"),
    Kind(name="POST", method="POST", stored="all"),
    Kind(name="POST that fails", method="POST", stored="all", failing=True),
    Kind(name="POST of nobody", method="POST", stored="all", known=False),
    Kind(name="POST without a unit", method="POST", stored="all", unit=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What can be seen from outside.

    runs: of the app. scope_kept: it got the very scope that the server made (None: it was not asked).
    cache_status: the field's parts after the cache's name, without ttl; empty: no such field.
    untouched: the client got exactly the header fields that the app sent.
    hit_next: somebody whose cache gate is open is served from the store afterwards.
    gone_at_start: when the response began, the store had already forgotten the page (None: nothing was stored).
    route_counted: in the route's metrics. cohorts: (layer, cohort, requests) of each flag; storable, hits, errors:
        counted there, under each flag alike.
    """

    runs: int
    status: int
    body: bytes
    etag: Literal["own", "app"] | None
    cache_status: tuple[str, ...]
    untouched: bool
    scope_kept: bool | None
    hit_next: bool
    gone_at_start: bool | None
    route_counted: int
    cohorts: frozenset[tuple[str, str, int]]
    storable: int
    hits: int
    errors: int


def expected(mask: Mask, kind: Kind, *, app_labels: bool) -> Outcome:
    """What must be seen of this request under this mask, by an app that labels its answers or does not."""
    opened = mask if kind.unit else frozenset[str]()
    number = 2 if kind.twins else 1
    by_cache = "cache" in opened and kind.method != "POST" and kind.known
    source = _source(opened, kind, by_cache)
    whole = 206 if kind.ranged else 200
    status = {"store": whole, "refusal": 503}.get(source, 500 if kind.failing else whole)
    asks = by_cache and kind.stale and app_labels  # by the ETag of what it has
    renewed = asks and "etag" in opened and source == "app" and not kind.failing
    etag = _etag(opened, kind, source, status, app_labels)
    if kind.condition is not None and (by_cache or "etag" in opened) and status == 200:
        quoted = "store" if kind.stored is not None and not kind.stale else "app"
        matches = kind.condition == etag and (etag == "app" or quoted == source)
        status = 304 if kind.condition == "*" or matches else 200
    purged = kind.method == "POST" and not kind.failing
    stored_now = by_cache and kind.method == "GET" and source == "app" and not kind.failing and not kind.ranged
    noted = "cache" in opened and kind.method != "POST"
    served = source == "store"
    runs = _runs(opened, kind, source, number)
    return Outcome(
        runs=runs,
        status=status,
        body=_body(kind, "store" if renewed else source, status),
        etag=etag,
        cache_status=_cache_status(kind, "renewed" if renewed else source, by_cache) if noted else (),
        untouched=source == "app" and not noted and etag != "own" and status != 304,
        scope_kept=((kind.condition is None and not asks) or not by_cache) if runs else None,
        hit_next=(kind.stored is not None and not kind.stale and not purged) or stored_now,
        gone_at_start=purged if kind.method == "POST" else None,
        route_counted=number if "telemetry" in opened else 0,
        cohorts=frozenset((layer, _cohort(layer, opened, kind), number) for layer in LAYERS),
        storable=number if kind.method != "POST" else 0,
        hits=number if served else 0,
        errors=number if status >= 500 else 0,
    )


def _source(opened: Mask, kind: Kind, by_cache: bool) -> Literal["store", "refusal", "app"]:
    """Whose answer the client gets."""
    refused = kind.tripped and "breaker" in opened
    if by_cache and kind.stored is not None and (not kind.stale or kind.failing or refused):
        return "store"
    return "refusal" if refused else "app"


def _runs(opened: Mask, kind: Kind, source: str, number: int) -> int:
    if source == "refusal" or (source == "store" and not (kind.stale and kind.failing)):
        return 0
    return 1 if "coalesce" in opened else number


def _etag(opened: Mask, kind: Kind, source: str, status: int, app_labels: bool) -> Literal["own", "app"] | None:
    if source == "refusal":
        return None
    if app_labels:
        return "app"
    if "etag" not in opened:
        return None
    if source == "store":
        return "own" if kind.stored == "all" else None
    return "own" if kind.method == "GET" and status == 200 else None


def _body(kind: Kind, source: str, status: int) -> bytes:
    if status == 304 or kind.method == "HEAD":
        return b""
    if source == "refusal":
        return b"Service unavailable\n"
    body = STORED_BODY if source == "store" else BODY
    return body[:4] if kind.ranged else body


def _cache_status(kind: Kind, source: str, by_cache: bool) -> tuple[str, ...]:
    if not by_cache:
        reason = "credential" if kind.credential else "no-identity"
        return ("fwd=bypass", f"detail={reason}")
    if source == "store":
        return ("hit", "detail=stale-if-error") if kind.stale else ("hit",)
    if source == "renewed":
        return ("fwd=stale", "fwd-status=304", "stored")
    forward = "fwd=stale" if kind.stored is not None else "fwd=miss"
    if source == "refusal":
        return (forward, 'detail="no-store"')
    if kind.failing:
        return (forward, 'detail="no freshness given"')
    return (forward, "stored") if kind.method == "GET" else (forward,)


def _cohort(layer: str, opened: Mask, kind: Kind) -> str:
    if not kind.unit:
        return "none"
    return "canary" if layer in opened else "control"
