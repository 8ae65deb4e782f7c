"""What the straight ways of one stack's requests (`passage`) have in common."""

from tidegate.middleware.layers.asgi import ASGIApp
from tidegate.middleware.layers.coalesce import CoalesceLayer
from tidegate.middleware.layers.fields import Heads
from tidegate.middleware.layers.straight import Misses
from tidegate.middleware.layers.telemetry import TelemetryLayer

__all__ = ["Way"]


class Way:
    """What the passages of one stack have in common.

    app: the application inside all layers. failures: statuses that say that it is not well.
    taken: requests that went all the way.
    """

    def __init__(
        self, app: ASGIApp, telemetry: TelemetryLayer, misses: Misses, coalesce: CoalesceLayer, failures: frozenset[int]
    ) -> None:
        self.app = app
        self.telemetry = telemetry
        self.debugs = telemetry.debug_headers
        self.misses = misses
        self.coalesce = coalesce
        self.clock, self.max_busy = coalesce.clock, coalesce.max_busy
        self.timed = telemetry.clock is coalesce.clock
        """Whether the time at which a request began says how long it takes, as the coalescing layer wants to know."""
        self.failures = failures
        self.heads = Heads()
        self.taken = 0
