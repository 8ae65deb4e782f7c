"""One connection to Redis for many callers: commands of one pass of the event loop leave together, replies come back in
order, and look-ups of keys that wait to be sent are merged into one MGET.

Guaranteed: a caller gets the reply to its own command, or StoreError; a cancelled caller shifts nobody's reply (its
place stays until its reply has come). When a connection is lost, what was sent over it fails at once and nothing is
sent twice; what was not sent yet goes over the next one. Connecting has a deadline, and so has silence: a connection
that owes replies and sends none is given up. New ones are made in the background, later and later, at times that
differ between processes, and another one beside one that hangs; meanwhile calls fail at once. How many may wait is
bounded.
Not guaranteed: that a command whose caller has gone is not executed; that a command which failed was not executed.
How long a caller waits is its own affair: redis-py's `socket_timeout` swallows cancellations on Python 3.11 and is off.
"""

import asyncio
import os
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import Context
from typing import Any, Final

from redis.exceptions import RedisError

from tidegate.errors import StoreError
from tidegate.middleware.stores.overlapping import first_of
from tidegate.middleware.stores.redis_calls import Asked, Call, Reads, Word, pack
from tidegate.middleware.stores.redis_wire import Wire

__all__ = ["CrowdedError", "Dial", "Link", "Word", "hang_up", "pack"]

Dial = Callable[[], Awaitable[Any]]
"""Makes a connected `redis.asyncio.Connection`. Cancelled when it takes too long."""

MERGED: Final = 32
"""Look-ups in one MGET: with more, the first waits for the last's bytes."""

_GOODBYE: Final = 0.25

_CROWD: Final = 4

_DOUBT: Final = 0.25
"""Seconds for a reply over a connection whose server has just taken another one anew."""

LONGEST_PAUSE: Final = 0.5
"""Seconds between the beginnings of two attempts to connect: one within each probe interval of the store's breaker."""


class CrowdedError(StoreError):
    """So many calls wait for Redis that one more is refused."""


class Link:
    """A connection that is made when it is first needed, and made anew whenever it is lost.

    dial: makes a connection.
    handshake: seconds that this may take; while it does, others are tried too.
    silence: seconds in which nothing comes, while a reply is owed, after which the connection is given up (up to half
        as much again).
    max_waiting: callers that may wait at once; more are refused with CrowdedError.
    crowded: called for each that is refused.
    connected: called whenever a connection has been made.

    One event loop at a time: from a second one calls fail, unless the first was closed, or is that of the process of
    which this one is a fork.
    """

    def __init__(
        self,
        dial: Dial,
        *,
        handshake: float = 2.0,
        silence: float = 2.0,
        max_waiting: int = 10_000,
        crowded: Callable[[], object] = lambda: None,
        connected: Callable[[], object] = lambda: None,
    ) -> None:
        self._dial = dial
        self._handshake = handshake
        self._silence = silence
        self._max_waiting = max_waiting
        self._crowded = crowded
        self._connected = connected
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._task: asyncio.Task[None] | None = None
        self._turn = 0
        """Which task keeps the connection: one of a loop that ended without it may be cleared away at any time."""
        self._refusal: str | None = None
        self._closed = False
        self._waiting = 0
        self._out: list[Call | Reads] = []
        self._crowd = _CROWD
        """Of so many it is looked which of them are awaited."""
        self._reads: dict[int, Reads] = {}
        self._sent: deque[Call | Reads] = deque()
        self._wire: Wire | None = None
        self._leaving = False
        self._given_up: asyncio.Future[str] | None = None
        self._renewed = 0
        self.connections = 0
        """How many were made so far."""

    @property
    def waiting(self) -> int:
        """Callers that wait for a reply, cancelled ones included until it has come."""
        return self._waiting

    def open(self) -> None:
        """Take calls again after `aclose`."""
        self._closed = False

    async def aclose(self) -> None:
        """Fail what waits, close the connection, take no more calls. Waits for no reply."""
        self._closed = True
        if self._task is not None and self._loop is asyncio.get_running_loop():
            self._task.cancel()
            await asyncio.wait([self._task])

    def renew(self, why: str) -> None:
        """Give the connection up and make another: it leads to a server that is no longer the right one."""
        self._renewed += 1
        if self._given_up is not None and not self._given_up.done():
            self._given_up.set_result(why)

    def doubt(self) -> None:
        """Give the connection up unless something comes soon: another one to the same server was lost."""
        wire, loop = self._wire, asyncio.get_running_loop()
        if wire is None or self._loop is not loop:
            return
        with suppress(StoreError):
            self.call(b"PING").add_done_callback(lambda asked: asked.cancelled() or asked.exception())
        loop.call_later(_DOUBT, self._unless_heard, wire, wire.heard)

    def _unless_heard(self, wire: Wire, heard: int) -> None:
        if wire is self._wire and wire.heard == heard:
            self.renew("no reply since another connection was lost")

    def call(self, *words: Word) -> asyncio.Future[Any]:
        """The reply to one command; a refusal is raised as the ResponseError that redis-py makes of it.

        Raises:
            StoreError: if there is no connection, here or when the reply is awaited.
        """
        future = self._admit().create_future()
        self._out.append(Call(words, future))
        return future

    def ask(self, packed: bytes) -> asyncio.Future[Any]:
        """As `call`, with a command that `pack` has made: for those that are asked often."""
        future = self._admit().create_future()
        self._out.append(Asked(packed, future))
        return future

    def read(self, keys: Sequence[bytes], slot: int = 0) -> asyncio.Future[list[bytes | None]]:
        """The values under the keys, by one MGET with those that other callers want of the same slot.

        Raises:
            StoreError: as `call`.
        """
        future: asyncio.Future[list[bytes | None]] = self._admit().create_future()
        reads = self._reads.get(slot)
        if reads is None or reads.callers >= MERGED:
            reads = self._reads[slot] = Reads()
            self._out.append(reads)
        reads.add(keys, future)
        return future

    def _admit(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if loop is not self._loop or self._task is None:
            self._begin(loop)
        if self._refusal is not None:
            raise StoreError(self._refusal)
        if self._waiting >= self._max_waiting:
            self._crowded()
            raise CrowdedError(f"redis: {self._waiting} calls wait already")
        self._waiting += 1
        if not self._leaving:
            # What others of this pass of the event loop ask leaves together.
            self._leaving = True
            loop.call_soon(self._leave)
        return loop

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._closed:
            raise StoreError("redis: the store is closed")
        held = self._task is not None and self._loop is not None and not self._loop.is_closed()
        if held and self._process == os.getpid():
            raise StoreError("redis: the store is in use in another event loop: make one store for each")
        # Who held the connection is gone, or it is the parent's: nobody here reads what comes over it.
        self._wire = self._given_up = None
        self._refusal = None
        self._forget()
        self._loop, self._process = loop, os.getpid()
        self._turn += 1
        # Without the context of whoever happens to come first: its trace would be that of every later reconnection.
        keeping = self._keep_connected(self._turn)
        self._task = loop.create_task(keeping, name="tidegate-redis-link", context=Context())

    async def _keep_connected(self, turn: int) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        try:
            while True:
                try:
                    connection = await self._connect()
                except Exception as error:  # noqa: BLE001 - P5; told to who calls: what answers may be no Redis
                    if turn != self._turn or loop.is_closed():
                        return  # cleared away: the connection is another task's
                    failures += 1
                    self._refuse(error)
                else:
                    self._refusal = None
                    self.connections += 1
                    self._connected()
                    since = loop.time()
                    lost = await self._serve(connection)
                    failures = 1 if loop.time() - since > LONGEST_PAUSE else failures + 1
                    if failures > 1:
                        self._refuse(lost)
                # The first attempt comes soon, but not for all processes at the same moment.
                await asyncio.sleep(min(LONGEST_PAUSE, 0.05 * 2 ** min(failures - 1, 10)) * random.uniform(0.2, 1.0))
        finally:
            if turn == self._turn:
                self._task = None
                self._forget()

    async def _connect(self) -> Any:
        connection, renewed = await first_of(
            self._dialled,
            every=LONGEST_PAUSE,
            within=self._handshake,
            failed=self._refuse,
            spare=lambda made: hang_up(made[0]),
        )
        if renewed != self._renewed:
            await hang_up(connection)
            raise StoreError("the connection was given up before it was used")
        return connection

    async def _dialled(self) -> tuple[Any, int]:
        """A connection, and how often there was to be another one until it was made."""
        connection = await self._dial()
        return connection, self._renewed

    async def _serve(self, connection: Any) -> BaseException:
        """Until the connection is lost: why it was."""
        loop = asyncio.get_running_loop()
        self._wire = wire = Wire(connection, self._answered, self._leave)
        self._given_up = loop.create_future()
        try:
            self._leave()
            lost = await self._watched(wire, self._given_up)
            self._fail(self._sent, lost)
            return lost
        finally:
            if wire is self._wire:
                self._wire = self._given_up = None
            if not loop.is_closed():  # it ended without this task, which is cleared away now
                await hang_up(connection)

    async def _watched(self, wire: Wire, given_up: "asyncio.Future[str]") -> BaseException:
        """Ends when the connection is lost or to be given up, so also when nothing comes although something is owed.
        That takes two looks: a loop that was held up may look before it has read."""
        heard, owed = wire.heard, False
        either: list[asyncio.Future[Any]] = [wire.lost, given_up]
        while True:
            await asyncio.wait(either, timeout=self._silence / 2, return_when=asyncio.FIRST_COMPLETED)
            if wire.lost.done():
                return wire.lost.result()
            if given_up.done():
                return StoreError(given_up.result())
            if owed and self._sent and wire.heard == heard:
                return StoreError(f"no reply for {self._silence:g} s")
            heard, owed = wire.heard, bool(self._sent)

    def _leave(self) -> None:
        """Send what waits. What the server does not take yet gathers, up to `max_waiting`."""
        self._leaving = False
        wire = self._wire
        if wire is None or wire.full or wire.lost.done() or not self._out:
            if len(self._out) >= self._crowd:
                self._thin_out()
            return
        leaving, self._out, self._reads = self._out, [], {}
        self._crowd = _CROWD
        packed: list[bytes] = []
        for each in leaving:
            if type(each) is Asked and not each.future.done():
                packed.append(each.command)
                self._sent.append(each)
            elif each.awaited:
                packed.append(each.packed())
                self._sent.append(each)
            else:
                self._waiting -= each.callers
        if packed:
            wire.write(packed[0] if len(packed) == 1 else b"".join(packed))

    def _thin_out(self) -> None:
        """What nobody waits for any more is not to wait here: it may be megabytes."""
        left: list[Call | Reads] = []
        for each in self._out:
            if each.awaited or isinstance(each, Reads):  # to which others may be added
                left.append(each)
            else:
                self._waiting -= 1
        self._out = left
        self._crowd = _CROWD + 2 * len(left)

    def _answered(self, reply: Any) -> None:
        if not self._sent:
            raise StoreError("the server sent a reply that nobody asked for")
        answered = self._sent.popleft()
        if type(answered) is Asked and type(reply) is list:
            self._waiting -= 1
            if not answered.future.done():
                answered.future.set_result(reply)
            return
        self._waiting -= answered.callers
        answered.resolve(reply)

    def _refuse(self, error: BaseException) -> None:
        """Nobody need wait: what is queued fails, and so do new calls until there is a connection."""
        if isinstance(error, TimeoutError) and not str(error):  # ours, not the kernel's
            error = StoreError(f"no connection within {self._handshake:g} s, login included")
        self._refusal = _told(error)
        self._fail(self._out, error)
        self._reads = {}

    def _fail(self, those: "deque[Call | Reads] | list[Call | Reads]", error: BaseException) -> None:
        told = _told(error)
        for each in those:
            self._waiting -= each.callers
            each.fail(told)
        those.clear()

    def _forget(self) -> None:
        """Whatever still waits, waits for nothing."""
        lost = StoreError("the store was closed")
        if self._loop is not None and not self._loop.is_closed():
            self._fail(self._sent, lost)
            self._fail(self._out, lost)
        self._sent, self._out, self._reads = deque(), [], {}
        self._waiting = 0
        self._leaving = False


def _told(error: BaseException) -> str:
    return f"redis: {error}" if str(error) else f"redis: {type(error).__name__}"


async def hang_up(connection: Any) -> None:
    """Close a connection, with the goodbye that TLS asks for if the other side takes its part at once."""
    writer: asyncio.StreamWriter | None = connection._writer
    try:
        async with asyncio.timeout(_GOODBYE):
            await connection.disconnect()
    except (RedisError, OSError):
        if writer is not None:
            writer.transport.abort()  # it would wait for a server that takes nothing any more
