"""P1: whatever is not stored passes message by message, with the whole stack open and with it shut."""

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.driver import Answer, Origin, User, call, scope_of
from tidegate import RoutePolicy, Tidegate
from tidegate.flags import FlagContext, ProviderHealth, Reach

ANN = User("acme", "ann")


class Everybody:
    """A flag provider whose every flag is open, or shut, for everybody."""

    version = 1

    def __init__(self, is_open: bool) -> None:
        self._is_open = is_open

    def is_enabled(self, flag: str, context: FlagContext) -> bool:
        return self._is_open

    def reach(self, flag: str) -> Reach:
        return "everybody" if self._is_open else "nobody"

    def health(self) -> ProviderHealth:
        return ProviderHealth(ready=True, staleness=0.0, detail="")

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...


@pytest.fixture(params=["open", "shut"])
def tide(request: pytest.FixtureRequest) -> Tidegate:
    return Tidegate(
        provider=Everybody(request.param == "open"),
        policies=[RoutePolicy(route="/cached", ttl=60, share="tenant")],
        registry=CollectorRegistry(),
    )


class Conversation:
    """A connection whose messages the test exchanges one at a time with the app."""

    def __init__(self, app: Any, scope: dict[str, Any]) -> None:
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.task = asyncio.create_task(app(scope, self.inbox.get, self.outbox.put))

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(5):
            return await self.outbox.get()


def test_a_websocket_is_handed_through_with_the_same_objects(tide: Tidegate) -> None:
    got: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        got.extend((scope, receive, send))

    async def run() -> None:
        scope = {"type": "websocket", "path": "/ws", "headers": []}

        async def receive() -> Any: ...
        async def send(_message: Any) -> None: ...

        await tide(app)(scope, receive, send)
        assert [id(one) for one in got] == [id(scope), id(receive), id(send)]
        assert "tidegate" not in scope

    asyncio.run(run())


def test_a_websocket_talks_both_ways(tide: Tidegate) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] != "websocket.disconnect":
            await send({"type": "websocket.send", "text": message["text"].upper()})

    async def run() -> None:
        talk = Conversation(tide(app), {"type": "websocket", "path": "/ws", "headers": []})
        assert (await talk.next())["type"] == "websocket.accept"
        await talk.inbox.put({"type": "websocket.receive", "text": "tide"})
        assert await talk.next() == {"type": "websocket.send", "text": "TIDE"}
        await talk.inbox.put({"type": "websocket.disconnect"})
        await talk.task

    asyncio.run(run())


def test_lifespan_passes_with_its_state(tide: Tidegate) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        scope["state"]["pool"] = "made"
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        await send({"type": "lifespan.shutdown.complete"})

    async def run() -> None:
        state: dict[str, Any] = {}
        life = Conversation(tide(app), {"type": "lifespan", "state": state})
        await life.inbox.put({"type": "lifespan.startup"})
        assert await life.next() == {"type": "lifespan.startup.complete"}
        assert state == {"pool": "made"}
        await life.inbox.put({"type": "lifespan.shutdown"})
        assert await life.next() == {"type": "lifespan.shutdown.complete"}
        await life.task

    asyncio.run(run())


def test_an_app_that_fails_at_startup_or_knows_no_lifespan_is_not_hidden(tide: Tidegate) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError("no lifespan here")
        await Origin(b"served")(scope, receive, send)

    async def run() -> Answer:
        mounted = tide(app)
        with pytest.raises(NotImplementedError):
            await mounted({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
        return await call(mounted, "/cached", user=ANN)

    assert asyncio.run(run()).body == b"served"


def test_server_sent_events_leave_one_by_one(tide: Tidegate) -> None:
    go = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(3):
            await go.wait()
            go.clear()
            await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})

    async def run() -> None:
        stream = Conversation(tide(app), scope_of("/events", user=ANN))
        start = await stream.next()
        assert (start["type"], start["status"]) == ("http.response.start", 200)
        for number in range(3):
            assert stream.outbox.empty()
            go.set()
            assert (await stream.next())["body"] == b"data: %d\n\n" % number
        await stream.task

    asyncio.run(run())


def test_a_stream_that_will_be_stored_still_leaves_chunk_by_chunk(tide: Tidegate) -> None:
    go = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for chunk in (b"one", b"two"):
            await go.wait()
            go.clear()
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def run() -> None:
        stream = Conversation(tide(app), scope_of("/cached", user=ANN))
        assert (await stream.next())["type"] == "http.response.start"
        for chunk in (b"one", b"two"):
            assert stream.outbox.empty()
            go.set()
            assert (await stream.next())["body"] == chunk
        assert (await stream.next()).get("more_body", False) is False
        await stream.task

    asyncio.run(run())


def test_a_background_task_delays_nobody(tide: Tidegate) -> None:
    finish = asyncio.Event()
    done = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await Origin(b"answer")(scope, receive, send)
        await finish.wait()
        done.set()

    async def run() -> None:
        request = Conversation(tide(app), scope_of("/cached", user=ANN))
        assert (await request.next())["type"] == "http.response.start"
        assert (await request.next())["body"] == b"answer"
        assert not done.is_set()
        finish.set()
        await request.task
        async with asyncio.timeout(5):
            await done.wait()

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/cached", "/other"])
@pytest.mark.parametrize(
    "message",
    [
        {"type": "http.response.debug", "info": {"template": "x"}},
        {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]},
        {"type": "http.response.push", "path": "/a.css", "headers": []},
        {"type": "http.response.invented", "value": 42},
    ],
    ids=lambda message: message["type"],
)
def test_an_unknown_message_passes_unchanged_and_in_its_place(
    tide: Tidegate, path: str, message: dict[str, Any]
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(message)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send(message)
        await send({"type": "http.response.body", "body": b"b"})

    answer = asyncio.run(call(tide(app), path, user=ANN))
    kinds = [sent["type"].removeprefix("http.response.") for sent in answer.messages]
    own = message["type"].removeprefix("http.response.")
    assert kinds == [own, "start", "body", own, "body"]
    assert [sent for sent in answer.messages if sent["type"] == message["type"]] == [message, message]
    assert answer.body == b"ab"


def test_trailers_and_a_file_sent_by_path_pass(tide: Tidegate) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["query_string"] == b"file":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
            await send({"type": "http.response.pathsend", "path": "/a"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"a"})
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]})

    async def run() -> None:
        for _ in range(2):
            answer = await call(tide(app), "/cached", user=ANN)
            assert answer.messages[0]["trailers"] is True
            assert answer.messages[-1] == {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]}
            answer = await call(tide(app), "/cached", query="file", user=ANN)
            assert answer.messages[-1] == {"type": "http.response.pathsend", "path": "/a"}

    asyncio.run(run())


def test_two_set_cookie_lines_arrive_as_two(tide: Tidegate) -> None:
    origin = Origin(headers=[("set-cookie", "a=1"), ("x-other", "x"), ("set-cookie", "b=2")])
    before = list(origin.headers)
    answer = asyncio.run(call(tide(origin), "/cached", user=ANN))
    assert [value for name, value in answer.headers if name == b"set-cookie"] == [b"a=1", b"b=2"]
    assert origin.headers == before


def test_a_client_that_leaves_is_noticed_by_the_app(tide: Tidegate) -> None:
    noticed: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] != "http.disconnect":
            noticed.append(message["type"])
        noticed.append("http.disconnect")

    async def run() -> None:
        request = Conversation(tide(app), scope_of("/other", method="POST", user=ANN))
        await request.inbox.put({"type": "http.request", "body": b"", "more_body": False})
        await request.inbox.put({"type": "http.disconnect"})
        async with asyncio.timeout(5):
            await request.task

    asyncio.run(run())
    assert noticed == ["http.request", "http.disconnect"]


def test_an_uploads_body_arrives_in_its_pieces(tide: Tidegate) -> None:
    got: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            got.append(message["body"])
            more = message["more_body"]
        await Origin()(scope, receive, send)

    async def run() -> None:
        request = Conversation(tide(app), scope_of("/cached", method="POST", user=ANN))
        for piece in (b"a", b"b"):
            await request.inbox.put({"type": "http.request", "body": piece, "more_body": True})
        await request.inbox.put({"type": "http.request", "body": b"c", "more_body": False})
        await request.task

    asyncio.run(run())
    assert got == [b"a", b"b", b"c"]


@pytest.mark.parametrize("path", ["/cached", "/other"])
def test_an_exception_reaches_the_server_as_it_is(tide: Tidegate, path: str) -> None:
    fault = RuntimeError("the app's own")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise fault

    with pytest.raises(RuntimeError) as caught:
        asyncio.run(call(tide(app), path, user=ANN))
    assert caught.value is fault


def test_open_hits_do_happen_and_shut_none() -> None:
    for is_open, calls in ((True, 1), (False, 3)):
        origin = Origin()
        tide = Tidegate(
            provider=Everybody(is_open), policies=[RoutePolicy(route="/", ttl=60)], registry=CollectorRegistry()
        )

        async def run(tide: Tidegate = tide, origin: Origin = origin) -> None:
            app = tide(origin)
            for _ in range(3):
                await call(app, user=ANN)

        asyncio.run(run())
        assert origin.calls == calls
