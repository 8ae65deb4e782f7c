"""OpenTelemetry spans, seen through the SDK's own exporter."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry

from tests.driver import Origin, User, call
from tests.middleware.layers.taking import hits_taken
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


def test_what_is_not_sampled_makes_no_span_inside_and_is_still_what_the_app_runs_in() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False, sampler=TraceIdRatioBased(0.0))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    metrics = Metrics.of(CollectorRegistry())
    resolver = ContextResolver(policies=Policies([RoutePolicy(route="/", ttl=60)]))
    seen: list[tuple[bool, bool]] = []
    origin = Origin()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        within = trace.get_current_span().get_span_context()
        seen.append((within.is_valid, within.trace_flags.sampled))
        await origin(scope, receive, send)

    async def run() -> list[bool]:
        cache = CacheLayer(app, store=MemoryStore(), resolver=resolver, metrics=metrics)
        layers = TelemetryLayer(
            cache, resolver=resolver, metrics=metrics, tracer=provider.get_tracer("test"), hits=cache.leave_hits()
        )
        return [(await call(layers, user=ANN)).hit for _ in range(2)]

    with hits_taken() as taken:
        assert asyncio.run(run()) == [False, True]
    assert seen == [(True, False)]
    assert exporter.get_finished_spans() == ()
    assert taken.total() == 1


def test_an_exception_is_noted_on_the_span_of_its_request() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("out of order")

    layers = TelemetryLayer(app, metrics=Metrics.of(CollectorRegistry()), tracer=provider.get_tracer("test"))
    with pytest.raises(RuntimeError):
        asyncio.run(call(layers))
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert [event.name for event in span.events] == ["exception"]


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
