"""One straight way through all five layers: plain misses, and plain requests whose answer may not be stored.

It takes what `FusedHits` left a note of (`Missed`) where every layer is open, the store is in this process, and nobody
asks for the same: what the five layers would do before the app is asked is done here, the rest by a `Passage`.
"""

from collections.abc import Awaitable, Mapping
from typing import Any, Final

from tidegate.middleware.breaker import Breaker
from tidegate.middleware.layers.asgi import (
    ASGIApp,
    Gate,
    Receive,
    RequestContext,
    Scope,
    Send,
    has_client_certificate,
)
from tidegate.middleware.layers.breaker import BreakerLayer
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.layers.coalesce import CoalesceLayer
from tidegate.middleware.layers.joining import Key, PlainKeys
from tidegate.middleware.layers.passage import Passage
from tidegate.middleware.layers.telemetry import TelemetryLayer
from tidegate.middleware.layers.way import Way

__all__ = ["Throughway"]

_UNKNOWN: Final = object()

_Known = tuple[object, Mapping[str, Mapping[str | None, Breaker]], bool, bool]


class Throughway(Way):
    """The plain requests of one stack.

    app: the application inside all layers. The layers: as they stand one inside the other.
    gate: whether all of them are open for a request; asked once for each set of open layers.
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
        super().__init__(app, telemetry, misses, coalesce, breaker.failures)
        self._clock = misses.clock
        self._hits = cache.hits
        self._count_alone, self._count_leader = coalesce.count_alone, coalesce.count_leader
        self._gate = gate
        self._circuit, self._near = breaker.circuit, breaker.near
        self._known: _Known = (_UNKNOWN, {}, True, True)
        """The set of open layers for which the gate was open last, by identity: the flags give the same one again; the
        circuits of these, and how keys begin then, see `key_of`."""
        self._keys = PlainKeys()

    def take(  # noqa: C901 - straight on purpose
        self, scope: Scope, context: RequestContext, receive: Receive, send: Send, started: float
    ) -> Awaitable[None] | None:
        """The passage of a request, as far as it needs to be waited for; None: it is for the layers, one after the
        other.

        Raises:
            Exception: the app's own, where it did not wait for anything.
        """
        missed: Any = context.missed
        if missed is None:
            return None
        hits, of, named, _ = missed
        if of is not scope or hits is not self._hits:
            return None
        decision, match, identity = context.decision, context.match, context.identity
        opened = decision.open if decision is not None else None
        known = self._known
        if opened is not known[0]:
            if not self._gate(context):
                return None
            known = self._known = (
                opened, self._near(opened), context.is_open("breaker"), context.is_open("etag")
            )  # fmt: skip
        _, circuits, judged, labelled = known
        if not self.misses.begin(scope, named, context):
            return None
        breaker = hashed = None
        if match.policy is not None:
            key: Key = (judged, labelled, (context.coalesce_key, "GET"))
            try:
                breaker = circuits[match.route][None if identity is None else identity.tenant]
                breaker.asked = True
            except KeyError:
                pass  # the first request there
        elif scope.get("extensions") and has_client_certificate(scope):
            return None
        else:
            key, hashed = self._keys.of(scope, context, named)
        coalesce, alone = self.coalesce, False
        if coalesce.flights or coalesce.lonely.until or coalesce.busy.until:
            found = coalesce.alone(key, hashed)
            if found is None:
                return None
            alone = found
        if breaker is None:
            breaker = self._circuit(context, scope["path"])
        ticket = breaker.closed
        if ticket is None:
            return None
        context.missed = None
        asked = (self, scope, context, receive, send, missed, self._clock(), started, breaker, ticket)
        if alone:
            self._count_alone()
            return Passage.alone(asked)
        self._count_leader()
        return Passage.lead(asked, key)
