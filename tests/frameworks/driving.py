"""Drives one app of this folder as a server would: its lifespan, requests message by message, WebSockets."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from tests.driver import Answer, App, Message, scope_of

__all__ = ["Exchange", "Server", "serving"]

SECONDS = 20.0
"""Within this time an app answers, however loaded the machine is."""


@dataclass
class Server:
    """An app that is being served. lifespan: whether the app speaks it; state: what it left there."""

    app: App
    lifespan: bool = False
    state: dict[str, Any] = field(default_factory=dict)

    async def ask(self, path: str, *pieces: bytes, **of: Any) -> "Exchange":
        """A request that is over: its answer, or the exception that reached the server."""
        exchange = self.begin(path, *pieces, **of)
        await exchange.over()
        return exchange

    def begin(self, path: str, *pieces: bytes, **of: Any) -> "Exchange":
        """A request that goes on; its body is sent in these pieces, at once."""
        *first, last = pieces or (b"",)
        return self.upload(path, [*({"body": piece, "more_body": True} for piece in first), {"body": last}], **of)

    def upload(self, path: str, body: Sequence[dict[str, Any]] = (), **of: Any) -> "Exchange":
        """A request whose body the test gives, after this beginning."""
        scope = scope_of(path, **of)
        scope["state"] = dict(self.state)
        return Exchange(self.app, scope, body)

    @asynccontextmanager
    async def socket(self, path: str, headers: Sequence[tuple[str, str]] = ()) -> AsyncIterator["Exchange"]:
        """A WebSocket that was accepted."""
        scope = scope_of(path, headers=headers, type="websocket", scheme="ws", subprotocols=[])
        del scope["method"]
        scope["state"] = dict(self.state)
        exchange = Exchange(self.app, scope, [])
        exchange.give({"type": "websocket.connect"})
        assert (await exchange.next())["type"] == "websocket.accept"
        yield exchange
        exchange.give({"type": "websocket.disconnect", "code": 1000, "reason": ""})
        await exchange.over()


class Exchange(Answer):
    """One request: what was sent so far, and what came of it."""

    def __init__(self, app: App, scope: dict[str, Any], body: Sequence[dict[str, Any]]) -> None:
        super().__init__()
        self.error: BaseException | None = None
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._outbox: asyncio.Queue[Message] = asyncio.Queue()
        for part in body:
            self.give({"type": "http.request", "more_body": False, **part})
        self.task = asyncio.create_task(self._run(app, scope))

    def give(self, message: Message) -> None:
        """Let the app receive a message."""
        self._inbox.put_nowait(message)

    async def next(self) -> Message:
        """What the app sends next."""
        async with asyncio.timeout(SECONDS):
            return await self._outbox.get()

    def waiting(self) -> bool:
        """Whether nothing that the app sent is left to take."""
        return self._outbox.empty()

    async def over(self) -> Self:
        """Wait until the app has returned or raised."""
        async with asyncio.timeout(SECONDS):
            await asyncio.wait([self.task])
        return self

    async def _run(self, app: App, scope: dict[str, Any]) -> None:
        async def send(message: Message) -> None:
            self.messages.append(dict(message))
            self._outbox.put_nowait(dict(message))
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self.give({"type": "http.disconnect"})  # as servers do after a whole response

        try:
            await app(scope, self._inbox.get, send)
        except Exception as error:  # noqa: BLE001 - what reaches the server is compared
            self.error = error


@asynccontextmanager
async def serving(app: App) -> AsyncIterator[Server]:
    """Serve an app; one that does not speak lifespan is served without, as uvicorn's `--lifespan auto` does."""
    server = Server(app)
    life = Exchange(app, {"type": "lifespan", "asgi": {"version": "3.0"}, "state": server.state}, [])
    life.give({"type": "lifespan.startup"})
    started = asyncio.create_task(life.next())
    await asyncio.wait([started, life.task], return_when=asyncio.FIRST_COMPLETED, timeout=SECONDS)
    server.lifespan = started.done()
    if server.lifespan:
        assert started.result()["type"] == "lifespan.startup.complete", started.result()
    else:
        started.cancel()
    try:
        yield server
    finally:
        if server.lifespan:
            life.give({"type": "lifespan.shutdown"})
            assert (await life.next())["type"] == "lifespan.shutdown.complete"
        await life.over()
