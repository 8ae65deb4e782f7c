"""The life of what an application's layers need: started with it, looked after while it runs, stopped with it."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from threading import get_ident
from types import CoroutineType
from typing import Any, ClassVar, Final
from weakref import WeakSet

from tidegate.errors import TidegateError
from tidegate.flags import FlagProvider, Gates, Stops
from tidegate.middleware.layers.asgi import ASGIApp, Message, Receive, Scope, Send
from tidegate.middleware.layers.telemetry import PlainHit, TelemetryLayer
from tidegate.middleware.layers.watching import Quiet, Watch
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.guard import GuardedStore

__all__ = ["FIRST_REQUEST_WAITS", "LOOK_EVERY", "Mounted", "Runtime"]

FIRST_REQUEST_WAITS: Final = 0.05
"""Seconds that a request which has to start everything waits for it at most (P5: the default budget of a request). A
file is read in a few milliseconds; what takes longer goes on in the background, with the layers shut meanwhile."""

LOOK_EVERY: Final = 0.25
"""Seconds between two looks of the gates at their provider when no request makes them look. A look costs a few
microseconds; with a poll of 2 s it leaves most of the second that P8 gives after it."""


class Runtime:
    """Starts store and flags once per event loop, and stops them with the application.

    look_every: seconds between two looks of the gates, so that a change of reach is noticed without requests too, and
        the flags' health shows in the metrics, as does what the store holds in memory.
    """

    def __init__(
        self,
        store: GuardedStore,
        sources: Sequence[FlagProvider | Stops],
        gates: Gates | None,
        metrics: Metrics,
        *,
        look_every: float,
    ) -> None:
        self._store = store
        self._sources = sources
        self._gates = gates
        self._metrics = metrics
        self._look_every = look_every
        self.loop: asyncio.AbstractEventLoop | None = None
        """The event loop on which it was started."""
        self.thread = 0
        """The thread that runs it."""
        self._starting: asyncio.Task[None] | None = None
        self._next_look: asyncio.TimerHandle | None = None

    async def start(self, within: float | None = None) -> None:
        """Begin to follow the flags and reach for the store. Never raises for a server that cannot be reached.

        within: seconds to wait at most. What has not started by then, or when the caller is cancelled, goes on.

        Raises:
            TidegateError: if asyncio does not run here.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise TidegateError(
                "Tidegate runs on asyncio only: let the server run the application on it (uvloop is one), not on trio"
            ) from None
        if self.loop is loop:
            return
        self.loop, self.thread = loop, get_ident()
        self._starting = starting = loop.create_task(self._start(), name="tidegate-start")
        await asyncio.wait([starting], timeout=within)

    async def _start(self) -> None:
        await self._tried(self._store.start)
        await asyncio.gather(*(self._tried(source.start) for source in self._sources))
        self._look(asyncio.get_running_loop(), asyncio.current_task())

    def _look(self, loop: asyncio.AbstractEventLoop, start: object) -> None:
        # A timer, not a task: nothing is left to cancel on a loop that ends without the application's lifespan.
        if self.loop is not loop or self._starting is not start:
            return  # another start has a timer of its own
        if self._gates is not None:
            self._gates.refresh()
            health = self._gates.health()
            self._metrics.flags_ready.set(health.ready)
            self._metrics.flags_staleness.set(health.staleness)
        self._next_look = loop.call_later(self._look_every, self._look, loop, start)
        try:
            held = self._store.stats()
        except Exception as error:  # noqa: BLE001 - a store of the application's own; counted
            self._metrics.fail("store", error)
        else:
            self._metrics.memory_entries.set(held.entries or 0)
            self._metrics.memory_bytes.set(held.bytes or 0)

    async def stop(self) -> None:
        """Finish what is pending, within deadlines. A request that comes afterwards starts anew."""
        if self.loop is None:
            return
        self.loop = None
        starting, self._starting = self._starting, None
        if starting is not None and not starting.done() and starting.get_loop() is asyncio.get_running_loop():
            starting.cancel()
            await asyncio.wait([starting])
        if self._next_look is not None:
            self._next_look.cancel()
        await self._store.aclose()
        await asyncio.gather(*(self._tried(source.aclose) for source in self._sources))

    async def _tried(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - P5: the app goes on, its layers shut; counted
            self._metrics.fail("flags", error)


class Mounted:
    """The outermost callable: lives with the application's lifespan, or starts at the first request without one.

    The lifespan waits for the start as long as that takes; a request waits `FIRST_REQUEST_WAITS`.
    look: called with the scope in which the start is noticed.
    """

    made: ClassVar["WeakSet[Mounted]"] = WeakSet()
    """Every one in this process, for whoever wants to ask them."""

    def __init__(self, app: ASGIApp, runtime: Runtime, look: Callable[[Scope], None]) -> None:
        self.made.add(self)
        self.app = app
        self._runtime = runtime
        self._look = look

    @property
    def app(self) -> ASGIApp:
        """What is mounted. Another may take its place."""
        return self._app

    @app.setter
    def app(self, app: ASGIApp) -> None:
        self._app = app
        self._begin: Callable[[Scope, Receive, Send], PlainHit | Watch | Awaitable[None]] = app
        if isinstance(app, TelemetryLayer):
            # What it would do in a call is done here instead: that is a coroutine less for each request.
            self._begin, self._count_failed, self._clock = app.begin, app.count_failed, app.clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        # Is it started on the event loop that runs in this thread? asyncio.get_running_loop() asks the kernel for the
        # process' number, up to Python 3.11: six times as long.
        runtime = self._runtime
        loop = runtime.loop
        if loop is None or not loop.is_running() or runtime.thread != get_ident():
            self._look(scope)
            await self._runtime.start(FIRST_REQUEST_WAITS)
        begin = self._begin
        begun = begin(scope, receive, send)
        if type(begun) is tuple:  # the rest of the layer's call, here as below
            start, body, started, count, whom, what = begun
            try:
                await send(start)
            except BaseException as error:
                self._count_failed(scope, start, started, error)
                raise
            clock = self._clock
            count(whom, what, clock() - started)
            await send(body)
        elif type(begun) is Quiet or (type(begun) is not CoroutineType and isinstance(begun, Watch)):  # of all in turn
            app = begun.app
            try:  # `begun.run()`
                await app(scope, begun.receive, begun.send)
            except Exception:
                begun.failed = True
                raise
            finally:
                if not begun.counted:
                    begun.finish()
        else:
            await begun  # type: ignore[misc]  # no tuple

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application's lifespan, and ours with it."""
        self._look(scope)
        await self._runtime.start()

        async def send_after_the_end(message: Message) -> None:
            # Some servers, uvicorn among them, end the loop as soon as they hear this: nothing can come after it.
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await self._runtime.stop()
            await send(message)

        try:
            await self.app(scope, receive, send_after_the_end)
        finally:
            await self._runtime.stop()
