"""Measures every request: the cohort counters that a rollout is judged by, metrics per route, spans, debug headers.

The gate opens spans, debug headers and the metrics per route. The cohort counters are not gated: a judge that could
only see the canary would have nothing to compare it with.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from tidegate.middleware.cohorts import CohortCounters
from tidegate.middleware.counting import Aside, Together
from tidegate.middleware.layers.asgi import (
    ASGIApp,
    ContextResolver,
    FlagGate,
    Gate,
    Message,
    Receive,
    RequestContext,
    Scope,
    Send,
    always,
    route_label,
)
from tidegate.middleware.layers.fused import Hits
from tidegate.middleware.layers.watching import HITS, Quiet, Watch, debugged, is_storable
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.tracing import Span, Tracer

__all__ = ["PlainHit", "TelemetryLayer", "Through"]

_quiet: Final = Quiet.of  # to ask the class each time takes longer than the call
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


Through = Callable[[Scope, RequestContext, Receive, Send, float], Awaitable[None] | None]
"""Takes a request, begun at that time, through the layers inside, and through this one; None: it is not for that."""

PlainHit = tuple[dict[str, Any], dict[str, Any], float, Callable[[Any, Any, float], None], Any, Any]
"""A hit that has still to be sent and counted: start, body, when it began; what counts it, and what that has to be told
beside the seconds. See `TelemetryLayer.__call__`."""


def _nothing(*_counted: Any) -> None:
    """Counts in no cohort."""


class TelemetryLayer:
    """The outermost layer.

    cohorts: counters to count into; None: no flags, nothing to compare.
    metrics: where the metrics per route live.
    tracer: makes spans where the gate is open; None: no tracing.
    debug_headers: add `X-Cache-Hits` and `X-Cache-Misses` (1 or 0) to responses of requests that could be stored.
    hits: answers plain hits of the cache inside, which then does not try it itself; None: the cache does.
    bare: the application inside all layers, for safe requests for which every layer is shut; None: go through them.
    clock: monotonic seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        gate: Gate = always,
        resolver: ContextResolver | None = None,
        cohorts: CohortCounters | None = None,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
        debug_headers: bool = False,
        hits: Hits | None = None,
        bare: ASGIApp | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.app = app
        self.gate = gate
        self.cohorts = cohorts
        self.metrics = metrics if metrics is not None else Metrics.of()
        routes = self.metrics.routes
        self.tracer = tracer
        self.debug_headers = debug_headers
        self.clock = clock
        self._resolver = resolver if resolver is not None else ContextResolver()
        self._count = routes.count
        self.count_aside = self.count_cohorts = _nothing
        self._count_at_once = self._misses = self._passes = None
        if cohorts is not None:
            self._count_at_once = Together(cohorts, routes, outcome="hit", storable=True).count
            self.count_aside, self.count_cohorts = Aside(cohorts).count, cohorts.count
            self._misses = Together(cohorts, routes, outcome="miss", storable=True)
            self._passes = Together(cohorts, routes, outcome="miss", storable=False)
        self._find = hits
        self.bare = bare if bare is not None else app
        """What `Quiet` requests are for."""
        self._quiet = bare is not None and cohorts is not None
        self._by_flags = isinstance(gate, FlagGate)
        self._wide: frozenset[str] | None = None
        """The last set of open layers that this is one of, by identity: the flags give the same one again and again."""
        self.through: Through | None = None
        """Takes plain misses through all layers inside at once; asked after `hits`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = self.begin(scope, receive, send)
        if isinstance(begun, tuple):
            start, body, started, count, whom, what = begun
            try:
                await send(start)
            except BaseException as error:
                self.count_failed(scope, start, started, error)
                raise
            count(whom, what, self.clock() - started)  # before the last message leaves, as `Watch` does
            await send(body)
            return
        await (begun.run() if isinstance(begun, Watch) else begun)

    def begin(self, scope: Scope, receive: Receive, send: Send) -> PlainHit | Watch | Awaitable[None]:  # noqa: C901 - straight on purpose
        """As a call, for whoever does the rest of it at once: sends and counts a plain hit, or awaits what is returned,
        of a watch its `run` or what that does. Each coroutine in between would cost a request as much as its name."""
        if scope["type"] != "http":
            return self.app(scope, receive, send)
        context = self._resolver.of(scope)
        decision, opened, span = context.decision, True, None
        if decision is None:
            opened = self.gate(context)
        elif decision.open is not self._wide:
            if not decision.open and self._quiet and scope["method"] in _SAFE:
                return _quiet(self, scope, context, decision, receive, send)
            opened = self.gate(context)
            if opened and self._by_flags:
                self._wide = decision.open
        if self.tracer is not None and opened:
            span = self._span(scope, context, self.tracer)
        clock, find = self.clock, self._find
        started = clock()
        if find is not None and context.tracer is None:
            answer = find(scope, context)
            if answer is not None:
                start, body = answer
                if opened and self.debug_headers:
                    start["headers"] += debugged(hit=True)
                status, match, at_once = start["status"], context.match, self._count_at_once
                if (
                    opened and at_once is not None and decision is not None and match.policy is not None
                    and status == 200 and scope["method"] == "GET"
                ):  # fmt: skip
                    return start, body, started, at_once, decision.cohorts, match.route
                return start, body, started, self._count_hit, (scope, context, opened), (status, status >= 500)
            if self.through is not None and span is None and context.missed is not None:
                through = self.through(scope, context, receive, send, started)
                if through is not None:
                    return through
        watch = Watch(self, self.app, scope, context, receive, send, opened, started)
        return watch if span is None else watch.run(span)

    def _span(self, scope: Scope, context: RequestContext, tracer: Tracer) -> Span:
        """The span of the request. Where nobody will see it, those inside are not made, and a plain hit not held up."""
        attributes = {"http.request.method": scope["method"], "http.route": context.match.route}
        span: Span = tracer.start_span("tidegate.request", attributes=attributes)
        if span.is_recording():
            context.tracer = tracer
        return span

    def count_failed(self, scope: Scope, start: Message, started: float, failure: BaseException) -> None:
        """Count a plain hit at whose start `send` raised this: that the client left is no error."""
        context: RequestContext = scope["tidegate"]
        status = start["status"]
        error = (status >= 500 or isinstance(failure, Exception)) and not isinstance(failure, OSError)
        self._count_hit((scope, context, self.gate(context)), (status, error), self.clock() - started)

    def _count_hit(self, request: tuple[Scope, RequestContext, bool], end: tuple[int, bool], seconds: float) -> None:
        """Count a plain hit. request: with its context, and whether the layer is open. end: status, and whether that is
        an error."""
        (scope, context, opened), (status, error) = request, end
        decision, match = context.decision, context.match
        if decision is not None and self.cohorts is not None:
            self.cohorts.count(decision.cohorts, seconds, error, True, True)
        if opened:
            route = match.route if match.policy is not None else route_label(scope, context)
            self._count((route, scope["method"], status // 100, "hit", None), seconds)

    def count(
        self, scope: Scope, context: RequestContext, status: int, started: float, opened: bool, error: bool
    ) -> None:
        """Count one finished request that was no plain hit."""
        seconds = self.clock() - started
        decision, outcome = context.decision, context.outcome
        if decision is not None and self.cohorts is not None:
            storable = is_storable(scope, context)
            self.cohorts.count(decision.cohorts, seconds, error, storable, outcome is not None and outcome in HITS)
        if opened:
            match = context.match
            route = match.route if match.policy is not None else route_label(scope, context)
            method = scope["method"]
            known = method if method in _METHODS else "other"
            self._count((route, known, (status or 500) // 100, outcome, context.reason), seconds)

    def count_plain(self, scope: Scope, context: RequestContext, storable: bool, started: float) -> None:
        """As `count` counts a GET that is not in shadow, of which the cache had nothing, and that the app answered with
        200, where the layer is open. storable: as `is_storable` says.
        """
        seconds = self.clock() - started
        decision, match = context.decision, context.match
        route = match.route if match.policy is not None else route_label(scope, context)
        together = self._misses if storable else self._passes
        if together is None or decision is None:
            self._count((route, "GET", 2, "miss", None), seconds)
        else:
            together.count(decision.cohorts, route, seconds)
