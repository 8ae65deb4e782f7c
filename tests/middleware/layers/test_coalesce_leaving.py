"""Leaders and followers that leave, fail, or wait too long."""

import asyncio
from typing import Any

import pytest

from tests.driver import Answer, call, scope_of
from tests.middleware.layers.coalescing import App, Bench, Call, Client, run, settle, two
from tidegate.middleware.layers.coalesce import LeaderFailedError


def test_a_follower_that_turns_out_to_send_a_body_runs_alone_with_all_of_it() -> None:
    bodies: list[bytes] = []

    async def step(call: Call) -> None:
        read = b""
        while True:
            message = await call.receive()
            read += message["body"]
            if not message.get("more_body"):
                break
        bodies.append(read)
        await call.answer(read)

    async def body() -> None:
        async with two(step) as (app, bench, leader, follower):
            parts = iter([(b"unannounced ", True), (b"body", False)])

            async def receive() -> Any:
                part, more = next(parts)
                return {"type": "http.request", "body": part, "more_body": more}

            answer = Answer()

            async def send(message: Any) -> None:
                answer.messages.append(message)

            third = asyncio.create_task(bench.layer(scope_of(), receive, send))
            await settle()
            app.gate.set()
            await asyncio.gather(leader.done(), follower.done(), third)
            assert answer.body == b"unannounced body"
            assert bodies == [b"", b"unannounced body"]

    run(body)


def test_a_leader_that_raises_raises_for_itself_alone_and_its_followers_run_themselves() -> None:
    failing = True

    async def step(call: Call) -> None:
        nonlocal failing
        if failing:
            failing = False
            raise ValueError("the leader's own")
        await call.answer(b"fine")

    async def body() -> None:
        async with two(step) as (app, _bench, leader, follower):
            app.gate.set()
            with pytest.raises(ValueError, match="the leader's own"):
                await leader.done()
            assert (await follower.done()).body == b"fine"

    run(body)


def test_an_app_that_returns_without_an_answer_leaves_its_followers_to_run_themselves() -> None:
    answering = False

    async def step(call: Call) -> None:
        nonlocal answering
        if answering:
            await call.answer(b"fine")
        answering = True

    async def body() -> None:
        async with two(step) as (app, _bench, leader, follower):
            app.gate.set()
            assert not (await leader.done()).messages
            assert (await follower.done()).body == b"fine"

    run(body)


def test_a_leaders_cancellation_does_not_touch_its_followers() -> None:
    async def body() -> None:
        async with two() as (app, _bench, leader, follower):
            leader.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leader.task
            await settle()
            app.gate.set()
            assert (await follower.done()).body == b"run 1"
            assert (app.runs, app.cancelled) == (1, 0)
            assert not leader.answer.messages

    run(body)


def test_a_leader_cancelled_while_its_client_is_slow_leaves_its_followers_the_whole_answer() -> None:
    async def step(call: Call) -> None:
        await call.start((b"content-length", b"6"))
        await call.body(b"one", more=True)
        await call.body(b"two")

    async def body() -> None:
        async with two(step) as (app, _bench, leader, follower):
            leader.slow = asyncio.Event()
            app.gate.set()
            await settle()
            leader.task.cancel()
            assert (await follower.done()).body == b"onetwo"
            with pytest.raises(asyncio.CancelledError):
                await leader.task

    run(body)


def test_when_nobody_is_left_the_run_is_cancelled() -> None:
    async def body() -> None:
        async with two() as (app, bench, leader, follower):
            leader.task.cancel()
            await settle()
            assert app.cancelled == 0
            follower.task.cancel()
            await asyncio.gather(leader.task, follower.task, return_exceptions=True)
            await settle()
            assert app.cancelled == 1
            app.gate.set()
            assert (await call(bench.layer)).body == b"run 2", "a new request begins a new run"

        app = App()
        bench = Bench(app)
        lonely = Client(bench.layer)
        await settle()
        lonely.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await lonely.task
        assert app.cancelled == 1

    run(body)


def test_a_leader_whose_client_left_hears_of_it_only_when_nobody_follows() -> None:
    heard: list[str] = []

    async def step(call: Call) -> None:
        assert (await call.receive())["type"] == "http.request"
        heard.append((await call.receive())["type"])

    async def body() -> None:
        async with two(step) as (app, _bench, leader, follower):
            app.gate.set()
            leader.left.set()
            await settle()
            assert not heard
            follower.left.set()
            await asyncio.gather(leader.done(), follower.done())
            assert heard == ["http.disconnect"]
            assert not follower.answer.messages
            assert app.runs == 1

    run(body)


def test_a_leaders_broken_connection_does_not_fail_the_run_while_others_follow() -> None:
    async def step(call: Call) -> None:
        await call.start((b"content-length", b"11"))
        for part in (b"one", b"two", b"three"):
            await call.body(part, more=part != b"three")
            await settle()

    async def body() -> None:
        async with two(step) as (app, _bench, leader, follower):
            leader.broken = True
            app.gate.set()
            assert (await follower.done()).body == b"onetwothree"
            with pytest.raises(OSError, match="client is gone"):
                await leader.done()

        app = App(step)
        app.gate.set()
        alone = Client(Bench(app).layer)
        alone.broken = True
        with pytest.raises(OSError, match="client is gone"):
            await alone.done()

    run(body)


def test_a_follower_that_leaves_is_let_go_and_the_others_are_served() -> None:
    async def body() -> None:
        async with two() as (app, bench, leader, follower):
            third = Client(bench.layer)
            await settle()
            follower.left.set()
            assert not (await follower.done()).messages
            third.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await third.task
            app.gate.set()
            assert (await leader.done()).body == b"run 1"
            assert app.runs == 1

    run(body)


def test_a_run_that_fails_in_the_middle_of_a_shared_body_fails_for_those_who_have_begun() -> None:
    broken = asyncio.Event()

    async def step(call: Call) -> None:
        await call.start((b"content-length", b"6"))
        await call.body(b"one", more=True)
        await broken.wait()
        raise ValueError("half way")

    async def body() -> None:
        async with two(step) as (app, _bench, leader, follower):
            app.gate.set()
            await follower.has(b"one")
            broken.set()
            with pytest.raises(ValueError, match="half way"):
                await leader.done()
            with pytest.raises(LeaderFailedError):
                await follower.done()
            assert not follower.answer.complete

    run(body)


def test_a_failure_that_nobody_is_left_to_hear_is_counted() -> None:
    async def step(call: Call) -> None:
        raise ValueError("lost")

    async def body() -> None:
        async with two(step) as (app, bench, leader, follower):
            leader.task.cancel()
            await settle()
            app.gate.set()
            with pytest.raises(ValueError, match="lost"):
                await follower.done()  # from its own run
            await asyncio.gather(leader.task, return_exceptions=True)
            assert bench.metrics.errors.labels("coalesce")._value.get() == 1

    run(body)


def test_a_follower_waits_only_so_long() -> None:
    async def body() -> None:
        async with two(max_wait=0.3) as (app, bench, leader, follower):
            app.begun.clear()
            async with asyncio.timeout(2):
                await app.begun.wait()
            app.gate.set()
            assert (await leader.done()).body == b"run 1"
            assert (await follower.done()).body == b"run 2"
            assert bench.limited("wait") == 1

    run(body)


def test_more_followers_than_allowed_run_alone() -> None:
    async def body() -> None:
        app = App()
        bench = Bench(app, max_followers=3)
        tasks = [asyncio.create_task(call(bench.layer)) for _ in range(10)]
        await settle()
        app.gate.set()
        await asyncio.gather(*tasks)
        assert app.runs == 7
        assert bench.roles() == (1, 3, 6)
        assert bench.limited("followers") == 6

    run(body)


def test_a_background_task_delays_nobody() -> None:
    background = asyncio.Event()

    async def step(call: Call) -> None:
        await call.answer(b"x")
        await background.wait()

    async def body() -> None:
        async with two(step) as (app, bench, leader, follower):
            app.gate.set()
            await leader.has(b"x")
            assert (await follower.done()).complete
            assert leader.answer.complete
            assert not leader.task.done(), "the server waits for the app, as it would without us"
            second = Client(bench.layer)
            await second.has(b"x")
            background.set()
            await asyncio.gather(leader.done(), second.done())

    run(body)


def test_nothing_is_left_behind_when_all_is_over() -> None:
    async def body() -> None:
        async with two() as (app, bench, leader, follower):
            app.gate.set()
            await asyncio.gather(leader.done(), follower.done())
            assert not bench.layer.flights
            assert not bench.layer._tenants

    run(body)


def test_a_follower_whose_body_arrives_together_with_the_answer_runs_alone() -> None:
    async def body() -> None:
        async with two() as (app, bench, leader, follower):
            arrived = asyncio.Event()

            async def receive() -> Any:
                await arrived.wait()
                return {"type": "http.request", "body": b"unannounced", "more_body": False}

            answer = Answer()

            async def send(message: Any) -> None:
                answer.messages.append(message)

            third = asyncio.create_task(bench.layer(scope_of(), receive, send))
            await settle()
            arrived.set()
            app.gate.set()
            await asyncio.gather(leader.done(), follower.done(), third)
            assert (follower.answer.body, answer.body) == (b"run 1", b"run 2")

    run(body)


def test_a_run_without_a_leader_is_cancelled_when_its_last_follower_stops_waiting() -> None:
    async def body() -> None:
        async with two(max_wait=0.3) as (app, _bench, leader, follower):
            app.begun.clear()
            leader.task.cancel()
            async with asyncio.timeout(2):
                await app.begun.wait()
            await settle()
            assert (app.runs, app.cancelled) == (2, 1)
            app.gate.set()
            assert (await follower.done()).body == b"run 2"
            await asyncio.gather(leader.task, return_exceptions=True)

    run(body)


def test_nothing_is_sent_to_a_leader_whose_call_has_ended() -> None:
    more = asyncio.Event()

    async def step(call: Call) -> None:
        await call.answer(b"x")
        await more.wait()
        await call.send({"type": "invented.by.the.test"})

    async def body() -> None:
        async with two(step) as (app, bench, leader, follower):
            leader.task.cancel()
            await settle()
            app.gate.set()
            assert (await follower.done()).body == b"x"
            assert bench.layer._forsaken, "a run that nobody awaits must not be forgotten by the garbage collector"
            more.set()
            await settle()
            await asyncio.gather(leader.task, return_exceptions=True)
            assert not leader.answer.messages
            assert not bench.layer._forsaken, "the run has come to its end"

    run(body)


@pytest.mark.parametrize("slow_from", ["start", "body"])
def test_what_is_sent_directly_does_not_overtake_what_waits_for_a_slow_leader(slow_from: str) -> None:
    more, slow = asyncio.Event(), asyncio.Event()
    clients: list[Client] = []

    async def step(call: Call) -> None:
        await call.start((b"content-length", b"6"))
        await settle()
        clients[0].slow = slow
        await call.body(b"one", more=True)
        await more.wait()
        await call.body(b"two")

    async def body() -> None:
        async with two(step) as (app, _bench, leader, follower):
            clients.append(leader)
            if slow_from == "start":
                leader.slow = slow
            app.gate.set()
            await follower.has(b"one")
            follower.left.set()
            await follower.done()
            more.set()
            await settle()
            slow.set()
            assert (await leader.done()).body == b"onetwo"
            assert leader.answer.complete

    run(body)
