"""One GET or HEAD on its way through the cache: look up, answer, or ask the app and keep what it says."""

import asyncio
from dataclasses import replace
from functools import partial
from typing import Final

from tidegate.middleware.core.freshness import for_client
from tidegate.middleware.core.identity import REWRITING
from tidegate.middleware.core.ranges import Partial
from tidegate.middleware.core.reuse import Reuse, judge_reuse, kept_until
from tidegate.middleware.core.storing import Kept, as_strict, client_cache_control
from tidegate.middleware.core.updating import conditions, has_validator, is_about, updated, without_conditions
from tidegate.middleware.core.validators import CONDITIONAL_HEADERS
from tidegate.middleware.layers.answering import gateway_timeout, send_part, send_stored
from tidegate.middleware.layers.asgi import ASGIApp, Message, Receive, RequestContext, Scope, Send
from tidegate.middleware.layers.completing import UNREPEATABLE, no_body
from tidegate.middleware.layers.parted import Parted
from tidegate.middleware.layers.tee import FAILURES, UNREACHABLE, Pairs, Tee
from tidegate.middleware.layers.witness import show_scope
from tidegate.middleware.stores.base import Entry

__all__ = ["Exchange"]

_NOT_REFRESHED: Final = CONDITIONAL_HEADERS | {b"range", b"cache-control", b"pragma"}
"""Fields of the request that began a refresh which say nothing about the refresh."""

_GONE: Final = frozenset({401, 403, 404, 410})
"""Statuses that say that a resource is not there any more, or not for who asks."""

_UNSTORABLE: Final = Kept(
    lifetime=0.0, stale_while_revalidate=0.0, stale_if_error=0.0, must_revalidate=True, vary=(), rule="refused"
)
"""Of a renewed response that may be served once more, and not be stored."""


class Exchange(Parted):
    """One request that may use the cache."""

    _entry: Entry | None = None
    _again = False
    _in_background = False
    _head: Pairs | None = None

    async def run(self, app: ASGIApp, receive: Receive, send: Send) -> None:
        """Answer the request, from the store or from the app."""
        context = self._context
        self._lookup = await self._look_up()
        context.positions = self._lookup.positions
        entry = self._lookup.record if isinstance(self._lookup.record, Entry) else None
        reuse = self._reuse_of(entry) if entry is not None else None
        if entry is not None and reuse is not None and reuse.fresh:
            context.storable, context.outcome = True, "hit"
            await self._answer(send, entry, reuse, b"hit; ttl=%d" % reuse.ttl)
            return
        if entry is not None and reuse is not None and reuse.while_revalidating and self._refreshes(app, entry):
            await self._stand_in(send, entry, reuse, b"stale-while-revalidate")
            return
        if entry is None and self._is_ranged:
            found = await self._from_part()
            if found is not None:
                await self._answer_part(send, *found)
                return
        context.outcome = "miss"
        if self._wanted.only_if_cached:
            context.reason = "only-if-cached"
            await gateway_timeout(send)
            return
        if entry is None or reuse is None:
            app = await self._completing(app)
            await self._ask(app, receive, Tee(send, request=self._request, keeper=self))
            return
        self._entry = entry
        self._forward = b"request" if reuse.insists else b"stale"
        detail = b"stale-if-error" if reuse.stale_on_error else b"disconnected"
        failures = FAILURES if reuse.stale_on_error else UNREACHABLE if reuse.disconnected else frozenset[int]()
        tee = Tee(
            send,
            request=self._request,
            keeper=self,
            stand_in=partial(self._stand_in, send, entry, reuse, detail),
            failures=failures,
            renew=partial(self._renew, send, entry) if self._asks_about(entry) else None,
        )
        await self._ask(app, receive, tee)

    async def _ask(self, app: ASGIApp, receive: Receive, tee: Tee) -> None:
        self._asked = self._config.clock()
        self._context.explainer = self
        try:
            given = self._scope_for_app()
            await app(given, self._watch(given, receive), tee)
            if self._again:
                # Its 304 was about a response that is not ours: only a whole one can help.
                tee.start_anew()
                self._context.collapsed = False
                given = {**self._offered, "headers": without_conditions(self._request)}
                await app(given, self._watch(given, no_body(receive)), tee)
        except Exception as error:
            if await tee.failed():
                self._config.metrics.fail("app", error)
            # The server must still hear of it: the client has its answer, the log has the fault.
            raise
        finally:
            self._end_session()
            show_scope(self._given, self._scope)
            self._context.explainer = None  # each holds the other: without this it would be for the garbage collector
        if self._entry is None:
            return
        if self._head is not None:
            await self._freshen(self._entry, self._head)
        elif self._is_gone(self._entry):
            await self._replace(self._entry, self._entry, None)

    def _is_gone(self, entry: Entry) -> bool:
        """Whether the app says that what is stored, and stale, is not to be had any more, in an answer that does not
        take its place: it is neither to be served while somebody asks again, nor if the app fails.
        """
        if self._answered is None or self._answered[0] not in _GONE or self._kept is not None or self._is_ranged:
            return False
        is_fresh = entry.born + entry.lifetime > self._config.clock()  # then it is who asks that insists
        return self._usable.stores and not is_fresh and not any(name in REWRITING for name, _ in self._request)

    def _conditions(self, entry: Entry) -> Pairs:
        # The app does not know our ETags; and a part that is missing is not asked for by asking about the whole.
        return conditions(entry.headers, own_etag=entry.own_etag)

    def _asks_about(self, entry: Entry) -> bool:
        return self._usable.stores and not self._is_ranged and bool(self._conditions(entry))

    def _scope_for_app(self) -> Scope:
        """The scope with the stored response's conditions instead of the client's, so that the app gives a whole
        response that can be stored, or says that what is stored still holds.
        """
        if self._is_ranged or not self._usable.stores:
            return self._scope  # this client's alone: nothing is stored, or only what happens to be whole
        asked = self._conditions(self._entry) if self._entry is not None else ()
        if not asked and not any(name in CONDITIONAL_HEADERS for name, _ in self._request):
            return self._offered
        return {**self._offered, "headers": [*without_conditions(self._request), *asked]}

    @property
    def _offered(self) -> Scope:
        """The scope; where the policy says so and the response may be stored, without the extensions that stand in the
        way of it.
        """
        policy, extensions = self._context.match.policy, self._scope.get("extensions")
        if policy is None or policy.extensions == "pass" or not extensions:
            return self._scope
        if self._scope["method"] != "GET" or not self._usable.stores or self._lookup.positions is None:
            return self._scope
        return {**self._scope, "extensions": {name: extensions[name] for name in extensions.keys() - UNREPEATABLE}}

    async def _answer(self, send: Send, entry: Entry, reuse: Reuse, note: bytes, extra: Pairs = ()) -> None:
        self._end_session()
        own_etags = self._context.is_open("etag")
        if self._config.show_key:
            note += self._key_note(self._key)
        policy = self._context.match.policy
        if policy is not None and policy.client_ttl is not None:
            entry = replace(entry, headers=tuple(for_client(entry.headers, policy, reuse.age, entry.lifetime)))
        await send_stored(send, self._scope, entry, reuse, note=note, own_etags=own_etags, extra=extra)

    async def _answer_part(self, send: Send, answer: Partial, reuse: Reuse) -> None:
        self._context.storable, self._context.outcome = True, "hit"
        note = b"hit; ttl=%d" % reuse.ttl + (self._key_note(self._part_key()) if self._config.show_key else b"")
        await send_part(send, answer, reuse, note=note)

    async def _stand_in(self, send: Send, entry: Entry, reuse: Reuse, detail: bytes) -> None:
        """Answer with what is stale (RFC 5861, RFC 9111 4.2.4)."""
        self._context.storable, self._context.outcome = True, "stale"
        await self._answer(send, entry, reuse, b"hit; ttl=%d; detail=%s" % (reuse.ttl, detail))

    async def _renew(self, send: Send, entry: Entry, news: Pairs) -> None:
        """The app says that the stored response still holds: answer with it, and store it anew (RFC 9111 4.3.4)."""
        if not is_about(news, entry.headers, own_etag=entry.own_etag):
            self._again = True
            return
        show_scope(self._given, self._scope)
        renewed, kept = self._with_news(entry, news)
        self._context.storable = kept is not None and kept.reusable
        now = self._config.clock()
        reuse = judge_reuse(renewed, self._wanted, now)
        may = kept is not None and not self._context.collapsed and self._lookup.positions is not None
        stores = may and kept_until(renewed) > now
        note = b"fwd=%s; fwd-status=304" % self._forward
        note += b"; collapsed" if self._context.collapsed else b"; stored" if stores else b""
        cookies = [pair for pair in news if pair[0] == b"set-cookie"]
        await self._answer(send, renewed, reuse, note, cookies)
        await self._replace(entry, renewed, kept)

    async def _freshen(self, entry: Entry, news: Pairs) -> None:
        """The app answered a HEAD: what it says renews the stored response, or shows that it is another one."""
        if self._conditions(entry) and not has_validator(news):
            return  # it does not say which one it speaks of
        about = is_about(news, entry.headers, own_etag=entry.own_etag, head=True)
        renewed, kept = self._with_news(entry, news)
        await self._replace(entry, renewed, kept if about else None)

    def _with_news(self, entry: Entry, news: Pairs) -> tuple[Entry, Kept | None]:
        """The stored response with renewed fields, and the verdict about it; None: it may not be stored any more."""
        merged: Pairs = updated(entry.headers, news)
        judged: Pairs = [*merged, *(pair for pair in news if pair[0] == b"set-cookie")]
        strict: dict[str, bool] = {"no_cache": entry.no_cache, "must_revalidate": entry.must_revalidate}
        ours = client_cache_control(self._context.match.policy, self._share, **strict)
        replaced = ours is not None and not any(name == b"cache-control" for name, _ in news)
        if replaced:
            # What is stored was told to the client by us: it is not the app's word.
            judged = [pair for pair in judged if pair != (b"cache-control", ours)]
        verdict = self._judged(entry.status, judged, own_etag=entry.own_etag)
        if replaced and isinstance(verdict, Kept):
            verdict = as_strict(verdict, **strict)  # which was the app's word, and still is
        if not isinstance(verdict, Kept):
            verdict, kept = _UNSTORABLE, None
        else:
            # What selected it selects it still, whatever the answer names, and whether it may be stored with it.
            verdict = replace(verdict, vary=tuple(dict.fromkeys([*(name for name, _ in entry.vary), *verdict.vary])))
            kept, merged = verdict, self._for_client(merged, verdict)
        return (
            self._entry_of(entry.status, merged, entry.body, kept=verdict, sent=news, own_etag=entry.own_etag),
            kept,
        )

    async def _replace(self, entry: Entry, renewed: Entry, kept: Kept | None) -> None:
        """Store the renewed response in the place of the old one. Never raises: the client has its answer."""
        if self._context.collapsed:
            return
        try:
            if kept is None:
                await self._config.store.delete(self._key)
            else:
                await self._put(renewed, kept.vary, known=entry.tags)
        except Exception as error:  # noqa: BLE001 - P5; counted
            self._config.metrics.fail("store", error)

    def begin(self, status: int, headers: Pairs, *, trailers: bool) -> tuple[Pairs, int | None]:
        """As Filling does; and takes note of the answer to a HEAD (RFC 9111 4.3.5)."""
        if self._in_background and status in FAILURES:
            return headers, None  # until its window ends the stale response is better than that (RFC 5861 3)
        if self._scope["method"] == "HEAD" and self._entry is not None and status == 200 and self._usable.stores:
            self._head = headers
        begun = super().begin(status, headers, trailers=trailers)
        self._end_session()
        show_scope(self._given, self._scope)  # before anybody counts the answer by its route
        return begun

    def _refreshes(self, app: ASGIApp, entry: Entry) -> bool:
        """Whether the stored response is being refreshed in the background, by this request or another."""
        return self._usable.stores and self._config.refreshes.begin(self._key, partial(self._refresh, app, entry))

    async def _refresh(self, app: ASGIApp, entry: Entry) -> None:
        """Ask the app for the client's sake, after the client has its answer.

        The positions are those of the client's look-up: a purge since then wins over what the app says now.
        """
        context = RequestContext(self._context.identity, self._context.match, self._context.decision)
        headers = [pair for pair in self._request if pair[0] not in _NOT_REFRESHED]
        scope: Scope = {**self._scope, "method": "GET", "headers": headers, "tidegate": context}
        exchange = Exchange(self._config, context, scope, self._named, self._usable, self._wanted)
        exchange._lookup, exchange._entry = self._lookup, entry
        exchange._key, exchange._variants = self._key, self._variants
        exchange._forward = b"stale"
        context.positions, context.coalesce_key = self._lookup.positions, self._context.coalesce_key
        exchange._in_background = True
        tee = Tee(_nowhere, request=headers, keeper=exchange, renew=partial(exchange._renew, _nowhere, entry))
        over = asyncio.Event()

        async def until_over() -> Message:
            await over.wait()
            return {"type": "http.disconnect"}

        try:
            await exchange._ask(app, no_body(until_over), tee)
        finally:
            over.set()


async def _nowhere(_message: Message) -> None:
    """The `send` of a refresh."""
