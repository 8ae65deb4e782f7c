"""P1: streams and extensions, with every set of open gates: nothing waits, nothing is lost, nothing piles up."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.responses import FileResponse

from tests.driver import Answer, Origin, User, call, scope_of
from tests.promises.mask_model import LAYERS, masks
from tests.promises.test_p1_transparent import Everybody
from tests.test_stack import BrokenStore
from tidegate import RoutePolicy, Tidegate
from tidegate.flags import FlagContext
from tidegate.vocabulary import FLAGS

ANN = User("acme", "ann")
MAX_BODY = 1000
EVERY_MASK = pytest.mark.parametrize(
    "mask", masks(), ids=["".join(str(int(layer in mask)) for layer in LAYERS) for mask in masks()]
)
OPEN = frozenset(LAYERS)


class Masked(Everybody):
    """A flag provider that opens the layers of a mask for everybody."""

    def __init__(self, mask: Iterable[str]) -> None:
        super().__init__(True)
        self._flags = {FLAGS[layer] for layer in LAYERS if layer in mask}

    def is_enabled(self, flag: str, context: FlagContext) -> bool:
        return flag in self._flags


def stack(app: Any, mask: Iterable[str] = OPEN, **more: Any) -> Any:
    """The five layers; /stored is stored up to MAX_BODY, /hidden is and hides extensions, all else is not."""
    policies = [
        RoutePolicy(route="/stored", ttl=60, share="tenant", max_body=MAX_BODY),
        RoutePolicy(route="/hidden", ttl=60, share="tenant", extensions="hide"),
    ]
    return Tidegate(provider=Masked(mask), policies=policies, registry=CollectorRegistry(), **more)(app)


async def begun_stack(app: Any, mask: Iterable[str]) -> Any:
    """The same, after a first request, which waits for the flags."""

    async def first(scope: Any, receive: Any, send: Any) -> None:
        await (Origin() if scope["path"] == "/begin" else app)(scope, receive, send)

    layers = stack(first, mask)
    await call(layers, "/begin", user=ANN)
    return layers


async def settled() -> None:
    """Let all that can go on without the test go on."""
    for _ in range(50):
        await asyncio.sleep(0)


class Client:
    """A connection that takes one message at a time: who sends waits while one lies there."""

    def __init__(self, app: Any, **of: Any) -> None:
        self._line: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=1)
        self._left = asyncio.Event()
        self.task = asyncio.create_task(app(scope_of(user=ANN, **of), self._receive, self._line.put))

    async def _receive(self) -> dict[str, Any]:
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(20):
            return await self._line.get()

    async def piece(self) -> bytes:
        """The next bytes of the body; its start, which may come with them, is taken too."""
        while not (body := (await self.next()).get("body")):
            pass
        return body

    async def leave(self) -> None:
        """Close the connection; what is sent still goes nowhere."""
        self._left.set()
        async with asyncio.timeout(20):
            while not self.task.done():
                getting = asyncio.create_task(self._line.get())
                await asyncio.wait({getting, self.task}, return_when=asyncio.FIRST_COMPLETED)
                getting.cancel()
        await self.task


# --- when it leaves ------------------------------------------------------------------


@EVERY_MASK
@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/stored", []),
        ("/stored", [(b"content-length", b"9")]),
        ("/other", [(b"cache-control", b"no-store"), (b"content-type", b"text/event-stream")]),
    ],
    ids=["stored", "stored, of stated length", "not stored"],
)
def test_each_piece_leaves_while_the_app_has_not_made_the_next(mask: Any, path: str, headers: Any) -> None:
    go = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in (b"one", b"two", b"six"):
            await send({"type": "http.response.body", "body": piece, "more_body": piece != b"six"})
            await go.wait()
            go.clear()

    async def run() -> None:
        client = Client(stack(app, mask), path=path)
        for piece in (b"one", b"two", b"six"):
            # Nobody has let the app go on: what comes has left by itself.
            assert await client.piece() == piece
            go.set()
        await client.leave()

    asyncio.run(run())


@EVERY_MASK
@pytest.mark.parametrize("path", ["/stored", "/other"])
def test_endless_events_flow_to_all_who_listen_until_they_leave(mask: Any, path: str) -> None:
    made: list[int] = []
    ended: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        number = len(made)
        made.append(0)
        leaving = asyncio.create_task(receive())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        while not leaving.done():
            made[number] += 1
            await send({"type": "http.response.body", "body": b"data: %05d\n\n" % made[number], "more_body": True})
        ended.append((await leaving)["type"])

    async def run() -> None:
        layers = stack(app, mask)
        clients = [Client(layers, path=path) for _ in range(2)]
        for number in range(1, 201):  # 2600 bytes: past what may be kept
            for client in clients:
                assert await client.piece() == b"data: %05d\n\n" % number
            # A slow client slows its app down: one message lies there, one waits.
            assert max(made) <= number + 2
        assert len(made) == 2
        for client in clients:
            await client.leave()

    asyncio.run(run())
    assert ended == ["http.disconnect"] * 2


@EVERY_MASK
def test_a_background_task_delays_neither_the_client_nor_who_asked_the_same_nor_who_asks_next(mask: Any) -> None:
    finish, asked = asyncio.Event(), asyncio.Event()
    begun = done = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal begun, done
        begun += 1
        await asked.wait()
        await Origin(b"answer")(scope, receive, send)
        await finish.wait()
        done += 1

    async def run() -> None:
        layers = await begun_stack(app, mask)
        clients = [Client(layers, path="/stored") for _ in range(2)]
        await settled()
        assert begun == (1 if "coalesce" in mask else 2)
        asked.set()
        for client in clients:
            assert await client.piece() == b"answer"
        clients.append(Client(layers, path="/stored"))
        assert await clients[-1].piece() == b"answer"
        assert begun == (1 if "coalesce" in mask else 2) + ("cache" not in mask)
        assert done == 0
        finish.set()
        for client in clients:
            await client.leave()
        assert done == begun

    asyncio.run(run())


# --- what passes ---------------------------------------------------------------------

START = {"type": "http.response.start", "status": 200, "headers": [(b"x-app", b"1")]}
BODY = {"type": "http.response.body", "body": b"body", "more_body": False}
MORE = {"type": "http.response.body", "body": b"more", "more_body": True}
DEBUG = {"type": "http.response.debug", "info": {"template": "a.html"}}
HINT = {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]}
PUSH = {"type": "http.response.push", "path": "/a.css", "headers": [(b"accept", b"*/*")]}
INVENTED = {"type": "http.response.invented", "value": object()}
TRAILERS = {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")], "more_trailers": False}
FILE = {"type": "http.response.pathsend", "path": "/a"}
HANDLE = {"type": "http.response.zerocopysend", "file": object(), "offset": 3, "count": 5, "more_body": False}

STORABLE = {
    "debug": [DEBUG, START, BODY],
    "early hints, twice": [HINT, HINT, START, BODY],
    "push": [PUSH, START, BODY],
    "invented before": [INVENTED, START, BODY],
    "invented within": [START, MORE, INVENTED, BODY],
}
UNSTORABLE = {
    "trailers": [START | {"trailers": True}, MORE, BODY, TRAILERS],
    "trailers in two parts": [START | {"trailers": True}, BODY, TRAILERS | {"more_trailers": True}, TRAILERS],
    "trailers that nobody announced": [START, MORE, BODY | {"more_body": True}, TRAILERS],
    "pathsend": [START, FILE],
    "pathsend of stated length": [START | {"headers": [(b"content-length", b"4")]}, FILE],
    "zerocopysend": [START, HANDLE],
    "zerocopysend between": [START, MORE, HANDLE | {"more_body": True}, BODY],
}
OURS = frozenset({b"cache-status", b"cache-control"})


def _unlabelled(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages without what our layers add to a start."""
    return [
        message | {"headers": [pair for pair in message["headers"] if pair[0] not in OURS]}
        if message["type"] == "http.response.start"
        else message
        for message in messages
    ]


class Teller:
    """Sends what the query names, and counts its runs; waits for `go` first."""

    def __init__(self) -> None:
        self.runs = 0
        self.go = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.runs += 1
        await self.go.wait()
        for message in (STORABLE | UNSTORABLE)[scope["query_string"].decode()]:
            await send(dict(message))


@EVERY_MASK
def test_every_message_passes_as_it_is_and_what_cannot_be_repeated_is_not_stored(mask: Any) -> None:
    async def run() -> None:
        teller = Teller()
        teller.go.set()
        layers = stack(teller, mask)
        for name, messages in (STORABLE | UNSTORABLE).items():
            for path in ("/stored", "/other"):
                teller.runs = 0
                first, again = [await call(layers, path, query=name, user=ANN) for _ in range(2)]
                assert _unlabelled(first.messages) == messages, name
                stored = path == "/stored" and name in STORABLE and "cache" in mask
                assert (again.hit, teller.runs) == ((True, 1) if stored else (False, 2)), name
                if not stored:
                    assert _unlabelled(again.messages) == messages, name

    asyncio.run(run())


@EVERY_MASK
def test_two_who_ask_at_once_both_get_a_file_by_path_and_trailers(mask: Any) -> None:
    async def run() -> None:
        teller = Teller()
        layers = await begun_stack(teller, mask)
        for name, messages in UNSTORABLE.items():
            teller.runs = 0
            teller.go.clear()
            asking = [asyncio.create_task(call(layers, "/stored", query=name, user=ANN)) for _ in range(2)]
            await settled()
            assert teller.runs == (1 if "coalesce" in mask else 2)
            teller.go.set()
            for answer in await asyncio.gather(*asking):
                assert _unlabelled(answer.messages) == messages, name

    asyncio.run(run())


@EVERY_MASK
def test_a_websocket_that_is_refused_with_a_response_passes_as_the_same_objects(mask: Any) -> None:
    sent = [
        {"type": "websocket.http.response.start", "status": 403, "headers": [(b"x-why", b"1")]},
        {"type": "websocket.http.response.body", "body": b"not ", "more_body": True},
        {"type": "websocket.http.response.body", "body": b"you"},
        {"type": "websocket.invented"},
    ]
    got: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["extensions"] is extensions
        for message in sent:
            await send(message)

    async def send(message: Any) -> None:
        got.append(message)

    extensions = {"websocket.http.response": {}}
    scope = {"type": "websocket", "path": "/stored", "headers": [], "extensions": extensions}
    asyncio.run(stack(app, mask)(scope, None, send))
    assert list(map(id, got)) == list(map(id, sent))


@EVERY_MASK
def test_what_is_further_out_may_write_into_its_messages_and_the_apps_bytes_are_stored(mask: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-app", b"1")]})
        for piece in (b"one", b"two"):
            await send({"type": "http.response.body", "body": piece, "more_body": piece == b"one"})

    async def outside(scope: Any, receive: Any, send: Any) -> None:
        async def shouting(message: Any) -> None:
            # As compression does, which knows no better way to change a message than to change it.
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-outside", b"1"))
            elif mangled:
                message["body"] = message["body"].upper()
            await send(message)

        await layers(scope, receive, shouting)

    layers, mangled = stack(app, mask), True
    first = asyncio.run(call(outside, "/stored", user=ANN))
    mangled = False
    again = asyncio.run(call(outside, "/stored", user=ANN))
    assert (first.body, again.body) == (b"ONETWO", b"onetwo")
    assert again.hit is ("cache" in mask)
    assert [name for name, _ in again.headers].count(b"x-outside") == 1


# --- extensions that stand in the way of storing ------------------------------------

OFFERED: dict[str, dict[str, Any]] = {
    "http.response.pathsend": {},
    "http.response.zerocopysend": {},
    "http.response.trailers": {},
    "http.response.early_hint": {},
    "http.response.debug": {},
    "http.response.invented": {"level": 2},
}
LEFT = {"http.response.early_hint", "http.response.debug", "http.response.invented"}
Ask = Callable[..., Awaitable[Answer]]


@asynccontextmanager
async def files(folder: Path, mask: Iterable[str], **more: Any) -> AsyncIterator[tuple[Ask, list[set[str]]]]:
    """Starlette's FileResponse under the layers: by path where the server offers that; what each run was offered."""
    path = folder / "tide.txt"
    path.write_bytes(b"high and low")
    told: list[set[str]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        told.append(set(scope["extensions"]))
        await FileResponse(path)(scope, receive, send)

    layers = stack(app, mask, **more)

    async def ask(path: str, **of: Any) -> Answer:
        scope = scope_of(path, **({"user": ANN} | of), extensions=dict(OFFERED))
        answer = await call(layers, scope=scope)
        assert scope["extensions"] == OFFERED  # what the server gave is left alone
        return answer

    yield ask, told


def _by_path(answer: Answer) -> bool:
    return any(message["type"] == "http.response.pathsend" for message in answer.messages)


@EVERY_MASK
def test_by_default_a_file_is_sent_by_path_and_not_stored(mask: Any, tmp_path: Path) -> None:
    async def run() -> None:
        async with files(tmp_path, mask) as (ask, told):
            for path in ("/stored", "/stored", "/other"):
                answer = await ask(path)
                assert _by_path(answer)
                assert not answer.hit
            assert told == [set(OFFERED)] * 3

    asyncio.run(run())


@EVERY_MASK
def test_a_policy_that_hides_them_gets_bytes_that_are_stored_where_the_cache_is_open(mask: Any, tmp_path: Path) -> None:
    async def run() -> None:
        async with files(tmp_path, mask) as (ask, told):
            first, again = await ask("/hidden"), await ask("/hidden")
            if "cache" in mask:
                assert (first.body, again.body, again.hit, _by_path(first)) == (b"high and low",) * 2 + (True, False)
                assert told == [LEFT]
            else:
                assert (_by_path(first), _by_path(again), again.hit) == (True, True, False)
                assert told == [set(OFFERED)] * 2

    asyncio.run(run())


def test_nothing_is_hidden_where_nothing_would_be_stored(tmp_path: Path) -> None:
    async def run() -> None:
        async with files(tmp_path, OPEN) as (ask, told):
            await ask("/hidden", method="HEAD")
            await ask("/hidden", method="POST")
            assert _by_path(await ask("/hidden", headers=[("cache-control", "no-store")]))
            assert _by_path(await ask("/hidden", user=None))
            assert told == [set(OFFERED)] * 4
        async with files(tmp_path, OPEN, store=BrokenStore()) as (ask, told):
            assert _by_path(await ask("/hidden"))
            assert told == [set(OFFERED)]

    asyncio.run(run())


def test_what_is_hidden_stays_hidden_when_a_stored_file_is_asked_about_again(tmp_path: Path) -> None:
    async def run() -> None:
        async with files(tmp_path, OPEN) as (ask, told):
            etag = (await ask("/hidden")).header("etag") or ""
            insisting = [("cache-control", "no-cache"), ("if-none-match", etag)]
            assert (await ask("/hidden", headers=insisting)).status == 304
            assert (await ask("/hidden")).hit
            assert told == [LEFT, LEFT]

    asyncio.run(run())


# --- what it costs in memory ---------------------------------------------------------

MEGABYTE = 1024 * 1024
STREAMED = 100 * MEGABYTE
PIECE = 64 * 1024
GROWTH = 2 * MEGABYTE
LARGEST = RoutePolicy(route="/stored", ttl=60, share="tenant")
"""With the default `max_body`."""


@pytest.mark.parametrize("clients", [1, 2])
@pytest.mark.parametrize("headers", [[], [(b"content-length", b"%d" % STREAMED)]], ids=["", "length"])
@pytest.mark.parametrize("mask", [frozenset(), frozenset({"cache"}), OPEN], ids=["shut", "cache", "open"])
def test_a_hundred_megabytes_pass_without_piling_up(
    mask: Any, headers: Any, clients: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counts what Python has allocated, exactly and at its peak; `test_p1_memory` sees the process from outside."""
    passed = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)  # so that a second request finds the first one running
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(STREAMED // PIECE):
            # Each piece is new, as from a file: whoever keeps it keeps 64 KiB.
            await send({"type": "http.response.body", "body": bytes([number % 256]) * PIECE, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def one(layers: Any) -> None:
        async def receive() -> Any:
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            nonlocal passed
            passed += len(message.get("body", b""))
            await asyncio.sleep(0)

        await layers(scope_of("/stored", user=ANN), receive, send)

    async def run() -> int:
        layers = Tidegate(provider=Masked(mask), policies=[LARGEST], registry=CollectorRegistry())(app)
        await call(layers, "/begin", method="HEAD")
        nonlocal passed
        passed = 0
        tracemalloc.start()
        try:
            await asyncio.gather(*(one(layers) for _ in range(clients)))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak = asyncio.run(run())
    assert passed == clients * STREAMED
    with capsys.disabled():
        print(f"\n  {clients} x 100 MB, {len(mask)} layers open: at most {peak / MEGABYTE:.2f} MB at a time", end="")
    assert peak <= GROWTH + LARGEST.max_body
