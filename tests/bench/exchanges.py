"""What a request costs: hit, miss, pass and 304, through the cache alone and through all five layers.

Five layers: memory store, Prometheus, and flags that are all open (or all off) for everybody; users of ten tenants.
"""

from asyncio import sleep
from collections.abc import Callable, Sequence
from itertools import count, cycle, islice
from typing import Any
from unittest.mock import patch

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.bench.frame import BARE, RAW, Bench, Case, Target
from tests.driver import Answer, App, User, scope_of
from tidegate import RoutePolicy, Tidegate
from tidegate.flags import FlagContext, ProviderHealth
from tidegate.middleware.core.policy import Policies
from tidegate.middleware.layers.asgi import ContextResolver
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.memory import MemoryStore
from tidegate.middleware.tracing import opentelemetry_tracer

__all__ = ["BENCHES", "POLICY", "SIZES", "SMALL", "USERS", "Flags", "bare", "five", "raw", "references", "same_page"]

SIZES = {"2 KiB": 2 * 1024, "16 KiB": 16 * 1024, "256 KiB": 256 * 1024}
SMALL = "2 KiB"
"""The size that the targets are about."""
USERS = [User(f"tenant{number % 10}", f"user{number}") for number in range(50)]
POLICY = RoutePolicy(route="/page", ttl=3600, share="user")

Scopes = Callable[[int], Sequence[dict[str, Any]]]


class Flags:
    """A flag provider in memory: every flag is open for everybody, or off."""

    def __init__(self, *, on: bool) -> None:
        self._on = on
        self.version = 1  # of the instance, as that of the real providers: it is read twice as quickly

    def is_enabled(self, flag: str, context: FlagContext) -> bool:
        return self._on

    def partly_open(self, flag: str) -> bool:
        return False

    def reach(self, flag: str) -> str:
        return "everybody" if self._on else "nobody"

    def health(self) -> ProviderHealth:
        return ProviderHealth(ready=True, staleness=0.0, detail="")

    async def start(self) -> None: ...
    async def aclose(self) -> None: ...


def raw(body: bytes, *extra: tuple[bytes, bytes]) -> App:
    """An ASGI function that answers these bytes."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *extra]
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    end = {"type": "http.response.body", "body": body}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start)
        await send(end)

    return app


def bare(body: bytes, **headers: str) -> App:
    """A Starlette application whose one handler answers these bytes."""

    async def page(request: Request) -> Response:
        return Response(body, media_type="application/json", headers=headers)

    return Starlette(routes=[Route("/page", page)])


def waiting(body: bytes) -> App:
    """The same, whose handler waits for something once: a turn of the event loop."""

    async def page(request: Request) -> Response:
        await sleep(0)
        return Response(body, media_type="application/json")

    return Starlette(routes=[Route("/page", page)])


def five(bench: Bench, app: App, *policies: RoutePolicy, on: bool = True) -> App:
    """All five layers on an app."""
    tide = Tidegate(policies=policies, provider=Flags(on=on), registry=CollectorRegistry())
    bench.closing.push_async_callback(tide.aclose)
    return tide(app)


def cache_alone(app: App) -> App:
    """The cache layer and nothing else."""
    metrics = Metrics.of(CollectorRegistry())
    resolver = ContextResolver(policies=Policies([POLICY]))
    return CacheLayer(app, store=MemoryStore(metrics=metrics), resolver=resolver, metrics=metrics)


def same_page(*headers: tuple[str, str]) -> Scopes:
    """Requests of all users in turn for the one page."""

    def scopes(number: int) -> list[dict[str, Any]]:
        return [scope_of("/page", user=user, headers=headers) for user in islice(cycle(USERS), number)]

    return scopes


def new_pages() -> Scopes:
    """Requests for pages that nobody has asked for yet."""
    numbers = count()

    def scopes(number: int) -> list[dict[str, Any]]:
        users = islice(cycle(USERS), number)
        return [scope_of("/page", user=user, query=f"n={next(numbers)}") for user in users]

    return scopes


def references(bench: Bench, *sizes: str) -> list[Case]:
    """What everything is compared with."""
    cases: list[Case] = []
    for size in sizes or SIZES:
        body = b"x" * SIZES[size]
        for name, app in ((RAW, raw(body)), (BARE, bare(body))):
            cases.append(bench.requests(name, app, same_page(), _answers(body), size=size))
    return cases


def hit(bench: Bench) -> list[Case]:
    """Stored responses."""
    cases = references(bench)
    for size, length in SIZES.items():
        body = b"x" * length
        stacks = {
            "hit, cache alone": (cache_alone(bare(body)), 2.5),
            "hit, five layers": (five(bench, bare(body), POLICY), 6.0),
        }
        for name, (app, target) in stacks.items():
            bench.warm(app, same_page()(len(USERS)))
            limit = Target(microseconds=target) if size == SMALL else None
            cases.append(bench.requests(name, app, same_page(), _hits(body), size=size, target=limit))
    return cases


def traced(bench: Bench) -> list[Case]:
    """Hits with OpenTelemetry: its API alone, and an SDK that samples one request of a hundred."""
    body = b"x" * SIZES[SMALL]
    plain, api = "hit, five layers", "hit, OpenTelemetry API"
    sampled = TracerProvider(sampler=TraceIdRatioBased(0.01), shutdown_on_exit=False).get_tracer("bench")
    assert opentelemetry_tracer() is None  # the API is there, and nobody has set a provider
    stacks = {plain: (None, Target(microseconds=6.0)), api: (None, Target(microseconds=7.0))}
    cases = references(bench, SMALL)
    for name, (tracer, target) in (
        stacks | {"hit, OpenTelemetry SDK": (sampled, Target(microseconds=6.0, above=api))}
    ).items():
        with patch("tidegate.assembly.opentelemetry_tracer", lambda made=tracer: made):
            app = five(bench, bare(body), POLICY)
        bench.warm(app, same_page()(len(USERS)))
        cases.append(bench.requests(name, app, same_page(), _hits(body), size=SMALL, target=target))
    return cases


def miss(bench: Bench) -> list[Case]:
    """Pages that nobody had asked for: asked of the app, and stored."""
    cases = references(bench)
    for size, length in SIZES.items():
        body = b"x" * length
        limit = Target(microseconds=15, above=BARE) if size == SMALL else None
        app = five(bench, bare(body), POLICY)
        cases.append(bench.requests("miss, five layers", app, new_pages(), _stores(body), size=size, target=limit))
    body, name = b"x" * SIZES[SMALL], "bare handler that waits"
    cases.append(bench.requests(name, waiting(body), same_page(), _answers(body), size=SMALL))
    app = five(bench, waiting(body), POLICY)
    cases.append(bench.requests("miss, handler that waits", app, new_pages(), _stores(body), size=SMALL))
    return cases


def passed(bench: Bench) -> list[Case]:
    """What is not stored: with every flag off, and with every flag on and a response that may not be stored."""
    cases = references(bench)
    for size, length in SIZES.items():
        body = b"x" * length
        stacks = {
            "pass, every flag off": (five(bench, bare(body), POLICY, on=False), 2.0),
            "pass, nothing storable": (five(bench, bare(body, **{"cache-control": "no-store"})), 10.0),
        }
        for name, (app, target) in stacks.items():
            limit = Target(microseconds=target, above=BARE) if size == SMALL else None
            cases.append(bench.requests(name, app, same_page(), _answers(body), size=size, target=limit))
    return cases


def not_modified(bench: Bench) -> list[Case]:
    """Hits whose client has the response already."""
    cases = references(bench)
    for size, length in SIZES.items():
        app = five(bench, bare(b"x" * length, etag='"v1"'), POLICY)
        bench.warm(app, same_page()(len(USERS)))
        scopes = same_page(("if-none-match", '"v1"'))
        cases.append(bench.requests("304, five layers", app, scopes, _is_not_modified, size=size))
    return cases


def _answers(body: bytes) -> Callable[[Answer], bool]:
    return lambda answer: answer.status == 200 and answer.body == body and not answer.hit


def _hits(body: bytes) -> Callable[[Answer], bool]:
    return lambda answer: answer.status == 200 and answer.body == body and answer.hit


def _stores(body: bytes) -> Callable[[Answer], bool]:
    return lambda answer: answer.body == body and "; stored" in (answer.header("cache-status") or "")


def _is_not_modified(answer: Answer) -> bool:
    return answer.status == 304 and answer.hit


BENCHES = {"hit": hit, "traced": traced, "miss": miss, "pass": passed, "304": not_modified}
