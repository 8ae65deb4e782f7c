"""Shadow mode: the app answers, and its answer is compared with what the cache would have served.

The app gets the request as it came, the client gets what the app sends, message by message, as it comes. A digest is
made beside it; everything else happens after the last body message was sent. What the cache would have stored is kept
as a record under a key of its own, so that no open cache ever serves it: digests and header fields, with the tags and
positions of a real entry, so that a purge clears it as it would clear the entry.

Costs the client one look-up in the store before the app is asked, as a miss of the open cache does: where the ledger
stood must be known before. Whatever fails in here is counted, and the answer goes on (P5).
"""

from collections.abc import Sequence
from functools import partial
from typing import Final, cast

from xxhash import xxh3_128

from tidegate.middleware.core.freshness import born_at
from tidegate.middleware.core.groups import group_tags
from tidegate.middleware.core.keys import variant_values
from tidegate.middleware.core.message import lowered, single_value
from tidegate.middleware.core.reuse import judge_reuse
from tidegate.middleware.core.shadow import (
    MAX_JSON,
    Named,
    Sight,
    asked_with,
    compared_headers,
    decode_sight,
    encode_sight,
    order_free,
    who_asked,
)
from tidegate.middleware.core.storing import Kept
from tidegate.middleware.layers.asgi import ASGIApp, Message, Receive, Send, repeatable, route_label
from tidegate.middleware.layers.filling import Filling
from tidegate.middleware.layers.shadow_notes import Difference, Result, ShadowNotes
from tidegate.middleware.stores.base import PUBLIC_SCOPE, Entry, Store

__all__ = ["Rehearsal"]

Pairs = Sequence[tuple[bytes, bytes]]

_GZIP_TIME: Final = slice(4, 8)
"""When it was compressed (RFC 1952 2.3): it differs from second to second, and nobody reads it."""

_MAX_PATH: Final = 200


class Rehearsal(Filling):
    """One request in shadow mode: it looks up and keeps, but never serves."""

    _notes: ShadowNotes
    _stored: Entry | None = None

    async def rehearse(self, notes: ShadowNotes, app: ASGIApp, receive: Receive, send: Send) -> None:
        """Have the app answer, and compare."""
        self._notes = notes
        context = self._context
        context.outcome = "shadow"
        # No key of the open cache begins like this: there the eleventh part, if any, is b"vary".
        self._named = self._config.names.apart(self._named, b"shadow")
        self._key = self._primary = self._named.primary
        self._lookup = await self._look_up()
        # The policy may be wrong about what counts: it must not decide who shares a run.
        context.coalesce_key = None
        context.positions = self._lookup.positions
        record = self._lookup.record
        self._asked = self._config.clock()
        if isinstance(record, Entry) and judge_reuse(record, self._wanted, self._asked).fresh:
            self._stored = record
        policy = context.match.policy
        most = policy.max_body if policy is not None else self._config.max_body
        try:
            await app(self._scope, self._watch(self._scope, receive), _Watching(send, self, most))
        finally:
            self._end_session()

    def begun(self) -> None:
        """The answer is about to start."""
        self._end_session()

    @property
    def excerpt(self) -> int:
        """Bytes of the body that are to be kept."""
        return self._notes.keep_bodies

    def failed(self, error: Exception) -> None:
        """Count what went wrong beside the answer."""
        self._config.metrics.fail("shadow", error)

    async def seen(self, answer: "_Answer") -> None:
        """The answer has been sent, to its end. Never raises."""
        try:
            result = await self._compare(answer)
            if result is not None:
                self._notes.count(route_label(self._scope, self._context), result)
            await self._notes.look()
        except Exception as error:  # noqa: BLE001 - P5: the client has its answer; counted
            self.failed(error)

    async def _compare(self, answer: "_Answer") -> Result | None:
        """What came of the comparison; None: it is not known yet."""
        if self._stored is None:
            await self._keep(answer)
            return "would-miss"
        basis = decode_sight(self._stored.body)
        if answer.status == 304:
            etag = single_value(answer.headers, b"etag")
            same = etag is not None and dict(basis.headers).get("etag") == etag.decode("latin-1")
            return "match" if same else "uncompared"
        # 429 is about how often somebody asks, not about what for.
        if answer.status >= 500 or answer.status == 429 or not answer.whole or self._scope["method"] == "HEAD":
            return "uncompared"
        notes, record = self._notes, self._stored.body
        route = route_label(self._scope, self._context)
        headers = compared_headers(answer.headers, own_etag=self._context.own_etag)
        body = answer.digest
        if (answer.status, body) == (basis.status, basis.body) and _alike(headers, basis, notes.learned(route)):
            ring = notes.ring(self._key, record)
            if ring is not None:
                ring.add(self._sight(answer, headers, basis.order))
            return "match"
        holds = partial(_holds, self._config.store, self._key, record)
        if not await holds():
            return "uncompared"
        ring = notes.open_ring(self._key, record, basis)
        order = basis.order if body == basis.body else self._order(answer)
        sight = self._sight(answer, headers, order)
        ring.add(sight)
        notes.wait(
            Difference(
                route=route,
                path=cast(str, self._scope["path"])[:_MAX_PATH],
                due=self._config.clock() + min(notes.settle, self._stored.lifetime / 2),
                sight=sight,
                ring=ring,
                number=ring.seen,
                holds=holds,
            )
        )
        return None

    async def _keep(self, answer: "_Answer") -> None:
        """Store a record where the open cache would have stored the answer."""
        positions = self._lookup.positions
        if positions is None or not answer.whole or self._scope["method"] == "HEAD" or self._context.collapsed:
            return
        now = self._config.clock()
        kept = self._judged(answer.status, answer.headers, own_etag=self._context.own_etag)
        if not isinstance(kept, Kept) or not kept.reusable:
            return
        headers = compared_headers(answer.headers, own_etag=self._context.own_etag)
        entry = Entry(
            status=answer.status,
            headers=(),
            body=encode_sight(self._sight(answer, headers, self._order(answer))),
            born=born_at(answer.headers, asked=self._asked, answered=now),
            lifetime=kept.lifetime,
            must_revalidate=True,  # what is stale is not compared with, and so not kept
            vary=variant_values(self._request, kept.vary),
        )
        groups = group_tags(answer.headers, self._uri.scheme, self._uri.host)
        await self._put(entry, kept.vary, known=[(PUBLIC_SCOPE, name) for name in groups])

    def _order(self, answer: "_Answer") -> str:
        if not answer.is_json or len(answer.start) != answer.length:
            return ""
        return self._notes.within_budget(lambda: order_free(answer.start), "")

    def _sight(self, answer: "_Answer", headers: Named, order: str) -> Sight:
        key = self._config.names.naming_key
        who, tenant = who_asked(self._context.identity, key)
        return Sight(
            at=self._asked,
            who=who,
            tenant=tenant,
            asked=asked_with(self._request, key),
            status=answer.status,
            body=answer.digest,
            length=answer.length,
            order=order,
            headers=headers,
            excerpt=answer.start[: self._notes.keep_bodies].decode("utf-8", "replace"),
        )


async def _holds(store: Store, key: bytes, body: bytes) -> bool:
    """Whether the record of a key is still this one, and valid."""
    record = (await store.get(key)).record
    return isinstance(record, Entry) and record.body == body


def _alike(headers: Named, basis: Sight, learned: frozenset[str]) -> bool:
    """Whether two answers' fields are the same, but for those that were learned to mean nothing."""
    if headers == basis.headers:
        return True
    return all(name in learned for name, _ in set(headers) ^ set(basis.headers))


class _Answer:
    """What is known of the app's answer: its start, and a digest of its body that grows with it."""

    def __init__(self, status: int, headers: Pairs, *, excerpt: int) -> None:
        self.status = status
        self.headers = headers
        self.length = 0
        self.start = b""
        self.whole = False
        self._gzip = single_value(headers, b"content-encoding") == b"gzip"
        kind = single_value(headers, b"content-type") or b""
        self.is_json = b"json" in kind.lower() and not self._gzip
        self._room = max(excerpt, MAX_JSON if self.is_json else 0)
        self._hash = xxh3_128()
        self._head = b""

    @property
    def digest(self) -> str:
        """Of the body so far."""
        if not self._head:
            return self._hash.hexdigest()
        hashed = self._hash.copy()
        hashed.update(self._head)
        return hashed.hexdigest()

    def add(self, chunk: bytes) -> None:
        """A further part of the body."""
        if len(self.start) < self._room:
            self.start += bytes(chunk[: self._room - len(self.start)])
        self.length += len(chunk)
        if self._gzip:
            chunk = self._head + bytes(chunk)
            if len(chunk) < _GZIP_TIME.stop:
                self._head = chunk
                return
            self._gzip, self._head = False, b""
            chunk = chunk[: _GZIP_TIME.start] + b"\0\0\0\0" + chunk[_GZIP_TIME.stop :]
        self._hash.update(chunk)

    def end(self) -> None:
        """The body is whole, if it is as long as was said."""
        stated = single_value(self.headers, b"content-length")
        self.whole = stated is None or self.status in (204, 304) or stated == b"%d" % self.length


_ASIDE: Final = frozenset({"http.response.debug", "http.response.early_hint", "http.response.push"})
"""Messages that are no part of an answer."""


class _Watching:
    """The `send` of one request: passes each message on as it is, then takes note of it.

    most: bytes of a body; a larger one is not compared, as it would not be stored.
    """

    def __init__(self, send: Send, rehearsal: Rehearsal, most: int) -> None:
        self._send = send
        self._rehearsal = rehearsal
        self._most = most
        self._answer: _Answer | None = None
        self._over = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = repeatable(message)
            self._rehearsal.begun()
        sent = {**message, "headers": list(message.get("headers", ()))}  # who is further out may write into its own
        await self._send(message)
        if self._over:
            return
        try:
            finished = self._note(sent)
        except Exception as error:  # noqa: BLE001 - P5: the answer goes on, whatever is in it; counted
            self._over = True
            self._rehearsal.failed(error)
            return
        if finished and self._answer is not None:
            self._over = True
            await self._rehearsal.seen(self._answer)

    def _note(self, message: Message) -> bool:
        """Take note of a message; whether it was the last of a body."""
        kind, answer = message["type"], self._answer
        if kind == "http.response.body" and answer is not None:
            if answer.length <= self._most:
                answer.add(message.get("body", b""))
            if message.get("more_body", False):
                return False
            if answer.length <= self._most:
                answer.end()
            return True
        if kind == "http.response.start" and answer is None:
            self._answer = _Answer(
                message["status"], lowered(message.get("headers", ())), excerpt=self._rehearsal.excerpt
            )
            self._over = message.get("trailers", False)
        elif kind not in _ASIDE:
            self._over = True  # trailers, a file sent by its path, something unknown: no cache would store it
        return False
