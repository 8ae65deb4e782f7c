"""What watches a request on its way through the app: sees its status and its end, and has it counted.

Who makes one says whom to tell: the outermost layer.
"""

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from tidegate.middleware.cohort_files import Labels
from tidegate.middleware.layers.asgi import ASGIApp, Decision, Message, Receive, RequestContext, Scope, Send
from tidegate.middleware.tracing import Span, inside

__all__ = ["HITS", "Quiet", "Watch", "Watcher", "debug_fields", "debugged", "is_storable"]

HITS: Final = ("hit", "stale")
_CACHEABLE = ("GET", "HEAD")
_blank: Final = object.__new__


def is_storable(scope: Scope, context: RequestContext) -> bool:
    """Whether policy or the response makes a request's response storable."""
    policy, decision = context.match.policy, context.decision
    if (policy is None or not policy.storable or scope["method"] not in _CACHEABLE) and not context.storable:
        return False
    # In shadow mode nothing can be a hit: a hit ratio of 0 would say what nobody asked.
    return decision is None or not decision.shadow or "cache" not in decision.shadow


def debug_fields(scope: Scope, context: RequestContext) -> list[tuple[bytes, bytes]]:
    """What the debug headers say of a request, if it could be stored."""
    return debugged(hit=context.outcome in HITS) if is_storable(scope, context) else []


def debugged(*, hit: bool) -> list[tuple[bytes, bytes]]:
    return [(b"x-cache-hits", b"%d" % hit), (b"x-cache-misses", b"%d" % (not hit))]


class Watcher(Protocol):
    """Whom a watch tells of its request's end, and what it asks: the outermost layer.

    bare: the application inside all layers.
    count_aside: counts what no layer had a part in and was no error, in these cohorts and seconds; whether it was
        storable. count_cohorts: the same of any request, with whether it was an error, storable, a hit.
    clock: monotonic seconds.
    """

    debug_headers: bool
    bare: ASGIApp
    count_aside: Callable[[tuple[Labels, ...], float, bool], None]
    count_cohorts: Callable[[tuple[Labels, ...], float, bool, bool, bool], None]
    clock: Callable[[], float]

    def count(
        self, scope: Scope, context: RequestContext, status: int, started: float, opened: bool, error: bool
    ) -> None:
        """Count a request that has ended."""
        ...


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
        layer: Watcher,
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
        send = self._send
        try:
            await send(message)
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
    _cohorts: tuple[Labels, ...]
    _storable: bool

    @staticmethod
    def of(
        layer: Watcher, scope: Scope, context: RequestContext, decision: Decision, receive: Receive, send: Send
    ) -> "Quiet":
        """That of a request which begins now."""
        quiet = _blank(Quiet)  # no `__init__`, which would be one more call for each request
        clock = layer.clock
        quiet._layer = layer
        quiet.app = layer.bare
        quiet._scope = scope
        quiet._cohorts = decision.cohorts
        quiet._storable = context.match.storable and scope["method"] in _CACHEABLE
        quiet._receive = receive
        quiet._send = send
        quiet.gone = quiet._trailers = quiet.counted = quiet.failed = False
        quiet.status = 0
        quiet._started = clock()
        return quiet

    def send(self, message: Message) -> Awaitable[None]:
        """As of any watch, without what the debug headers need."""
        send = self._send
        if self.counted:
            return send(message)
        kind = message["type"]
        if kind == "http.response.start":
            self.status = message["status"]
            if "trailers" in message:  # which costs half as much as to `get` what is not there
                self._trailers = message["trailers"]
            return self._watched(message)
        if kind == "http.response.body":
            if "more_body" not in message and 0 < self.status < 500 and not self._trailers:
                self.counted = True  # what `finish` would do, as most requests end so
                layer = self._layer
                clock, count = layer.clock, layer.count_aside
                count(self._cohorts, clock() - self._started, self._storable)
                return send(message)
            is_last = not message.get("more_body", False) and not self._trailers
        elif kind == "http.response.trailers":
            is_last = not message.get("more_trailers", False)
        else:
            is_last = kind == "http.response.pathsend"
        if not is_last:
            return self._watched(message)
        self.finish()
        return send(message)

    def finish(self) -> None:
        """Count the request; for once."""
        self.counted = True
        error = False
        if self.failed or self.status >= 500:
            error = not self.gone
        elif self.status == 0:
            return  # as of any watch
        layer = self._layer
        layer.count_cohorts(self._cohorts, layer.clock() - self._started, error, self._storable, False)
