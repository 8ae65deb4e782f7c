"""One GET or HEAD on its way through the cache: look up, answer, or ask the app and keep what it says."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tidegate.errors import StoreError
from tidegate.middleware.core.keys import digest, primary_parts, scope_of, tag_of_uri, variant_values
from tidegate.middleware.core.message import single_value, storable_headers
from tidegate.middleware.core.policy import Share
from tidegate.middleware.core.storing import (
    Kept,
    RequestDirectives,
    Reuse,
    Usable,
    born_at,
    client_cache_control,
    judge_response,
    judge_reuse,
)
from tidegate.middleware.core.validators import CONDITIONAL_HEADERS, is_not_modified, not_modified_headers
from tidegate.middleware.layers.asgi import ASGIApp, Receive, RequestContext, Scope, Send
from tidegate.middleware.layers.tee import Pairs, Tee
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.base import PUBLIC_SCOPE, Entry, Lookup, ScopedTag, Store, Variants

__all__ = ["CacheConfig", "Exchange", "Uri"]

MAX_TAGS: Final = 128
"""Tags an entry may carry; every one is checked at each hit. A response with more is not stored."""

_NOTHING: Final = Lookup(None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """What all exchanges of one cache layer share; see CacheLayer for the meaning of each."""

    store: Store
    default_ttl: float | None
    max_body: int
    namespace: bytes
    naming_key: bytes
    metrics: Metrics
    clock: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Uri:
    """What of a request names the resource: the path as it was sent, and the part of the query that counts."""

    scheme: str
    host: bytes
    raw_path: bytes
    query: bytes

    @property
    def tag(self) -> ScopedTag:
        """The tag that every copy of this resource carries, whatever its share."""
        return PUBLIC_SCOPE, tag_of_uri(self.scheme, self.host, self.raw_path, self.query)


class Exchange:
    """One request that may use the cache. Also the Keeper of its Tee."""

    def __init__(
        self, config: CacheConfig, context: RequestContext, scope: Scope, uri: Uri, usable: Usable,
        wanted: RequestDirectives,
    ) -> None:  # fmt: skip
        self._config = config
        self._context = context
        self._scope = scope
        self._uri = uri
        self._share: Share = usable.share
        self._wanted = wanted
        self._request: Sequence[tuple[bytes, bytes]] = scope["headers"]
        self._own_scope = scope_of(context.identity, usable.share)
        self._parts = primary_parts(
            namespace=config.namespace,
            share=usable.share,
            identity=context.identity,
            scheme=uri.scheme,
            host=uri.host,
            raw_path=uri.raw_path,
            query=uri.query,
        )
        self._primary = digest(self._parts, config.naming_key)
        self._lookup = _NOTHING
        self._asked = 0.0
        self._kept: Kept | None = None
        self._forward = b"miss"

    async def run(self, app: ASGIApp, receive: Receive, send: Send) -> None:
        """Answer the request, from the store or from the app."""
        context = self._context
        self._lookup = await self._look_up()
        context.positions = self._lookup.positions
        entry = self._lookup.record if isinstance(self._lookup.record, Entry) else None
        reuse = judge_reuse(entry, self._wanted, self._config.clock()) if entry is not None else None
        if entry is not None and reuse is not None and reuse.fresh:
            context.storable, context.outcome = True, "hit"
            await self._answer(send, entry, reuse, b"hit; ttl=%d" % reuse.ttl)
            return
        context.outcome = "miss"
        if self._wanted.only_if_cached:
            context.reason = "only-if-cached"
            await _gateway_timeout(send)
            return
        stand_in: Callable[[], Awaitable[None]] | None = None
        if entry is not None and reuse is not None:
            self._forward = b"request" if self._wanted.no_cache else b"stale"
            if reuse.stale_on_error:
                stand_in = self._stale(send, entry, reuse)
        await self._ask(app, receive, send, stand_in)

    async def _look_up(self) -> Lookup:
        if self._context.tracer is None:
            return await self._get()
        with self._context.tracer.start_as_current_span("tidegate.store.get") as span:
            lookup = await self._get()
            span.set_attribute("tidegate.store.found", isinstance(lookup.record, Entry))
            return lookup

    async def _get(self) -> Lookup:
        """The stored response that this request selects, and the positions to store a new one with."""
        store = self._config.store
        if self._context.match.policy is not None:
            self._context.coalesce_key = self._primary
        try:
            lookup = await store.get(self._primary, tuple(dict.fromkeys((self._own_scope, PUBLIC_SCOPE))))
            if isinstance(lookup.record, Variants):
                key = self._variant_key(lookup.record.names)
                self._context.coalesce_key = key
                lookup = Lookup((await store.get(key)).record, lookup.positions)
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

    def _variant_key(self, names: Sequence[bytes]) -> bytes:
        """The key of the variant that this request selects (RFC 9111 4.1)."""
        parts: list[bytes | None] = [*self._parts, b"vary"]
        for name, value in variant_values(self._request, names):
            parts += [name, value]
        return digest(parts, self._config.naming_key)

    async def _ask(
        self, app: ASGIApp, receive: Receive, send: Send, stand_in: Callable[[], Awaitable[None]] | None
    ) -> None:
        tee = Tee(send, request=self._request, keeper=self, stand_in=stand_in)
        self._asked = self._config.clock()
        try:
            await app(self._unconditional(), receive, tee)
        except Exception as error:
            if stand_in is not None and not tee.started:
                self._config.metrics.fail("app", error)
                await stand_in()
            # The server must still hear of it: the client has its answer, the log has the fault.
            raise

    def _unconditional(self) -> Scope:
        """The scope without the client's conditions, so that the app gives a whole response that can be stored."""
        if not any(name in CONDITIONAL_HEADERS for name, _ in self._request):
            return self._scope
        return {**self._scope, "headers": [pair for pair in self._request if pair[0] not in CONDITIONAL_HEADERS]}

    def _stale(self, send: Send, entry: Entry, reuse: Reuse) -> Callable[[], Awaitable[None]]:
        async def answer() -> None:
            self._context.storable, self._context.outcome = True, "stale"
            await self._answer(send, entry, reuse, b"hit; ttl=%d; detail=stale-if-error" % reuse.ttl)

        return answer

    async def _answer(self, send: Send, entry: Entry, reuse: Reuse, cache_status: bytes) -> None:
        """Send a stored response: whole, without its body for HEAD, or as 304 if the client has it."""
        headers = list(entry.headers)
        if entry.own_etag and not self._context.is_open("etag"):
            headers = [pair for pair in headers if pair[0] != b"etag"]
        headers += [(b"age", b"%d" % reuse.age), (b"cache-status", b"Tidegate; " + cache_status)]
        status, body = entry.status, entry.body
        if is_not_modified(self._request, headers, status=status):
            status, headers, body = 304, not_modified_headers(headers), b""
        elif self._scope["method"] == "HEAD":
            body = b""
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def begin(self, status: int, headers: Pairs, *, trailers: bool) -> tuple[Pairs, int | None]:
        """Decide about the app's response, and say so in Cache-Status (RFC 9211)."""
        policy = self._context.match.policy
        note = b"Tidegate; fwd=" + self._forward
        room: int | None = None
        verdict = judge_response(
            status=status,
            headers=headers,
            request=self._request,
            share=self._share,
            policy=policy,
            default_ttl=self._config.default_ttl,
            now=self._config.clock(),
        )
        if isinstance(verdict, Kept):
            if verdict.rule == "policy ttl":
                headers = _with_client_freshness(headers, client_cache_control(policy, self._share))
            self._context.storable = True
            room = self._room(headers, trailers=trailers)
        else:
            note += b'; detail="%s"' % verdict.reason.encode("ascii", "replace").replace(b'"', b"'")
        if self._context.collapsed:
            room = None  # it is another request's response, which that one stores
            note += b"; collapsed"
        if room is not None and isinstance(verdict, Kept):
            self._kept = verdict
            note += b"; stored"
        return (*headers, (b"cache-status", note)), room

    def _room(self, headers: Pairs, *, trailers: bool) -> int | None:
        """How many bytes may be kept; None where this response cannot be kept at all."""
        if trailers or self._scope["method"] == "HEAD" or self._lookup.positions is None:
            return None
        policy = self._context.match.policy
        room = policy.max_body if policy is not None else self._config.max_body
        stated = single_value(headers, b"content-length")
        if stated is not None and stated.isdigit() and int(stated) > room:
            self._config.metrics.limits.labels("body").inc()
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
        kept, positions = self._kept, self._lookup.positions
        if kept is None or positions is None:
            return
        tags = self._tags()
        if len(tags) > MAX_TAGS:
            self._config.metrics.limits.labels("tags").inc()
            return
        stored = storable_headers(headers)
        if status != 204 and single_value(stored, b"content-length") is None:
            stored = (*stored, (b"content-length", b"%d" % len(body)))
        now = self._config.clock()
        entry = Entry(
            status=status,
            headers=stored,
            body=body,
            born=born_at(headers, asked=self._asked, answered=now),
            lifetime=kept.lifetime,
            stale_while_revalidate=kept.stale_while_revalidate,
            stale_if_error=kept.stale_if_error,
            must_revalidate=kept.must_revalidate,
            vary=variant_values(self._request, kept.vary),
            tags=tags,
            positions=tuple(positions.items()),
            own_etag=self._context.own_etag,
        )
        retain = entry.born + kept.lifetime + max(kept.stale_while_revalidate, kept.stale_if_error) - now
        if retain > 0:
            await self._put(entry, kept.vary, retain)

    async def _put(self, entry: Entry, vary: tuple[bytes, ...], retain: float) -> None:
        store = self._config.store
        if vary:
            await store.put(self._primary, Variants(names=vary), retain=retain)
            await store.put(self._variant_key(vary), entry, retain=retain)
        else:
            await store.put(self._primary, entry, retain=retain)

    def _tags(self) -> tuple[ScopedTag, ...]:
        match = self._context.match
        names = (
            [template.format_map(match.params) for template in match.policy.tags] if match.policy is not None else []
        )
        names += self._context.tags or ()
        return (self._uri.tag, *((self._own_scope, name) for name in dict.fromkeys(names)))


def _with_client_freshness(headers: Pairs, field: bytes | None) -> Pairs:
    if field is None:
        return headers
    return (*(pair for pair in headers if pair[0] != b"cache-control"), (b"cache-control", field))


async def _gateway_timeout(send: Send) -> None:
    """The answer to only-if-cached where nothing usable is stored (RFC 9111 5.2.1.7)."""
    headers = [(b"content-length", b"0"), (b"cache-status", b"Tidegate; detail=only-if-cached")]
    await send({"type": "http.response.start", "status": 504, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
