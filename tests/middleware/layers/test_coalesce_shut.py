"""Shut for everybody, the coalescing layer lets nobody wait: followers go on alone, and their leaders undisturbed."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.driver import User
from tests.middleware.layers.coalescing import App, Bench, Call, Client, halves, run, settle, two
from tests.services import wait_until
from tidegate import Settings, Tidegate
from tidegate.middleware.layers.coalesce import CoalesceLayer
from tidegate.vocabulary import FLAGS

FOREVER = 3600.0

Shut = Callable[[CoalesceLayer, bool], Awaitable[None]]


async def here(layer: CoalesceLayer, is_shut: bool) -> None:
    layer.shut(is_shut)


async def in_a_thread(layer: CoalesceLayer, is_shut: bool) -> None:
    await asyncio.to_thread(layer.shut, is_shut)


@pytest.mark.parametrize("shut", [here, in_a_thread])
def test_followers_go_on_alone_at_once_and_the_leader_finishes(shut: Shut) -> None:
    async def body() -> None:
        app = App()
        bench = Bench(app, max_wait=FOREVER)
        leader, *followers = [Client(bench.layer) for _ in range(6)]
        await settle()
        assert app.runs == 1
        await shut(bench.layer, True)
        async with asyncio.timeout(10):
            while app.runs < 6:
                await settle()
        assert not leader.task.done()
        app.gate.set()
        answers = [await client.done() for client in (leader, *followers)]
        assert sorted(answer.body for answer in answers) == [b"run %d" % number for number in range(1, 7)]
        assert answers[0].body == b"run 1"
        assert (bench.roles(), bench.limited("wait"), app.cancelled) == ((1, 0, 5), 0, 0)

    run(body)


def test_nobody_begins_to_wait_while_it_is_shut_and_all_share_again_when_it_opens() -> None:
    """A request whose own gate was decided before keeps that decision, and leads; but it waits for nobody."""

    async def body() -> None:
        app = App()
        bench = Bench(app, max_wait=FOREVER)
        for is_shut, runs in ((True, 3), (False, 4)):
            await here(bench.layer, is_shut)
            clients = [Client(bench.layer) for _ in range(3)]
            await settle()
            assert app.runs == runs
            app.gate.set()
            for client in clients:
                assert (await client.done()).status == 200
            app.gate.clear()
        assert bench.roles() == (2, 2, 2)

    run(body)


def test_a_shutting_between_a_followers_decision_and_its_first_wait_is_not_missed() -> None:
    async def body() -> None:
        async with two(max_wait=FOREVER) as (app, bench, leader, _):
            late = Client(bench.layer)
            await asyncio.sleep(0)  # it has joined by now, or is about to
            bench.layer.shut(True)
            bench.layer.shut(False)
            later = Client(bench.layer)
            await settle()
            assert app.runs == 3, "the two that waited are on their own; the later one waits"
            app.gate.set()
            assert [(await client.done()).body for client in (leader, later)] == [b"run 1", b"run 1"]
            assert (await late.done()).body in (b"run 2", b"run 3")

    run(body)


def test_those_who_wait_for_a_run_that_a_write_has_closed_go_on_as_well() -> None:
    go = asyncio.Event()

    async def step(one: Call) -> None:
        if one.scope["method"] == "GET":
            await go.wait()
        await one.answer(b"answer")

    async def body() -> None:
        app = App(step)
        app.gate.set()
        async with two(app=app, max_wait=FOREVER) as (_, bench, leader, follower):
            await Client(bench.layer, method="POST").done()
            await settle()
            assert (app.runs, follower.task.done()) == (2, False)
            bench.layer.shut(True)
            await settle()
            assert app.runs == 3
            go.set()
            assert [(await client.done()).body for client in (leader, follower)] == [b"answer"] * 2

    run(body)


def test_who_has_begun_to_relay_gets_the_rest() -> None:
    more = asyncio.Event()

    async def body() -> None:
        async with two(halves(b"half", b"rest", more), max_wait=FOREVER) as (app, bench, leader, follower):
            app.gate.set()
            await follower.has(b"half")
            bench.layer.shut(True)
            more.set()
            assert [(await client.done()).body for client in (leader, follower)] == [b"halfrest"] * 2
            assert app.runs == 1

    run(body)


def test_followers_that_keep_a_run_alive_leave_it_to_end_when_they_go() -> None:
    async def body() -> None:
        async with two(max_wait=FOREVER) as (app, bench, leader, follower):
            leader.task.cancel()
            await settle()
            assert app.cancelled == 0
            bench.layer.shut(True)
            await settle()
            assert (app.runs, app.cancelled) == (2, 1)
            app.gate.set()
            assert (await follower.done()).body == b"run 2"

    run(body)


def test_the_flag_does_it_in_a_whole_stack_without_a_request(tmp_path: Path) -> None:
    path = tmp_path / "flags.json"

    def write(coalesce: int) -> None:
        flags = {
            name: {"enabled": True, "strategies": [{"percentage": coalesce if layer == "coalesce" else 100}]}
            for layer, name in FLAGS.items()
        }
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps({"version": 1, "flags": flags}))
        os.replace(draft, path)

    async def body() -> None:
        settings = Settings.of({"flags": {"provider": "local", "file": str(path), "poll_interval": 0.1}})
        tide = Tidegate(settings, layers=["coalesce"], registry=CollectorRegistry())
        app = App()
        stack: Any = tide(app)
        stack.app._max_wait = FOREVER
        clients = [Client(stack, user=User("acme", "ann"))]
        async with asyncio.timeout(10):
            await app.begun.wait()
        clients += [Client(stack, user=User("acme", "ann")) for _ in range(4)]
        await settle()
        assert app.runs == 1
        write(0)
        await asyncio.to_thread(wait_until, lambda: app.runs == 5, 20, "four followers are on their own")
        app.gate.set()
        for client in clients:
            assert (await client.done()).status == 200
        await tide.aclose()

    write(100)
    run(body)
