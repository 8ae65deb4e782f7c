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

from collections.abc import Callable, Mapping, Sequence
from typing import Final, get_args

from tidegate.middleware.core.explain import Explanation
from tidegate.middleware.core.freshness import is_too_old
from tidegate.middleware.core.policy import Share
from tidegate.middleware.core.reuse import of_use_past
from tidegate.middleware.core.storing import Kept, RequestDirectives, Usable, client_fields, judge_response, told
from tidegate.middleware.layers.asgi import Message, RequestContext, Scope, Send
from tidegate.middleware.layers.exchange import Exchange
from tidegate.middleware.layers.fields import MARKS, Head, Pair, read
from tidegate.middleware.layers.filling import MAX_HEADER_BYTES, CacheConfig, refusal_note
from tidegate.middleware.layers.fused import Missed
from tidegate.middleware.layers.keeping import Keeping, Labelled, Plan
from tidegate.middleware.layers.naming import Named
from tidegate.middleware.layers.tee import UNREPEATABLE, Copy, Pairs, Tee
from tidegate.middleware.layers.witness import FRAMED
from tidegate.middleware.stores.base import Keeps, MayKeepAlike

__all__ = ["Miss", "Misses"]

_TIMELESS: Final = frozenset({"max-age", "no-store", "policy ttl", "private", "s-maxage", "Set-Cookie", "Vary: *"})
"""Rules of lifetimes, and reasons to refuse, that come before any date is looked at."""

_SHAPES: Final = 1024
"""Shapes that are remembered, about 0.7 KiB each."""

_LONGEST: Final = 512
"""Bytes of a shape that is remembered: an app may put what it likes into Vary."""

_ROUTES: Final = 64
"""Routes whose plans are remembered with one head."""

_MOST_DIGITS: Final = 18
"""Of a Content-Length that is not too long for anything."""

_STORED: Final = (b"cache-status", b"Tidegate; fwd=miss; stored")

_NOTHING_SPECIAL: Final = RequestDirectives()
"""What a request wants that says nothing of it."""

_USABLE: Final[dict[Share, Usable]] = {share: Usable(share) for share in get_args(Share)}


class Misses:
    """The plain misses of one cache layer.

    taken: those of which the answer was judged here.
    """

    def __init__(self, config: CacheConfig, store: Keeps) -> None:
        self.config = config
        self.clock = config.clock
        self.taken = 0
        self._in_part = config.in_part
        # The store itself, if there is a guard round one that keeps what is alike: every miss asks.
        within = store.alike() if isinstance(store, MayKeepAlike) else None
        self._positions: Callable[[Sequence[str]], Mapping[str, int] | None] = (within or store).positions
        self._plans: dict[tuple[object, ...], Plan] = {}
        keeping = Keeping(config, store)
        self.keep, self.keep_labelled = keeping.keep, keeping.keep_labelled

    def begin(self, scope: Scope, named: Named, context: RequestContext) -> bool:
        """Note in the context that it is a miss, and where the ledger stands; False: it is not for this way."""
        policy = context.match.policy
        if policy is not None and policy.extensions != "pass" and scope.get("extensions"):
            return False
        if self._in_part and named.primary in self._in_part:
            return False  # what is stored in part may be completed
        if "session" in scope and scope["session"] is not None:
            return False  # the general way sees whether it is read; `get` takes twice as long
        if "http_version" not in scope or scope["http_version"] not in FRAMED:
            return False  # and whether a body comes
        try:
            positions = self._positions(named.owner.scopes)
        except Exception as error:  # noqa: BLE001 - P5; counted
            self.config.metrics.fail("store", error)
            return False
        if positions is None:
            return False
        context.positions, context.outcome = positions, "miss"
        if policy is not None:
            context.coalesce_key = (
                self.config.names.shared(named, policy, scope["headers"]) if policy.vary else named.primary
            )
        return True

    def labelled(self, head: Head, given: Pairs, context: RequestContext, share: Share) -> Labelled | None:
        """What becomes of a response with this head and an ETag of ours, remembered with the head where it can be;
        None: its fields are too long. given: its fields.
        """
        plan = self.plan(200, (*head.shape, MARKS[b"etag"]), given, context, share)
        if sum([len(name) + len(value) for name, value in (*given, *plan.ours)]) > MAX_HEADER_BYTES:
            return None
        labelled = Labelled(head, plan)
        if plan.timeless:
            if len(head.plans) >= _ROUTES:
                head.plans.clear()
            head.plans[context.match.route] = labelled
        return labelled

    def plan(self, status: int, shape: tuple[Pair, ...], given: Pairs, context: RequestContext, share: Share) -> Plan:
        """What becomes of a response. given: its fields. shape: what counts of them."""
        match = context.match
        key = (status, match.route, context.own_etag, *shape)
        plan = self._plans.get(key)
        if plan is None or plan.policy is not match.policy:
            plan = self._judge(status, shape, given, context, share)
            if plan.timeless and sum([len(value) for _, value in shape]) <= _LONGEST:
                if len(self._plans) >= _SHAPES:
                    self._plans.clear()
                self._plans[key] = plan
        return plan

    def is_too_old(self, given: Pairs, plan: Plan, asked: float) -> bool:
        """Whether a response that this plan keeps is of no use any more, though it comes now. given: its fields."""
        kept = plan.kept
        return kept is not None and is_too_old(given, kept.lifetime + plan.past, asked=asked, now=self.clock())

    def _judge(self, status: int, shape: tuple[Pair, ...], given: Pairs, context: RequestContext, share: Share) -> Plan:
        policy = context.match.policy
        names = {name for name, _ in shape}
        validator = b"last-modified" in names or (b"etag" in names and not context.own_etag)
        verdict = judge_response(
            status=status,
            headers=given,
            request=(),  # it has no field that counts: a plain miss is noted of none else
            share=share,
            policy=policy,
            default_ttl=self.config.default_ttl,
            now=self.config.clock(),
            known=context.identity is not None,
            validator=validator,
        )
        undated = b"last-modified" not in names and b"expires" not in names
        if not isinstance(verdict, Kept):
            note = (b"cache-status", b"Tidegate; fwd=miss" + refusal_note(verdict))
            return Plan(policy, None, False, (), 0.0, 0, note, undated or verdict.reason in _TIMELESS)
        return Plan(
            policy,
            verdict,
            verdict.reusable,
            client_fields(given, verdict, policy, share),
            of_use_past(verdict, validator=validator),
            policy.max_body if policy is not None else self.config.max_body,
            _STORED,
            undated or verdict.rule in _TIMELESS,
        )


class Miss:
    """The `send` of one request, and what explains it."""

    __slots__ = ("_asked", "_context", "_copy", "_exchange", "_general", "_given", "_head", "_headers", "_misses",
                 "_named", "_plan", "_positions", "_scope", "_send", "_share", "_status")  # fmt: skip

    def __init__(self, misses: Misses, missed: Missed, context: RequestContext, send: Send, asked: float) -> None:
        self._misses = misses
        self._scope, self._named = missed[1], missed[2]
        self._share: Share = missed[3]
        self._context = context
        self._send = send
        self._positions = context.positions
        self._asked = asked
        self._plan: Plan | None = None
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
                    await self.taken_up().commit(self._status, self._headers, body)
        elif kind == "http.response.start" and self._plan is None:
            given = list(message.get("headers", ()))
            begun = self._begin(message, given)
            if begun is not None:
                await self._send(begun)
                return
            self._exchange = exchange = self.taken_up()
            self._general = Tee(self._send, request=self._scope["headers"], keeper=exchange)
            await self._general({**message, "headers": given})
        else:
            await self._send(message)
            if kind in UNREPEATABLE:
                self._copy = None

    def _begin(self, message: Message, given: list[Pair]) -> Message | None:
        """The response's start for the client; None: it is for the general way. given: the app's fields."""
        context, misses = self._context, self._misses
        if context.collapsed or message.get("trailers") or self._scope.get("session") is not None:
            return None  # the last one: it may have been read, or changed
        try:
            head = read(given)
        except (AttributeError, TypeError, ValueError):
            return None
        stated = head.length[1].strip(b" 	") if head.length is not None else None
        if not head.fit or (stated is not None and not (stated.isdigit() and len(stated) <= _MOST_DIGITS)):
            return None
        lines = [*head.before, *((head.length,) if head.length is not None else ()), *head.after]
        plan = misses.plan(message["status"], head.shape, lines, context, self._share)
        headers = lines
        if plan.kept is not None:
            if stated is not None and int(stated) > plan.room:
                return None
            if head.dated and misses.is_too_old(given, plan, self._asked):
                return None
            if plan.ours:
                headers = told(lines, plan.ours)
            if sum([len(name) + len(value) for name, value in headers]) > MAX_HEADER_BYTES:
                return None
            context.storable = plan.storable
            self._copy = Copy(plan.room, stated)
        misses.taken += 1
        self._go_on(plan, message["status"], lines, headers, head)
        return {**message, "headers": [*headers, plan.note]}

    def _go_on(self, plan: Plan, status: int, given: Pairs, headers: Pairs, head: Head) -> None:
        self._plan, self._status, self._given, self._headers, self._head = plan, status, given, headers, head

    def _keep(self, body: bytes) -> bool:
        plan, headers = self._plan, tuple(self._headers)
        if plan is None or self._scope.get("session") is not None:
            return False
        if self._head.length is None and self._status != 204:
            headers = (*headers, (b"content-length", b"%d" % len(body)))
        return self._misses.keep(
            plan, self._status, headers, body, self._named, self._context, self._asked, self._head.dated
        )

    def follow(
        self, plan: Plan, status: int, given: Pairs, headers: Pairs, head: Head, *, length: bytes, copies: bool
    ) -> None:
        """Be where another way has come to after a response's start.

        given, headers: the fields of the app's answer, and those that may be stored, without the note; length: its
        Content-Length. copies: its body is to come.
        """
        self._go_on(plan, status, given, headers, head)
        if copies and plan.kept is not None:
            self._copy = Copy(plan.room, length)

    def explain(self) -> Explanation:
        """What is known now."""
        return (self._exchange or self.taken_up()).explain()

    def taken_up(self) -> Exchange:
        """The general way, come to where this is."""
        plan = self._plan
        exchange = Exchange(
            self._misses.config, self._context, self._scope, self._named, _USABLE[self._share], _NOTHING_SPECIAL
        )
        answered = (self._status, self._given, self._context.own_etag) if plan is not None else None
        exchange.take_up(self._positions, self._asked, answered, plan.kept if plan is not None else None)
        return exchange
