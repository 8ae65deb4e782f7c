"""The controller: who may act, when each rollout is due, what people and alerts ask.

Ticks lie on a fixed grid (multiples of the rollout's interval since the epoch), so that a restarted controller looks
at the same instants as one that was never stopped. What a tick does is in `tidegate.rollout.reconciler`.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final
from uuid import uuid4

from tidegate.errors import FlagError, RolloutError
from tidegate.rollout.actuator import Actuator
from tidegate.rollout.analysis import Judge, ThresholdJudge
from tidegate.rollout.machine import JUDGED, Event, State
from tidegate.rollout.metrics import RolloutMetrics
from tidegate.rollout.reconciler import Reconciler, StopCheck
from tidegate.rollout.records import Command, ConflictError, LostLeaseError, Rollout
from tidegate.rollout.source import MetricsSource
from tidegate.rollout.store import Journal

__all__ = ["LEASE_SECONDS", "Controller", "matches"]

LEASE_SECONDS: Final = 5.0
"""How long a lease lasts that is not renewed: a killed controller's successor waits so long at most."""
_RETRY: Final = 1.0
"""Seconds between two tries to shut a flag, or to begin."""

_RETRIED: Final = frozenset({State.PENDING, State.ROLLING_BACK})

_log = logging.getLogger("tidegate.rollout")


def matches(wanted: Sequence[Mapping[str, str]], labels: Mapping[str, str]) -> bool:
    """Whether an alert with `labels` has all labels of one of the wanted sets."""
    return any(all(labels.get(name) == value for name, value in one.items()) for one in wanted)


def _grid(now: float, rollout: Rollout) -> float:
    """The last tick of the rollout's fixed grid. Fixed, so that a restarted controller looks at the same instants."""
    return now // rollout.spec.interval * rollout.spec.interval


_Tasks = dict[int, asyncio.Task[None]]


def _in_background(tasks: _Tasks, key: int, work: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
    """Begin `work`, unless the same is still under way."""
    if key not in tasks:
        tasks[key] = asyncio.create_task(work(*args))
        tasks[key].add_done_callback(lambda _: tasks.pop(key, None))


async def _all(tasks: _Tasks) -> None:
    if tasks:
        await asyncio.wait(list(tasks.values()))


class Controller:
    """Moves the rollouts of one journal. Many controllers may run on it; the one with the lease acts.

    clock: seconds since the epoch. stopped: tells why a flag is stopped; None: nothing ever is. holder: how this
        controller calls itself in the lease; no two may use one name, and two containers may both be process 1 of one
        host, so the default holds something random.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        actuator: Actuator,
        source: MetricsSource,
        clock: Callable[[], float],
        judge: Judge | None = None,
        metrics: RolloutMetrics | None = None,
        holder: str | None = None,
        stopped: StopCheck | None = None,
    ) -> None:
        self.metrics = metrics or RolloutMetrics()
        self._journal = journal
        self._clock = clock
        self._holder = holder or f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self._reconciler = Reconciler(
            journal=journal,
            actuator=actuator,
            source=source,
            judge=judge or ThresholdJudge(),
            metrics=self.metrics,
            clock=clock,
            stopped=stopped,
        )
        self._ticked: dict[int, float] = {}
        self._retry_at: dict[int, float] = {}
        self._busy: _Tasks = {}
        self._obeying: _Tasks = {}
        self._renewed = 0.0

    @property
    def leading(self) -> bool:
        """Whether this controller holds the lease."""
        return self._reconciler.lease is not None

    # --- what the daemon calls ---------------------------------------------------

    async def attend(self, *, wait: bool = False) -> bool:
        """Do what is due now: renew the lease, obey commands, begin, tick, retry. False: another one has the lease.

        Rollouts go on side by side, each in a task of its own, so that one that waits for a slow service holds up
        no other. `wait` waits for them.

        Raises:
            RolloutError: if the journal cannot be used.
        """
        now = self._clock()
        if not self._leading(now):
            return False
        for command in self._journal.asked():
            _in_background(self._obeying, command.id, self._obey, command)
        if wait:
            await _all(self._obeying)
        for rollout in self._journal.active():
            self.metrics.show(rollout)
            if self._due(rollout, now):
                _in_background(self._busy, rollout.id, self._guarded, rollout, now)
        if wait:
            await _all(self._busy)
        return True

    async def alert(self, labels: Mapping[str, str]) -> list[str]:
        """Shut the flag of every rollout that this firing alert concerns, now; the answer names the rollouts.

        Without the lease it is left in the journal for the controller that has it.
        """
        told = "alert " + ", ".join(f"{name}={value}" for name, value in sorted(labels.items()))
        concerned = [rollout for rollout in self._journal.active() if matches(rollout.spec.alerts, labels)]
        for rollout in concerned:
            try:
                await self._reconciler.roll_back(rollout, Event.ALERT, told, {"labels": dict(labels)})
            except LostLeaseError:
                self._reconciler.lease = None
                self._journal.ask(rollout, Event.ALERT, told, self._clock())
        return [rollout.name for rollout in concerned]

    async def close(self) -> None:
        """Finish what is being written and give the lease back."""
        await _all(self._obeying)
        await _all(self._busy)
        if self._reconciler.lease is not None:
            self._journal.release(self._reconciler.lease)
            self._reconciler.lease = None

    def _leading(self, now: float) -> bool:
        """Whether this controller may act; renews the lease well before its end."""
        held = self._reconciler.lease
        if held is None or not 0 <= now - self._renewed < LEASE_SECONDS / 5:
            lease = self._journal.acquire(self._holder, now, LEASE_SECONDS)
            if lease is not None and lease != held:
                _log.info("holding the lease on %s as %s (token %d)", self._journal.path, lease.holder, lease.token)
            self._reconciler.lease, self._renewed = lease, now
            self.metrics.leader.set(lease is not None)
        return self.leading

    # --- one rollout -------------------------------------------------------------

    def _due(self, rollout: Rollout, now: float) -> bool:
        """Whether there is something to do: a tick of the fixed grid that nobody did yet, or another try."""
        if rollout.state in _RETRIED:
            # A clock that was set back is not to put off shutting a flag.
            return not 0 < self._retry_at.get(rollout.id, 0.0) - now <= _RETRY
        at = _grid(now, rollout)
        # With an intent left over by a controller that was killed, its tick is done again.
        judged = rollout.latest.get("at", 0.0) if rollout.intent is None else 0.0
        done = max(self._ticked.get(rollout.id, 0.0), judged, rollout.entered)
        return rollout.state in JUDGED and at > done

    async def _guarded(self, rollout: Rollout, now: float) -> None:
        """Attend to one rollout; whatever goes wrong with it stays with it."""
        try:
            if rollout.state in _RETRIED:
                self._retry_at[rollout.id] = now + _RETRY
            if rollout.state is State.PENDING:
                await self._reconciler.begin(rollout)
            elif rollout.state is State.ROLLING_BACK:
                await self._reconciler.shut_again(rollout)
            else:
                at = self._ticked[rollout.id] = _grid(now, rollout)
                await self._reconciler.tick(rollout, at)
        except ConflictError:
            _log.info("%s: changed by somebody else during the tick; reading it again", rollout.name)
        except LostLeaseError as error:
            self._reconciler.lease = None
            _log.warning("%s: %s", rollout.name, error)
        except Exception:  # noqa: BLE001 - a rollout that fails must not stop the others
            self.metrics.errors.labels("controller").inc()
            _log.exception("%s: the tick failed", rollout.name)

    async def _obey(self, command: Command) -> None:
        """Do what a person asked, and leave the answer in the journal."""
        rollout = self._journal.by_id(command.rollout)
        try:
            if command.kind in (Event.ABORT, Event.ALERT):
                await self._reconciler.roll_back(rollout, Event(command.kind), command.reason)
            elif command.kind == Event.PAUSE:
                self._reconciler.pause(rollout, command.reason)
            elif command.kind == Event.RESUME:
                await self._reconciler.resume(rollout, command.reason)
            else:
                raise RolloutError(f"{command.kind!r} is not a command of this version")
        except ConflictError:
            return  # it stays unanswered, and is obeyed at the next look
        except LostLeaseError:
            self._reconciler.lease = None
            return
        except (FlagError, RolloutError) as error:
            self._journal.answer(command.id, f"refused: {error}")
            return
        except Exception as error:  # noqa: BLE001 - else it would be tried again for ever
            self.metrics.errors.labels("controller").inc()
            _log.exception("%s: %s failed", rollout.name, command.kind)
            self._journal.answer(command.id, f"refused: it failed, {error!r}")
            return
        self._journal.answer(command.id, self._journal.by_id(rollout.id).state)
