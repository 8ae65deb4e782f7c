"""A circuit breaker for asyncio. pybreaker holds the state; we drive it: admit, await, report the outcome.

pybreaker's own ways of wrapping a coroutine do not work (the decorator never opens, `calling()` lets everybody through
in half-open and takes a cancelled probe for a success), so nothing of it is held across an await here. Promised:

- one probe at a time in half-open; a probe that reports nothing within `open_for` seconds is given up;
- an outcome counts only in the state in which its call was admitted: late ones move nothing;
- a call that was cancelled, or whose client left, is no evidence: `abandon` it;
- time is the clock that is passed in, which never goes back; pybreaker's own wall clock is never asked.

Not thread-safe: one event loop drives a breaker.
"""

import time
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple, NoReturn, cast

from pybreaker import CircuitBreaker, CircuitBreakerListener, CircuitMemoryStorage

from tidegate.middleware.core.breaker import BreakerSettings, RateWindow
from tidegate.middleware.metrics import Metrics

__all__ = ["LEVELS", "Breaker", "State", "Ticket", "report_to"]

State = Literal["closed", "half-open", "open"]

LEVELS: Final[dict[State, int]] = {"closed": 0, "half-open": 1, "open": 2}
"""Values of the gauge `tidegate_breaker_state`."""


class Ticket(NamedTuple):
    """Admission of one call: the generation of the state that admitted it, and the number of the probe (0: none)."""

    generation: int
    probe: int


class _Failed(Exception):
    """Stands for every failure: pybreaker counts, it does not look."""


def _succeed() -> None:
    return None


def _fail() -> NoReturn:
    raise _Failed


class _Changes(CircuitBreakerListener):
    """Hears of every change of state."""

    def __init__(self, heard: Callable[[State], None]) -> None:
        self._heard = heard

    def state_change(self, cb: CircuitBreaker, old_state: Any, new_state: Any) -> None:
        """Called by pybreaker, before `cb.current_state` is the new one."""
        self._heard(cast(State, new_state.name))


class Breaker:
    """One circuit.

    settings: what opens it, and for how long.
    clock: seconds, never going back.
    on_change: hears the new state after every change.
    """

    def __init__(
        self,
        settings: BreakerSettings | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
        on_change: Callable[[State], None] | None = None,
    ) -> None:
        self._settings = settings if settings is not None else BreakerSettings()
        self._clock = clock
        self._on_change = on_change
        self._window = RateWindow(self._settings.window)
        self._state: State = "closed"
        self._opened = 0.0
        self._probe = 0
        self._probes = 0
        self._probed = 0.0
        self._hopes = False
        self._ticket = Ticket(0, 0)
        self.closed: Ticket | None = self._ticket
        """What `admit` answers while it is closed; None: it is not."""
        self.asked = False
        """For whoever keeps many: set where it is asked for."""
        self._in_a_row = False
        self._circuit = CircuitBreaker(
            fail_max=self._settings.consecutive,
            reset_timeout=self._settings.open_for,
            listeners=[_Changes(self._changed)],
            state_storage=CircuitMemoryStorage("closed"),
            throw_new_error_on_trip=False,
        )

    @property
    def state(self) -> State:
        """As it stands. An open breaker turns half-open when the first call after `open_for` seconds is admitted."""
        return self._state

    @property
    def retry_after(self) -> float:
        """Seconds until a probe may be let through; 0 while closed."""
        if self._state == "closed":
            return 0.0
        since = self._opened if self._state == "open" else self._probed
        return max(0.0, since + self._settings.open_for - self._clock())

    def admit(self) -> Ticket | None:
        """A ticket to hand back with `report` or `abandon`, or None: refused."""
        if self._state == "closed":
            return self._ticket
        now = self._clock()
        if self._state == "open":
            if now - self._opened < self._settings.open_for:
                return None
            self._circuit.half_open()
        elif self._probe and now - self._probed < self._settings.open_for:
            return None
        self._probes += 1
        self._probe = self._probes
        self._probed = now
        return Ticket(self._ticket.generation, self._probe)

    def probe_now(self) -> None:
        """There is reason to hope: the next call may be the probe, however long the breaker has been open. Of a probe
        that is under way a failure says nothing then: after it the next call is one.
        """
        if self._state == "open":
            self._opened = self._clock() - self._settings.open_for
        elif self._state == "half-open":
            self._hopes = bool(self._probe)

    def report(self, ticket: Ticket, *, failed: bool) -> None:
        """How the call ended. Ignored if the state has changed since, or another probe has taken this one's place."""
        if failed:
            self._report(ticket, failed=True)
        else:
            self.succeeded(ticket)

    def succeeded(self, ticket: Ticket) -> None:
        """As `report` of a call that did not fail: most end here."""
        if ticket is not self._ticket or self._in_a_row:
            self._report(ticket, failed=False)
            return
        # Admitted while closed, which it still is: every change makes another ticket.
        now, window = self._clock(), self._window
        if now < window.ends:
            window.calls[window.at] += 1  # as `add` does, without the call
        else:
            window.add(now, failed=False)

    def _report(self, ticket: Ticket, *, failed: bool) -> None:
        if ticket.generation != self._ticket.generation or ticket.probe != self._probe:
            return
        self._probe = 0
        if self._state == "closed":
            now = self._clock()
            self._window.add(now, failed=failed)
            if failed:
                self._count_failure()
                self._trip_on_rate(now)
            elif self._in_a_row:
                self._count_success()
        elif failed:
            hopes = self._hopes
            self._count_failure()
            if hopes:
                self.probe_now()
        else:
            self._count_success()

    def abandon(self, ticket: Ticket) -> None:
        """The call ended without evidence either way."""
        if ticket.probe and ticket.probe == self._probe:
            self._probe = 0

    def _count_success(self) -> None:
        self._in_a_row = False
        self._circuit.call(_succeed)

    def _count_failure(self) -> None:
        self._in_a_row = True  # pybreaker counts how many; while there are none, it need not hear of a success
        try:
            self._circuit.call(_fail)
        except _Failed:
            return  # pybreaker raises it again, as it should: it has counted

    def _trip_on_rate(self, now: float) -> None:
        if self._state != "closed":
            return
        failures, calls = self._window.counts(now)
        if calls >= self._settings.minimum and failures >= calls * self._settings.failure_rate:
            self._circuit.open()

    def _changed(self, state: State) -> None:
        self._state = state
        self._ticket = Ticket(self._ticket.generation + 1, 0)
        self.closed = self._ticket if state == "closed" else None
        self._probe = 0
        self._hopes = False
        self._window.clear()
        if state == "open":
            self._opened = self._clock()
        if self._on_change is not None:
            self._on_change(state)


def report_to(metrics: Metrics, name: str) -> Callable[[State], None]:
    """An `on_change` that keeps the gauge and counts the transitions of the breaker `name`."""
    gauge = metrics.breaker_state.labels(name)
    gauge.set(LEVELS["closed"])
    transitions: dict[State, Callable[[], None]] = {
        state: metrics.breaker_transitions.labels(name, state).inc for state in LEVELS
    }

    def changed(state: State) -> None:
        gauge.set(LEVELS[state])
        transitions[state]()

    return changed
