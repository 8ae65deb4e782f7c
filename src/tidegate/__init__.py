"""Tidegate: cache layers for any ASGI app that open behind feature flags and shut by themselves.

from tidegate import RoutePolicy, Tidegate

tide = Tidegate(policies=[RoutePolicy(route="/clients", ttl=60, share="tenant")])
app = tide(app)
"""

from tidegate.assembly import Tidegate, TidegateMiddleware
from tidegate.errors import ConfigError, FlagError, MetricsError, RolloutError, StoreError, TidegateError
from tidegate.logs import speak_up
from tidegate.middleware.core.identity import Credentials, Identity
from tidegate.middleware.core.policy import RoutePolicy
from tidegate.middleware.layers.breaker import BreakerLayer
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.layers.coalesce import CoalesceLayer
from tidegate.middleware.layers.etag import ETagLayer
from tidegate.middleware.layers.identifying import trusted_headers
from tidegate.middleware.layers.telemetry import TelemetryLayer
from tidegate.middleware.stores.memory import MemoryStore
from tidegate.settings import Settings

__all__ = [
    "BreakerLayer",
    "CacheLayer",
    "CoalesceLayer",
    "ConfigError",
    "Credentials",
    "ETagLayer",
    "FlagError",
    "Identity",
    "MemoryStore",
    "MetricsError",
    "RolloutError",
    "RoutePolicy",
    "Settings",
    "StoreError",
    "TelemetryLayer",
    "Tidegate",
    "TidegateError",
    "TidegateMiddleware",
    "trusted_headers",
]

speak_up()
