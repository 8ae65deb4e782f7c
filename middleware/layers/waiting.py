"""A run on the straight way that waits for something: others may join it, and most runs are over before anybody does.

So it stands in the coalescing layer for its flight, and a flight is made when the first other request comes for it, or
when its passage falls back on the general way. Until then nobody keeps what it says.
"""

import asyncio
from collections.abc import Callable, Mapping

from tidegate.middleware.core.storing import Pairs
from tidegate.middleware.layers.asgi import Message, RequestContext
from tidegate.middleware.layers.coalesce import CoalesceLayer
from tidegate.middleware.layers.flight import BODY_KEYS, START_KEYS, Flight
from tidegate.middleware.layers.joining import Key
from tidegate.middleware.layers.leader import Leader

__all__ = ["Waiting"]


class Waiting:
    """One run, as `Unjoined` has it.

    fall_back: makes its passage fall back, which calls `take_off`.
    request: the header fields of the request that it began for. run: the task.
    """

    __slots__ = ("_called", "_coalesce", "_context", "_fall_back", "_key", "_leader", "_open", "_request",
                 "flight", "run")  # fmt: skip

    def __init__(
        self,
        coalesce: CoalesceLayer,
        key: Key,
        context: RequestContext,
        request: Pairs,
        run: "asyncio.Task[None]",
        fall_back: Callable[[], object],
    ) -> None:
        self._coalesce = coalesce
        self._key = key
        self._context = context
        self._request = request
        self.run = run
        self._fall_back: Callable[[], object] | None = fall_back
        self._called: asyncio.Future[None] | None = None
        self._leader: Leader | None = None
        self._open = True
        self.flight: Flight | None = None

    @property
    def positions(self) -> Mapping[str, int] | None:
        """As Flight has it."""
        return self._context.positions

    def enter(self) -> None:
        """From now on others may join."""
        self._open = self._coalesce.enter(self._key, self._context, self)

    def close(self) -> None:
        """Let nobody join."""
        if self._open:
            self._open = False
            self._coalesce.leave(self._key, self._context, self)

    def joined(self) -> Flight:
        """The flight, from now on in its place."""
        if self._fall_back is not None:
            self._fall_back()
        assert self.flight is not None
        return self.flight

    def take_off(self, leader: Leader) -> None:
        """A flight, in its place; leader: come to where the run is."""
        was_open, self._leader = self._open, leader
        self.close()
        self.flight = flight = self._coalesce.take_off(self._key, self._request, self._context, leader, self.run)
        if not was_open or self.run.done():
            flight.close()
        self.call()

    def fits(self, start: Message, message: Message, body: bytes) -> bool:
        """Whether a whole response can be given to followers, as `Flight` has it: what becomes of others is for one."""
        return start.keys() <= START_KEYS and message.keys() <= BODY_KEYS and len(body) <= self._coalesce.max_body

    def judge(self, status: int, headers: Pairs) -> None:
        """Its answer is to begin: if that is not for sharing, let nobody join."""
        if self._coalesce.is_refused(self._key, status, headers, self._context):
            self.close()

    def call(self) -> None:
        """Wake `see_to_end`: there is a flight, or the run is over."""
        if self._called is not None and not self._called.done():
            self._called.set_result(None)

    async def see_to_end(self) -> None:
        """Return when the run is over, or raise what it raised."""
        run = self.run
        loop = asyncio.get_running_loop()
        try:
            while self.flight is None and not run.done():
                self._called = loop.create_future()
                await self._called
        except asyncio.CancelledError:
            await self._coalesce.abandon(self.flight or self, run)
            raise
        finally:
            self._fall_back = None  # it is the passage's, which has this one: they would be for the garbage collector
        if self.flight is None or self._leader is None:
            run.result()
        else:
            await self._coalesce.attend(self.flight, self._leader, run)
