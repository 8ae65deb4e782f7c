"""The telemetry layer: cohort counters, metrics per route, debug headers."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.driver import Origin, User, call, scope_of
from tidegate.middleware.cohorts import CohortCounters
from tidegate.middleware.core.policy import Policies, RoutePolicy
from tidegate.middleware.layers.asgi import ContextResolver
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.layers.telemetry import TelemetryLayer
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.memory import MemoryStore

CANARY = ("tidegate.cache", "10", "canary")
CONTROL = ("tidegate.cache", "50", "control")
ANN, BEN = User("acme", "ann"), User("acme", "ben")


@dataclass
class Decided:
    open: frozenset[str]
    cohorts: tuple[tuple[str, str, str], ...]
    shadow: frozenset[str] = frozenset()


WAYS = pytest.mark.parametrize("past", [False, True], ids=["through the layers", "past them"])
"""How ben's requests go, for whom every layer is shut."""


class Stand:
    """Telemetry and cache on an origin; ann's gates are open, ben's are shut. past: his requests go past the layers."""

    def __init__(self, origin: Any, *policies: RoutePolicy, past: bool = False, **options: Any) -> None:
        self.registry = CollectorRegistry()
        self.cohorts = CohortCounters([CANARY, CONTROL])
        metrics = Metrics.of(self.registry)
        resolver = ContextResolver(policies=Policies(policies), decide=self._decide)
        inner = CacheLayer(
            origin, store=MemoryStore(), resolver=resolver, metrics=metrics, gate=lambda c: c.is_open("cache")
        )
        self.app = TelemetryLayer(
            inner,
            gate=lambda context: context.is_open("telemetry"),
            resolver=resolver,
            cohorts=self.cohorts,
            metrics=metrics,
            bare=origin if past else None,
            **options,
        )

    @staticmethod
    def _decide(identity: Any, _scope: Any) -> Decided:
        if identity is not None and identity.user == "ann":
            return Decided(frozenset({"telemetry", "cache"}), (CANARY,))
        return Decided(frozenset(), (CONTROL,))

    def counted(self, label: tuple[str, str, str]) -> dict[str, float]:
        values = self.cohorts.totals()[label]
        return dict(zip(("requests", "errors", "storable", "hits"), values, strict=False))

    def sample(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


@WAYS
def test_both_cohorts_are_counted_alike_whatever_is_open(past: bool) -> None:
    stand = Stand(Origin(), RoutePolicy(route="/", ttl=60), RoutePolicy(route="/off", mode="off"), past=past)

    async def run() -> None:
        for user in (ANN, ANN, ANN, BEN, BEN):
            await call(stand.app, user=user)
        for method in ("POST", "OPTIONS", "HEAD"):
            await call(stand.app, user=BEN, method=method)
        for path in ("/other", "/off"):
            await call(stand.app, path, user=BEN)

    asyncio.run(run())
    assert stand.counted(CANARY) == {"requests": 3, "errors": 0, "storable": 3, "hits": 2}
    assert stand.counted(CONTROL) == {"requests": 7, "errors": 0, "storable": 3, "hits": 0}


@WAYS
@pytest.mark.parametrize("fault", ["500", "raises", "raises late"])
def test_failures_are_errors_of_their_cohort(fault: str, past: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if fault == "raises":
            raise RuntimeError
        status = 500 if fault == "500" else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        if fault == "raises late":
            raise RuntimeError
        await send({"type": "http.response.body"})

    stand = Stand(app, past=past)
    if fault == "500":
        asyncio.run(call(stand.app, user=BEN))
    else:
        with pytest.raises(RuntimeError):
            asyncio.run(call(stand.app, user=BEN))
    assert stand.counted(CONTROL) == {"requests": 1, "errors": 1, "storable": 0, "hits": 0}


def test_the_504_that_a_client_asks_for_is_no_error_of_the_canary() -> None:
    stand = Stand(Origin(), RoutePolicy(route="/", ttl=60))
    answer = asyncio.run(call(stand.app, user=ANN, headers=[("cache-control", "only-if-cached")]))
    assert answer.status == 504
    assert stand.counted(CANARY) == {"requests": 1, "errors": 0, "storable": 1, "hits": 0}


@WAYS
@pytest.mark.parametrize("leaves", ["while it sends", "while it is sent to", "before it is sent anything"])
def test_a_failure_after_the_client_left_is_no_error(leaves: str, past: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if (await receive())["type"] == "http.disconnect":
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body"})
            raise RuntimeError("the upload was broken off")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect" if leaves == "while it sends" else "http.request"}

    async def send(message: dict[str, Any]) -> None:
        if leaves == "before it is sent anything":
            raise OSError("the client left")
        if message["type"] == "http.response.body" and leaves == "while it is sent to":
            raise OSError("the client left")

    stand = Stand(app, past=past)
    for user, label in ((ANN, CANARY), (BEN, CONTROL)):
        with pytest.raises((RuntimeError, OSError)):
            asyncio.run(stand.app(scope_of(user=user), receive, send))
        assert stand.counted(label) == {"requests": 1, "errors": 0, "storable": 0, "hits": 0}


@WAYS
def test_a_request_that_nobody_answered_is_not_counted(past: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/ends":
            raise asyncio.CancelledError

    async def send(message: Any) -> None: ...

    async def receive() -> Any: ...

    async def run() -> None:
        await stand.app(scope_of("/", user=BEN), receive, send)
        with pytest.raises(asyncio.CancelledError):
            await stand.app(scope_of("/ends", user=BEN), receive, send)

    stand = Stand(app, past=past)
    asyncio.run(run())
    assert stand.counted(CONTROL)["requests"] == 0


START = {"type": "http.response.start", "status": 200, "headers": []}
TRAILED = {**START, "trailers": True}
BODY, SOME = {"type": "http.response.body"}, {"type": "http.response.body", "more_body": True}
TRAILER, SOME_TRAILERS = {"type": "http.response.trailers"}, {"type": "http.response.trailers", "more_trailers": True}
PATH, OTHER = {"type": "http.response.pathsend", "path": "/"}, {"type": "http.response.debug"}


@pytest.mark.parametrize(
    ("messages", "last"),
    [
        ([START, SOME, SOME, BODY], 3),
        ([START, OTHER, BODY, OTHER], 2),
        ([START, PATH, OTHER], 1),
        ([START, BODY, BODY], 1),
        ([TRAILED, SOME, BODY, SOME_TRAILERS, OTHER, TRAILER], 5),
        ([TRAILED, PATH], 1),
    ],
)
@WAYS
def test_a_request_is_counted_when_its_last_message_leaves_and_once(
    messages: list[dict[str, Any]], last: int, past: bool
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    stand = Stand(app, past=past)
    seen: list[tuple[Any, float]] = []

    async def send(message: Any) -> None:
        seen.append((message, stand.counted(CONTROL)["requests"]))

    async def receive() -> Any: ...

    asyncio.run(stand.app(scope_of(user=BEN), receive, send))
    assert seen == [(message, float(at >= last)) for at, message in enumerate(messages)]
    assert stand.counted(CONTROL)["requests"] == 1


def test_a_request_that_cannot_hit_because_of_shadow_mode_does_not_count_as_storable() -> None:
    decided = Decided(frozenset({"telemetry", "cache"}), (CANARY,))
    stand = Stand(Origin(), RoutePolicy(route="/", ttl=60))
    stand.app._resolver._decide = lambda _identity, _scope: decided
    for decided.shadow, storable in ((frozenset({"cache"}), 0), (frozenset({"coalesce"}), 1)):
        asyncio.run(call(stand.app, user=ANN))
        assert stand.counted(CANARY)["storable"] == storable


@WAYS
def test_a_request_is_counted_before_its_last_byte_leaves(past: bool) -> None:
    stand = Stand(Origin(), past=past)

    async def send(message: Any) -> None:
        expected = 1.0 if message["type"] == "http.response.body" else 0.0
        assert stand.counted(CONTROL)["requests"] == expected

    async def receive() -> Any: ...

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b"", "user": BEN}
    asyncio.run(stand.app(scope, receive, send))


@WAYS
def test_a_background_task_neither_counts_again_nor_lengthens_the_request(past: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await Origin()(scope, receive, send)
        now[0] += 100.0

    now = [0.0]
    stand = Stand(app, past=past, clock=lambda: now[0])
    asyncio.run(call(stand.app, user=BEN))
    values = stand.cohorts.totals()[CONTROL]
    assert (values[0], values[4]) == (1.0, 0.0)


def test_routes_are_labelled_by_template_and_only_where_the_gate_is_open() -> None:
    stand = Stand(Origin(), RoutePolicy(route="/clients/{id}", ttl=60))

    async def run() -> None:
        for path in ("/clients/1", "/clients/1", "/clients/2", "/unknown/secret"):
            await call(stand.app, path, user=ANN)
        await call(stand.app, "/clients/1", user=BEN)

    asyncio.run(run())
    sample = stand.sample
    assert sample("tidegate_requests_total", route="/clients/{id}", method="GET", status="2xx") == 3
    assert sample("tidegate_requests_total", route="other", method="GET", status="2xx") == 1
    assert sample("tidegate_cache_requests_total", route="/clients/{id}", outcome="hit") == 1
    assert sample("tidegate_cache_requests_total", route="/clients/{id}", outcome="miss") == 2


def test_an_invented_method_is_no_label() -> None:
    stand = Stand(Origin())
    asyncio.run(call(stand.app, user=ANN, method="X" * 40))
    assert stand.sample("tidegate_requests_total", route="other", method="other", status="2xx") == 1


def test_debug_headers_tell_hit_from_miss_when_asked_for() -> None:
    stand = Stand(Origin(), RoutePolicy(route="/", ttl=60), debug_headers=True)

    async def run() -> list[tuple[str | None, str | None]]:
        answers = [await call(stand.app, user=user) for user in (ANN, ANN, BEN)]
        return [(answer.header("x-cache-hits"), answer.header("x-cache-misses")) for answer in answers]

    assert asyncio.run(run()) == [("0", "1"), ("1", "0"), (None, None)]
