"""Hears which keys of a Redis have changed: one connection with `CLIENT TRACKING ON BCAST`, for a store in memory that
must not outlive a purge.

Guaranteed, while `until` lies in the future: every change of a key under the prefix that the server made up to `LEASE`
seconds before `until` has been told through `changed`, or everything was voided through `void` since. `until` moves on
only with an answer to a heartbeat, and by when that was *sent*: so a connection that is half open, a server that hangs,
and a process that was stopped all end in the same way, without anybody having to notice: time runs out.
After a connection was made anew, `void` is called before `until` moves, because what changed in between is unknown.
A change is told where its bytes are read, before any task of the same pass of the event loop runs.

Not guaranteed: anything where the server refuses tracking: `refused` says so, and it is asked again every now and then.
There `tracking_stream` does it, in a cluster `tracking_channel`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from tidegate.errors import StoreError
from tidegate.middleware.stores.background import Background
from tidegate.middleware.stores.ears import Ears, RefusedError

__all__ = ["BEAT", "HANDSHAKE", "LEASE", "Tracking"]

BEAT: Final = 0.2
"""Seconds between heartbeats."""

LEASE: Final = 0.8
"""Seconds after a heartbeat was sent, to the end of which its answer is good."""

HANDSHAKE: Final = 1.0
"""Seconds to connect, and to be told of changes."""

_REFUSED_PAUSE: Final = 30.0
"""Seconds until a server that refused tracking is asked again: somebody has to change it first."""
_LONGEST_PAUSE: Final = 0.5


class Tracking:
    """Follows the keys of one server.

    dial: makes a connected `redis.asyncio.Connection`, to the server that takes writes.
    prefix: of the keys that are followed.
    changed: called with the names of keys that were changed, or may have been.
    void: called when anything may have been.
    failed: called with why a connection was lost or could not be made; as often as that happens.
    begun: called whenever it begins to hear. flushed: called when the server was emptied, this database or another one.
    asks: the commands of a heartbeat. check: called with their replies; StoreError: something else is wrong that makes
        what is known worthless. The connection stays, everything is void, and nothing is known until it is content.
    """

    def __init__(
        self,
        dial: Callable[[], Awaitable[Any]],
        *,
        prefix: bytes,
        changed: Callable[[Sequence[bytes]], None],
        void: Callable[[], None],
        failed: Callable[[Exception], None],
        asks: Sequence[tuple[bytes, ...]] = ((b"PING",),),
        check: Callable[[Sequence[Any]], None] = lambda _: None,
        begun: Callable[[], object] = lambda: None,
        flushed: Callable[[], object] = lambda: None,
        beat: float = BEAT,
        lease: float = LEASE,
        refused_pause: float = _REFUSED_PAUSE,
    ) -> None:
        self._dial = dial
        self._prefix = prefix
        self._changed = changed
        self._void = void
        self._failed = failed
        self._asks = asks
        self._check = check
        self._on_begun = begun
        self._flushed = flushed
        self._beat = beat
        self._lease = lease
        self._refused_pause = refused_pause
        self._background = Background()
        self._ears: Ears | None = None
        self.until = 0.0
        """`time.monotonic()` to which all changes are known."""
        self.refused = False
        """Whether the server refused to be followed when it was last asked."""
        self.connections = 0

    @property
    def live(self) -> bool:
        """Whether all changes are known now."""
        return time.monotonic() < self.until

    def renew(self, why: str) -> None:
        """Give the connection up and make another: it leads to a server that is no longer the right one."""
        self._deaf()
        if self._ears is not None:
            self._ears.give_up(StoreError(why))

    def start(self) -> None:
        """Connect in the background, and again whenever the connection is lost."""
        if not self._background.at_work:
            self._background.begin(self._follow(), "tidegate-tracking")

    def stop(self) -> None:
        """From now on nothing is known. Does not wait for the connection's end."""
        self.until = 0.0
        self._background.give_up()

    async def aclose(self) -> None:
        """Stop: from now on nothing is known."""
        self.stop()
        await self._background.ended()
        self.until = 0.0

    async def _follow(self) -> None:
        pause = 0.02
        while True:
            before = self.connections
            try:
                await self._session()
            except TimeoutError:
                self._failed(StoreError(f"no connection that hears of purges within {HANDSHAKE:g} s"))
            except Exception as error:  # noqa: BLE001 - P5; counted, and tried again
                self._failed(error)
            self._deaf()
            pause = 0.02 if self.connections != before else min(_LONGEST_PAUSE, pause * 2)
            await asyncio.sleep(self._refused_pause if self.refused else pause)

    async def _session(self) -> None:
        """From connecting to losing the connection."""
        ears = Ears(self._heard, self._deaf)
        connection: Any = None
        try:
            async with asyncio.timeout(HANDSHAKE):
                connection = await self._dial()
                ears.attach(connection)
                self._ears = ears
                try:
                    await self._tune_in(ears)
                except RefusedError:
                    self.refused = True
                    raise
            self._begun()
            while True:
                sent = time.monotonic()
                answers = [ears.ask(*words) for words in self._asks]
                # Not wait_for: whoever was held up for longer than this must see first what has come meanwhile.
                _, missing = await asyncio.wait(answers, timeout=self._lease)
                if missing:
                    raise StoreError(f"no answer to a heartbeat for {self._lease:g} s")
                replies = [answer.result() for answer in answers]
                if ears.lost.done():
                    ears.lost.result()
                self._beaten(replies, sent)
                await asyncio.wait([ears.lost], timeout=self._beat)
                if ears.lost.done():
                    ears.lost.result()
        finally:
            self._ears = None
            if connection is not None:
                await ears.hang_up(connection)

    async def _tune_in(self, ears: Ears) -> None:
        """Have the server tell of changes from now on."""
        try:
            await ears.ask(b"HELLO", b"3")  # who speaks no RESP3 cannot tell of changes either
            await ears.ask(b"CLIENT", b"TRACKING", b"ON", b"BCAST", b"PREFIX", self._prefix)
        except RefusedError as error:
            raise RefusedError(f"the server refuses CLIENT TRACKING: {error}") from error

    def _begun(self) -> None:
        """It hears from now on; what was before is unknown."""
        self.refused = False
        self._void()
        self.connections += 1
        self._on_begun()

    def _beaten(self, replies: Sequence[Any], sent: float) -> None:
        try:
            self._check(replies)
        except StoreError as error:
            self._deaf()
            self._void()
            self._failed(error)
        else:
            self.until = sent + self._lease

    def _deaf(self) -> None:
        """The time would run out by itself, but nothing is won by waiting for it."""
        self.until = 0.0

    def _heard(self, push: Sequence[Any]) -> None:
        if push and push[0] == b"invalidate":
            names = push[1]
            if names is None:
                self._void()
                self._flushed()
            else:
                self._changed(names)
