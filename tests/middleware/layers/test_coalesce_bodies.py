"""Bodies, streams and messages as they pass through a shared run."""

import asyncio
from typing import Any

import pytest

from tests.driver import call
from tests.middleware.layers.coalescing import App, Bench, Call, Client, halves, run, settle, two


def test_a_body_of_known_length_reaches_both_as_it_comes() -> None:
    more = asyncio.Event()

    async def body() -> None:
        async with two(halves(b"one", b"two", more)) as (app, _bench, leader, follower):
            app.gate.set()
            await leader.has(b"one")
            await follower.has(b"one")
            more.set()
            assert ((await leader.done()).body, (await follower.done()).body) == (b"onetwo", b"onetwo")
            assert follower.answer.complete
            assert app.runs == 1

    run(body)


def test_an_event_stream_reaches_both_as_it_comes_each_from_its_own_run() -> None:
    more = asyncio.Event()

    async def step(call: Call) -> None:
        await call.start((b"content-type", b"text/event-stream"))
        await call.body(b"data: 1\n\n", more=True)
        await more.wait()
        await call.body(b"data: 2\n\n")

    async def body() -> None:
        async with two(step) as (app, _bench, leader, follower):
            app.gate.set()
            await leader.has(b"data: 1\n\n")
            await follower.has(b"data: 1\n\n")
            assert app.runs == 2
            more.set()
            await asyncio.gather(leader.done(), follower.done())

    run(body)


def test_a_response_of_unknown_length_that_ends_soon_is_shared() -> None:
    async def step(call: Call) -> None:
        await call.start()
        for part in (b"a", b"b", b"c"):
            await call.body(part, more=True)
            await asyncio.sleep(0)
        await call.body(b"")

    async def body() -> None:
        async with two(step, max_hold=5.0) as (app, _bench, leader, follower):
            app.gate.set()
            assert ((await leader.done()).body, (await follower.done()).body) == (b"abc", b"abc")
            assert app.runs == 1

    run(body)


def test_a_response_of_unknown_length_that_does_not_end_lets_its_followers_go_and_is_remembered() -> None:
    more = asyncio.Event()

    async def step(call: Call) -> None:
        await call.start()
        await call.body(b"a", more=True)
        await more.wait()
        await call.body(b"b")

    async def body() -> None:
        async with two(step, max_hold=0.02) as (app, bench, leader, follower):
            app.gate.set()
            await leader.has(b"a")
            await follower.has(b"a")
            assert app.runs == 2
            assert bench.limited("hold") == 1
            third = Client(bench.layer)
            await third.has(b"a")
            assert bench.roles() == (1, 0, 2)
            more.set()
            await asyncio.gather(leader.done(), follower.done(), third.done())

    run(body)


@pytest.mark.parametrize("stated", [True, False], ids=["stated length", "unstated length"])
def test_a_body_above_the_limit_is_not_shared(stated: bool) -> None:
    async def step(call: Call) -> None:
        await call.start(*([(b"content-length", b"3000")] if stated else []))
        for _ in range(3):
            await call.body(bytes(1000), more=True)
            await settle()
        await call.body(b"")

    async def body() -> None:
        async with two(step, max_body=2500, max_hold=5.0) as (app, bench, leader, follower):
            app.gate.set()
            for client in (leader, follower):
                assert (await client.done()).body == bytes(3000)
            assert app.runs == 2
            assert bench.limited("body") == 1

    run(body)


def test_what_is_not_to_be_shared_does_not_queue_for_some_seconds() -> None:
    async def step(call: Call) -> None:
        await asyncio.sleep(0)
        await call.answer(b"x", (b"set-cookie", b"a=b"))

    async def body() -> None:
        app = App(step)
        app.gate.set()
        bench = Bench(app, remember=0.5, max_remembered=2)
        await call(bench.layer)
        await asyncio.gather(*[call(bench.layer) for _ in range(10)])
        assert bench.roles() == (1, 0, 10), "nobody waited for another"
        async with asyncio.timeout(5):
            while bench.roles()[0] == 1:
                await call(bench.layer)
                await asyncio.sleep(0.01)
        for path in ("/a", "/b", "/c"):
            await call(bench.layer, path)
        leaders = bench.roles()[0]
        await call(bench.layer)
        assert bench.roles()[0] == leaders + 1, "remembered no more: the memory is bounded"

    run(body)


@pytest.mark.parametrize(
    "message",
    [
        {"type": "http.response.pathsend", "path": "/etc/hostname"},
        {"type": "http.response.zerocopysend", "file": 3},
        {"type": "invented.by.the.test", "x": 1},
    ],
    ids=lambda message: message["type"],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_messages_nobody_knows_pass_to_the_leader_and_send_the_follower_to_its_own_run(message: Any, when: str) -> None:
    async def step(call: Call) -> None:
        if when == "before":
            await call.send(message)
        await call.start((b"content-length", b"1"))
        if when == "after":
            await call.send(message)
        await call.body(b"x")

    async def body() -> None:
        async with two(step) as (app, _bench, leader, follower):
            app.gate.set()
            for client in (leader, follower):
                await client.done()
                assert message in client.answer.messages
                assert len(client.answer.messages) == 3
            assert app.runs == 2

    run(body)


def test_trailers_are_not_shared() -> None:
    async def step(call: Call) -> None:
        await call.start((b"content-length", b"1"), trailers=True)
        await call.body(b"x")
        await call.send({"type": "http.response.trailers", "headers": [(b"a", b"b")]})

    async def body() -> None:
        async with two(step) as (app, _bench, leader, follower):
            app.gate.set()
            for client in (leader, follower):
                assert (await client.done()).messages[-1]["type"] == "http.response.trailers"
            assert app.runs == 2

    run(body)


def test_a_slow_leader_does_not_hold_up_its_followers_and_gets_everything_in_order() -> None:
    async def step(call: Call) -> None:
        await call.start((b"content-length", b"30"))
        for number in range(9):
            await call.body(b"%03d" % number, more=True)
        await call.body(b"end")

    async def body() -> None:
        async with two(step) as (app, _bench, leader, follower):
            leader.slow = asyncio.Event()
            app.gate.set()
            whole = b"".join(b"%03d" % number for number in range(9)) + b"end"
            assert (await follower.done()).body == whole
            assert not leader.answer.messages
            leader.slow.set()
            assert (await leader.done()).body == whole

    run(body)


def test_a_leader_alone_slows_the_app_down_as_its_client_does() -> None:
    sent: list[int] = []

    async def step(call: Call) -> None:
        await call.start()
        for number in range(5):
            await call.body(b"x", more=True)
            sent.append(number)
        await call.body(b"")

    async def body() -> None:
        app = App(step)
        bench = Bench(app)
        leader = Client(bench.layer)
        leader.slow = asyncio.Event()
        app.gate.set()
        await settle()
        assert not sent
        leader.slow.set()
        assert (await leader.done()).body == b"x" * 5

    run(body)


def test_a_request_that_comes_after_the_answer_began_runs_on_its_own() -> None:
    more = asyncio.Event()

    async def body() -> None:
        async with two(halves(b"one", b"two", more)) as (app, bench, leader, follower):
            app.gate.set()
            await follower.has(b"one")
            late = Client(bench.layer)
            await settle()
            assert app.runs == 2
            more.set()
            await asyncio.gather(leader.done(), follower.done(), late.done())

    run(body)


@pytest.mark.parametrize("reused", ["message", "buffer", "fields"])
def test_what_an_app_puts_into_what_it_has_sent_already_reaches_nobody(reused: str) -> None:
    """An app alone with its server may use one message, list or buffer again as soon as `send` has returned."""

    async def step(call: Call) -> None:
        fields = [(b"content-length", b"6"), (b"x-for", b"this answer")]
        await call.send({"type": "http.response.start", "status": 200, "headers": fields})
        if reused == "fields":
            fields[1] = (b"x-for", b"the next one")
        message: dict[str, Any] = {"type": "http.response.body"}
        buffer = bytearray(2)
        for part in (b"aa", b"bb", b"cc"):
            buffer[:] = part
            said = {"body": memoryview(buffer) if reused == "buffer" else part, "more_body": part != b"cc"}
            message = message | said if reused != "message" else message
            message.update(said)
            await call.send(message)
        message["body"] = buffer[:] = b"zz"

    async def body() -> None:
        async with two(step) as (app, _, leader, follower):
            app.gate.set()
            for client in (leader, follower):
                answer = await client.done()
                assert (answer.body, answer.header("x-for")) == (b"aabbcc", "this answer")
            assert app.runs == 1

    run(body)
