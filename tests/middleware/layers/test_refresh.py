"""stale-while-revalidate, executed: in the background, once per key, bounded, ended when the gate is shut."""

import asyncio
from functools import partial
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.driver import Answer, Origin, User, call
from tests.middleware.layers.test_validation import Bench, Conditional, run
from tidegate.middleware.core.policy import RoutePolicy
from tidegate.middleware.layers.refresh import Refreshes
from tidegate.middleware.metrics import Metrics

ANN = User("acme", "ann")
SWR = ("cache-control", "max-age=60, stale-while-revalidate=600")


class Slow:
    """An app whose answers wait until they are let go, but the first."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.calls = 0
        self.running = 0
        self.go = asyncio.Event()
        self.again = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        self.running += 1
        try:
            assert (await receive())["type"] == "http.request"
            if self.calls > 1:
                self.again.set()
                await self.go.wait()
            await self.inner(scope, receive, send)
        finally:
            self.running -= 1


async def settled(refreshes: Refreshes) -> None:
    if tasks := tuple(refreshes._tasks.values()):
        await asyncio.wait(tasks, timeout=20)
    assert not len(refreshes)


def test_what_is_stale_is_served_at_once_and_refreshed_once_for_all() -> None:
    async def story() -> tuple[list[Answer], Answer, Slow]:
        origin = Origin(lambda _scope: b"%d" % origin.calls, headers=[SWR])
        app = Slow(origin)
        bench = Bench(app)
        await bench.get()
        stale = [await bench.get(later) for later in (61, 0, 0, 0)]
        app.go.set()
        await settled(bench.layer._refreshes)
        return stale, await bench.get(), app

    stale, after, app = run(story)
    assert [answer.body for answer in stale] == [b"1"] * 4
    assert {answer.header("cache-status") for answer in stale} == {
        "Tidegate; hit; ttl=-1; detail=stale-while-revalidate"
    }
    assert (after.hit, after.body, app.calls) == (True, b"2", 2)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_refresh_asks_for_the_whole_without_the_clients_wishes(method: str) -> None:
    app = Conditional(("etag", '"a"'), SWR)
    bench = Bench(app)

    async def story() -> Answer:
        await bench.get()
        wishes = [("range", "bytes=0-1"), ("if-none-match", '"z"'), ("cache-control", "max-stale=5"), ("x-kind", "k")]
        await bench.get(70, *wishes, method=method)
        await settled(bench.layer._refreshes)
        return await bench.get(59)

    assert run(story).hit
    asked = app.asked[1]
    assert app.methods == ["GET", "GET"]
    assert asked[b"if-none-match"] == b'"a"'
    assert asked[b"x-kind"] == b"k"
    assert not {b"range", b"cache-control"} & asked.keys()


def test_past_the_window_the_client_waits_for_the_app() -> None:
    app = Conditional(SWR)
    bench = Bench(app)

    async def story() -> Answer:
        await bench.get()
        return await bench.get(661)

    assert not run(story).hit
    assert len(app.asked) == 2


@pytest.mark.parametrize("forbidding", ["must-revalidate", "proxy-revalidate", "s-maxage=60", "no-cache"])
def test_what_must_be_validated_is_not_served_stale(forbidding: str) -> None:
    app = Conditional(("etag", '"a"'), (SWR[0], f"{SWR[1]}, {forbidding}"))
    bench = Bench(app)

    async def story() -> Answer:
        await bench.get()
        return await bench.get(61)

    assert not run(story).hit


def test_an_error_in_a_refresh_goes_nowhere_and_is_counted() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if calls:
            raise RuntimeError("broken")
        calls.append(1)
        await Origin(headers=[SWR])(scope, receive, send)

    calls: list[int] = []
    bench = Bench(app)
    errors = bench.metrics.errors.labels("refresh")
    before = errors._value.get()

    async def story() -> list[bool]:
        await bench.get()
        hits = [(await bench.get(61)).hit]
        await settled(bench.layer._refreshes)
        return [*hits, (await bench.get()).hit]

    assert run(story) == [True, True]
    assert errors._value.get() - before >= 1


def test_a_purge_during_a_refresh_wins() -> None:
    async def story() -> list[bool]:
        app = Slow(Origin(headers=[SWR]))
        bench = Bench(app, RoutePolicy(route="/", tags=("thing",)))
        await bench.get()
        hits = [(await bench.get(61)).hit]
        await bench.store.purge({"tenant:acme": ["thing"]})
        app.go.set()
        await settled(bench.layer._refreshes)
        return [*hits, (await bench.get()).hit]

    assert run(story) == [True, False]


@pytest.mark.parametrize("how", ["shut", "lifespan"])
def test_refreshes_end_when_the_gate_is_shut_or_the_app_ends(how: str) -> None:
    async def story() -> tuple[int, int]:
        inner = Slow(Origin(headers=[SWR]))

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                await inner(scope, receive, send)

        bench = Bench(app)
        await bench.get()
        await bench.get(61)
        await asyncio.wait_for(inner.again.wait(), 20)
        before = inner.running
        if how == "shut":
            await asyncio.to_thread(bench.layer.shut, True)
            await settled(bench.layer._refreshes)
        else:
            await bench.layer({"type": "lifespan"}, _never, _never)
        return before, inner.running

    assert run(story) == (1, 0)


async def _never(*_message: Any) -> Any:
    raise AssertionError("unreachable")


def test_what_has_no_room_to_be_refreshed_is_asked_for_in_the_foreground() -> None:
    async def story() -> tuple[list[bool], float]:
        app = Slow(Origin(headers=[SWR]))
        app.go.set()
        bench = Bench(app)
        limit = Metrics.of().limits.labels("cache-refreshes")
        bench.layer._refreshes._limit = 0
        before = limit._value.get()
        await bench.get()
        return [(await bench.get(61)).hit, (await bench.get()).hit], limit._value.get() - before

    assert run(story) == ([False, True], 1)


def test_as_many_refreshes_as_allowed_run_at_once_and_one_that_ends_makes_room() -> None:
    metrics, limit = Metrics.of(CollectorRegistry()), 3
    refreshes = Refreshes(metrics, limit=limit)
    doors = [asyncio.Event() for _ in range(5)]

    async def story() -> None:
        begun = [refreshes.begin(b"%d" % at, partial(_opened, door)) for at, door in enumerate(doors)]
        assert begun == [True] * limit + [False] * 2
        assert refreshes.begin(b"0", partial(_opened, doors[0])), "somebody does so already"
        assert len(refreshes) == limit
        assert metrics.limits.labels("cache-refreshes")._value.get() == 2
        first = refreshes._tasks[b"0"]
        doors[0].set()
        await asyncio.wait([first], timeout=20)
        await asyncio.sleep(0)
        assert refreshes.begin(b"4", partial(_opened, doors[4]))
        for door in doors:
            door.set()
        await settled(refreshes)

    asyncio.run(story())


def test_refreshes_of_an_event_loop_that_ended_without_them_hold_up_no_others() -> None:
    refreshes, never = Refreshes(Metrics.of(CollectorRegistry()), limit=2), asyncio.Event()

    async def story() -> None:
        made = asyncio.Event()

        async def refresh() -> None:
            made.set()

        for key in (b"0", b"2"):
            assert refreshes.begin(key, refresh)
            await asyncio.wait_for(made.wait(), 20)
            made.clear()
        await settled(refreshes)

    async def left() -> None:
        assert all(refreshes.begin(key, partial(_opened, never)) for key in (b"0", b"1"))
        await asyncio.sleep(0)

    ended = asyncio.new_event_loop()
    ended.run_until_complete(left())
    lost = asyncio.all_tasks(ended)
    asyncio.run(story())
    for task in lost:
        task.cancel()
    ended.run_until_complete(asyncio.wait(lost))
    ended.close()


async def _opened(door: asyncio.Event) -> None:
    await door.wait()


def test_a_refresh_has_a_context_of_its_own_and_the_same_identity() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        scope["tidegate"].tag("t")
        await Origin(headers=[SWR])(scope, receive, send)

    bench = Bench(app)

    async def story() -> None:
        await bench.get()
        await bench.get(61)
        await settled(bench.layer._refreshes)

    run(story)
    first, second = (scope["tidegate"] for scope in seen)
    assert first is not second
    assert first.identity == second.identity


def test_a_client_that_is_served_stale_does_not_wait_for_the_refresh() -> None:
    async def story() -> bool:
        app = Slow(Origin(headers=[SWR]))
        bench = Bench(app)
        await bench.get()
        async with asyncio.timeout(20):
            await call(bench.layer, user=ANN)
            bench.clock.now += 61
            answer = await call(bench.layer, user=ANN)
        complete = answer.complete and app.running <= 1
        app.go.set()
        await settled(bench.layer._refreshes)
        return complete

    assert run(story)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_a_refresh_finds_gone_or_forbidden_is_not_served_again(status: int) -> None:
    async def story() -> list[Answer]:
        origin = Origin(b"secret", headers=[SWR])
        bench = Bench(origin)
        await bench.get()
        origin.status, origin.headers, origin.body = status, [], b"no"
        stale = await bench.get(61)
        await settled(bench.layer._refreshes)
        return [stale, await bench.get()]

    stale, after = run(story)
    assert (stale.status, stale.body) == (200, b"secret"), "nobody knew yet"
    assert (after.status, after.body, after.hit) == (status, b"no", False)


def test_what_the_app_has_said_is_gone_does_not_stand_in_for_it_when_it_fails() -> None:
    async def story() -> Answer:
        origin = Origin(b"secret", headers=[("cache-control", "max-age=60, stale-if-error=600")])
        bench = Bench(origin)
        await bench.get()
        origin.status, origin.headers, origin.body = 403, [], b"no"
        assert (await bench.get(61)).status == 403
        origin.status = 500
        return await bench.get()

    failed = run(story)
    assert (failed.status, failed.hit) == (500, False)


@pytest.mark.parametrize("status", [400, 408, 429, 500, 503])
def test_an_answer_that_says_nothing_of_the_resource_leaves_what_is_stored(status: int) -> None:
    async def story() -> Answer:
        origin = Origin(b"page", headers=[SWR])
        bench = Bench(origin)
        await bench.get()
        origin.status, origin.headers = status, []
        await bench.get(61)
        await settled(bench.layer._refreshes)
        return await bench.get()

    again = run(story)
    assert (again.status, again.body, again.hit) == (200, b"page", True)


@pytest.mark.parametrize("field", [("cache-control", "no-cache"), ("x-original-url", "/nowhere")])
def test_no_request_can_throw_out_what_is_fresh_by_asking_for_an_error(field: tuple[str, str]) -> None:
    async def story() -> Answer:
        origin = Origin(b"page", headers=[SWR])
        bench = Bench(origin)
        await bench.get()
        origin.status, origin.headers = 404, []
        await bench.get(1, ("cache-control", "no-cache"), field)
        return await bench.get()

    assert run(story).hit
