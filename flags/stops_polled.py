"""Follows the stop records of one home, a file or Redis, from threads of its own.

Guarantees: a record that was written is in force one `poll_interval` and one read after, or at once where the home
carries nudges; a stop that was seen stays in force through every outage, and until it is lifted or past its `until`.
Until the records could be read once, `known` is False and every gate stays shut: nobody can say that none is stopped.
`until` is compared with the wall clock of this machine. A thread that hangs in a read delays neither the event loop nor
the end of the process. Not guaranteed: that a forked child follows: start it in each worker.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from tidegate.errors import FlagError, Problems
from tidegate.flags.report import OnError, Reporter
from tidegate.flags.stop_records import Seen, StopRecord, StopView

__all__ = ["NudgeSource", "PolledStops", "StopHome", "WritableHome"]

_log = logging.getLogger("tidegate.flags")


class StopHome(Protocol):
    """Where the stop records of one environment lie."""

    def read(self, flags: tuple[str, ...]) -> Seen:
        """The records of these flags. Called in a thread; bounded in time where the home can hang.

        Raises:
            FlagError: if they cannot be read; the message names the place.
        """
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class WritableHome(StopHome, Protocol):
    """A home that a kill can write to, too."""

    def write(self, record: StopRecord) -> int | None:
        """Put a record in the place of the flag's last one; its number is made here, larger than the last.

        The answer is how many readers were told at once; None: nobody could be.

        Raises:
            FlagError: if it cannot be written; the message names the place.
        """
        ...


class NudgeSource(Protocol):
    """Calls back when somebody says that something has changed."""

    def listen(self, heard: Callable[[], None], closing: threading.Event) -> None:
        """Call `heard` after connecting and at each nudge, until `closing` is set. Runs in a thread of its own.

        Raises:
            FlagError: when the connection is lost, or cannot be made; it is then called again a little later.
        """
        ...


class PolledStops:
    """The stops of an environment's flags, as the gates ask for them (`tidegate.flags.stops.Stops`).

    home: where the records lie. nudges: who tells of changes at once; None: only polling.
    flags: whose records are read. Any other flag counts as stopped: nobody can say that it is not.
    poll_interval: seconds between two looks.
    on_nudge: called at each nudge, in a thread: what else is to be looked at now. It must be quick.
    first_wait: seconds that `start` waits for the first reading at most.
    on_error: hears, as "flags.stops", of what cannot be read; once per fault. Default: the log.

    Raises:
        ConfigError: if `poll_interval` is not a positive number.
    """

    def __init__(
        self,
        home: StopHome,
        *,
        flags: Iterable[str],
        environment: str,
        nudges: NudgeSource | None = None,
        poll_interval: float = 2.0,
        on_nudge: Callable[[], None] | None = None,
        first_wait: float = 0.25,
        on_error: OnError | None = None,
    ) -> None:
        if not 0 < poll_interval < math.inf:
            problems = Problems("PolledStops")
            problems.add("poll_interval", poll_interval, "is not a positive number of seconds", "write 2.0")
            problems.raise_if_any()
        self.version = 0
        self.known = False
        self._home = home
        self._nudges = nudges
        self._poll_interval = poll_interval
        self._on_nudge = on_nudge
        self._first_wait = first_wait
        self._report = Reporter("flags.stops", on_error)
        self._view = StopView(flags, environment)
        self._flags = frozenset(self._view.flags)
        self._stopped: frozenset[str] = frozenset()
        self._faults: dict[str, str] = {}
        self._closing = threading.Event()
        self._look_now = threading.Event()
        self._threads: list[threading.Thread] = []

    def stopped(self, flag: str) -> bool:
        """Whether the flag is stopped. Never waits."""
        return flag in self._stopped or flag not in self._flags

    async def start(self) -> None:
        """Begin to follow the records; waits `first_wait` at most for the first reading.

        May be called again after `aclose`, and in a forked child, which has no threads of its parent.
        """
        if self._threads and all(thread.is_alive() for thread in self._threads) and not self._closing.is_set():
            return
        self._closing, self._look_now = closing, look_now = threading.Event(), threading.Event()
        loop = asyncio.get_running_loop()
        first: asyncio.Future[None] = loop.create_future()
        self._threads = [
            threading.Thread(
                target=self._poll, args=(closing, look_now, _telling(loop, first)), name="tidegate-stops", daemon=True
            )
        ]
        if self._nudges is not None:
            arguments = (self._nudges, closing, look_now)
            self._threads.append(
                threading.Thread(target=self._listen, args=arguments, name="tidegate-stops-nudges", daemon=True)
            )
        for thread in self._threads:
            thread.start()
        await asyncio.wait([first], timeout=self._first_wait)

    async def aclose(self) -> None:
        """Stop following, within a second; what was stopped stays so."""
        self._closing.set()
        self._look_now.set()
        threads, self._threads = self._threads, []
        if threads:
            await asyncio.to_thread(_join, threads, 1.0)

    def look(self) -> None:
        """Read the records once, here and now; whatever fails is reported, and what was known stays."""
        try:
            wrong = self._view.take(self._home.read(self._view.flags))
            self._settle(known=True)
            self._tell("records", "; ".join(wrong))
            self._tell("home", "")
        except Exception as error:  # noqa: BLE001 - reported; a thread that died would hide every later stop
            self._settle(known=self.known)
            self._tell("home", str(error) or type(error).__name__)

    def _settle(self, *, known: bool) -> None:
        stopped = self._view.stopped(time.time())
        if (stopped, known) != (self._stopped, self.known):
            changed = sorted(stopped ^ self._stopped)
            self._stopped, self.known = stopped, known
            self.version += 1  # last, so that nobody remembers an old decision under the new version
            for flag in changed:
                _log.warning("%s is %s", flag, "stopped" if flag in stopped else "not stopped any more")

    def _tell(self, kind: str, fault: str) -> None:
        if fault and fault != self._faults.get(kind):
            self._report(FlagError(fault))
        self._faults[kind] = fault

    def _poll(self, closing: threading.Event, look_now: threading.Event, first: Callable[[], None]) -> None:
        while not closing.is_set():
            look_now.clear()
            began = time.monotonic()
            self.look()
            first()
            closing.wait(_BREATH)  # so that a flood of nudges does not make a flood of reads
            ends_in = self._view.next_end(now := time.time()) - now
            rest = self._poll_interval - (time.monotonic() - began)
            look_now.wait(max(0.0, min(rest, ends_in + 0.001)))
        self._home.close()

    def _listen(self, nudges: NudgeSource, closing: threading.Event, look_now: threading.Event) -> None:
        def heard() -> None:
            look_now.set()
            if self._on_nudge is not None:
                self._on_nudge()

        while not closing.is_set():
            try:
                nudges.listen(heard, closing)
                self._tell("nudges", "")
            except Exception as error:  # noqa: BLE001 - reported; without nudges a stop costs only time
                if not closing.is_set():
                    self._tell("nudges", str(error) or type(error).__name__)
            closing.wait(self._poll_interval)


_BREATH = 0.02
"""Seconds between two reads at least."""


def _telling(loop: asyncio.AbstractEventLoop, future: "asyncio.Future[None]") -> Callable[[], None]:
    """A call for another thread that ends the wait for `future`; harmless when nobody waits any more."""

    def done() -> None:
        if not future.done():
            future.set_result(None)

    def tell() -> None:
        if not future.done():
            try:
                loop.call_soon_threadsafe(done)
            except RuntimeError:
                return  # the loop was closed meanwhile

    return tell


def _join(threads: list[threading.Thread], seconds: float) -> None:
    """Wait for their end, but no longer than this: one may hang in a read, and is a daemon."""
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
