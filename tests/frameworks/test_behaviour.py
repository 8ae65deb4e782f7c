"""P1 on five frameworks, one thing at a time: what flows, what lives on after the response, who is served what."""

import asyncio
import json

import pytest

from tests.frameworks.django_site import prepare
from tests.frameworks.driving import Exchange
from tests.frameworks.stage import FRAMEWORKS, HOWS, staged
from tests.frameworks.surface import EVENTS, Framework, How
from tests.services import wait_until

every_framework = pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.name)
every_place = pytest.mark.parametrize("how", HOWS)
shut_and_open = pytest.mark.parametrize("is_open", [False, True], ids=["shut", "open"])
whole_app = pytest.mark.parametrize("how", ["around", "inside"])


@pytest.fixture(scope="module", autouse=True)
def django_database() -> None:
    prepare()


@every_framework
@every_place
@shut_and_open
def test_each_event_leaves_when_the_app_sends_it(framework: Framework, how: How, is_open: bool) -> None:
    async def run() -> None:
        async with staged(framework, how, is_open=is_open) as stage:
            stream = stage.server.begin("/events", headers=stage.framework.headers("ann-token"))
            assert (await stream.next())["type"] == "http.response.start"
            for number in range(EVENTS):
                assert stream.waiting(), "an event left that was not sent yet"
                stage.world.allow()
                text = b""
                while f"data: event {number}".encode() not in text:
                    text += (await stream.next())["body"]
            await stream.over()
            assert stream.complete

    asyncio.run(run())


@every_framework
@every_place
@shut_and_open
def test_a_websocket_talks_both_ways(framework: Framework, how: How, is_open: bool) -> None:
    async def run() -> None:
        async with (
            staged(framework, how, is_open=is_open) as stage,
            stage.server.socket("/ws", framework.headers("ann-token")) as talk,
        ):
            for text in ("tide", "ebb"):
                talk.give({"type": "websocket.receive", "text": text})
                said = await talk.next()
                assert (said["type"], said["text"]) == ("websocket.send", f"echo {text}")

    asyncio.run(run())


@every_framework
@whole_app
def test_what_the_lifespan_made_reaches_a_handler_and_a_stored_response(framework: Framework, how: How) -> None:
    async def run() -> tuple[bool, list[Exchange]]:
        async with staged(framework, how) as stage:
            return stage.server.lifespan, [await stage.get("/me") for _ in range(2)]

    lifespan, (first, second) = asyncio.run(run())
    # Django has none. Round the whole of it the layers start with the first request; `inside` they have their own.
    assert lifespan == (framework.state is not None or how == "inside")
    expected = b'"state":"made"' if framework.state is not None else b'"state":null'
    assert expected in first.body.replace(b" ", b"")
    assert second.hit
    assert second.body == first.body


@pytest.mark.parametrize("framework", [one for one in FRAMEWORKS if one.background], ids=lambda one: one.name)
@every_place
@shut_and_open
def test_a_background_task_outlives_its_response_and_delays_nobody(
    framework: Framework, how: How, is_open: bool
) -> None:
    async def run() -> None:
        async with staged(framework, how, is_open=is_open) as stage:
            request = stage.server.begin("/report", headers=framework.headers("ann-token"))
            while (message := await request.next())["type"] != "http.response.body" or message.get("more_body", False):
                pass
            assert request.complete
            assert stage.world.done == []
            if is_open and how != "sub":  # stored already, though the app's call may not be over
                assert (await stage.get("/report")).hit
            stage.world.release.set()
            await request.over()
            await asyncio.to_thread(wait_until, lambda: stage.world.done == ["report"], 20, "the task is done")

    asyncio.run(run())


@pytest.mark.parametrize("framework", [one for one in FRAMEWORKS if one.pieces], ids=lambda one: one.name)
@every_place
@shut_and_open
def test_an_upload_reaches_the_handler_while_it_is_still_coming(framework: Framework, how: How, is_open: bool) -> None:
    async def run() -> None:
        async with staged(framework, how, is_open=is_open) as stage:
            request = stage.server.upload("/stream", method="POST", headers=framework.headers("ann-token"))
            for size in (1, 30, 500):
                read = len(stage.world.pieces)
                request.give({"type": "http.request", "body": b"x" * size, "more_body": True})
                await asyncio.to_thread(
                    wait_until, lambda read=read: len(stage.world.pieces) > read, 20, "the handler has the piece"
                )
            request.give({"type": "http.request", "body": b"", "more_body": False})
            await request.over()
            assert stage.world.pieces == [1, 30, 500]
            assert request.body.replace(b" ", b"").strip() == b'{"bytes":531}'

    asyncio.run(run())


@every_framework
@whole_app
def test_each_is_served_what_is_stored_for_their_share(framework: Framework, how: How) -> None:
    everybody = ("ann-token", "ben-token", "eve-token") * 2

    async def run() -> tuple[list[Exchange], list[Exchange]]:
        async with staged(framework, how) as stage:
            return [await stage.get("/me", who) for who in everybody], [
                await stage.get("/clients/7", who) for who in everybody
            ]

    mine, clients = asyncio.run(run())
    assert [answer.hit for answer in mine] == [False] * 3 + [True] * 3
    assert [json.loads(answer.body)["user"] for answer in mine] == ["ann", "ben", "eve"] * 2
    # Django says `Vary: Cookie` of what depends on the user: there a tenant's copy serves one.
    assert [answer.hit for answer in clients] == [False, not framework.cookies, False, True, True, True]
    assert [json.loads(answer.body)["name"] for answer in clients] == ["seven", "seven", "sept"] * 2


@every_framework
@whole_app
def test_a_credential_of_nobody_and_no_credential_get_nothing_of_anybodys(framework: Framework, how: How) -> None:
    async def run() -> list[Exchange]:
        async with staged(framework, how) as stage:
            assert (await stage.get("/me")).header("cache-status") == "Tidegate; fwd=miss; stored"
            forged = [(name, value[:-4] + "xxxx") for name, value in framework.headers("ann-token")]
            return [await stage.get("/me", None, *sent) for sent in ((), forged) for _ in range(2)]

    answers = asyncio.run(run())
    details = [(answer.header("cache-status") or "").partition("detail=")[2] for answer in answers]
    assert details == ["no-identity"] * 2 + ["credential"] * 2
    assert not any("user" in json.loads(answer.body) for answer in answers)


@every_framework
@whole_app
def test_a_write_is_seen_by_the_next_reader_and_what_it_does_not_concern_stays(framework: Framework, how: How) -> None:
    async def run() -> tuple[list[str | None], list[Exchange]]:
        async with staged(framework, how) as stage:
            stage.world.release.set()
            paths = ("/page", "/clients/7", "/report", "/me")
            for path in paths * 2:
                last = await stage.get(path)
                assert last.status == 200
            await stage.put("/clients/7/name", b"renamed")
            await stage.put("/title", b"ebb")
            after = [await stage.get(path) for path in paths]
            again = [await stage.get(path) for path in paths]
            assert [answer.body for answer in again] == [answer.body for answer in after]
            assert all(answer.hit for answer in again)
            return [answer.header("cache-status") for answer in after], after

    statuses, (page, client, report, _) = asyncio.run(run())
    assert statuses[:3] == ["Tidegate; fwd=miss; stored"] * 3
    assert (statuses[3] or "").startswith("Tidegate; hit"), "the user's own page depends on none of it"
    assert page.body == b"<h1>ebb</h1>"
    assert json.loads(client.body)["name"] == "renamed"
    assert json.loads(report.body) == {"clients": ["renamed"]}


@every_framework
@every_place
@pytest.mark.parametrize("path", ["/page", "/me"])
def test_who_has_it_already_gets_304(framework: Framework, how: How, path: str) -> None:
    path = f"/sub{path}" if how == "sub" else path

    async def run() -> tuple[str | None, Exchange, Exchange, int]:
        async with staged(framework, how) as stage:
            first = await stage.get(path)
            etag = first.header("etag")
            kept = await stage.get(path, "ann-token", ("if-none-match", etag or ""))
            other = await stage.get(path, "ann-token", ("if-none-match", '"other"'))
            assert other.body == first.body
            return etag, kept, other, stage.world.runs[path.removeprefix("/")]

    etag, kept, other, runs = asyncio.run(run())
    assert etag
    assert (kept.status, kept.body, kept.header("etag")) == (304, b"", etag)
    assert kept.header("content-length") is None
    assert (other.status, other.hit, runs) == (200, True, 1)
