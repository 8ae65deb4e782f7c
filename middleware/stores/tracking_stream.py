"""Hears of purges where a server refuses CLIENT TRACKING, as some managed ones do: over a stream to which every purge
adds the names of the keys that it changed (`redis_purge`).

Guaranteed: what `tracking` guarantees, by the same means. A look at the stream that waits for news stands for the
heartbeat, and its answer is good from when it was *sent*. The stream is bounded: whoever reads so late that something
was let go unread, or finds no stream, takes everything for changed.
Not guaranteed: that changes are heard which no purge of Tidegate made (a FLUSHALL is noticed with the next look).
One server only: a purge in a cluster can write nothing outside of its own slot.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from tidegate.errors import StoreError
from tidegate.middleware.stores.ears import Ears
from tidegate.middleware.stores.redis_purge import EVERYTHING, STREAMED
from tidegate.middleware.stores.tracking import HANDSHAKE, Tracking

__all__ = ["Fallback", "Streaming"]

_log = logging.getLogger("tidegate")

_AT_ONCE: Final = b"1000"


class Streaming(Tracking):
    """Follows one stream. As `Tracking`, with the stream's name for `prefix`."""

    async def _session(self) -> None:
        ears = Ears(self._heard, self._deaf)
        connection: Any = None
        stream = self._prefix
        block = b"%d" % (self._beat * 1000)
        try:
            async with asyncio.timeout(HANDSHAKE):
                connection = await self._dial()
                ears.attach(connection)
                self._ears = ears
                # Its place in the stream: whatever is purged from now on stands behind it.
                last = await ears.ask(b"XADD", stream, b"MAXLEN", b"~", b"%d" % STREAMED, b"*", b"n", b"")
            self._begun()
            while True:
                sent = time.monotonic()
                answers = [
                    ears.ask(b"XRANGE", stream, b"-", b"+", b"COUNT", b"1"),
                    ears.ask(b"XREAD", b"COUNT", _AT_ONCE, b"BLOCK", block, b"STREAMS", stream, last),
                ]
                _, missing = await asyncio.wait(answers, timeout=self._lease)
                if missing:
                    raise StoreError(f"no answer from the stream for {self._lease:g} s")
                oldest, news = (answer.result() for answer in answers)
                last = self._told(oldest, news, last)
                if ears.lost.done():
                    ears.lost.result()
                self.until = sent + self._lease
        finally:
            self._ears = None
            if connection is not None:
                await ears.hang_up(connection)

    def _told(self, oldest: Sequence[Any], news: Any, last: bytes) -> bytes:
        """Take the news; returns the place of the last."""
        if not oldest:
            self._flushed()
            raise StoreError("the stream of purges is gone")
        if _place(oldest[0][0]) > _place(last):
            self._void()  # something that was not read has been let go
            self._flushed()  # or all of it
        if not news:
            return last
        entries: list[Any] = news[self._prefix] if self._prefix in news else news[0][1]  # a map in RESP3
        for place, fields in entries:
            last = place
            if fields[1] == EVERYTHING:
                self._void()
            elif fields[1]:
                self._changed(fields[1].split(b" "))
        return last


def _place(name: bytes) -> tuple[int, int]:
    first, _, second = name.partition(b"-")
    return int(first), int(second)


class Fallback:
    """Tracking, and the stream while tracking is refused.

    used: called with "tracking" or "stream" and whether it is what tells of purges now.
    """

    def __init__(
        self,
        make_tracking: Callable[..., Tracking],
        make_stream: Callable[..., Streaming],
        *,
        failed: Callable[[Exception], None],
        used: Callable[[str, bool], None],
    ) -> None:
        self._failed = failed
        self._used = used
        self._told = False
        self._tracking = make_tracking(failed=self._tracking_failed, begun=self._tracked)
        self._stream = make_stream(failed=failed, begun=lambda: used("stream", True))

    @property
    def until(self) -> float:
        """`time.monotonic()` to which all changes are known, by the one or the other."""
        return max(self._tracking.until, self._stream.until)

    def start(self) -> None:
        """Ask for tracking first."""
        self._tracking.start()

    def renew(self, why: str) -> None:
        """Make the connections anew."""
        self._tracking.renew(why)
        self._stream.renew(why)

    async def aclose(self) -> None:
        """Stop both."""
        await self._tracking.aclose()
        await self._stream.aclose()

    def _tracking_failed(self, error: Exception) -> None:
        if not self._tracking.refused:
            self._failed(error)
            return
        self._used("tracking", False)
        self._stream.start()
        if not self._told:
            self._told = True
            _log.warning("%s; purges are heard over a stream instead", error)

    def _tracked(self) -> None:
        self._used("tracking", True)
        self._used("stream", False)
        self._stream.stop()
