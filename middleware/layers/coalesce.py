"""The coalescing layer: identical requests that come while one of them runs share its answer.

One leader asks the app; followers get its bytes, or go on alone as if they had been the first: when the answer is not
for sharing (an error, Set-Cookie, no-store, private, Vary, too large, a stream, an extension's message), when the run
fails, or when they have waited long enough. What turned out not to be shareable is remembered for some seconds, so that
such requests do not queue behind each other ("hit-for-miss").

A request keeps the decision of its gate to its end; but once the gate is shut for everybody (`shut`), nobody waits for
another any more. Who has begun to relay an answer relays the rest.

Not shared, ever: requests of different identities (unless the cache says that identity does not count), requests with
a body, requests that came after a purge or after a write of their tenant with a run that began before it, requests in
different event loops.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from tidegate.errors import TidegateError
from tidegate.middleware.core.policy import DEFAULT_MAX_BODY
from tidegate.middleware.core.sharing import is_for_all, judge_answer
from tidegate.middleware.core.storing import Pairs
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
)
from tidegate.middleware.layers.eager import begin, show
from tidegate.middleware.layers.flight import Flight, Seat, Unjoined, began_now, is_elsewhere
from tidegate.middleware.layers.joining import Key, Remembered, by_vary_alone, key_of, may_share, same_user, tenant_of
from tidegate.middleware.layers.leader import Leader
from tidegate.middleware.layers.listener import Listener
from tidegate.middleware.metrics import Metrics, counting

__all__ = ["CoalesceLayer", "LeaderFailedError"]

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})

_PASSING: Final = frozenset({"body", "error"})
"""Reasons not to share that say nothing about the next run."""


class LeaderFailedError(TidegateError):
    """The shared run ended in the middle of its body: this response cannot be finished, nor begun anew."""


class CoalesceLayer:
    """Runs the app once for identical requests that come at the same time.

    app: the ASGI application inside.
    gate: whether the layer is open for a request; shut, it forwards everything as it is.
    resolver: shared by the layers of one stack; a layer alone makes its own.
    max_followers: of one run; more run alone.
    max_wait: seconds that a follower waits for its leader's answer to begin.
    max_hold: seconds that it waits longer for the end of an answer that does not state its length.
    max_body: bytes; larger answers are not shared.
    remember, max_remembered: seconds and number of requests remembered as not to be shared, and as busy.
    max_busy: seconds that a run may compute without ever waiting for anything. While it does nobody can join it; so
        after one that took longer, the next for the same request lets those join that came with it.
    purges: how many purges were asked for so far, for requests of which the cache does not say where the ledger stands.
    clock: seconds, never going back.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        gate: Gate = always,
        resolver: ContextResolver | None = None,
        max_followers: int = 1000,
        max_wait: float = 5.0,
        max_hold: float = 0.1,
        max_body: int = DEFAULT_MAX_BODY,
        remember: float = 10.0,
        max_remembered: int = 10_000,
        max_busy: float = 0.001,
        metrics: Metrics | None = None,
        purges: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.app = app
        self._purges = purges
        self._gate = gate
        self._resolver = resolver if resolver is not None else ContextResolver()
        self._max_followers = max_followers
        self._max_wait = max_wait
        self._max_hold = max_hold
        self.max_body = max_body
        self.flights: dict[Key, Flight | Unjoined] = {}
        self._tenants: dict[str | None, set[Key]] = {}
        self._forsaken: set[asyncio.Task[None]] = set()  # the event loop itself holds its tasks only weakly
        self.lonely = Remembered(remember, max_remembered)
        self.busy = Remembered(remember, max_remembered)
        self.max_busy = max_busy
        self.clock = clock
        self._waiting: set[Seat] = set()
        self._is_shut = False
        self._metrics = metrics if metrics is not None else Metrics.of()
        roles = self._metrics.coalesced
        self.count_leader = counting(roles.labels("leader"))
        self._count_follower = counting(roles.labels("follower"))
        self.count_alone = counting(roles.labels("alone"))
        limits = self._metrics.limits
        self._limit_followers = limits.labels("coalesce-followers").inc
        self._limit_wait = limits.labels("coalesce-wait").inc
        self._limit_body = limits.labels("coalesce-body").inc
        self._limit_hold = limits.labels("coalesce-hold").inc

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        context = self._resolver.of(scope)
        if not self._gate(context):
            await self.app(scope, receive, send)
        elif scope["method"] not in _SAFE:
            await self.app(scope, receive, self._ending_flights(context, send))
        elif not may_share(scope, context):
            await self.app(scope, receive, send)
        else:
            await self._share(scope, receive, send, context)

    def shut(self, is_shut: bool) -> None:
        """The gate is shut for everybody, or has opened again. May be called from any thread; never waits.

        Shut, those who wait go on alone at once, as if they had been the first; the runs that they waited for go on.
        """
        self._is_shut = is_shut
        if is_shut:
            for seat in tuple(self._waiting):
                seat.dismiss()

    def _ending_flights(self, context: RequestContext, send: Send) -> Send:
        """A `send` that, before a write is answered, lets nobody join a run of its tenant that began before it."""

        async def ending(message: Message) -> None:
            if message["type"] == "http.response.start":
                for key in tuple(self._tenants.get(tenant_of(context), ())):
                    self.flights[key].close()
            await send(message)

        return ending

    async def _share(self, scope: Scope, receive: Receive, send: Send, context: RequestContext) -> None:
        key = key_of(scope, context)
        if self.lonely.until and self.lonely.holds(hash(key), self.clock()):
            self.count_alone()
            await self.app(scope, receive, send)
            return
        flight = self.flights.get(key)
        if context.positions is None:
            context.purges = self._purges()
        if flight is not None and not began_now(flight, context):
            flight.close()  # something was purged since it began: it may answer with what was before
            flight = None
        elif flight is not None and is_elsewhere(flight):
            self.count_alone()
            await self.app(scope, receive, send)
            return
        if flight is not None and not isinstance(flight, Flight):
            flight = flight.joined()
        if flight is None:
            self.count_leader()
            await self._lead(key, scope, receive, send, context)
        elif len(flight.seats) >= self._max_followers:
            self._limit_followers()
            self.count_alone()
            await self.app(scope, receive, send)
        else:
            await self._follow(flight, scope, receive, send, context)

    async def _lead(self, key: Key, scope: Scope, receive: Receive, send: Send, context: RequestContext) -> None:
        """Begin a run in this turn of the event loop. Nobody can want to join it before it waits for something; and
        from then on it is a task of its own, which the leader may leave.
        """
        request = scope["headers"]
        leader = Leader(scope, receive, send)
        began = self.clock()
        try:
            if self.busy.until and self.busy.holds(hash(key), began):
                run = asyncio.get_running_loop().create_task(self._run(scope, leader))
            else:
                begun = begin(self._run(scope, leader))
                if begun is None:
                    self.never_waited(key, leader.start, context, began)
                    return
                run = begun
            await self.fly(key, request, context, leader, run)
        finally:
            if leader.left is not None:
                show(leader.left, leader.began)

    async def fly(
        self, key: Key, request: Pairs, context: RequestContext, leader: Leader, run: "asyncio.Task[None]"
    ) -> None:
        """Let others join a run that waits, and see it to its end."""
        await self.attend(self.take_off(key, request, context, leader, run), leader, run)

    def take_off(
        self, key: Key, request: Pairs, context: RequestContext, leader: Leader, run: "asyncio.Task[None]"
    ) -> Flight:
        """Let others join a run that waits."""
        flight = self._flight(key, request, context, run)
        leader.take_off(flight)
        return flight

    async def attend(self, flight: Flight, leader: Leader, run: "asyncio.Task[None]") -> None:
        """See a run to its end."""
        try:
            await leader.attend(run)
        except asyncio.CancelledError:
            await self.abandon(flight, run)
            raise

    async def abandon(self, flight: Flight | Unjoined, run: "asyncio.Task[None]") -> None:
        """The leader waits no longer: nor does the run go on, unless somebody follows."""
        if isinstance(flight, Flight):
            flight.abandoned = True
            if flight.shared:
                self._forsaken.add(run)
                run.add_done_callback(self._forsaken.discard)
                return
        flight.close()
        run.cancel()
        await asyncio.wait([run])
        if not run.cancelled():
            run.exception()  # it ended in the same moment; whoever would have heard of it is cancelled

    def alone(self, key: Key, hashed: int | None) -> bool | None:
        """Whether a request that comes now runs alone, or for itself first; None: it may have to do with others.

        hashed: the hash of its key, where that is known.
        """
        lonely, busy = self.lonely, self.busy
        if lonely.until or busy.until:
            if hashed is None:
                hashed = hash(key)
            until = lonely.until.get(hashed)
            if until is not None and until > self.clock():
                return True
            if hashed in busy.until and busy.holds(hashed, self.clock()):
                return None
        return None if self.flights and key in self.flights else False

    def never_waited(self, key: Key, start: Message | None, context: RequestContext, began: float) -> None:
        """A run is over that nobody could join. Note what the next one like it is to know. start: of its answer."""
        now = self.clock()
        if now - began >= self.max_busy:
            self.busy.add(hash(key), now)
        if start is not None:
            self.is_refused(key, start["status"], start["headers"], context)

    def is_refused(self, key: Key, status: int, headers: Pairs, context: RequestContext) -> bool:
        """Whether an answer is not for sharing; if so, the next run like it is to know."""
        if context.storable:
            return False  # what the cache has found storable need not be looked at: it does not come here again
        refused = judge_answer(status, headers, same_user=same_user(context)).refused
        if refused is None and by_vary_alone(context) and not is_for_all(status, headers, time.time()):
            refused = "unstorable"
        if refused is not None and refused not in _PASSING:
            self.lonely.add(hash(key), self.clock())
        return refused is not None

    def enter(self, key: Key, context: RequestContext, run: Flight | Unjoined) -> bool:
        """Note a run that others may join; False: there is one, as the app asked for the same before it waited."""
        if key in self.flights:
            return False
        self.flights[key] = run
        self._tenants.setdefault(tenant_of(context), set()).add(key)
        return True

    def leave(self, key: Key, context: RequestContext, run: Flight | Unjoined) -> None:
        """Nobody is to join this run any more."""
        if self.flights.get(key) is run:
            del self.flights[key]
            tenant = tenant_of(context)
            keys = self._tenants[tenant]
            keys.discard(key)
            if not keys:
                del self._tenants[tenant]

    def _flight(self, key: Key, request: Pairs, context: RequestContext, run: "asyncio.Task[None]") -> Flight:
        """What others may join, until its answer flows."""

        def closed() -> None:
            self.leave(key, context, flight)

        def turned_down(reason: str) -> None:
            if reason not in _PASSING:
                self.lonely.add(hash(key), self.clock())
            if reason == "too-large":
                self._limit_body()
            elif reason == "stream":
                self._limit_hold()

        flight = Flight(
            context=context,
            request=request,
            same_user=same_user(context),
            max_body=self.max_body,
            max_hold=self._max_hold,
            closed=closed,
            turned_down=turned_down,
        )
        flight.run = run
        flight.joinable = self.enter(key, context, flight)
        return flight

    async def _run(self, scope: Scope, leader: Leader) -> None:
        try:
            await self.app(scope, leader.receive, leader.send)
        except Exception as error:
            if not self.is_unheard(leader, error):
                raise
        finally:
            leader.over()

    def is_unheard(self, leader: Leader, error: Exception) -> bool:
        """Whether nobody is there any more who would hear of what a run raised; it is counted then."""
        if leader.flight is None or not leader.flight.abandoned:
            return False
        self._metrics.fail("coalesce", error)
        return True

    async def _follow(
        self, flight: Flight, scope: Scope, receive: Receive, send: Send, context: RequestContext
    ) -> None:
        seat = flight.join()
        listener = Listener(receive, seat.wake)
        try:
            if await self._shares(flight, seat, listener, scope["headers"], context):
                self._count_follower()
                await _relay(flight, seat, listener, send, context)
                return
            flight.leave(seat)
            self.count_alone()
            await self.app(scope, listener.receive, send)
        finally:
            flight.leave(seat)
            listener.close()

    async def _shares(
        self, flight: Flight, seat: Seat, listener: Listener, request: Pairs, context: RequestContext
    ) -> bool:
        """Wait for the leader's answer to begin: whether this request shares it (or its client has left)."""
        timer = asyncio.get_running_loop().call_later(self._max_wait, seat.expire)
        self._waiting.add(seat)
        if self._is_shut:
            seat.dismissed = True
        try:
            while not (flight.ready or flight.over or seat.overdue or seat.dismissed or listener.done):
                await seat.woken()
        finally:
            timer.cancel()
            self._waiting.discard(seat)
        if listener.gone:
            return True
        if seat.dismissed:
            return False
        if flight.ready and not flight.over and not listener.has_body:
            return flight.fits(request, context.identity)
        if seat.overdue:
            self._limit_wait()
        return False


async def _relay(flight: Flight, seat: Seat, listener: Listener, send: Send, context: RequestContext) -> None:
    """Give a follower the response as it comes, until its client leaves.

    Raises:
        LeaderFailedError: if the run ends in the middle.
    """
    context.collapsed = True
    context.own_etag = flight.context.own_etag
    sent = -1
    while not listener.gone:
        if sent < 0:
            await send(flight.start_message())
            sent = 0
        elif sent < len(flight.chunks):
            body = flight.chunks[sent]
            sent += 1
            last = flight.complete and sent == len(flight.chunks)
            context.tags = flight.context.tags  # the handler may name some until the end
            await send({"type": "http.response.body", "body": body, "more_body": not last})
            if last:
                return
        elif flight.over:
            raise LeaderFailedError("the run that this response shares ended before its body did")
        else:
            await seat.woken()
