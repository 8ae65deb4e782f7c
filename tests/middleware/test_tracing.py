"""OpenTelemetry spans, seen through the SDK's own exporter."""

import asyncio
import subprocess
import sys

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from tests.driver import Origin, User, call
from tidegate.middleware.core.policy import Policies, RoutePolicy
from tidegate.middleware.layers.asgi import ContextResolver
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.layers.telemetry import TelemetryLayer
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.memory import MemoryStore
from tidegate.middleware.tracing import opentelemetry_tracer

ANN = User("acme", "ann")


def spans_of(*users: User, gate: bool = True) -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    metrics = Metrics.of(CollectorRegistry())
    resolver = ContextResolver(policies=Policies([RoutePolicy(route="/clients/{id}", ttl=60)]))
    app = TelemetryLayer(
        CacheLayer(Origin(), store=MemoryStore(), resolver=resolver, metrics=metrics),
        gate=lambda _context: gate,
        resolver=resolver,
        metrics=metrics,
        tracer=provider.get_tracer("test"),
    )

    async def run() -> None:
        for user in users:
            await call(app, "/clients/7", user=user)

    asyncio.run(run())
    return list(exporter.get_finished_spans())


def test_a_miss_and_a_hit_each_leave_their_spans_nested() -> None:
    spans = spans_of(ANN, ANN)
    names = [span.name for span in spans]
    assert names == ["tidegate.store.get", "tidegate.cache", "tidegate.request"] * 2
    for outcome, (store, cache, request) in zip(("miss", "hit"), (spans[:3], spans[3:]), strict=True):
        assert cache.attributes is not None
        assert request.attributes is not None
        assert cache.attributes["tidegate.cache.outcome"] == outcome
        assert request.attributes["http.route"] == "/clients/{id}"
        assert store.attributes == {"tidegate.store.found": outcome == "hit"}
        assert store.parent is not None
        assert cache.parent is not None
        assert store.parent.span_id == cache.context.span_id
        assert cache.parent.span_id == request.context.span_id


def test_nothing_of_a_tenant_or_path_is_in_a_span() -> None:
    text = "".join(str(span.to_json()) for span in spans_of(ANN))
    assert "acme" not in text
    assert "ann" not in text.replace("channel", "")
    assert "/clients/7" not in text


def test_a_shut_gate_leaves_no_span() -> None:
    assert spans_of(ANN, ANN, gate=False) == []


def test_without_an_sdk_there_is_no_tracer() -> None:
    assert opentelemetry_tracer() is None


def test_with_an_sdk_there_is_one() -> None:
    # A provider can be set once in a process.
    program = (
        "from opentelemetry import trace; from opentelemetry.sdk.trace import TracerProvider\n"
        "trace.set_tracer_provider(TracerProvider())\n"
        "from tidegate.middleware.tracing import opentelemetry_tracer\n"
        "assert opentelemetry_tracer() is not None"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
