"""A POST's answer that says it is what a GET would get: kept for GET and HEAD (RFC 9110 9.3.3, RFC 9111 4).

It says so with a status 200, a Content-Location that is the target URI, and a lifetime of its own: neither a policy nor
a guess from Last-Modified makes one. All else is as for a GET by the same client: share, credentials, what a response
may forbid. A POST itself is never answered from the store.

The request purges its own URI, and the answer is stored after that; so nobody can tell by the stored position alone
whether another write came between. It is stored only if none of its tags was purged while the app ran: a mark with the
positions from before must still be valid just before the request's own purge. That is certain only where nothing can
come between the two, in this process's own memory (`Store.local`): elsewhere it is not stored.
"""

from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import SplitResult, urljoin, urlsplit

from tidegate.errors import StoreError
from tidegate.middleware.core.message import lowered, single_value
from tidegate.middleware.core.storing import Kept, Refused
from tidegate.middleware.layers.asgi import Message, Scope, Send
from tidegate.middleware.layers.filling import Filling
from tidegate.middleware.layers.tee import Pairs, Tee
from tidegate.middleware.stores.base import Entry, ScopedTag

__all__ = ["Posted", "as_get"]

_OF_THE_BODY: Final = frozenset({b"content-length", b"transfer-encoding"})
_EXPLICIT: Final = frozenset({"s-maxage", "max-age", "expires"})


def as_get(scope: Scope) -> Scope:
    """The GET that would be answered with what this POST's answer says it is."""
    return {**scope, "method": "GET", "headers": [pair for pair in scope["headers"] if pair[0] not in _OF_THE_BODY]}


class Posted(Filling):
    """One POST of which the answer may be kept. Its scope is that of `as_get`."""

    _tagged: tuple[ScopedTag, ...] = ()
    _target: SplitResult | None = None
    begun = False
    """An answer has begun."""

    @property
    def kept(self) -> Kept | None:
        """The verdict, once the answer has begun and is being kept."""
        return self._kept

    async def watch(self) -> None:
        """Note what was purged so far, and the target, before the app runs (a router may change the scope)."""
        self._forward = b"method"
        self._asked = self._config.clock()
        self._lookup = await self._look_up()
        scope = self._scope
        query = scope.get("query_string", b"")
        sent = self._uri.raw_path if self._uri.raw_path.startswith(b"/") else b""
        if sent:
            path = sent + (b"?" + query if query else b"")
            self._target = urlsplit(f"{self._uri.scheme}://{self._uri.host.decode('latin-1')}{path.decode('latin-1')}")

    async def start(self, message: Message, send: Send, purge: Callable[[], Awaitable[None]]) -> Send:
        """Purge, send the start of a successful answer, and give the `send` for the rest of it."""
        headers = lowered(message.get("headers", ()))
        keeps = self._is_what_get_gets(message["status"], headers) and await self._nothing_was_purged(headers)
        await purge()
        if keeps:
            self._lookup = await self._look_up()
            # Conditions of a POST are the app's to judge: none is answered here.
            tee = Tee(send, request=(), keeper=self)
            await tee(message)
            return tee
        await send(message)
        return send

    def _is_what_get_gets(self, status: int, headers: Pairs) -> bool:
        named = single_value(headers, b"content-location")
        target = self._target
        if status != 200 or named is None or target is None:
            return False
        try:
            meant = urlsplit(urljoin(target.geturl(), named.decode("latin-1")))
        except ValueError:
            return False
        same = (meant.scheme, meant.netloc.lower(), meant.path or "/", meant.query)
        return same == (target.scheme, target.netloc, target.path, target.query) and isinstance(
            self._judged(status, headers, own_etag=False), Kept
        )

    async def _nothing_was_purged(self, headers: Pairs) -> bool:
        """Whether an entry with this answer's tags, filled before the app ran, would still be valid."""
        now = self._config.clock()
        mark = Entry(status=200, headers=(), body=b"", born=now, lifetime=1.0)
        self._tagged = self._tags(headers)
        ready = self._ready(mark, tags=self._tagged)
        if ready is None:
            return False
        store, key = self._config.store, self._config.names.apart(self._named, b"posted").primary
        try:
            await store.put(key, ready[0], retain=1.0)
            valid = (await store.get(key)).record is not None
            await store.delete(key)
        except StoreError as error:
            self._config.metrics.fail("store", error)
            return False
        return valid

    async def _commit(self, status: int, headers: Pairs, body: bytes) -> None:
        # Of a tag that came with the body nobody knows whether it was purged meanwhile.
        if set(self._tags(headers)) <= set(self._tagged):
            await super()._commit(status, headers, body)

    def _judged(self, status: int, headers: Pairs, *, own_etag: bool) -> Kept | Refused:
        verdict = super()._judged(status, headers, own_etag=own_etag)
        if isinstance(verdict, Kept) and verdict.rule not in _EXPLICIT:
            return Refused("no freshness given")
        return verdict
