"""Misses on a straight way: what most requests to a cold cache are, asked of the app and kept without the general one.

It takes GETs that `FusedHits` would have answered, had anything been stored under the URL's key: plain ones, without
conditions, Range or a directive, where the store is in this process. The app's answer is read in one pass over its
fields. Whether such a response may be stored, and for how long, is asked of `judge_response` once for each shape of
response and remembered: of thousands of pages there are a handful of shapes. What hangs on a date is judged each time.

Whatever is not plain (hop-by-hop fields, Age, groups, targeted fields, too many bytes, the answer of a run that is
shared) goes at the response's start to the general way, an `Exchange` and its `Tee`, as if it had been there from the
beginning; and so does the commit of a response that varies. A property test compares the two ways on generated lives:
messages, records, counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, get_args

from tidegate.middleware.core.explain import Explanation
from tidegate.middleware.core.freshness import born_at
from tidegate.middleware.core.message import HOP_BY_HOP
from tidegate.middleware.core.policy import RoutePolicy, Share
from tidegate.middleware.core.storing import Kept, RequestDirectives, Usable, client_fields, judge_response, told
from tidegate.middleware.core.targeted import TARGETED
from tidegate.middleware.layers.asgi import Message, RequestContext, Send
from tidegate.middleware.layers.exchange import Exchange
from tidegate.middleware.layers.filling import (
    MAX_HEADER_BYTES,
    MAX_TAGS,
    CacheConfig,
    of_use_past,
    refusal_note,
    tags_of,
)
from tidegate.middleware.layers.fused import Missed
from tidegate.middleware.layers.tee import UNREPEATABLE, Copy, Tee
from tidegate.middleware.layers.witness import FRAMED
from tidegate.middleware.stores.base import PUBLIC_SCOPE, Keeps, new_entry

__all__ = ["MARKS", "MOST", "NAMED", "NOTHING_SPECIAL", "SHAPING", "USABLE", "VALUED", "Miss", "Misses", "Pair"]

Pair = tuple[bytes, bytes]

VALUED: Final = frozenset({b"access-control-allow-origin", b"cache-control", b"vary"})
"""Response fields by whose values it is decided whether, how long and under which key a response is stored."""

_DATED: Final = frozenset({b"expires", b"last-modified"})
"""Those that decide by their dates, where nothing else says how long a response is fresh."""

NAMED: Final = _DATED | {b"etag", b"set-cookie"}
"""Those that decide by being there."""

_UNPLAIN: Final = HOP_BY_HOP | {b"age", b"cache-groups", b"cache-status", *TARGETED}
"""Those that are left to the general way. All others are stored and sent, and decide nothing."""

_TIMELESS: Final = frozenset({"max-age", "no-store", "policy ttl", "private", "s-maxage", "Set-Cookie", "Vary: *"})
"""Rules of lifetimes, and reasons to refuse, that come before any date is looked at."""

MARKS: Final = {name: (name, b"") for name in NAMED}

SHAPING: Final = VALUED | NAMED | _UNPLAIN | {b"content-length"}

_SHAPES: Final = 1024
"""Shapes that are remembered, about 0.7 KiB each."""

_LONGEST: Final = 512
"""Bytes of a shape that is remembered: an app may put what it likes into Vary."""

MOST: Final = MAX_HEADER_BYTES - 64
"""Bytes of fields that are not too many even with a Cache-Control of our own."""

_MOST_DIGITS: Final = 18
"""Of a Content-Length that is not too long for anything."""

_STORED: Final = (b"cache-status", b"Tidegate; fwd=miss; stored")

NOTHING_SPECIAL: Final = RequestDirectives()
"""What a request wants that says nothing of it."""

USABLE: Final[dict[Share, Usable]] = {share: Usable(share) for share in get_args(Share)}


@dataclass(frozen=True, slots=True)
class _Plan:
    """What becomes of all responses of one shape.

    policy: by which it was judged. kept: None: they are not stored. storable: as RequestContext has it, where they are.
    ours: see `client_fields`. past: see `of_use_past`.
    note: for the client. timeless: it is the same whenever it is asked.
    """

    policy: RoutePolicy | None
    kept: Kept | None
    storable: bool
    ours: tuple[Pair, ...]
    past: float
    note: Pair
    timeless: bool


class Misses:
    """The plain misses of one cache layer.

    taken: those of which the answer was judged here.
    """

    def __init__(self, config: CacheConfig, store: Keeps) -> None:
        self.config = config
        self.taken = 0
        self.keep = store.keep
        self._positions = store.positions
        self._plans: dict[tuple[object, ...], _Plan] = {}

    def begin(self, missed: Missed, context: RequestContext) -> Mapping[str, int] | None:
        """Note in the context that it is a miss: where the ledger stands; None: it is not for this way."""
        policy, named = context.match.policy, missed.named
        if policy is not None and policy.extensions != "pass" and missed.scope.get("extensions"):
            return None
        if named.primary in self.config.in_part:
            return None  # what is stored in part may be completed
        if missed.scope.get("session") is not None or missed.scope.get("http_version") not in FRAMED:
            return None  # the general way sees whether a session is read, and whether a body comes
        own = named.scope
        positions = self._positions((own,) if own == PUBLIC_SCOPE else (own, PUBLIC_SCOPE))
        if positions is None:
            return None
        context.positions, context.outcome = positions, "miss"
        if policy is not None:
            context.coalesce_key = named.primary
        return positions

    def plan(self, status: int, shape: list[Pair], given: list[Pair], miss: "Miss") -> _Plan:
        """What becomes of a response. given: its fields. shape: what counts of them."""
        match = miss.context.match
        key = (status, match.route, miss.context.own_etag, *shape)
        plan = self._plans.get(key)
        if plan is None or plan.policy is not match.policy:
            plan = self._judge(status, shape, given, miss)
            if plan.timeless and sum([len(value) for _, value in shape]) <= _LONGEST:
                if len(self._plans) >= _SHAPES:
                    self._plans.clear()
                self._plans[key] = plan
        return plan

    def _judge(self, status: int, shape: list[Pair], given: list[Pair], miss: "Miss") -> _Plan:
        context, share = miss.context, miss.missed.share
        policy = context.match.policy
        names = {name for name, _ in shape}
        validator = b"last-modified" in names or (b"etag" in names and not context.own_etag)
        verdict = judge_response(
            status=status,
            headers=given,
            request=(),  # it has no field that counts: `Missed` says so
            share=share,
            policy=policy,
            default_ttl=self.config.default_ttl,
            now=self.config.clock(),
            known=context.identity is not None,
            validator=validator,
        )
        undated = _DATED.isdisjoint(names)
        if not isinstance(verdict, Kept):
            note = (b"cache-status", b"Tidegate; fwd=miss" + refusal_note(verdict))
            return _Plan(policy, None, False, (), 0.0, note, undated or verdict.reason in _TIMELESS)
        ours = client_fields(given, verdict, policy, share)
        return _Plan(
            policy,
            verdict,
            verdict.reusable,
            ours,
            of_use_past(verdict, validator=validator),
            _STORED,
            undated or verdict.rule in _TIMELESS,
        )


class Miss:
    """The `send` of one request, and what explains it."""

    __slots__ = ("_asked", "_copy", "_exchange", "_general", "_given", "_headers", "_length", "_misses", "_plan",
                 "_positions", "_room", "_send", "_status", "context", "missed")  # fmt: skip

    def __init__(
        self, misses: Misses, missed: Missed, context: RequestContext, send: Send, positions: Mapping[str, int]
    ) -> None:
        self.context = context
        self.missed = missed
        self._misses = misses
        self._send = send
        self._positions = positions
        self._asked = misses.config.clock()
        self._plan: _Plan | None = None
        self._general: Tee | None = None
        self._exchange: Exchange | None = None
        self._copy: Copy | None = None

    async def __call__(self, message: Message) -> None:
        kind = message["type"]
        if self._general is not None:
            await self._general(message)
        elif kind == "http.response.body":
            # Read before it is sent: compression further out writes its bytes into the same message.
            chunk, more = message.get("body", b""), message.get("more_body", False)
            await self._send(message)
            if self._copy is not None:
                body = self._copy.take(chunk, more)
                if self._copy.over:
                    self._copy = None
                if body is not None and not self._keep(body):
                    await self._taken_up().commit(self._status, self._headers, body)
        elif kind == "http.response.start" and self._plan is None:
            given: list[Pair] = []
            begun = self._begin(message, given)
            if begun is not None:
                await self._send(begun)
                return
            self._exchange = exchange = self._taken_up()
            self._general = Tee(self._send, request=self.missed.scope["headers"], keeper=exchange)
            await self._general({**message, "headers": given})
        else:
            await self._send(message)
            if kind in UNREPEATABLE:
                self._copy = None

    def _begin(self, message: Message, given: list[Pair]) -> Message | None:
        """The response's start for the client; None: it is for the general way. given: takes the app's fields."""
        shape: list[Pair] = []
        length: bytes | None = None
        plain = not (self.context.collapsed or message.get("trailers"))
        for cased, value in message.get("headers", ()):
            name = cased.lower()
            given.append((name, value))
            if name in SHAPING:
                if name == b"content-length":
                    plain = plain and length is None
                    length = value.strip(b" \t")
                elif name in VALUED:
                    shape.append((name, value))
                elif name in NAMED:
                    shape.append(MARKS[name])
                else:
                    plain = False
        if not plain or not self._is_fit(given, length):
            return None
        begun = self._decide(message["status"], shape, given, length)
        if begun is None:
            return None
        if self._plan is not None and self._plan.kept is not None:
            self._copy = Copy(self._room, length)
        return {**message, "headers": begun}

    def _decide(self, status: int, shape: list[Pair], given: list[Pair], length: bytes | None) -> list[Pair] | None:
        """The fields for the client of a response that is fit; None: it is too long."""
        misses, policy = self._misses, self.context.match.policy
        plan = misses.plan(status, shape, given, self)
        headers = given
        if plan.kept is not None:
            self._room = room = policy.max_body if policy is not None else misses.config.max_body
            if length is not None and length.isdigit() and int(length) > room:
                return None
            if plan.ours:
                headers = told(given, plan.ours)
            self.context.storable = plan.storable
        misses.taken += 1
        self._plan, self._status, self._given, self._headers, self._length = plan, status, given, headers, length
        return [*headers, plan.note]

    def _is_fit(self, given: list[Pair], length: bytes | None) -> bool:
        """Whether nothing of it is malformed or too long, and no session may have been read or changed."""
        if self.missed.scope.get("session") is not None:
            return False
        text = b"".join([part for pair in given for part in pair])
        if len(text) > MOST or (length is not None and len(length) > _MOST_DIGITS):
            return False
        return not (b"\n" in text or b"\r" in text or b"\x00" in text)

    def _keep(self, body: bytes) -> bool:
        """Store the whole response, as Filling does; False: this way cannot. Never raises."""
        plan, config = self._plan, self._misses.config
        if plan is None or plan.kept is None or plan.kept.vary or plan.kept.dropped:
            return False
        try:
            self._put(body, plan, plan.kept, config)
        except Exception as error:  # noqa: BLE001 - P5; counted: the client has its answer
            config.metrics.fail("store", error)
        return True

    def _put(self, body: bytes, plan: _Plan, kept: Kept, config: CacheConfig) -> None:
        context, named = self.context, self.missed.named
        headers = tuple(self._headers)
        if self._length is None and self._status != 204:
            headers = (*headers, (b"content-length", b"%d" % len(body)))
        if context.tags or (plan.policy is not None and plan.policy.tags):
            tags = tuple(dict.fromkeys(tags_of(context, named, headers)))
            if len(tags) > MAX_TAGS:
                config.metrics.limits.labels("tags").inc()
                return
        else:
            tags = (named.tag,)
        now = config.clock()
        entry = new_entry(
            status=self._status,
            headers=headers,
            body=body,
            born=born_at(headers, asked=self._asked, answered=now),
            lifetime=kept.lifetime,
            stale_while_revalidate=kept.stale_while_revalidate,
            stale_if_error=kept.stale_if_error,
            must_revalidate=kept.must_revalidate,
            no_cache=kept.no_cache,
            tags=tags,
            positions=tuple(self._positions.items()),
            own_etag=context.own_etag,
        )
        retain = entry.born + kept.lifetime + plan.past - now
        if retain > 0:
            self._misses.keep(named.primary, entry, retain=retain)

    def follow(self, other: "Miss", *, begun: bool, copies: bool) -> None:
        """Be where another one is, before its response or, `begun`, after its start. copies: its body is to come."""
        self._asked = other._asked
        if begun:
            self._plan, self._status, self._given = other._plan, other._status, other._given
            self._headers, self._length = other._headers, other._length
            if copies and self._plan is not None and self._plan.kept is not None:
                self._copy = Copy(other._room, other._length)

    def explain(self) -> Explanation:
        """What is known now."""
        return (self._exchange or self._taken_up()).explain()

    def _taken_up(self) -> Exchange:
        """The general way, come to where this is."""
        missed, plan = self.missed, self._plan
        exchange = Exchange(
            self._misses.config, self.context, missed.scope, missed.named, USABLE[missed.share], NOTHING_SPECIAL
        )
        answered = (self._status, self._given, self.context.own_etag) if plan is not None else None
        exchange.take_up(self._positions, self._asked, answered, plan.kept if plan is not None else None)
        return exchange
