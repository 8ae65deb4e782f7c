"""The breaker layer: when a route keeps failing for a tenant, answer 503 at once instead of asking the app again.

One circuit per route and tenant, so that a tenant whose requests fail does not shut others out; and, under flags, one
per set of open layers, so that an open layer that fails the canary does not shut out the control users beside it (a
judge would take that for trouble that strikes both). Routes are those that policies name; of everything else each path
is one, so that a broken one does not shut out its neighbours (/healthz!), and all are "other" in the metrics. A cache
further out turns the 503 into a stale response where it may (RFC 5861 stale-if-error).
"""

import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from tidegate.middleware.breaker import LEVELS, Breaker, State, Ticket
from tidegate.middleware.core.breaker import BreakerSettings
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
from tidegate.middleware.metrics import Metrics

__all__ = ["FAILURES", "BreakerLayer", "Outcome"]

_SPARED: Final = 64
"""Circuits in use that are passed over for one that is not."""

FAILURES: Final = frozenset({500, 502, 503, 504})
"""Statuses that say the app, or what it depends on, is not well. 501 and 505 and above answer the request itself."""


class BreakerLayer:
    """Refuses requests that would most likely fail.

    app: the ASGI application inside.
    gate: whether the layer is open for a request; shut, it forwards everything as it is and learns nothing.
    resolver: shared by the layers of one stack; a layer alone makes its own.
    settings: when a circuit opens, and for how long.
    failures: statuses that count as failures; an exception always does. A cancelled request, or one whose client left
        before the answer, says nothing about the app.
    max_circuits: circuits kept, one for each route (or path that no policy names), tenant and set of open layers seen
        lately; one that was not asked for lately is forgotten.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        gate: Gate = always,
        resolver: ContextResolver | None = None,
        settings: BreakerSettings | None = None,
        failures: frozenset[int] = FAILURES,
        max_circuits: int = 10_000,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.app = app
        self._gate = gate
        self._resolver = resolver if resolver is not None else ContextResolver()
        self.failures = failures
        metrics = metrics if metrics is not None else Metrics.of()
        self._circuits = _Circuits(settings or BreakerSettings(), max_circuits, metrics, clock)
        self.circuit = self._circuits.of
        """The circuit for a request, by context and path."""
        self.near = self._circuits.near
        """Those of routes with a policy, by route and tenant, for a set of open layers; a request there asks for it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        context = self._resolver.of(scope)
        if not self._gate(context):
            await self.app(scope, receive, send)
            return
        breaker = self.circuit(context, scope["path"])
        ticket = breaker.admit()
        if ticket is None:
            self._circuits.count_refusal(context)
            await _refuse(scope, send, breaker.retry_after)
            return
        outcome = Outcome(breaker, ticket, self.failures, receive, send)
        try:
            await self.app(scope, outcome.receive, outcome.send)
        except Exception:
            outcome.settle(failed=True)
            raise
        except BaseException:
            outcome.abandon()
            raise
        outcome.over()


async def _refuse(scope: Scope, send: Send, retry_after: float) -> None:
    text = b"" if scope["method"] == "HEAD" else b"Service unavailable\n"
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"20"),
        (b"retry-after", b"%d" % max(1, math.ceil(retry_after))),
        (b"cache-control", b"no-store"),
        (b"proxy-status", b'Tidegate; error=destination_unavailable; details="breaker"'),  # RFC 9209: who answered
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": text, "more_body": False})


class Outcome:
    """Learns how one request ends, without changing what passes.

    The outcome is settled once: for a probe at the start of the response, so that a stream that goes on for hours does
    not keep the circuit half-open; for others at its last body message, so that what fails in a background task is no
    failure of the response.
    """

    __slots__ = ("_breaker", "_failing", "_failures", "_receive", "_send", "_ticket", "gone", "settled", "started")

    def __init__(
        self, breaker: Breaker, ticket: Ticket, failures: frozenset[int], receive: Receive, send: Send
    ) -> None:
        self._breaker = breaker
        self._ticket = ticket
        self._failures = failures
        self._receive = receive
        self._send = send
        self.gone = False
        self._failing = False
        self.settled = False
        self.started = False

    async def receive(self) -> Message:
        """The server's `receive`; notes that the client left."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone = True
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """The server's `send`; notes the status, and a client that cannot be reached any more."""
        kind = message["type"]
        if kind == "http.response.start":
            self.started = True
            self._failing = message["status"] in self._failures
            if self._ticket.probe:
                self.settle(failed=False)
        elif kind == "http.response.body" and not self.settled and not message.get("more_body", False):
            self.settle(failed=False)
        # Once it is settled nothing is left to learn, and the message goes without us.
        return self._send(message) if self.settled else self._watched(message)

    async def _watched(self, message: Message) -> None:
        try:
            await self._send(message)
        except BaseException:
            self.gone = True
            raise

    def settle(self, *, failed: bool) -> None:
        """Report, the first time. A failure after the client left is none: leaving may be what caused it."""
        if self.settled:
            return
        self.settled = True
        failed = failed or self._failing
        if failed and self.gone:
            self._breaker.abandon(self._ticket)
        else:
            self._breaker.report(self._ticket, failed=failed)

    def over(self) -> None:
        """The app has returned."""
        if not self.settled:
            self.settle(failed=not self.started)

    def abandon(self) -> None:
        """The request was cancelled."""
        if not self.settled:
            self.settled = True
            self._breaker.abandon(self._ticket)


class _Route:
    """Metrics of one route: how many of its circuits are in each state; the gauge shows the worst."""

    def __init__(self, metrics: Metrics, label: str) -> None:
        self._gauge = metrics.breaker_state.labels(label)
        self._gauge.set(0)
        self._transitions = {state: metrics.breaker_transitions.labels(label, state).inc for state in LEVELS}
        self.refused = metrics.breaker_rejected.labels(label).inc
        self._not_closed: dict[object, State] = {}
        self._counts: dict[State, int] = dict.fromkeys(LEVELS, 0)

    def changed(self, circuit: object, state: State) -> None:
        """A circuit of this route is in another state now."""
        self._transitions[state]()
        self.forget(circuit)
        if state != "closed":
            self._not_closed[circuit] = state
            self._counts[state] += 1
        self._gauge.set(max((LEVELS[each] for each, count in self._counts.items() if count), default=0))

    def forget(self, circuit: object) -> None:
        """A circuit was let go; the gauge follows at the next change."""
        former = self._not_closed.pop(circuit, None)
        if former is not None:
            self._counts[former] -= 1


Circuit = tuple[str, int, str | None, frozenset[str] | None]
"""Route, hash of the path where no policy names the route, tenant, open layers."""


class _Circuits:
    """The circuits by route, tenant and open layers, bounded."""

    def __init__(self, settings: BreakerSettings, limit: int, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._limit = limit
        self._metrics = metrics
        self._clock = clock
        self._forgotten = metrics.limits.labels("breaker-circuits").inc
        self._breakers: OrderedDict[Circuit, Breaker] = OrderedDict()
        self._near: dict[frozenset[str] | None, dict[str, dict[str | None, Breaker]]] = {}
        self._routes: dict[str, _Route] = {}

    def near(self, opened: frozenset[str] | None) -> Mapping[str, Mapping[str | None, Breaker]]:
        """Those of routes with a policy that there are while these layers are open, by route and tenant."""
        return self._near.setdefault(opened, {})

    def of(self, context: RequestContext, path: str) -> Breaker:
        """The circuit for a request."""
        identity, decision, match = context.identity, context.decision, context.match
        circuit = (
            match.route,
            0 if match.policy is not None else hash(path),
            identity.tenant if identity is not None else None,
            decision.open if decision is not None else None,
        )
        breaker = self._breakers.get(circuit)
        if breaker is None:
            breaker = self._make(circuit)
            if match.policy is not None:
                self._near.setdefault(circuit[3], {}).setdefault(circuit[0], {})[circuit[2]] = breaker
            return breaker
        breaker.asked = True  # cheaper than to move it to an end each time, see `_forget_one`
        return breaker

    def count_refusal(self, context: RequestContext) -> None:
        """A request was answered with 503."""
        self._routes[context.match.route].refused()

    def _make(self, circuit: Circuit) -> Breaker:
        route = self._routes.get(circuit[0])
        if route is None:
            route = self._routes[circuit[0]] = _Route(self._metrics, f"app:{circuit[0]}")
        changed = route.changed

        def on_change(state: State) -> None:
            if self._breakers.get(circuit) is breaker:  # not of a request that outlived its circuit
                changed(circuit, state)

        breaker = Breaker(self._settings, clock=self._clock, on_change=on_change)
        self._breakers[circuit] = breaker
        if len(self._breakers) > self._limit:
            self._forget_one(but=circuit)
        return breaker

    def _forget_one(self, *, but: Circuit) -> None:
        """Forget the first circuit that was not asked for since the last time round (CLOCK), found in bounded time."""
        for _ in range(_SPARED):
            first = next(iter(self._breakers))
            if first != but and not self._breakers[first].asked:
                break
            self._breakers[first].asked = False
            self._breakers.move_to_end(first)
        if next(iter(self._breakers)) == but:
            self._breakers.move_to_end(but)  # all others were asked for
        forgotten, breaker = self._breakers.popitem(last=False)
        near = self._near.get(forgotten[3], {}).get(forgotten[0], {})
        if near.get(forgotten[2]) is breaker:
            del near[forgotten[2]]
        self._routes[forgotten[0]].forget(forgotten)
        self._forgotten()
