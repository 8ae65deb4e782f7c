"""The breaker layer, message by message."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.driver import Answer, Origin, User, call, scope_of
from tidegate.middleware.core.breaker import BreakerSettings
from tidegate.middleware.core.identity import Identity
from tidegate.middleware.core.policy import Policies, RoutePolicy
from tidegate.middleware.layers.asgi import ContextResolver, RequestContext
from tidegate.middleware.layers.breaker import BreakerLayer
from tidegate.middleware.metrics import Metrics

SETTINGS = BreakerSettings(consecutive=3, open_for=5.0)
POLICIES = Policies([RoutePolicy(route="/a/{rest:path}"), RoutePolicy(route="/b")])


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A layer on an app whose behaviour can be changed, with its clock and metrics."""

    def __init__(self, app: Any = None, **options: Any) -> None:
        self.clock = Clock()
        self.metrics = Metrics.of(CollectorRegistry())
        self.origin = Origin()
        self.layer = BreakerLayer(
            app if app is not None else self.origin,
            resolver=ContextResolver(policies=POLICIES, decide=options.pop("decide", None)),
            **{"settings": SETTINGS, "clock": self.clock, "metrics": self.metrics} | options,
        )

    async def ask(self, path: str = "/b", **of: Any) -> Answer:
        return await call(self.layer, path, **of)

    async def fail(self, path: str = "/b", times: int = 3, **of: Any) -> None:
        self.origin.status = 500
        for _ in range(times):
            await self.ask(path, **of)
        self.origin.status = 200

    def gauge(self, route: str) -> float:
        return self.metrics.breaker_state.labels(f"app:{route}")._value.get()


def run(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(body())  # type: ignore[arg-type]


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_route_that_keeps_failing_is_answered_with_503_and_not_asked(status: int) -> None:
    async def body() -> None:
        bench = Bench()
        bench.origin.status = status
        assert [(await bench.ask()).status for _ in range(3)] == [status] * 3
        bench.clock.now += 2.2
        answer = await bench.ask()
        assert bench.origin.calls == 3
        assert answer.status == 503
        assert answer.header("retry-after") == "3"
        assert answer.header("proxy-status") == 'Tidegate; error=destination_unavailable; details="breaker"'
        assert answer.header("cache-control") == "no-store"
        assert answer.header("content-length") == str(len(answer.body))
        assert answer.complete
        assert bench.metrics.breaker_rejected.labels("app:/b")._value.get() == 1

    run(body)


@pytest.mark.parametrize("status", [200, 304, 404, 429, 501, 505])
def test_other_statuses_are_no_failures(status: int) -> None:
    async def body() -> None:
        bench = Bench()
        bench.origin.status = status
        assert [(await bench.ask()).status for _ in range(50)] == [status] * 50

    run(body)


def test_which_statuses_fail_can_be_said() -> None:
    async def body() -> None:
        bench = Bench(failures=frozenset({429}))
        bench.origin.status = 429
        for _ in range(3):
            await bench.ask()
        assert (await bench.ask()).status == 503

    run(body)


def test_head_gets_the_same_refusal_without_a_body_and_retry_after_is_at_least_one_second() -> None:
    async def body() -> None:
        bench = Bench()
        await bench.fail()
        bench.clock.now += 4.99
        answer = await bench.ask(method="HEAD")
        assert (answer.status, answer.body, answer.header("retry-after")) == (503, b"", "1")

    run(body)


def test_exceptions_are_failures_and_reach_the_server_as_they_are() -> None:
    calls = 0
    raised = ValueError("the app's own")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 2:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise raised

    async def body() -> None:
        bench = Bench(app)
        for _ in range(3):
            with pytest.raises(ValueError, match="the app's own") as caught:
                await bench.ask()
            assert caught.value is raised
        assert (await bench.ask()).status == 503
        assert calls == 3

    run(body)


def test_an_app_that_returns_without_an_answer_has_failed() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    async def body() -> None:
        bench = Bench(app)
        for _ in range(3):
            assert not (await bench.ask()).messages
        assert (await bench.ask()).status == 503

    run(body)


def test_one_tenants_failures_shut_nobody_else_out_nor_another_route() -> None:
    async def body() -> None:
        bench = Bench()
        acme, other = User("acme", "ann"), User("other", "ann")
        await bench.fail("/a/1", user=acme)
        assert (await bench.ask("/a/2", user=acme)).status == 503, "one route, whatever its parameters"
        assert (await bench.ask("/a/2", user=User("acme", "ben"))).status == 503
        assert (await bench.ask("/a/1", user=other)).status == 200
        assert (await bench.ask("/a/1")).status == 200
        assert (await bench.ask("/b", user=acme)).status == 200
        assert (bench.gauge("/a/{rest:path}"), bench.gauge("/b")) == (2, 0)

    run(body)


def test_a_broken_path_that_no_policy_names_shuts_out_no_other() -> None:
    async def body() -> None:
        bench = Bench()
        await bench.fail("/broken")
        assert (await bench.ask("/broken")).status == 503
        assert (await bench.ask("/healthz")).status == 200
        assert bench.gauge("other") == 2

    run(body)


def test_failures_of_those_for_whom_a_layer_is_open_shut_out_no_colleague_for_whom_it_is_shut() -> None:
    @dataclass(frozen=True)
    class Decided:
        open: frozenset[str]
        cohorts: tuple[tuple[str, str, str], ...] = ()
        shadow: frozenset[str] = frozenset()

    def decide(identity: Identity | None, scope: Any) -> Decided:
        assert identity is not None
        return Decided(frozenset({"breaker", "cache"} if identity.user == "canary" else {"breaker"}))

    async def body() -> None:
        bench = Bench(decide=decide)
        await bench.fail(user=User("tenant", "canary"))
        assert (await bench.ask(user=User("tenant", "canary"))).status == 503
        assert (await bench.ask(user=User("tenant", "control"))).status == 200

    run(body)


def test_the_first_call_after_the_time_is_the_probe_and_one_success_closes() -> None:
    async def body() -> None:
        bench = Bench()
        await bench.fail()
        bench.clock.now += 5
        assert [(await bench.ask()).status for _ in range(5)] == [200] * 5
        assert bench.origin.calls == 8
        assert bench.gauge("/b") == 0

    run(body)


def test_one_of_a_hundred_concurrent_requests_probes() -> None:
    ran = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal ran
        ran += 1
        failing = ran <= 3
        await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": 500 if failing else 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def body() -> None:
        bench = Bench(app)
        for _ in range(3):
            await bench.ask()
        bench.clock.now += 5
        answers = await asyncio.gather(*[bench.ask() for _ in range(100)])
        assert ran == 4
        assert sorted(answer.status for answer in answers) == [200] + [503] * 99

    run(body)


def test_a_stream_that_probes_closes_the_circuit_when_it_begins() -> None:
    more = asyncio.Event()
    streaming = False

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if not streaming:
            raise ValueError("down")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await more.wait()
        await send({"type": "http.response.body", "body": b"two"})

    async def body() -> None:
        nonlocal streaming
        bench = Bench(app)
        for _ in range(3):
            with pytest.raises(ValueError, match="down"):
                await bench.ask()
        bench.clock.now += 5
        streaming = True
        first = asyncio.create_task(bench.ask())
        await asyncio.sleep(0)
        second = asyncio.create_task(bench.ask())
        await asyncio.sleep(0)
        more.set()
        assert ((await first).body, (await second).body) == (b"onetwo", b"onetwo")

    run(body)


def test_a_background_task_that_fails_after_the_response_is_no_failure() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await Origin()(scope, receive, send)
        raise ValueError("background")

    async def body() -> None:
        bench = Bench(app)
        for _ in range(20):
            with pytest.raises(ValueError, match="background"):
                await bench.ask()
        assert bench.gauge("/b") == 0

    run(body)


def test_a_cancelled_request_is_no_evidence_also_when_it_probes() -> None:
    hanging = False

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if hanging:
            await asyncio.Event().wait()
        await origin(scope, receive, send)

    origin = Origin()

    async def cancel_one(bench: Bench) -> None:
        task = asyncio.create_task(bench.ask())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def body() -> None:
        nonlocal hanging
        bench = Bench(app)
        hanging = True
        for _ in range(10):
            await cancel_one(bench)
        hanging = False
        assert (await bench.ask()).status == 200
        origin.status = 500
        for _ in range(3):
            await bench.ask()
        bench.clock.now += 5
        hanging = True
        await cancel_one(bench)
        assert bench.gauge("/b") == 1, "half-open still"
        hanging, origin.status = False, 200
        assert (await bench.ask()).status == 200

    run(body)


@pytest.mark.parametrize("how", ["send fails", "disconnect is read"])
def test_a_client_that_left_is_no_failure_of_the_app(how: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if how == "disconnect is read":
            assert (await receive())["type"] == "http.disconnect"
            raise ValueError("client disconnected")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def broken(message: Any) -> None:
        raise OSError("client is gone")

    async def body() -> None:
        bench = Bench(app)
        for _ in range(20):
            with pytest.raises((OSError, ValueError), match="client"):
                await bench.layer(scope_of("/b"), gone, broken)
        assert bench.gauge("/b") == 0

    run(body)


def test_everything_passes_as_it_is() -> None:
    """Unknown messages, early hints, trailers: the same objects, in the same order."""
    messages: list[dict[str, Any]] = [
        {"type": "http.response.debug", "info": {}},
        {"type": "http.response.start", "status": 200, "headers": [(b"set-cookie", b"a"), (b"set-cookie", b"b")]},
        {"type": "http.response.zerocopysend", "file": object()},
        {"type": "http.response.body", "body": b"x", "more_body": False},
        {"type": "http.response.trailers", "headers": []},
        {"type": "invented.by.the.test"},
    ]
    passed: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    async def send(message: Any) -> None:
        passed.append(message)

    async def receive() -> Any:
        raise AssertionError("nobody asked")

    run(lambda: Bench(app).layer(scope_of("/b"), receive, send))
    assert [id(message) for message in passed] == [id(message) for message in messages]


@pytest.mark.parametrize("kind", ["websocket", "lifespan", "shut"])
def test_shut_or_for_another_protocol_the_app_gets_the_very_objects(kind: str) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend((scope, receive, send))

    async def receive() -> Any: ...
    async def send(message: Any) -> None: ...

    scope = scope_of("/b") if kind == "shut" else {"type": kind}
    run(lambda: Bench(app, gate=lambda context: kind != "shut").layer(scope, receive, send))
    assert [id(each) for each in seen] == [id(scope), id(receive), id(send)]


def test_a_shut_gate_learns_nothing_and_refuses_nothing() -> None:
    async def body() -> None:
        gate = {"open": False}
        bench = Bench(gate=lambda context: gate["open"])
        bench.origin.status = 500
        for _ in range(20):
            assert (await bench.ask()).status == 500
        gate["open"] = True
        bench.origin.status = 200
        assert (await bench.ask()).status == 200
        await bench.fail()
        gate["open"] = False
        assert (await bench.ask()).status == 200

    run(body)


def test_circuits_are_bounded_and_the_limit_is_counted() -> None:
    async def body() -> None:
        bench = Bench(max_circuits=3)
        await bench.fail(user=User("first", "ann"))
        for number in range(6):
            await bench.ask(user=User(f"tenant-{number}", "ann"))
        assert bench.metrics.limits.labels("breaker-circuits")._value.get() == 4
        assert (await bench.ask(user=User("first", "ann"))).status == 200, "forgotten, so closed"
        await bench.fail(user=User("last", "ann"))
        assert bench.gauge("/b") == 2
        bench.clock.now += 5
        await bench.ask(user=User("last", "ann"))
        assert bench.gauge("/b") == 0, "the forgotten circuit is not counted for ever"

    run(body)


def test_a_circuit_that_is_asked_for_is_not_the_one_that_is_forgotten() -> None:
    async def body() -> None:
        bench = Bench(max_circuits=3)
        for name in ("a", "busy", "c"):
            await bench.ask(user=User(name, "ann"))
        await bench.fail(user=User("busy", "ann"))
        for number in range(8):
            assert (await bench.ask(user=User("busy", "ann"))).status == 503
            await bench.ask(user=User(f"tenant-{number}", "ann"))
        assert bench.metrics.limits.labels("breaker-circuits")._value.get() == 8

    run(body)


@pytest.mark.parametrize("limit", [1, 63, 64, 65])
def test_a_circuit_that_was_just_made_is_never_the_one_that_is_forgotten(limit: int) -> None:
    """Else it would be found by route and tenant for ever, beside the one that others find."""
    layer = Bench(max_circuits=limit).layer
    for number in range(limit + 5):
        context = RequestContext(Identity(f"tenant-{number}", "ann"), POLICIES.match("/b"), None)
        made = layer.circuit(context, "/b")
        assert layer.circuit(context, "/b") is made  # and so it was asked for
        assert len(layer.near(None)["/b"]) == min(number + 1, limit)


def test_circuits_that_are_found_by_route_and_tenant_are_those_that_were_not_forgotten() -> None:
    async def body() -> None:
        bench = Bench(max_circuits=3)
        near = bench.layer.near(None)
        for number in range(6):
            await bench.ask(user=User(f"tenant-{number}", "ann"))
        await bench.ask("/elsewhere", user=User("tenant-0", "ann"))
        assert {route: set(circuits) for route, circuits in near.items()} == {"/b": {"tenant-4", "tenant-5"}}
        for tenant, breaker in near["/b"].items():
            context = RequestContext(Identity(str(tenant), "ann"), POLICIES.match("/b"), None)
            assert bench.layer.circuit(context, "/b") is breaker

    run(body)
