"""One run of the app that several requests wait for: what it has answered, who leads, who follows.

The run belongs to nobody's connection. Its leader gets every message as it comes and, while it is alone, slows the run
down as its connection asks; followers read from a bounded buffer. Whoever leaves, leaves the others untouched; when
nobody is left the run is cancelled.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol, cast

from tidegate.middleware.core.freshness import POLICY_STATUSES
from tidegate.middleware.core.identity import Identity
from tidegate.middleware.core.sharing import is_for_all, judge_answer, told_apart
from tidegate.middleware.core.storing import Pairs
from tidegate.middleware.layers.asgi import Message, RequestContext
from tidegate.middleware.layers.joining import by_vary_alone
from tidegate.middleware.layers.sessions import SessionUse

__all__ = ["BODY_KEYS", "START_KEYS", "Flight", "Seat", "Unjoined", "began_now", "is_elsewhere"]

START_KEYS: Final = frozenset({"type", "status", "headers", "trailers"})
BODY_KEYS: Final = frozenset({"type", "body", "more_body"})
"""What messages have that followers can be given."""

_OF_THE_SHARE: Final = POLICY_STATUSES | {206, 304}
"""Statuses of what a policy's share is about. To whom a refusal, an error or a redirect applies it does not say."""


class Seat:
    """A follower's place: woken when there is something to look at."""

    __slots__ = ("_loop", "_woken", "dismissed", "overdue")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._woken: asyncio.Future[None] | None = None
        self.overdue = False
        self.dismissed = False

    def wake(self) -> None:
        """Something has changed."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    def expire(self) -> None:
        """The follower has waited long enough."""
        self.overdue = True
        self.wake()

    def dismiss(self) -> None:
        """The follower is to wait no longer. May be called from any thread."""
        self.dismissed = True
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.wake)

    async def woken(self) -> None:
        """Return at the next `wake`. Look first, then wait: nothing can happen between, there is no await."""
        self._woken = self._loop.create_future()
        await self._woken


class Unjoined(Protocol):
    """A run that waits for something, and that nobody has joined yet. It stands where its flight would, which is made
    when somebody joins: most runs are over before anybody does.
    """

    @property
    def positions(self) -> Mapping[str, int] | None:
        """As Flight has it."""
        ...

    @property
    def run(self) -> "asyncio.Task[None] | None":
        """Its task."""
        ...

    def close(self) -> None:
        """Let nobody join."""
        ...

    def joined(self) -> "Flight":
        """The flight, from now on in its place."""
        ...


class Flight:
    """What the run has answered so far, and whether it can still be shared.

    closed: called once, when nobody may join any more.
    turned_down: called once with the reason, if the answer turns out not to be for sharing.
    """

    __slots__ = (
        "_closed",
        "_deserted",
        "_headers",
        "_hold",
        "_live",
        "_max_body",
        "_max_hold",
        "_of_one",
        "_same_user",
        "_size",
        "_status",
        "_turned_down",
        "_vary",
        "abandoned",
        "chunks",
        "complete",
        "context",
        "failed",
        "joinable",
        "positions",
        "refused",
        "request",
        "run",
        "seats",
    )

    def __init__(
        self,
        *,
        context: RequestContext,
        request: Pairs,
        same_user: bool,
        max_body: int,
        max_hold: float,
        closed: Callable[[], None],
        turned_down: Callable[[str], None],
    ) -> None:
        self.context = context
        self.request = request
        self.positions: Mapping[str, int] | None = context.positions
        self.seats: set[Seat] = set()
        self.run: asyncio.Task[None] | None = None
        self.joinable = True
        self.refused: str | None = None
        self.complete = False
        self.failed = False
        self.chunks: list[bytes] = []
        self.abandoned = False
        self._status = 0
        self._headers: tuple[tuple[bytes, bytes], ...] | None = None
        self._vary: tuple[bytes, ...] = ()
        self._live = False
        self._of_one = False
        self._size = 0
        self._same_user = same_user
        self._max_body = max_body
        self._max_hold = max_hold
        self._closed = closed
        self._turned_down = turned_down
        self._hold: asyncio.TimerHandle | None = None
        self._deserted: asyncio.Event | None = None

    @property
    def shared(self) -> bool:
        """Whether somebody follows who still needs the run."""
        return bool(self.seats) and not self.complete and self.refused is None

    @property
    def over(self) -> bool:
        """Whether there is nothing to wait for: the answer is not to be shared, or the run has failed."""
        return self.refused is not None or self.failed

    @property
    def ready(self) -> bool:
        """Whether a follower may begin to answer: nothing can turn up any more that would make it leave."""
        return self._headers is not None and (self.complete or (self._live and bool(self.chunks)))

    def fits(self, request: Pairs, identity: Identity | None) -> bool:
        """Whether the response is one for this request too: as far as Vary tells; and of what the share says nothing
        of, only for whom the run began.
        """
        if self._of_one and identity != self.context.identity:
            return False
        return not told_apart(self._vary, self.request, request)

    def start_message(self) -> Message:
        """The response's start, anew for each follower: what is outside may change its own."""
        return {"type": "http.response.start", "status": self._status, "headers": list(self._headers or ())}

    def join(self) -> Seat:
        """Take a seat."""
        seat = Seat()
        self.seats.add(seat)
        return seat

    def leave(self, seat: Seat) -> None:
        """Give it back. The last one out tells the run, if the leader has gone too."""
        self.seats.discard(seat)
        if self.shared:
            return
        if self._deserted is not None:
            self._deserted.set()
        if self.abandoned and not self.complete and self.run is not None:
            self.close()
            self.run.cancel()

    async def deserted(self) -> None:
        """Return when nobody follows, or needs to; from then on nobody may join."""
        while self.shared:
            if self._deserted is None:
                self._deserted = asyncio.Event()
            self._deserted.clear()
            await self._deserted.wait()
        self.close()

    def close(self, refused: str | None = None) -> None:
        """Let nobody join any more; with a reason, send those away who have not begun to answer."""
        if self.joinable:
            self.joinable = False
            self._closed()
        if refused is not None and self.refused is None:
            self.refused = refused
            self._drop_hold()
            self._turned_down(refused)
            self._wake()

    def finish(self) -> None:
        """The run is over."""
        self._drop_hold()
        if not self.complete:
            self.failed = True
        self.close()
        self._wake()

    def publish(self, message: Message, used: SessionUse = "none") -> None:
        """Look at a message of the run, and keep what followers need of it. used: what it did with its session."""
        if self.refused is not None or self.complete:
            return
        kind = message["type"]
        if kind == "http.response.start" and self._headers is None and message.keys() <= START_KEYS:
            self._begin(message, used)
        elif kind == "http.response.body" and self._headers is not None and message.keys() <= BODY_KEYS:
            self._extend(message)
        else:
            self.close("extension")

    def _begin(self, message: Message, used: SessionUse) -> None:
        headers = tuple(cast(list[tuple[bytes, bytes]], message.get("headers", ())))
        status: int = message["status"]
        answer = judge_answer(status, headers, same_user=self._same_user)
        refused = answer.refused
        if message.get("trailers"):
            refused = "extension"
        elif used == "changed":
            refused = refused or "set-cookie"  # for a session middleware further out to add
        elif refused is None and by_vary_alone(self.context) and not is_for_all(status, headers, time.time()):
            refused = "unstorable"
        elif answer.length is not None and answer.length > self._max_body:
            refused = "too-large"
        if refused is not None:
            self.close(refused)
            return
        self._status, self._headers, self._vary = status, headers, answer.vary
        if used == "read":
            self._vary += (b"cookie",)
        self._live = answer.length is not None
        self._of_one = status not in _OF_THE_SHARE and not is_for_all(status, headers, time.time())

    def _extend(self, message: Message) -> None:
        self.close()  # a request that comes after the response began to flow runs on its own
        if not self.seats:
            return
        body = cast(bytes, message.get("body", b""))
        self._size += len(body)
        if self._size > self._max_body:
            self.close("too-large")
            return
        self.chunks.append(bytes(body))
        if not message.get("more_body", False):
            self.complete = True
            self._drop_hold()
            if self._deserted is not None:
                self._deserted.set()
        elif not self._live and self._hold is None:
            # Followers of a response of unknown length begin when it is whole: one that has begun cannot leave, and
            # a stream without end would hold it, or everybody, to the slowest reader.
            self._hold = asyncio.get_running_loop().call_later(self._max_hold, self.close, "stream")
        self._wake()

    def _drop_hold(self) -> None:
        if self._hold is not None:
            self._hold.cancel()

    def _wake(self) -> None:
        for seat in self.seats:
            seat.wake()


def began_now(flight: Flight | Unjoined, context: RequestContext) -> bool:
    """Whether nothing was purged between the beginning of a run and this request, as far as is known."""
    if flight.positions != context.positions:
        return False
    return context.positions is not None or not isinstance(flight, Flight) or flight.context.purges == context.purges


def is_elsewhere(flight: Flight | Unjoined) -> bool:
    """Whether a run belongs to another event loop, which nobody in this one can wait for."""
    return flight.run is not None and flight.run.get_loop() is not asyncio.get_running_loop()
