"""Measures every request: the cohort counters that a rollout is judged by, metrics per route, spans, debug headers.

The gate opens spans, debug headers and the metrics per route. The cohort counters are not gated: a judge that could
only see the canary would have nothing to compare it with.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from tidegate.middleware.cohorts import CohortCounters
from tidegate.middleware.counting import Together
from tidegate.middleware.layers.asgi import (
    ASGIApp,
    ContextResolver,
    Decision,
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
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.tracing import Span, Tracer, inside

__all__ = ["PlainHit", "Quiet", "TelemetryLayer", "Through", "Watch", "debug_fields"]

_HITS = ("hit", "stale")
_CACHEABLE = ("GET", "HEAD")
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


Through = Callable[[Scope, RequestContext, Receive, Send, float], Awaitable[None] | None]
"""Takes a request, begun at that time, through the layers inside, and through this one; None: it is not for that."""

PlainHit = tuple[dict[str, Any], dict[str, Any], RequestContext, float, bool]
"""A hit that has still to be sent: start, body, the request's context, when it began, whether the layer is open."""

_blank: Final = object.__new__


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
        self._hits = self._misses = self._passes = None
        if cohorts is not None:
            self._hits = Together(cohorts, routes, outcome="hit", storable=True)
            self._misses = Together(cohorts, routes, outcome="miss", storable=True)
            self._passes = Together(cohorts, routes, outcome="miss", storable=False)
        self._find = hits
        self.bare = bare if bare is not None else app
        """What `Quiet` requests are for."""
        self._quiet = bare is not None and cohorts is not None
        self._layer = gate.layer if isinstance(gate, FlagGate) else None
        self.through: Through | None = None
        """Takes plain misses through all layers inside at once; asked after `hits`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = self.begin(scope, receive, send)
        if isinstance(begun, tuple):
            try:
                await send(begun[0])
            except BaseException as error:
                self.count_hit(scope, begun, error)
                raise
            self.count_hit(scope, begun)  # before the last message leaves, as `Watch` does
            await send(begun[1])
            return
        await (begun.run() if isinstance(begun, Watch) else begun)

    def begin(self, scope: Scope, receive: Receive, send: Send) -> "PlainHit | Watch | Awaitable[None]":
        """As a call, for whoever does the rest of it at once: sends and counts a plain hit, or awaits what is returned,
        of a watch its `run` or what that does. Each coroutine in between would cost a request as much as its name."""
        if scope["type"] != "http":
            return self.app(scope, receive, send)
        context = self._resolver.of(scope)
        decision, layer, span = context.decision, self._layer, None
        if decision is not None and not decision.open and self._quiet and scope["method"] in _SAFE:
            return Quiet.of(self, scope, context, decision, receive, send)
        opened = self.gate(context) if layer is None else decision is None or layer in decision.open
        if opened and self.tracer is not None:
            span = self._span(scope, context, self.tracer)
        clock, find = self.clock, self._find
        started = clock()
        if find is not None and context.tracer is None:
            answer = find(scope, context)
            if answer is not None:
                if opened and self.debug_headers:
                    answer[0]["headers"] += _debug(hit=True)
                return answer[0], answer[1], context, started, opened
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

    def count_hit(self, scope: Scope, hit: PlainHit, failure: BaseException | None = None) -> None:
        """Count a plain hit. failure: what `send` raised at its start: that the client left is no error."""
        start, _, context, started, opened = hit
        clock = self.clock
        seconds = clock() - started
        status: int = start["status"]
        decision, match, together = context.decision, context.match, self._hits
        if (
            together is not None and decision is not None and match.policy is not None
            and opened and failure is None and status == 200 and scope["method"] == "GET"
        ):  # fmt: skip
            together.count(decision.cohorts, match.route, seconds)
            return
        if decision is not None and self.cohorts is not None:
            error = status >= 500
            if failure is not None:
                error = (error or isinstance(failure, Exception)) and not isinstance(failure, OSError)
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
            self.cohorts.count(decision.cohorts, seconds, error, storable, outcome is not None and outcome in _HITS)
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


def is_storable(scope: Scope, context: RequestContext) -> bool:
    """Whether policy or the response makes a request's response storable."""
    policy, decision = context.match.policy, context.decision
    if (policy is None or not policy.storable or scope["method"] not in _CACHEABLE) and not context.storable:
        return False
    # In shadow mode nothing can be a hit: a hit ratio of 0 would say what nobody asked.
    return decision is None or not decision.shadow or "cache" not in decision.shadow


def debug_fields(scope: Scope, context: RequestContext) -> list[tuple[bytes, bytes]]:
    """What the debug headers say of a request, if it could be stored."""
    return _debug(hit=context.outcome in _HITS) if is_storable(scope, context) else []


def _debug(*, hit: bool) -> list[tuple[bytes, bytes]]:
    return [(b"x-cache-hits", b"%d" % hit), (b"x-cache-misses", b"%d" % (not hit))]


class Watch:
    """One request on its way through `app`: sees status and end, changes nothing but the debug headers.

    A failure after the client left is no error: leaving may be what caused it (an upload that was broken off), and
    whoever is in the canary could roll a rollout back by it.
    The request is counted before its last message leaves, so that whoever has an answer finds it counted.
    """

    __slots__ = (
        "_context",
        "_layer",
        "_opened",
        "_receive",
        "_scope",
        "_send",
        "_started",
        "_trailers",
        "app",
        "counted",
        "failed",
        "gone",
        "status",
    )

    def __init__(
        self,
        layer: TelemetryLayer,
        app: ASGIApp,
        scope: Scope,
        context: RequestContext,
        receive: Receive,
        send: Send,
        opened: bool,
        started: float,
    ) -> None:
        self._layer = layer
        self.app = app
        self._scope = scope
        self._context = context
        self._receive = receive
        self._send = send
        self._opened = opened
        self._started = started
        self.gone = self._trailers = self.counted = self.failed = False
        self.status = 0

    async def run(self, span: Span | None = None) -> None:
        """Let `app` answer, and watch it. span: to be the current one meanwhile."""
        try:
            if span is None:
                await self.app(self._scope, self.receive, self.send)
            else:
                with inside(span):
                    await self.app(self._scope, self.receive, self.send)
        except Exception:
            self.failed = True
            raise
        finally:
            if not self.counted:
                self.finish()

    def send(self, message: Message) -> Awaitable[None]:
        """The server's `send`; notes status and end."""
        if self.counted:
            return self._send(message)  # nothing is left to learn
        kind = message["type"]
        if kind == "http.response.body":
            if message.get("more_body", False) or self._trailers:
                return self._watched(message)
        elif kind == "http.response.start":
            self.status = message["status"]
            self._trailers = message.get("trailers", False)
            if self._opened and self._layer.debug_headers:
                told = debug_fields(self._scope, self._context)
                if told:
                    message = {**message, "headers": [*message.get("headers", ()), *told]}
            return self._watched(message)
        elif kind != "http.response.pathsend" and (
            kind != "http.response.trailers" or message.get("more_trailers", False)
        ):
            return self._watched(message)
        self.finish()
        return self._send(message)

    async def _watched(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:
            self.gone = True
            raise

    async def receive(self) -> Message:
        """The server's `receive`; notes that the client left."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone = True
        return message

    def _is_error(self) -> bool:
        if self.gone:
            return False
        # The 504 that a client asks for by only-if-cached is no trouble, and control's app would not send it.
        return self.failed or (self.status >= 500 and self._context.reason != "only-if-cached")

    def finish(self) -> None:
        """Count the request; for once."""
        self.counted = True
        if self.status == 0 and not self.failed:
            return  # nobody was answered: the client left, or the server is going down
        error = (self.failed or self.status >= 500) and self._is_error()
        self._layer.count(self._scope, self._context, self.status, self._started, self._opened, error)


class Quiet(Watch):
    """A safe request for which every layer is shut: nothing is to be done but to count it in its cohorts."""

    __slots__ = ("_cohorts", "_storable")
    _cohorts: tuple[tuple[str, str, str], ...]
    _storable: bool

    @staticmethod
    def of(
        layer: TelemetryLayer, scope: Scope, context: RequestContext, decision: Decision, receive: Receive, send: Send
    ) -> "Quiet":
        """That of a request which begins now. layer: with counters, and the application inside all layers."""
        quiet = _blank(Quiet)  # no `__init__`, which would be one more call for each request
        policy = context.match.policy
        quiet._layer = layer
        quiet.app = layer.bare
        quiet._scope = scope
        quiet._cohorts = decision.cohorts
        quiet._storable = policy is not None and policy.storable and scope["method"] in _CACHEABLE
        quiet._receive = receive
        quiet._send = send
        quiet.gone = quiet._trailers = quiet.counted = quiet.failed = False
        quiet.status = 0
        quiet._started = layer.clock()
        return quiet

    def send(self, message: Message) -> Awaitable[None]:
        """As of any watch, without what the debug headers need."""
        if self.counted:
            return self._send(message)
        kind = message["type"]
        if kind == "http.response.start":
            self.status = message["status"]
            self._trailers = message.get("trailers", False)
            return self._watched(message)
        if kind == "http.response.body":
            is_last = not message.get("more_body", False) and not self._trailers
        elif kind == "http.response.trailers":
            is_last = not message.get("more_trailers", False)
        else:
            is_last = kind == "http.response.pathsend"
        if not is_last:
            return self._watched(message)
        self.finish()
        return self._send(message)

    def finish(self) -> None:
        """Count the request; for once."""
        self.counted = True
        error = False
        if self.failed or self.status >= 500:
            error = not self.gone
        elif self.status == 0:
            return  # as of any watch
        layer = self._layer
        if layer.cohorts is not None:
            layer.cohorts.count(self._cohorts, layer.clock() - self._started, error, self._storable, False)
