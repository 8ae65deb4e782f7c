"""What one request looks up in the store and puts into it: keys, tags, positions, and what is kept of an answer."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Final, Literal

from tidegate.errors import StoreError
from tidegate.middleware.core.freshness import born_at, is_too_old
from tidegate.middleware.core.groups import group_tags
from tidegate.middleware.core.identity import Credentials
from tidegate.middleware.core.keys import variant_values
from tidegate.middleware.core.message import single_value, storable_headers
from tidegate.middleware.core.policy import Share
from tidegate.middleware.core.reuse import VALIDATED_FOR, kept_until, of_use_past
from tidegate.middleware.core.storing import (
    Kept,
    Refused,
    RequestDirectives,
    Usable,
    client_fields,
    judge_response,
    told,
)
from tidegate.middleware.core.updating import has_validator
from tidegate.middleware.layers.asgi import RequestContext, Scope
from tidegate.middleware.layers.naming import Named, Names
from tidegate.middleware.layers.refresh import Refreshes
from tidegate.middleware.layers.sessions import VARY_COOKIE
from tidegate.middleware.layers.tee import Pairs
from tidegate.middleware.layers.witness import Witness
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.base import PUBLIC_SCOPE, Bounds, Entry, Lookup, ScopedTag, Store, Variants, new_entry

__all__ = [
    "MAX_HEADER_BYTES",
    "MAX_TAGS",
    "MAX_VARIANTS",
    "CacheConfig",
    "Filling",
    "refusal_note",
    "tags_of",
]

MAX_HEADER_BYTES: Final = 32 * 1024
"""Bytes of a response's header fields, names and values. A response with more is not stored."""

MAX_TAGS: Final = 128
"""Tags an entry may carry; every one is checked at each hit. A response with more is not stored."""

MAX_VARIANTS: Final = 64
"""Variants of one URL in one share that Vary may make; the one that was first stored goes first."""

_NOTHING: Final = Lookup(None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """What all exchanges of one cache layer share; see CacheLayer for the meaning of each.

    status_key: secret that keys in Cache-Status and explanations are hashed with. show_key: Cache-Status names the key.
    in_part: primary keys of what this process stored a part of lately, so that nothing else is ever asked for one.
    """

    store: Store
    default_ttl: float | None
    max_body: int
    names: Names
    metrics: Metrics
    clock: Callable[[], float]
    refreshes: Refreshes
    credentials: Credentials = field(default_factory=Credentials)
    status_key: bytes = b""
    show_key: bool = False
    in_part: OrderedDict[bytes, None] = field(default_factory=OrderedDict[bytes, None])
    _bounds: Bounds | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_bounds", self.store if isinstance(self.store, Bounds) else None)

    def get(self, context: RequestContext, key: bytes, scopes: Sequence[str] = ()) -> Awaitable[Lookup]:
        """As the store's; all that one request looks up has one budget of time, where the store has one (P5)."""
        bounds = self._bounds
        return bounds.get_for(context, key, scopes) if bounds is not None else self.store.get(key, scopes)

    def ask(self, named: Named, context: RequestContext) -> Awaitable[Lookup | None]:
        """What the store says of the primary key; None, and counted, if it cannot answer."""
        if self._bounds is not None:
            return self._bounds.get_for(context, named.primary, looked_up(named.scope))
        return self._asked(named)

    async def _asked(self, named: Named) -> Lookup | None:
        try:
            return await self.store.get(named.primary, looked_up(named.scope))
        except StoreError as error:
            self.metrics.fail("store", error)
            return None

    def shown_key(self, key: bytes) -> str:
        """A key for people: equal for equal keys, and no way from it to the key or to what that is made of."""
        return blake2b(key, digest_size=10, key=self.status_key, person=b"cache-status").hexdigest()


Limit = Literal["headers", "body"]


class Filling(Witness):
    """One request's dealings with the store. Also the Keeper of its Tee."""

    _answered: tuple[int, Pairs, bool] | None = None
    """Status and fields of the app's answer as they were judged, and whether the ETag is ours; for explanations."""

    _limit: Limit | None = None
    """What of the answer was too much to store it."""

    def __init__(
        self, config: CacheConfig, context: RequestContext, scope: Scope, named: Named, usable: Usable,
        wanted: RequestDirectives, found: Lookup | None = None,
    ) -> None:  # fmt: skip
        """found: what the store said of the primary key already."""
        super().__init__(scope)
        self._config = config
        self._context = context
        self._scope = scope
        self._named = named
        self._uri = named.uri
        self._usable = usable
        self._share: Share = usable.share
        self._wanted = wanted
        self._request: Sequence[tuple[bytes, bytes]] = scope["headers"]
        self._own_scope = named.scope
        self._primary = named.primary
        self._key = self._primary
        self._variants: Variants | None = None
        self._lookup = _NOTHING
        self._found = found
        self._asked = 0.0
        self._kept: Kept | None = None
        self._forward = b"miss"

    def take_up(
        self,
        positions: Mapping[str, int] | None,
        asked: float,
        answered: tuple[int, Pairs, bool] | None,
        kept: Kept | None,
    ) -> None:
        """Go on where another way has come to. positions: of a look-up that found nothing; asked: when that was.

        answered, kept: as this would have noted them at the response's start; None: there was none.
        """
        self._lookup, self._asked = Lookup(None, positions), asked
        self._answered, self._kept = answered, kept

    async def _look_up(self) -> Lookup:
        if self._context.tracer is None:
            return await self._get()
        with self._context.tracer.start_as_current_span("tidegate.store.get") as span:
            lookup = await self._get()
            span.set_attribute("tidegate.store.found", isinstance(lookup.record, Entry))
            return lookup

    async def _get(self) -> Lookup:
        """The stored response that this request selects, and the positions to store a new one with."""
        get = self._config.get
        narrowed = self._is_for_the_share
        policy = self._context.match.policy
        if narrowed and policy is not None:
            self._context.coalesce_key = self._config.names.shared(self._named, policy, self._request)
        try:
            found, self._found = self._found, None
            lookup = found if found is not None else await get(self._context, self._primary, looked_up(self._own_scope))
            if isinstance(lookup.record, Variants):
                self._variants = lookup.record
                self._key = self._variant_key(lookup.record.names)
                if narrowed:
                    self._context.coalesce_key = self._key
                lookup = Lookup((await get(self._context, self._key)).record, lookup.positions)
        except StoreError as error:
            self._config.metrics.fail("store", error)
            return _NOTHING
        record = lookup.record
        if isinstance(record, Entry) and record.vary:
            # The key says so already; but an entry under the wrong key must not be served either.
            names = tuple(name for name, _ in record.vary)
            if variant_values(self._request, names) != record.vary:
                return Lookup(None, lookup.positions)
        return lookup

    @property
    def _is_for_the_share(self) -> bool:
        """Whether the answer is for the whole share, so that requests with one key may share a run. Of a request with
        a credential of which nobody knows whose it is, or with one where no policy says public, only the answer itself
        can tell.
        """
        if self._context.identity is not None and (self._context.match.policy is not None or self._share != "public"):
            return True
        return self._usable.stores and not any(name == b"authorization" for name, _ in self._request)

    def _variant_key(self, names: Sequence[bytes]) -> bytes:
        """The key of the variant that this request selects (RFC 9111 4.1)."""
        return self._config.names.variant(self._named, variant_values(self._request, names))

    def _judged(self, status: int, headers: Pairs, *, own_etag: bool) -> Kept | Refused:
        if not self._usable.stores:
            return Refused("credential")
        if self._has_body:
            return Refused("body")
        use = self._session_use
        if use == "changed":
            return Refused("Set-Cookie")  # which a session middleware further out is going to add
        if use == "read":
            headers = [*headers, VARY_COOKIE]
        return judge_response(
            status=status,
            headers=headers,
            request=self._request,
            share=self._share,
            policy=self._context.match.policy,
            default_ttl=self._config.default_ttl,
            now=self._config.clock(),
            known=self._context.identity is not None,
            validator=has_validator([pair for pair in headers if pair[0] != b"etag"] if own_etag else headers),
        )

    def _aged(self, verdict: Kept | Refused, status: int, headers: Pairs, *, own_etag: bool) -> Kept | Refused:
        """The verdict about a response that comes now: it may be too old already to be of any use."""
        if isinstance(verdict, Kept) and any(name == b"age" or name == b"date" for name, _ in headers):
            asked = [pair for pair in headers if pair[0] != b"etag"] if own_etag else headers
            past = of_use_past(verdict, validator=has_validator(asked)) if status != 206 else 0.0
            if is_too_old(headers, verdict.lifetime + past, asked=self._asked, now=self._config.clock()):
                return Refused(f"not fresh ({verdict.rule})")
        return verdict

    def begin(self, status: int, headers: Pairs, *, trailers: bool) -> tuple[Pairs, int | None]:
        """Decide about the app's response, and say so in Cache-Status (RFC 9211)."""
        note = b"Tidegate; fwd=" + self._forward
        room: int | None = None
        self._answered = status, headers, self._context.own_etag
        judged = self._judged(status, headers, own_etag=self._context.own_etag)
        verdict = self._aged(judged, status, headers, own_etag=self._context.own_etag)
        if isinstance(judged, Kept):
            headers = self._for_client(headers, judged)
        if isinstance(verdict, Kept):
            self._context.storable = verdict.reusable
            room = self._room(headers, trailers=trailers)
            if self._limit is not None:
                note += b"; detail=limit-" + self._limit.encode()
        else:
            note += refusal_note(verdict)
        if self._context.collapsed:
            room = None  # it is another request's response, which that one stores
            note += b"; collapsed"
        if room is not None and isinstance(verdict, Kept):
            self._kept = verdict
            note += b"; stored"
        if self._config.show_key:
            vary = verdict.vary if isinstance(verdict, Kept) else ()
            note += self._key_note(self._key_for(vary, status, headers))
        return (*headers, (b"cache-status", note)), room

    def _key_for(self, vary: Sequence[bytes], _status: int, _headers: Pairs) -> bytes:
        """The key under which a response to this request is stored that varies on these fields."""
        return self._variant_key(vary) if vary else self._primary

    def _key_note(self, key: bytes) -> bytes:
        """The key as a parameter of Cache-Status (RFC 9211 2.7)."""
        return b'; key="%s"' % self._config.shown_key(key).encode()

    def _for_client(self, headers: Pairs, kept: Kept) -> Pairs:
        """With what the policy tells the client."""
        ours = client_fields(headers, kept, self._context.match.policy, self._share)
        return tuple(told(headers, ours)) if ours else headers

    def _room(self, headers: Pairs, *, trailers: bool) -> int | None:
        """How many bytes may be kept; None where this response cannot be kept at all."""
        if trailers or self._scope["method"] == "HEAD" or self._lookup.positions is None:
            return None
        if sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
            self._config.metrics.limits.labels("headers").inc()
            self._limit = "headers"
            return None
        policy = self._context.match.policy
        room = policy.max_body if policy is not None else self._config.max_body
        stated = single_value(headers, b"content-length")
        if stated is not None and stated.isdigit() and int(stated) > room:
            self._config.metrics.limits.labels("body").inc()
            self._limit = "body"
            return None
        return room

    async def commit(self, status: int, headers: Pairs, body: bytes) -> None:
        """Store the whole response under its key, and its variants' names under the URL's. Never raises.

        The client has its answer already: what a handler named as a tag, or a store does, is not to fail the app.
        """
        try:
            await self._commit(status, headers, body)
        except Exception as error:  # noqa: BLE001 - P5; counted
            self._config.metrics.fail("store", error)

    async def _commit(self, status: int, headers: Pairs, body: bytes) -> None:
        if self._kept is None or self._has_body:
            return
        stored = storable_headers(headers)
        if status != 204 and single_value(stored, b"content-length") is None:
            stored = (*stored, (b"content-length", b"%d" % len(body)))
        if self._session_use == "read" and not self._session_was_read:
            stored = (*stored, VARY_COOKIE)  # for the hits: nobody reads the session then, and nobody else would say so
        entry = self._entry_of(status, stored, body, kept=self._kept, sent=headers, own_etag=self._context.own_etag)
        await self._put(entry, self._kept.vary)

    def _entry_of(self, status: int, stored: Pairs, body: bytes, *, kept: Kept, sent: Pairs, own_etag: bool) -> Entry:
        """The entry of a response whose fields came as `sent` just now."""
        if kept.dropped:
            stored = [pair for pair in stored if pair[0] not in kept.dropped]
        return new_entry(
            status=status,
            headers=tuple(stored),
            body=body,
            born=born_at(sent, asked=self._asked, answered=self._config.clock()),
            lifetime=kept.lifetime,
            stale_while_revalidate=kept.stale_while_revalidate,
            stale_if_error=kept.stale_if_error,
            must_revalidate=kept.must_revalidate,
            no_cache=kept.no_cache,
            vary=variant_values(self._request, kept.vary),
            own_etag=own_etag,
        )

    def _ready(self, entry: Entry, *, tags: Sequence[ScopedTag]) -> tuple[Entry, float] | None:
        """An entry with its tags, and with the positions that were read before the app was asked; and for how many
        seconds it can be of use. None: it is not to be stored.
        """
        positions = self._lookup.positions
        if positions is None:
            return None
        if len(tags) > MAX_TAGS:
            self._config.metrics.limits.labels("tags").inc()
            return None
        retain = kept_until(entry) - self._config.clock()
        return (replace(entry, tags=tuple(tags), positions=tuple(positions.items())), retain) if retain > 0 else None

    async def _put(self, entry: Entry, vary: tuple[bytes, ...], *, known: Sequence[ScopedTag] = ()) -> None:
        """Store an entry, and the names of its variants. known: tags that it carried before."""
        ready = self._ready(entry, tags=tuple(dict.fromkeys((*self._tags(entry.headers), *known))))
        if ready is None:
            return
        entry, retain = ready
        store = self._config.store
        if not vary:
            await store.put(self._primary, entry, retain=retain)
            return
        key = self._variant_key(vary)
        known_keys = self._variants.keys if self._variants is not None and self._variants.names == vary else ()
        keys = (*(each for each in known_keys if each != key), key)
        if len(keys) > MAX_VARIANTS:
            self._config.metrics.limits.labels("variants").inc()
            await store.delete(keys[0])
            keys = keys[1:]
        variants = Variants(names=vary, keys=keys, scope=self._own_scope)
        await store.put(self._primary, variants, retain=max(retain, VALIDATED_FOR))
        await store.put(key, entry, retain=retain)

    def _tags(self, headers: Pairs = ()) -> tuple[ScopedTag, ...]:
        return tags_of(self._context, self._named, headers)


def looked_up(own: str) -> tuple[str, ...]:
    """The scopes whose positions a response needs that is stored for this one."""
    return (PUBLIC_SCOPE,) if own == PUBLIC_SCOPE else (own, PUBLIC_SCOPE)


def refusal_note(refused: Refused) -> bytes:
    """Why a response is not stored, as a parameter of Cache-Status."""
    return b'; detail="%s"' % refused.reason.encode("ascii", "replace").replace(b'"', b"'")


def tags_of(context: RequestContext, named: Named, headers: Pairs) -> tuple[ScopedTag, ...]:
    """What an entry with these fields depends on: its URI, what policy and handler name, and its groups."""
    match = context.match
    names = [template.format_map(match.params) for template in match.policy.tags] if match.policy is not None else []
    names += context.tags or ()
    own = [(named.scope, name) for name in dict.fromkeys(names)]
    groups = [(PUBLIC_SCOPE, name) for name in group_tags(headers, named.uri.scheme, named.uri.host)]
    return (named.tag, *own, *groups)
