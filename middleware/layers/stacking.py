"""Which straight ways a stack of layers has: what stands round what decides that."""

from collections.abc import Mapping

from tidegate.middleware.layers.asgi import ASGIApp, Gate
from tidegate.middleware.layers.breaker import BreakerLayer
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.layers.coalesce import CoalesceLayer
from tidegate.middleware.layers.etag import ETagLayer
from tidegate.middleware.layers.telemetry import TelemetryLayer
from tidegate.middleware.layers.through import Throughway

__all__ = ["lead_through"]


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
    telemetry.through = way.take
    return way
