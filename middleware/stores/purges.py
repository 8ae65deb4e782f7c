"""Makes purges in a store that may fail, and goes on trying where it does not take them (P4, P5).

Guaranteed: a purge that was asked for is kept before it is tried, and concerns every look-up in between (`pending`); it
is tried until the store accepts it, outside of the breaker. Its caller waits for the budget at most, and not at all
where the store is known not to answer: while the breaker is open, or since another purge waited in vain. One scope that
the store does not take holds up none of the others: in a cluster they lie on other servers.
A remote store answers in one event loop only: what is purged from another one, while that runs, is made in it.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from tidegate.errors import StoreError
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.background import Background
from tidegate.middleware.stores.base import Purge, Settles, Store, Target
from tidegate.middleware.stores.meters import Meter
from tidegate.middleware.stores.overlapping import first_of
from tidegate.middleware.stores.pending import PendingPurges
from tidegate.middleware.stores.stepping import Deadlines

__all__ = ["Purges"]

RETRY: Final = 0.25
"""Seconds between attempts to make the pending purges: four in the second within which they are due (P4)."""

HANGS: Final = 0.5
"""Seconds after which another attempt begins beside one that has no answer: purging twice is harmless."""

PATIENCE: Final = 5.0
"""Seconds that an attempt in the background may take. Nobody waits for it, and who is slow or far away gets the time
that a script and two answers take; a connection that is silent is given up earlier (`redis_link`)."""

BATCH: Final = 500
"""Tags in one attempt: a script of a few milliseconds."""

_ELSEWHERE: Final = 0.5
"""Seconds beyond the budget that who asks from another event loop waits for the one that the store answers in."""

_LETTING_GO: Final = 0.25
"""Seconds that cancelled attempts may take to end: they do at once."""

_DURABLE: Final = {True: "durable", False: "not-durable", None: "done"}
_OUTCOMES: Final = (*_DURABLE.values(), "pending")


class Purges:
    """The purges of one guarded store.

    budget: seconds that a caller waits. avoids: whether the store is not to be asked now, as the breaker has it.
    limit: tags that may be pending; see `PendingPurges`. clock: seconds, never going back.
    """

    def __init__(
        self,
        inner: Store,
        *,
        name: str,
        budget: float,
        limit: int,
        avoids: Callable[[], bool],
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._inner = inner
        self._settles = inner if isinstance(inner, Settles) else None
        self._budget = budget
        self._avoids = avoids
        self._clock = clock
        self._deadlines = Deadlines()
        self._meter = Meter(metrics, name, "purge")
        self._counts = {outcome: metrics.purges.labels(outcome).inc for outcome in _OUTCOMES}
        self.pending = PendingPurges(limit=limit, overflow=metrics.limits.labels("store-pending-purges").inc)
        self._lane = Background()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._late = False
        """The last attempt had no answer in time."""
        self.closed = False

    def start(self) -> None:
        """Work off what is pending, in this event loop, again after `aclose`."""
        self.closed = False
        if self._home() is None:
            self._loop, self._process = asyncio.get_running_loop(), os.getpid()
        self.work_off()

    def _home(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that the store answers in, if it is another one than this, and runs."""
        loop = self._loop
        if self._inner.local or loop is None or loop is asyncio.get_running_loop() or not loop.is_running():
            return None
        return loop if self._process == os.getpid() else None

    async def drained(self) -> None:
        """Return when nothing is tried any more."""
        await self._lane.done()

    async def close(self) -> int:
        """Stop; returns how many tags are lost by it."""
        await self._lane.ended(_LETTING_GO)
        return len(self.pending)

    async def purge(self, tags: Mapping[str, Sequence[Target]]) -> Purge:
        """Purge now if the store answers within the budget; else keep the purge, refuse its tags, and go on trying.

        What is left of the budget is spent to learn whether a replica has it too.

        A purge does not ask the breaker, which may be about to close. Where it would wait in vain the attempt is left
        to the background.
        """
        count = sum(map(len, tags.values()))
        # Kept before it is tried: a caller that is cancelled halfway has still asked for it.
        number = self.pending.add(tags)
        home = self._home()
        purging = self._purge(tags, number, count)
        made = await purging if home is None else await self._made_at(home, purging)
        if made is None:
            self.work_off()  # that loop may never come to it
            made = self._is_pending(count)
        self._counts["pending" if made.state == "pending" else _DURABLE[made.durable]]()
        return made

    async def _made_at(self, home: asyncio.AbstractEventLoop, purging: Coroutine[Any, Any, Purge]) -> Purge | None:
        """What comes of a purge that is made in that event loop; None: nothing in time."""
        try:
            made = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(purging, home))
        except RuntimeError:  # it was closed just now
            return await purging
        await asyncio.wait([made], timeout=self._budget + _ELSEWHERE)
        return made.result() if made.done() and not made.cancelled() and made.exception() is None else None

    async def _purge(self, tags: Mapping[str, Sequence[Target]], number: int, count: int) -> Purge:
        began = self._clock()
        try:
            if not (self._late or self._avoids()) and await self._made(tags):
                self.pending.done(tags, number)
                durable = await self._settled(tags, self._budget - (self._clock() - began))
                return Purge("done", count, durable)
        finally:
            self.work_off()
        return self._is_pending(count)

    def _is_pending(self, count: int) -> Purge:
        return Purge("pending", count, False if self._settles is not None else None)

    async def _settled(self, tags: Mapping[str, Sequence[Target]], left: float) -> bool | None:
        """Whether a replica has a purge that was done, as far as that can be known in the time that is left."""
        if self._settles is None:
            return None
        try:
            # Whole milliseconds: see `Deadlines`.
            return await self._deadlines.within(max(1, int(left * 1000)) / 1000, self._settles.settled(tags))
        except (StoreError, TimeoutError):
            return False

    def soon(self, tags: Mapping[str, Sequence[Target]]) -> None:
        """Refuse these tags from now on, and purge them as soon as the store can. Never waits; for any thread.

        Before `start` the purge is only kept: who is not started serves nobody yet.
        """
        self.pending.add(tags)
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(self.work_off)

    def work_off(self) -> None:
        """Have what is pending made, in the background where that waits."""
        if self._inner.local:
            self._make_here()
        elif (home := self._home()) is not None:
            with suppress(RuntimeError):  # it was closed just now
                home.call_soon_threadsafe(self.work_off)
                return
        if self.pending and not self.closed and not self._lane.at_work:
            self._lane.begin(self._retry(), "tidegate-purges")

    def _make_here(self) -> None:
        """Make the pending purges in a store that never waits: without a task, which a loop that ends would leave."""
        while self.pending:
            tags, number = self.pending.batch(BATCH)
            try:
                self._inner.purge(tags).send(None)
            except StopIteration:
                self.pending.done(tags, number)
            except Exception as error:  # noqa: BLE001 - P5; counted, and the purge is kept
                self._meter.failed(error, 0.0)
                return
            else:
                return  # it waits after all: a task may

    async def _made(self, tags: Mapping[str, Sequence[Target]]) -> bool:
        started = self._clock()
        try:
            await self._deadlines.within(self._budget, self._inner.purge(tags))
        except Exception as error:  # noqa: BLE001 - P5; counted, and the purge is kept
            self._failed(error, self._budget)
            return False
        self._succeeded(started)
        return True

    def _succeeded(self, started: float) -> None:
        self._late = False
        self._meter.ok()
        self._meter.observe(self._clock() - started)

    def _failed(self, error: Exception, seconds: float = PATIENCE) -> None:
        self._late = isinstance(error, TimeoutError)
        self._meter.failed(error, seconds)

    async def _retry(self) -> None:
        while self.pending:
            try:
                await first_of(self._attempt, every=HANGS, within=PATIENCE, failed=self._failed)
            except Exception as error:  # noqa: BLE001 - P5; counted, and tried again
                self._failed(error)
                await asyncio.sleep(RETRY)

    async def _attempt(self) -> None:
        """Make some of what is pending, each scope for itself.

        Raises:
            Exception: why one of them was not made; the others are.
        """
        tags, number = self.pending.batch(BATCH)
        made = [self._make({scope: targets}, number) for scope, targets in tags.items()]
        for outcome in await asyncio.gather(*made, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome if isinstance(outcome, Exception) else StoreError("a purge was given up")

    async def _make(self, tags: Mapping[str, Sequence[Target]], number: int) -> None:
        started = self._clock()
        await self._inner.purge(tags)
        self._succeeded(started)
        self.pending.done(tags, number)
