"""Hits in one straight function: what most requests of a warm cache are, answered without the general layers.

It takes GET and HEAD for which the cache's gate is open (not as shadow) and the route's policy serves, of a known
identity, or of nobody where the share is public and the request carries no credential; without Range, Cache-Control,
Pragma, a body, or conditions that only the app can answer; for which the store has a fresh response at hand, in the
variant that the request selects. Everything else it leaves alone: it has changed nothing then, and the general layers
decide as if it were not there.

Why its answers are the general ones: the same key is made by the same `Names` from the same parts (P2), the store's
`peek` gives what its `get` would (purges, pending ones too, and epochs, which are purges), and what is left out cannot
matter here: none of the request fields that the rules of reuse look at is there. A property test compares the two on
generated requests, byte by byte and count by count.
"""

from collections.abc import Callable
from math import floor
from typing import Any, Final

from tidegate.middleware.core.freshness import for_client
from tidegate.middleware.core.identity import REWRITING, Credentials
from tidegate.middleware.core.keys import climbs, variant_values
from tidegate.middleware.core.policy import Share
from tidegate.middleware.core.validators import is_not_modified, not_modified_headers, weak_match
from tidegate.middleware.layers.asgi import FlagGate, Gate, RequestContext, Scope, always, has_client_certificate
from tidegate.middleware.layers.naming import Named, Names
from tidegate.middleware.stores.base import Entry, Record, Variants

__all__ = ["Answer", "FusedHits", "Hits", "Missed"]

Pair = tuple[bytes, bytes]

Answer = tuple[dict[str, Any], dict[str, Any]]
"""The start and the body of a response."""

Hits = Callable[[Scope, RequestContext], Answer | None]
"""The messages that answer a request from the store, or None: the general layers are to decide."""

Missed = tuple["FusedHits", Scope, Named, Share]
"""A GET for which there would have been a plain hit, had anything been stored under its URL's key.

Who looked; for what, and no other; the names and the share of its response. It has no field that counts for storing the
response, but as Vary or the policy names it. A plain tuple, for every miss makes one.
"""

_DECISIVE: Final = frozenset(
    {
        b"cache-control",
        b"content-length",
        b"if-match",
        b"if-unmodified-since",
        b"pragma",
        b"range",
        b"transfer-encoding",
    }
)
"""Request fields that decide whether a request may use the cache, and what it wants of it; no other does."""

_STORING: Final = REWRITING | {b"authorization", b"if-range"}
"""Request fields that do nothing to a stored response, and something to whether and how one is stored."""

_MATTERS: Final = _DECISIVE | _STORING | {b"host", b"if-modified-since", b"if-none-match"}
"""Request fields that decide something here; all others do nothing but select variants."""

_NOTES: Final = 4096
"""Pairs of Age and Cache-Status that are remembered; all entries of one age and lifetime have the same."""


class FusedHits:
    """Answers the plain hits of one cache layer. Of a plain miss it leaves a note in the context (`Missed`).

    peek: of the store, see `Peeks`.
    names: those of the cache layer.
    gate, share, credentials: as the cache layer has them.
    clock: wall-clock seconds.
    """

    def __init__(
        self,
        *,
        peek: Callable[[bytes], Record | None],
        names: Names,
        gate: Gate,
        share: Share,
        credentials: Credentials,
        clock: Callable[[], float],
    ) -> None:
        self._peek = peek
        self._names = names
        self._layer = gate.layer if isinstance(gate, FlagGate) else None
        self._gate = None if gate is always or self._layer is not None else gate
        self._wide: frozenset[str] | None = None
        """The last set of open layers for which the gate was open, by identity: the flags give the same one again."""
        self._share: Share = share
        self._credentials = credentials
        self._credentials_too = _MATTERS | credentials.headers
        self._clock = clock
        self._notes: dict[tuple[int, int], tuple[Pair, Pair]] = {}

    def find(self, scope: Scope, context: RequestContext) -> Answer | None:  # noqa: C901 - straight on purpose
        """The messages that answer this request; None: not a plain hit."""
        method = scope["method"]
        plain, gate = True, self._gate
        if method != "GET":
            if method != "HEAD":
                return None
            plain = False
        if gate is not None and not gate(context):
            return None
        decision, identity, policy = context.decision, context.identity, context.match.policy
        if decision is not None:
            if decision.open is not self._wide and not self._is_wide(decision.open):
                return None
            if decision.shadow and "cache" in decision.shadow:
                return None
        share, matters = self._share, _MATTERS
        if policy is not None:
            share = policy.share
            if policy.mode != "serve":
                return None
        if identity is None:
            if share != "public" or self._is_somebodys(scope):
                return None
            matters = self._credentials_too
        elif share == "user":
            if identity.user is None:
                return None
        else:
            path = scope["path"]  # what `climbs` asks first, so that most paths cost no call
            if ("/." in path or "\\" in path or "%" in path) and climbs(path):
                return None
        host = tag = None
        conditional = False
        headers = scope["headers"]
        for name, value in headers:
            if name in matters:
                if name == b"host" and host is None:
                    host = value
                elif name == b"if-none-match":
                    tag, conditional = (None if conditional or b"," in value else value), True
                elif name == b"if-modified-since":
                    conditional = True
                elif name in _STORING and (identity is not None or name not in self._credentials.headers):
                    plain = False
                else:
                    return None
        named = self._names.of(scope, host or b"", context.match, share, identity)
        peek, clock = self._peek, self._clock
        entry = peek(named.primary)
        if type(entry) is not Entry:
            if entry is None:
                if plain and not conditional:
                    context.missed = (self, scope, named, share)
                return None
            entry = self._variant(named, entry, headers)
            if entry is None:
                return None
        elif entry.vary:
            return None
        age = clock() - entry.born
        if age < 0.0:
            age = 0.0
        left = entry.lifetime - age
        if left <= 0.0 or entry.no_cache:
            return None
        if entry.own_etag and decision is not None and "etag" not in decision.open:
            return None
        seconds = floor(age), floor(left)  # int() of them takes twice as long
        try:
            notes = self._notes[seconds]
        except KeyError:
            notes = self._note(seconds)
        if policy is not None and policy.client_ttl is not None:
            given = [*for_client(entry.headers, policy, seconds[0], entry.lifetime), *notes]
        else:
            given = [*entry.headers, *notes]
        context.storable, context.outcome = True, "hit"
        status, body = entry.status, entry.body
        if conditional and _has_it(tag, headers, given, status):
            status, given, body = 304, not_modified_headers(given), b""
        elif method == "HEAD":
            body = b""
        return (
            {"type": "http.response.start", "status": status, "headers": given},
            {"type": "http.response.body", "body": body, "more_body": False},
        )

    def late(self, context: RequestContext, record: Record | None) -> Answer | None:
        """The same for a plain miss that was noted (`Missed`), once a store that has to be waited for has answered:
        with the record under its key."""
        if type(record) is not Entry or record.vary:
            return None
        age = self._clock() - record.born
        left = record.lifetime - (age if age > 0 else 0.0)
        if left <= 0 or record.no_cache or (record.own_etag and not context.is_open("etag")):
            return None
        seconds = (int(age) if age > 0 else 0, int(left))
        context.storable, context.outcome = True, "hit"
        policy, given = context.match.policy, [*record.headers]
        if policy is not None and policy.client_ttl is not None:
            given = [*for_client(given, policy, seconds[0], record.lifetime)]
        given = [*given, *(self._notes.get(seconds) or self._note(seconds))]
        return (
            {"type": "http.response.start", "status": record.status, "headers": given},
            {"type": "http.response.body", "body": record.body, "more_body": False},
        )

    def _is_wide(self, opened: frozenset[str]) -> bool:
        """Whether the flags open the cache; remembered, if so."""
        if self._layer is not None and self._layer not in opened:
            return False
        self._wide = opened
        return True

    def _is_somebodys(self, scope: Scope) -> bool:
        """Whether a request carries a credential elsewhere than in its header fields."""
        query: bytes = scope.get("query_string", b"")
        certificate = has_client_certificate(scope)
        return certificate or (bool(query) and self._credentials.present((), query, client_certificate=False))

    def _variant(self, named: Named, record: Record | None, headers: list[Pair]) -> Entry | None:
        """The variant that the request selects, where responses vary."""
        if type(record) is not Variants:
            return None
        values = variant_values(headers, record.names)
        entry = self._peek(self._names.variant(named, values))
        # Of an entry under the wrong key the general layers say that it is none.
        return entry if type(entry) is Entry and entry.vary == values else None

    def _note(self, seconds: tuple[int, int]) -> tuple[Pair, Pair]:
        notes = ((b"age", b"%d" % seconds[0]), (b"cache-status", b"Tidegate; hit; ttl=%d" % seconds[1]))
        if len(self._notes) >= _NOTES:
            self._notes.clear()
        self._notes[seconds] = notes
        return notes


def _has_it(tag: bytes | None, request: list[Pair], response: list[Pair], status: int) -> bool:
    """Whether the client has the response already (RFC 9110 13.2.2).

    tag: the one entity tag that it names; None: there are several, or a date instead.
    """
    if tag is None or status != 200:
        return is_not_modified(request, response, status=status)
    wanted = tag.strip(b" \t")
    if wanted == b"*":
        return True
    etags = [value for name, value in response if name == b"etag"]
    return len(etags) == 1 and bool(wanted) and weak_match(wanted, etags[0].strip(b" \t"))
