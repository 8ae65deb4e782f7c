"""OpenTelemetry spans, only where somebody looks: without an SDK a span costs 3.6 µs and goes nowhere, so none is made.

Needs the extra `otel` (`opentelemetry-api`) and, in the application, an SDK whose provider is set before the layers
are made.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

__all__ = ["Span", "Tracer", "inside", "opentelemetry_tracer"]


class Span(Protocol):
    """What the layers need of an OpenTelemetry span."""

    def set_attribute(self, key: str, value: Any) -> None: ...

    def is_recording(self) -> bool: ...


class Tracer(Protocol):
    """What the layers need of an OpenTelemetry tracer."""

    def start_as_current_span(
        self, name: str, *, attributes: Mapping[str, Any] | None = None
    ) -> AbstractContextManager[Any]: ...

    def start_span(self, name: str, *, attributes: Mapping[str, Any] | None = None) -> Any: ...


def inside(span: Any) -> AbstractContextManager[Any]:
    """Makes a span that was started the current one, and ends it; what is raised meanwhile is noted on it."""
    from opentelemetry.trace import use_span

    return use_span(span, end_on_exit=True)


def opentelemetry_tracer() -> Tracer | None:
    """A tracer of the global provider, or None if OpenTelemetry or an SDK is not there."""
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    return trace.get_tracer("tidegate")
