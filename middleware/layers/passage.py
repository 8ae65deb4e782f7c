"""One plain request on the straight way through all five layers, see `through`.

One object is the app's `send`, and does what the five do one inside the other. It labels the body, reports to the
circuit, counts, and keeps a copy. The run of the app is begun by hand and has a task of its own (`eager`); while it
does not wait nobody can join it, and no flight is registered.

Plain is a response with 200, one Content-Length, no ETag of the app's own and all of its body in one message. Whatever
else happens (the app waits, reads what the client sends, answers otherwise, fails) falls back: the objects of the five
layers are made and put where this has come to, and go on. None of their rules is repeated here. A property test
compares the two ways on generated lives: messages, records, counts, circuits, flights.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from contextvars import Context, copy_context
from typing import Final

from tidegate.middleware.breaker import Breaker, Ticket
from tidegate.middleware.core.explain import Explanation
from tidegate.middleware.core.validators import digest_and_etag, make_etag
from tidegate.middleware.layers.asgi import Message, Receive, RequestContext, Scope, Send
from tidegate.middleware.layers.breaker import Outcome
from tidegate.middleware.layers.eager import begin, show
from tidegate.middleware.layers.etag import Labelling
from tidegate.middleware.layers.fields import Head, Pair
from tidegate.middleware.layers.fused import Missed
from tidegate.middleware.layers.joining import Key
from tidegate.middleware.layers.keeping import Labelled
from tidegate.middleware.layers.leader import Leader
from tidegate.middleware.layers.straight import Miss
from tidegate.middleware.layers.waiting import Waiting
from tidegate.middleware.layers.watching import Watch, debug_fields
from tidegate.middleware.layers.way import Way

__all__ = ["Passage"]

_NEW: Final = 0
"""The app has said nothing."""
_HELD: Final = 1
"""The response's start waits for its body, of which its ETag is made."""
_BEGUN: Final = 2
"""The start was sent, or is being sent."""
_DONE: Final = 3
"""The whole response is known to all layers, and was sent or is being sent."""
_FALLEN: Final = 4
"""The objects of the five layers go on."""

_NO_MORE: Final = 3
"""Keys of a response's start that has a type, a status and a list of fields, and nothing else."""

_UNSET: Final = object()
_blank: Final = object.__new__

Asked = tuple[Way, Scope, RequestContext, Receive, Send, Missed, float, float, Breaker, Ticket]
"""A request: what it has in common with others, the server's three, what the cache knows of it, when it began for the
cache and for telemetry, its circuit, and the admission there. All that does not change: to set each takes longer."""


class Passage:
    """One request: what the app is given as `receive` and `send`, and what explains it."""

    __slots__ = ("_asked", "_fell", "_labelled", "_labelling", "_leader", "_leads", "_outcome", "_read", "_stage",
                 "_start", "_tag", "_waiting", "_watch")  # fmt: skip
    _asked: Asked
    _fell: int
    _labelled: Labelled
    _labelling: Labelling
    _leader: Leader | None
    _leads: bool
    _outcome: Outcome
    _read: tuple[Head, bytes]
    _stage: int
    _start: Message | None
    _tag: Pair
    _waiting: Waiting | None
    _watch: Watch

    @staticmethod
    def alone(asked: Asked) -> Awaitable[None]:
        """Let the app answer this request and nobody else."""
        passage = _blank(Passage)
        passage._asked, passage._leads, passage._stage = asked, False, _NEW
        passage._leader = passage._waiting = None
        asked[2].explainer = passage
        return passage._alone()

    async def _alone(self) -> None:
        way, scope, context = self._asked[:3]
        try:
            await way.app(scope, self.receive, self.send)
            if self._stage is not _DONE:
                await self._returned()
        except Exception:
            self._ending().settle(failed=True)
            self._watch.failed = True
            raise
        except BaseException:
            self._ending().abandon()
            raise
        finally:
            if self._stage is _DONE:
                context.explainer = None
            else:
                self._over()

    @staticmethod
    def lead(asked: Asked, key: Key) -> Awaitable[None]:
        """Let the app answer in a run of its own, which others may join once it waits: begun at once, so that most
        have nothing left to wait for.
        """
        passage = _blank(Passage)  # no `__init__`, which would take as long again
        passage._asked, passage._leads, passage._stage = asked, True, _NEW
        passage._leader = passage._waiting = None
        way, scope, context, _, _, _, _, began, _, _ = asked
        context.explainer = passage
        if not way.timed:
            began = way.clock()
        own = copy_context()
        try:
            run = begin(passage._run(way, scope), own)
        except BaseException as error:
            passage._failed(error)
            show(own)
            raise
        if run is not None:
            return passage._wait(key, run, own, copy_context())
        for variable, value in own.items():  # as `show` does it, without the call
            if variable.get(_UNSET) is not value:
                variable.set(value)
        if not context.storable or way.clock() - began >= way.max_busy:
            way.coalesce.never_waited(key, None if context.storable else passage._leaders_start(), context, began)
        if passage._stage is _DONE:  # pyright: ignore[reportUnnecessaryComparison]  # meanwhile
            context.explainer = None
        else:
            passage._over()
        return _nothing()

    async def _wait(self, key: Key, run: "asyncio.Task[None]", own: Context, began: Context) -> None:
        """The run waits for the first time, and others may join it: see it to its end.

        own: the context in which it runs; began: a copy of it from before it did.
        """
        way, scope, context = self._asked[:3]
        self._waiting = waiting = Waiting(way.coalesce, key, context, scope["headers"], run, self._fall_back)
        if self._leader is not None:
            waiting.take_off(self._leader)
        elif self._stage != _NEW:
            self._fall_back()
        else:
            waiting.enter()
        try:
            await waiting.see_to_end()
        except Exception:
            self._fall_back()
            self._watch.failed = True
            raise
        finally:
            if run.done():
                show(own, began)
            self._over()

    async def _run(self, way: Way, scope: Scope) -> None:
        """The leader's run; its end is the circuit's."""
        try:
            await way.app(scope, self.receive, self.send)
            if self._stage is not _DONE:
                await self._returned()
        except Exception as error:
            self._ending().settle(failed=True)
            if self._leader is None or not way.coalesce.is_unheard(self._leader, error):
                raise
        except BaseException:
            self._ending().abandon()
            raise
        finally:
            if self._leader is not None:
                self._leader.over()
            elif self._waiting is not None:
                self._waiting.call()

    def _failed(self, error: BaseException) -> None:
        """It is over, before it waited for anything."""
        if isinstance(error, Exception):
            self._fall_back()
            self._watch.failed = True
        self._over()

    def _over(self) -> None:
        """It is over; where it did not end the straight way, it is to be counted."""
        self._asked[2].explainer = None
        if self._stage is not _DONE:
            self._fall_back()
            if not self._watch.counted:
                self._watch.finish()

    async def receive(self) -> Message:
        """What the client sends."""
        return await self._ending().receive()

    def send(self, message: Message) -> Awaitable[None]:
        """What the app answers."""
        kind, stage = message["type"], self._stage
        if stage is _NEW:
            if kind == "http.response.start" and self._holds(message):
                return _nothing()
        elif stage is _HELD:
            # `get` takes twice as long, here as below.
            if kind == "http.response.body" and ("more_body" not in message or not message["more_body"]):
                return self._finish(message)
        elif stage is _FALLEN:
            return self._labelling(message)
        elif stage is _DONE and kind != "http.response.start":
            return self._asked[4](message)
        return self._fall_back()(message)

    def _holds(self, start: Message) -> bool:
        """Whether a start is plain; it is kept then until its body comes."""
        if start["status"] != 200 or "headers" not in start:
            return False
        headers: list[Pair] = start["headers"]
        if type(headers) is not list:
            return False
        if len(start) == _NO_MORE:
            self._start = None
        elif start.get("trailers"):
            return False
        else:
            self._start = {**start}  # the app may say the rest in the same message
        read = self._asked[0].heads.of(headers)
        if read is None or not read[0].plain:
            return False
        self._read, self._stage = read, _HELD
        return True

    async def _finish(self, message: Message) -> None:
        """The whole body has come."""
        if self._stage is not _HELD:
            await self._fall_back()(message)  # the app sends it in a task of its own: others may have joined meanwhile
            return
        body = message.get("body", b"")
        head, length = self._read
        way, scope, context, _, send, missed, asked, started, breaker, ticket = self._asked
        waiting = self._waiting
        unfit = type(body) is not bytes or b"%d" % len(body) != length
        if (
            unfit
            or ("session" in scope and scope["session"] is not None)
            or (waiting is not None and not waiting.fits(self._start_with(()), message, body))
        ):
            await self._fall_back()(message)
            return
        digest, etag = (None, make_etag(body, weak=True)) if head.coded else digest_and_etag(body)
        tag = (b"etag", etag)
        context.own_etag = True
        match = context.match
        plan: Labelled | None = head.plans.get(match.route)
        if plan is None or plan.policy is not match.policy:
            given = [*head.before, (b"content-length", length), *head.after, tag]
            plan = way.misses.labelled(head, given, context, missed[3])
        if plan is None or len(body) > plan.room or (plan.dated and self._is_too_old(plan)):
            await self._fall_back()(message)
            return
        headers = [*plan.before, (b"content-length", length), *plan.after, tag, *plan.rest]
        self._tag, self._labelled = tag, plan
        if plan.kept is not None:
            context.storable = plan.storable
        if way.debugs:
            headers += debug_fields(scope, context)
        self._stage = _BEGUN
        if waiting is not None:
            waiting.judge(200, self._given())
        try:
            await send(self._start_with(headers))
        except BaseException as error:
            self._fall_back().opened()
            self._outcome.gone = True
            self._watch.gone = isinstance(error, OSError)
            raise
        if self._stage is _FALLEN:  # pyright: ignore[reportUnnecessaryComparison]  # meanwhile
            self._labelling.opened()
            await self._outcome.send(message)  # others may have joined while the start was being sent
            return
        if waiting is not None:
            waiting.close()  # who comes after the answer has begun to flow runs on its own
        breaker.succeeded(ticket)
        self._stage = _DONE
        way.taken += 1
        way.telemetry.count_plain(scope, context, plan.countable, started)
        await send(message)
        if plan.kept is not None and not way.misses.keep_labelled(
            plan, length, tag, digest, body, missed[2], context, asked
        ):
            await self._miss(copies=False).taken_up().commit(200, plan.stored(length, tag), body)

    def _is_too_old(self, plan: Labelled) -> bool:
        return self._asked[0].misses.is_too_old(self._said(), plan.plan, self._asked[6])

    def explain(self) -> Explanation:
        """What is known now."""
        return self._miss(copies=False).explain()

    def _start_with(self, headers: Sequence[Pair]) -> Message:
        """The start of the response, with these fields."""
        if self._start is None:
            return {"type": "http.response.start", "status": 200, "headers": headers}
        return {**self._start, "status": 200, "headers": headers}

    def _said(self) -> list[Pair]:
        """The fields of the app's answer as they came; its message and list may be those of another one by now."""
        head, length = self._read
        return [*head.before, (b"content-length", length), *head.after]

    def _given(self) -> list[Pair]:
        """The same, with the ETag that it was given."""
        return [*self._said(), self._tag]

    def _leaders_start(self) -> Message | None:
        """The start as the leader has heard it; None: it has not."""
        if self._leader is not None:
            return self._leader.start
        if self._stage < _BEGUN:
            return None
        return self._start_with(tuple(self._given()))

    def _miss(self, *, copies: bool) -> Miss:
        """The cache's part, come to where this is. copies: the body is to come."""
        return self._miss_to(self._asked[4], copies=copies)

    def _miss_to(self, send: Send, *, copies: bool) -> Miss:
        way, _, context, _, _, missed, asked, _, _, _ = self._asked
        miss = Miss(way.misses, missed, context, send, asked)
        if (self._fell if self._stage is _FALLEN else self._stage) >= _BEGUN:
            (head, length), plan, given = self._read, self._labelled.plan, self._given()
            headers = self._labelled.stored(length, self._tag) if plan.kept is not None else given
            miss.follow(plan, 200, given, headers, head, length=length, copies=copies)
        return miss

    async def _returned(self) -> None:
        """The app has, and may have sent no body, or only some of it."""
        labelling = self._fall_back()
        await labelling.release()
        self._outcome.over()

    def _ending(self) -> Outcome:
        self._fall_back()
        return self._outcome

    def _fall_back(self) -> Labelling:
        """The objects of the five layers in this one's place, come to where it is."""
        if self._stage is _FALLEN:
            return self._labelling
        way, scope, context, receive, send, _, _, started, breaker, ticket = self._asked
        stage, start = self._stage, self._leaders_start()
        self._watch = watch = Watch(way.telemetry, way.app, scope, context, receive, send, True, started)
        context.explainer = miss = self._miss_to(watch.send, copies=stage == _BEGUN)
        receive, send = watch.receive, miss.__call__
        if self._leads:
            self._leader = leader = Leader(scope, receive, send, watched=False)
            receive, send = leader.receive, leader.send
            if start is not None:
                leader.said(start, body=stage == _DONE)
        self._outcome = outcome = Outcome(breaker, ticket, way.failures, receive, send)
        self._labelling = labelling = Labelling(scope, context, outcome.send)
        if stage == _HELD:
            head, length = self._read
            labelling.hold(self._start_with(self._said()), length.strip(b" \t"), coded=head.coded)
        elif stage >= _BEGUN:
            if stage == _BEGUN:
                labelling.opens()
            outcome.started, watch.status = True, 200
            outcome.settled = watch.counted = stage == _DONE
        self._fell, self._stage = stage, _FALLEN
        if self._waiting is not None and self._leader is not None:
            self._waiting.take_off(self._leader)
        return labelling


async def _nothing() -> None:
    """What is awaited where a message is kept, or nothing is left to wait for."""
