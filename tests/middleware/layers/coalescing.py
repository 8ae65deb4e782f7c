"""A stepped app, clients that leave, and a leader with its follower, for the tests of the coalescing layer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CollectorRegistry

from tests.driver import Answer, scope_of
from tidegate.middleware.layers.coalesce import CoalesceLayer
from tidegate.middleware.metrics import Metrics

Step = Callable[["Call"], Awaitable[None]]


class Call:
    """One run of the app, stepped by the test."""

    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope, self.receive, self.send = scope, receive, send

    async def start(self, *headers: tuple[bytes, bytes], status: int = 200, **more: Any) -> None:
        await self.send({"type": "http.response.start", "status": status, "headers": list(headers), **more})

    async def body(self, body: bytes, more: bool = False) -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": more})

    async def answer(self, body: bytes, *headers: tuple[bytes, bytes], status: int = 200) -> None:
        await self.start((b"content-length", b"%d" % len(body)), *headers, status=status)
        await self.body(body)


class App:
    """Counts its runs; each waits at the gate, then does what the test wants."""

    def __init__(self, step: Step | None = None) -> None:
        self.step = step
        self.runs = 0
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()
        self.cancelled = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.runs += 1
        self.begun.set()
        number = self.runs
        try:
            await self.gate.wait()
            run = Call(scope, receive, send)
            if self.step is not None:
                await self.step(run)
            else:
                await run.answer(b"run %d" % number)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class Bench:
    def __init__(self, app: Any, **options: Any) -> None:
        self.metrics = Metrics.of(CollectorRegistry())
        self.layer = CoalesceLayer(app, **{"metrics": self.metrics} | options)

    def roles(self) -> tuple[float, float, float]:
        """Leaders, followers, alone."""
        of = self.metrics.coalesced.labels
        return (of("leader")._value.get(), of("follower")._value.get(), of("alone")._value.get())

    def limited(self, limit: str) -> float:
        return self.metrics.limits.labels(f"coalesce-{limit}")._value.get()


class Client:
    """One connection: its messages, when they came, and its leave."""

    def __init__(self, layer: Any, scope: dict[str, Any] | None = None, **of: Any) -> None:
        self.answer = Answer()
        self.left = asyncio.Event()
        self.got = asyncio.Event()
        self.broken = False
        self.slow: asyncio.Event | None = None
        self._asked = False
        self._sending = False
        self.task = asyncio.create_task(layer(scope or scope_of(**of), self.receive, self.send))

    async def receive(self) -> Any:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        assert not self._sending, "two messages at once"
        self._sending = True
        try:
            if self.slow is not None:
                await self.slow.wait()
            if self.broken:
                raise OSError("client is gone")
        finally:
            self._sending = False
        self.answer.messages.append(dict(message))
        self.got.set()

    async def has(self, body: bytes) -> None:
        async with asyncio.timeout(2):
            while self.answer.body != body:
                self.got.clear()
                await self.got.wait()

    async def done(self) -> Answer:
        async with asyncio.timeout(2):
            await self.task
        return self.answer


async def settle(turns: int = 20) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


def run(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(body())  # type: ignore[arg-type]


def halves(first: bytes, last: bytes, more: asyncio.Event) -> Step:
    """An answer of known length in two parts, the second once it is asked for."""

    async def step(call: Call) -> None:
        await call.start((b"content-length", b"%d" % len(first + last)))
        await call.body(first, more=True)
        await more.wait()
        await call.body(last)

    return step


@asynccontextmanager
async def two(
    step: Step | None = None, app: App | None = None, **options: Any
) -> AsyncIterator[tuple[App, Bench, Client, Client]]:
    """A leader and a follower, both under way, before the app answers."""
    app = app or App(step)
    bench = Bench(app, **options)
    leader = Client(bench.layer)
    await settle()
    follower = Client(bench.layer)
    await settle()
    assert app.runs == 1
    yield app, bench, leader, follower
