"""One straight way through all five layers: plain misses, and plain requests whose answer may not be stored.

It takes what `FusedHits` left a note of (`Missed`) where every layer is open and the store is in this process: one
object is the app's `send`, and does what the five do one inside the other. It labels the body, reports to the circuit,
counts, and keeps a copy. The run of the app is begun by hand and has a task of its own (`eager`); while it does not
wait nobody can join it, and no flight is registered.

Plain is a response with 200, one Content-Length, no ETag of the app's own and all of its body in one message. Whatever
else happens (the app waits, reads what the client sends, answers otherwise, fails) falls back: the objects of the five
layers are made and put where this has come to, and go on. None of their rules is repeated here. A property test
compares the two ways on generated lives: messages, records, counts, circuits, flights.
"""

from collections.abc import Awaitable, Coroutine, Mapping
from typing import Any, Final

from tidegate.middleware.breaker import Breaker, Ticket
from tidegate.middleware.core.validators import make_etag
from tidegate.middleware.layers.asgi import (
    ASGIApp,
    Gate,
    Message,
    Receive,
    RequestContext,
    Scope,
    Send,
    has_client_certificate,
)
from tidegate.middleware.layers.breaker import BreakerLayer, Outcome
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.layers.coalesce import CoalesceLayer
from tidegate.middleware.layers.eager import begin
from tidegate.middleware.layers.etag import ETagLayer, Labelling
from tidegate.middleware.layers.fields import CODED, LENGTH, NOTHING, SHAPES, Fields
from tidegate.middleware.layers.fused import Missed
from tidegate.middleware.layers.joining import Key, PlainKeys
from tidegate.middleware.layers.leader import Leader
from tidegate.middleware.layers.straight import MARKS, MOST, Miss, Pair
from tidegate.middleware.layers.telemetry import TelemetryLayer, Watch, debug_fields

__all__ = ["Passage", "Throughway", "lead_through"]

_NEW: Final = 0
"""The app has said nothing."""
_HELD: Final = 1
"""The response's start waits for its body, of which its ETag is made."""
_BEGUN: Final = 2
"""The start was sent, or is being sent."""
_DONE: Final = 3
"""The whole response is known to all layers, and was sent or is being sent."""


class Throughway:
    """The plain requests of one stack.

    app: the application inside all layers. The layers: as they stand one inside the other.
    gate: whether all of them are open for a request.

    taken: requests that went all the way.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        telemetry: TelemetryLayer,
        cache: CacheLayer,
        coalesce: CoalesceLayer,
        breaker: BreakerLayer,
        gate: Gate,
    ) -> None:
        misses = cache.misses
        if misses is None:
            raise ValueError("Throughway: the cache's store is not in this process")
        self.taken = 0
        self.app = app
        self.telemetry = telemetry
        self.misses = misses
        self._hits = cache.hits
        self.coalesce = coalesce
        self._count_alone, self._count_leader = coalesce.count_alone, coalesce.count_leader
        self.failures = breaker.failures
        self._gate = gate
        self._circuit = breaker.circuit
        self._keys = PlainKeys()
        self.fields = Fields()

    def __call__(
        self, scope: Scope, context: RequestContext, receive: Receive, send: Send, started: float
    ) -> Coroutine[Any, Any, None] | None:
        """The passage of a request; None: it is for the layers, one after the other."""
        missed = context.missed
        if type(missed) is not Missed or missed.scope is not scope or missed.hits is not self._hits:
            return None
        if not self._gate(context):
            return None
        positions = self.misses.begin(missed, context)
        if positions is None:
            return None
        if context.coalesce_key is None and scope.get("extensions") and has_client_certificate(scope):
            return None
        key, hashed = self._keys.of(scope, context)
        alone = self.coalesce.alone(key, hashed)
        if alone is None:
            return None
        breaker = self._circuit(context, scope["path"])
        ticket = breaker.closed
        if ticket is None:
            return None
        context.missed = None
        passage = Passage(self, missed, context, receive, send, positions, started, breaker, ticket, leads=not alone)
        if alone:
            self._count_alone()
            return passage.alone()
        self._count_leader()
        return passage.lead(key)


def lead_through(app: ASGIApp, layers: Mapping[str, object], *, gate: Gate) -> Throughway | None:
    """Let plain requests take the straight way, where all five layers stand round the app and the store is local.

    layers: by name. gate: whether all of them are open for a request.
    """
    telemetry, cache, coalesce = layers.get("telemetry"), layers.get("cache"), layers.get("coalesce")
    breaker, etag = layers.get("breaker"), layers.get("etag")
    if not (isinstance(telemetry, TelemetryLayer) and isinstance(cache, CacheLayer)):
        return None
    if not (isinstance(coalesce, CoalesceLayer) and isinstance(breaker, BreakerLayer) and isinstance(etag, ETagLayer)):
        return None
    if cache.misses is None or cache.hits is None:
        return None
    way = Throughway(app, telemetry=telemetry, cache=cache, coalesce=coalesce, breaker=breaker, gate=gate)
    telemetry.through = way
    return way


class Passage(Miss):
    """One request: what the app is given as `receive` and `send`."""

    __slots__ = ("_breaker", "_coded", "_labelling", "_leader", "_leads", "_outcome", "_receive", "_request", "_stage",
                 "_start", "_started", "_ticket", "_watch", "_way")  # fmt: skip

    def __init__(
        self, way: Throughway, missed: Missed, context: RequestContext, receive: Receive, send: Send,
        positions: Mapping[str, int], started: float, breaker: Breaker, ticket: Ticket, *, leads: bool,
    ) -> None:  # fmt: skip
        Miss.__init__(self, way.misses, missed, context, send, positions)
        self._way = way
        self._receive = receive
        self._request = missed.scope["headers"]
        self._started = started
        self._leads = leads
        self._breaker = breaker
        self._ticket = ticket
        self._stage = _NEW
        self._labelling: Labelling | None = None
        self._leader: Leader | None = None

    async def alone(self) -> None:
        """Let the app answer this request and nobody else."""
        context = self.context
        context.explainer = self
        try:
            await self._way.app(self.missed.scope, self.receive, self)
            if self._stage is not _DONE:
                self._ending().over()
        except Exception:
            self._ending().settle(failed=True)
            self._watch.failed = True
            raise
        except BaseException:
            self._ending().abandon()
            raise
        finally:
            context.explainer = None
            if self._stage is not _DONE:
                self._count()

    async def lead(self, key: Key) -> None:
        """Let the app answer in a run of its own, which others may join once it waits."""
        context, coalesce = self.context, self._way.coalesce
        context.explainer = self
        try:
            began = coalesce.clock()
            run = begin(self._run())
            if run is None:
                start = None if context.storable else self._leaders_start()
                coalesce.never_waited(key, start, context, began)
            else:
                self._fall_back()
                assert self._leader is not None
                await coalesce.fly(key, self._request, context, self._leader, run)
        except Exception:
            self._fall_back()
            self._watch.failed = True
            raise
        finally:
            context.explainer = None
            if self._stage is not _DONE:
                self._count()

    async def _run(self) -> None:
        """The leader's run; its end is the circuit's."""
        try:
            await self._way.app(self.missed.scope, self.receive, self)
            if self._stage is not _DONE:
                self._ending().over()
        except Exception as error:
            self._ending().settle(failed=True)
            if self._leader is None or not self._way.coalesce.is_unheard(self._leader, error):
                raise
        except BaseException:
            self._ending().abandon()
            raise
        finally:
            if self._leader is not None:
                self._leader.over()

    def _count(self) -> None:
        """It is over, and did not end the straight way."""
        self._fall_back()
        if not self._watch.counted:
            self._watch.finish()

    async def receive(self) -> Message:
        """What the client sends."""
        return await self._ending().receive()

    def __call__(self, message: Message) -> Awaitable[None]:  # type: ignore[override]
        if self._labelling is not None:
            return self._labelling(message)
        kind, stage = message["type"], self._stage
        if stage == _HELD:
            if kind == "http.response.body" and not message.get("more_body", False):
                return self._finish(message)
        elif stage == _NEW:
            if kind == "http.response.start" and self._holds(message):
                return _nothing()
        elif stage == _DONE:
            return self._send(message)
        return self._fall_back()(message)

    def _holds(self, start: Message) -> bool:
        """Whether a start is plain; it is kept then until its body comes."""
        headers: list[Pair] = start.get("headers", ())
        if start["status"] != 200 or start.get("trailers") or type(headers) is not list:
            return False
        given: list[Pair] = []
        shape: list[Pair] = []
        length: bytes | None = None
        coded, size, fields = False, 0, self._way.fields
        try:
            for line in headers:
                pair, kind, shaping, long = fields[line]
                given.append(pair)
                size += long
                if kind == SHAPES:
                    shape.append(shaping)
                elif kind == LENGTH and length is None:
                    length = shaping[1]
                elif kind == CODED:
                    coded = True
                elif kind != NOTHING:
                    return False
        except (AttributeError, TypeError, ValueError):
            return False  # no pairs of bytes: some servers take what ASGI does not allow
        if length is None or size > MOST:
            return False
        self._given, self._headers, self._length, self._coded, self._stage = given, shape, length, coded, _HELD
        self._start = start
        return True

    async def _finish(self, message: Message) -> None:
        """The whole body has come."""
        body = message.get("body", b"")
        given, shape, length, context, scope = self._given, self._headers, self._length, self.context, self.missed.scope
        if type(body) is not bytes or b"%d" % len(body) != length or scope.get("session") is not None:
            await self._fall_back()(message)
            return
        given.append((b"etag", make_etag(body, weak=self._coded)))
        shape.append(MARKS[b"etag"])
        context.own_etag = True
        headers = self._decide(200, shape, given, length)
        if headers is None:
            given.pop()
            context.own_etag = False
            await self._fall_back()(message)
            return
        way = self._way
        if way.telemetry.debug_headers:
            headers += debug_fields(scope, context)
        self._stage = _BEGUN
        try:
            await self._send({**self._start, "headers": headers})
        except BaseException as error:
            self._fall_back()
            self._outcome.gone = True
            self._watch.gone = isinstance(error, OSError)
            raise
        if self._labelling is not None:
            await self._outcome.send(message)  # others may have joined while the start was being sent
            return
        self._breaker.report(self._ticket, failed=False)
        self._stage = _DONE
        way.taken += 1
        way.telemetry.count(scope, context, 200, self._started, True, False)
        await self._send(message)
        if self._plan is not None and self._plan.kept is not None and not self._keep(body):
            await self._taken_up().commit(200, self._headers, body)

    def _leaders_start(self) -> Message | None:
        """The start as the leader has heard it; None: it has not."""
        if self._leader is not None:
            return self._leader.start
        if self._stage < _BEGUN:
            return None
        return {**self._start, "headers": tuple(self._given)}

    def _ending(self) -> Outcome:
        self._fall_back()
        return self._outcome

    def _fall_back(self) -> Labelling:
        """The objects of the five layers in this one's place, come to where it is."""
        if self._labelling is not None:
            return self._labelling
        way, scope, context, stage = self._way, self.missed.scope, self.context, self._stage
        start = self._leaders_start()
        self._watch = watch = Watch(
            way.telemetry, way.app, scope, context, self._receive, self._send, True, self._started
        )
        context.explainer = miss = Miss(self._misses, self.missed, context, watch.send, self._positions)
        miss.follow(self, begun=stage >= _BEGUN, copies=stage == _BEGUN)
        receive, send = watch.receive, miss.__call__
        if self._leads:
            self._leader = leader = Leader(scope, receive, send, watched=False)
            receive, send = leader.receive, leader.send
            if start is not None:
                leader.said(start, body=stage == _DONE)
        self._outcome = outcome = Outcome(self._breaker, self._ticket, way.failures, receive, send)
        self._labelling = labelling = Labelling(scope, context, outcome.send)
        if stage == _HELD:
            assert self._length is not None
            labelling.hold(self._start, self._length, coded=self._coded)
        elif stage >= _BEGUN:
            outcome.started, watch.status = True, 200
            outcome.settled = watch.counted = stage == _DONE
        return labelling


async def _nothing() -> None:
    """What is awaited where a message is kept."""
