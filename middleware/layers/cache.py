"""The response cache: answers GET and HEAD from stored responses, stores what may be stored, purges on writes.

On a miss everything passes to the client as it comes; a bounded copy is kept aside and stored after the last body
message, if it is whole. A hit never waits for a write to the store. Shut, the layer stores and serves nothing;
invalidation alone is never gated, because a write by somebody whose gate is shut must still clear what others would be
served (P4).
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from os import urandom
from typing import Any, ClassVar, Final, cast, get_args
from urllib.parse import unquote_to_bytes
from weakref import WeakSet

from tidegate.errors import Problems, StoreError
from tidegate.middleware.core.explain import SHADOWED, Explanation, shut_step
from tidegate.middleware.core.groups import invalidated_groups, invalidated_targets
from tidegate.middleware.core.identity import Identity
from tidegate.middleware.core.keys import climbs, counted_query, scope_of
from tidegate.middleware.core.message import lowered
from tidegate.middleware.core.policy import DEFAULT_MAX_BODY, Authorization, Share
from tidegate.middleware.core.storing import Bypass, Pairs, RequestDirectives, Usable, judge_request, request_directives
from tidegate.middleware.layers.asgi import (
    ASGIApp,
    ContextResolver,
    Gate,
    Message,
    Receive,
    RequestContext,
    Scope,
    Send,
    always,
    has_client_certificate,
    repeatable,
    route_path,
)
from tidegate.middleware.layers.exchange import Exchange
from tidegate.middleware.layers.explaining import Collected, Unsafe, explain_request, without_effect
from tidegate.middleware.layers.filling import CacheConfig
from tidegate.middleware.layers.fused import FusedHits, Hits, Missed
from tidegate.middleware.layers.naming import Named, Names, Uri, host_of, uri_of
from tidegate.middleware.layers.posting import Posted, as_get
from tidegate.middleware.layers.refresh import Refreshes
from tidegate.middleware.layers.shadow import Rehearsal
from tidegate.middleware.layers.shadow_notes import ShadowNotes
from tidegate.middleware.layers.straight import Miss, Misses
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.base import PUBLIC_SCOPE, Keeps, Lookup, Peeks, ScopedTag, Store

__all__ = ["CacheLayer"]

_COOKIE: Final = b"cookie"
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class CacheLayer:
    """A shared cache inside the application (RFC 9111), split by identity.

    store: where responses live, behind the Store protocol (`MemoryStore()` is one).
    gate, resolver: for whom it is open; who asks, and the routes' policies.
    share: who may be served responses of routes without a policy. "user" is the narrowest.
    default_ttl: seconds for policies that give no ttl; None: none.
    max_body: bytes; a larger response passes through unstored. A policy says its own.
    namespace: part of every key: two apps on one store, or a new version of one app, keep apart.
    authorization: what becomes of requests with Authorization of which nobody knows whose they are. "strict": nothing
        is stored or served. "rfc9111": as RFC 9111 3.5 has it: the answer is stored, for everybody, where it says
        public, s-maxage or must-revalidate, and what is stored for everybody is served.
    show_key: Cache-Status names the key, as a hash with a secret: `naming_key`, or else one of this layer's own.
    shadow: notes of what shadow mode sees; default: new ones.
    naming_key: secret (0 to 64 bytes) that makes the names of keys unreadable and unguessable in a shared store.
    clock: wall-clock seconds.

    Raises:
        ConfigError: for a share, an authorization or a store that is none.
    """

    made: ClassVar["WeakSet[CacheLayer]"] = WeakSet()
    """Every one in this process, for whoever wants to ask them."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        store: Store,
        gate: Gate = always,
        resolver: ContextResolver | None = None,
        share: Share = "user",
        default_ttl: float | None = None,
        max_body: int = DEFAULT_MAX_BODY,
        namespace: str = "v1",
        naming_key: bytes = b"",
        authorization: Authorization = "strict",
        show_key: bool = False,
        shadow: ShadowNotes | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        _check(store, share, authorization)
        self.app = app
        metrics = metrics if metrics is not None else Metrics.of()
        self.shadow = shadow if shadow is not None else ShadowNotes(metrics=metrics, clock=clock)
        self._resolver = resolver if resolver is not None else ContextResolver()
        self._share: Share = share
        self._strict = authorization == "strict"
        self._refreshes = Refreshes(metrics)
        names = Names(namespace=namespace.encode(), naming_key=naming_key)
        self._config = CacheConfig(
            store=store,
            default_ttl=default_ttl,
            max_body=max_body,
            names=names,
            metrics=metrics,
            clock=clock,
            refreshes=self._refreshes,
            credentials=self._resolver.credentials,
            status_key=naming_key or urandom(32),
            show_key=show_key,
        )
        self._gate = gate
        self.hits: FusedHits | None = None
        """Answers plain hits; None: the store cannot say anything without waiting, or each hit is to name its key."""
        if isinstance(store, Peeks) and not show_key:
            self.hits = FusedHits(
                peek=store.peek,
                names=names,
                gate=gate,
                share=share,
                credentials=self._resolver.credentials,
                clock=clock,
            )
        self._own_hits: Hits | None = self.hits.find if self.hits is not None else None
        self.misses: Misses | None = None
        """Takes plain misses; None: the store can do nothing without waiting, or `hits` is None."""
        if isinstance(store, Keeps) and store.local:
            self.misses = Misses(self._config, store)
        self.made.add(self)

    def leave_hits(self) -> Hits | None:
        """What answers plain hits, for a layer further out that asks it first; this one will not ask it again."""
        own, self._own_hits = self._own_hits, None
        return own

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._pass(scope, receive, send)
            return
        context = self._resolver.of(scope)
        find = self._own_hits
        if find is not None and context.tracer is None:
            answer = find(scope, context)
            if answer is not None:
                await send(answer[0])
                await send(answer[1])
                return
        found: Lookup | None = None
        if context.missed is not None and (missed := self._missed(scope, context)) is not None:
            named, misses = missed[2], self.misses
            if misses is not None and misses.begin(scope, named, context):
                miss = Miss(misses, missed, context, send, misses.clock())
                context.explainer = miss
                try:
                    await self.app(scope, receive, miss)
                finally:
                    context.explainer = None
                return
            found = await self._config.ask(named, context)
            answer = missed[0].late(context, found.record) if found is not None else None
            if answer is not None:
                await send(answer[0])
                await send(answer[1])
                return
        if scope["method"] not in _SAFE:
            context.explainer = unsafe = self._unsafe(scope, context)
            try:
                unsafe.posted = posted = self._posted(scope, context) if scope["method"] == "POST" else None
                if posted is not None:
                    await posted.watch()
                await self.app(scope, receive, self._invalidating(scope, context, send, posted))
            finally:
                context.explainer = None
        elif not self._gate(context):
            await self.app(scope, receive, send)
        else:
            await self._serve(scope, receive, send, context, found)

    def _missed(self, scope: Scope, context: RequestContext) -> Missed | None:
        """The plain miss that was noted for this layer and this request; else None."""
        missed: Any = context.missed
        context.missed = None
        if missed is None or context.tracer is not None:
            return None
        return missed if missed[0] is self.hits and missed[1] is scope else None

    def shut(self, shut: bool) -> None:
        """The gate is shut for everybody (True): end what runs in the background. In any thread; does not wait."""
        if shut:
            self._refreshes.shut()

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        finally:
            if scope["type"] == "lifespan":
                await self._refreshes.aclose()

    async def _serve(
        self, scope: Scope, receive: Receive, send: Send, context: RequestContext, found: Lookup | None
    ) -> None:
        """found: what the store said already."""
        wanted = request_directives(scope["headers"])
        verdict = self._judge(scope, context, wanted)
        shadowed = _is_shadowed(context)
        if isinstance(verdict, Bypass):
            context.outcome, context.reason = "bypass", verdict.reason
            await self.app(scope, receive, send if shadowed else _noting(send, verdict.reason, context))
            return
        named = self._named(scope, context, verdict)
        if shadowed:
            rehearsal = Rehearsal(self._config, context, scope, named, verdict, wanted)
            await rehearsal.rehearse(self.shadow, self.app, receive, send)
            return
        exchange = Exchange(self._config, context, scope, named, verdict, wanted, found)
        if context.tracer is None:
            await exchange.run(self.app, receive, send)
            return
        with context.tracer.start_as_current_span("tidegate.cache") as span:
            await exchange.run(self.app, receive, send)
            span.set_attribute("tidegate.cache.outcome", context.outcome or "pass")
            span.set_attribute("tidegate.cache.share", verdict.share)

    def _judge(self, scope: Scope, context: RequestContext, wanted: RequestDirectives) -> Usable | Bypass:
        credential = context.identity is None and self._has_credential(scope)
        return judge_request(
            method=scope["method"],
            headers=scope["headers"],
            wanted=wanted,
            policy=context.match.policy,
            default_share=self._share,
            identity=context.identity,
            has_credential=credential,
            only_cookies=credential and not self._has_credential(scope, but=_COOKIE),
            climbs=climbs(scope["path"]),
        )

    def _named(self, scope: Scope, context: RequestContext, verdict: Usable) -> Named:
        return self._config.names.of(scope, host_of(scope), context.match, verdict.share, context.identity)

    async def explain(
        self, scope: Scope, receive: Receive | None = None, *, identity: Identity | None = None
    ) -> Explanation:
        """What the cache does with this request now, and why. Stores, purges and counts nothing.

        receive: where the request's body comes from; the app is then run, unless the request is unsafe or answered by
            what is stored. None: the app is not run, and the response's side stays unknown.
        identity: as if it asked; the app still sees who really does. None: who asks.
        """
        if identity is not None:
            scope = {**scope, "tidegate": self._resolver.as_if(scope, identity)}
        context = self._resolver.of(scope)
        if scope["method"] not in _SAFE:
            unsafe = self._unsafe(scope, context)
            unsafe.posted = self._posted(scope, context) if scope["method"] == "POST" else None
            return unsafe.explain()
        wanted = request_directives(scope["headers"])
        verdict = self._judge(scope, context, wanted)
        told = explain_request(scope, context, verdict, uri_of(scope, context.match.policy), self._resolver.credentials)
        if not self._gate(context):
            return replace(told, steps=(shut_step(told.layers), *told.steps))
        if isinstance(verdict, Bypass):
            return replace(told, cache_status=None if _is_shadowed(context) else _bypassing(verdict.reason).decode())
        if _is_shadowed(context):
            return replace(told, steps=(SHADOWED, *told.steps))
        config, kept = without_effect(self._config)
        exchange = Exchange(config, context, scope, self._named(scope, context, verdict), verdict, wanted)
        if receive is None:
            await exchange.look()
            return exchange.explain()
        client = Collected()
        try:
            await exchange.run(self.app, receive, client)
        except Exception as error:  # noqa: BLE001 - it is what there is to tell; nobody waits for the answer
            client.failed = type(error).__name__
        return exchange.explain_answer(client, kept)

    def _unsafe(self, scope: Scope, context: RequestContext) -> Unsafe:
        own = uri_of(scope, context.match.policy)
        purged_by = partial(self._purged_by, own, scope, context, ())
        return Unsafe(scope, context, lambda: own, purged_by, self._resolver.credentials)

    def _has_credential(self, scope: Scope, *, but: bytes = b"") -> bool:
        headers = scope["headers"]
        if but or not self._strict:
            spared = (but,) if self._strict else (but, b"authorization")
            headers = [pair for pair in headers if pair[0] not in spared]
        return self._resolver.credentials.present(
            headers, scope.get("query_string", b""), client_certificate=has_client_certificate(scope)
        )

    def _posted(self, scope: Scope, context: RequestContext) -> Posted | None:
        """What may keep this POST's answer for GET; None: the store is not our own, or a GET's would not be kept."""
        if not self._config.store.local or not self._gate(context) or _is_shadowed(context):
            return None
        scope = as_get(scope)
        wanted = request_directives(scope["headers"])
        verdict = self._judge(scope, context, wanted)
        if isinstance(verdict, Bypass) or not verdict.stores:
            return None
        return Posted(self._config, context, scope, self._named(scope, context, verdict), verdict, wanted)

    def _invalidating(self, scope: Scope, context: RequestContext, send: Send, posted: Posted | None) -> Send:
        """A `send` that purges before a successful response to an unsafe request starts (RFC 9111 4.4)."""
        own = uri_of(scope, context.match.policy)  # now: a router may change the path in the scope

        async def purging(message: Message) -> None:
            nonlocal posted, send
            if posted is not None and message["type"] == "http.response.start":
                posted.begun = True
            if message["type"] == "http.response.start" and 200 <= cast(int, message["status"]) < 400:
                message = repeatable(message)
                tags = self._purged_by(own, scope, context, lowered(message.get("headers", ())))
                if posted is not None:
                    storing, posted = posted, None
                    send = await storing.start(message, send, partial(self._purge, tags))
                    return
                await self._purge(tags)
            await send(message)

        return purging

    def _purged_by(self, own: Uri, scope: Scope, context: RequestContext, headers: Pairs) -> list[ScopedTag]:
        """The tags that a successful unsafe request purges: its own URI's, those that the answer names in Location,
        Content-Location and Cache-Group-Invalidation, and what its policy names.
        """
        match = context.match
        query: bytes = scope.get("query_string", b"")
        tags = [own.tag]
        sent = own.raw_path if own.raw_path.startswith(b"/") else b"/"
        targets = invalidated_targets(headers, scheme=own.scheme, host=own.host, raw_path=sent, query=query)
        for raw_path, its_query in targets:
            path = unquote_to_bytes(raw_path).decode("utf-8", "replace")
            policy = self._resolver.policies.match(route_path({**scope, "path": path, "raw_path": raw_path})).policy
            counted = counted_query(its_query, policy.query if policy is not None else None)
            tags.append(Uri(own.scheme, own.host, raw_path, counted).tag)
        tags += [(PUBLIC_SCOPE, name) for name in invalidated_groups(headers, own.scheme, own.host)]
        if match.policy is not None:
            scopes = dict.fromkeys((scope_of(context.identity, "tenant"), PUBLIC_SCOPE))
            for template in match.policy.invalidates:
                name = template.format_map(match.params)
                if name:  # a path may leave it empty, and the empty name stands for all of a scope (WHOLE_SCOPE)
                    tags += [(each, name) for each in scopes]
        return list(dict.fromkeys(tags))

    async def _purge(self, tags: Iterable[ScopedTag]) -> None:
        by_scope: dict[str, list[str]] = {}
        for scope, tag in tags:
            by_scope.setdefault(scope, []).append(tag)
        try:
            await self._config.store.purge(by_scope)
        except StoreError as error:
            # Only an unguarded store raises: GuardedStore keeps the purge as pending and tries again.
            self._config.metrics.fail("purge", error)


def _is_shadowed(context: RequestContext) -> bool:
    policy, decision = context.match.policy, context.decision
    return (policy is not None and policy.mode == "shadow") or (decision is not None and "cache" in decision.shadow)


def _bypassing(reason: str) -> bytes:
    return b"Tidegate; fwd=bypass; detail=" + reason.encode()


def _noting(send: Send, reason: str, context: RequestContext) -> Send:
    """A `send` that says in Cache-Status why the cache stood aside (RFC 9211 2.2), and whose run has answered (2.6)."""
    note = _bypassing(reason)

    async def noted(message: Message) -> None:
        if message["type"] == "http.response.start":
            said = (b"cache-status", note + b"; collapsed" if context.collapsed else note)
            message = {**message, "headers": [*message.get("headers", ()), said]}
        await send(message)

    return noted


def _check(store: object, share: object, authorization: object) -> None:
    problems = Problems("CacheLayer")
    if not callable(getattr(store, "get", None)):  # its text may hold a password
        problems.add("store", type(store), "is not a store", "give MemoryStore(), or another that is one")
    if share not in get_args(Share):
        problems.add("share", share, "is not a share", "use public, tenant or user")
    if authorization not in get_args(Authorization):
        problems.add("authorization", authorization, "is not known here", "use strict or rfc9111")
    problems.raise_if_any()
