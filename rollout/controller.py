"""The controller: for each rollout and tick it looks at the flag, reads the counters, judges, writes down, and acts.

Guaranteed: what is about to be done to a flag stands in the journal before it is done, and its result after, so a
controller that is killed at any instant is resumed by the next one where it stood; an outage of the metrics or of the
flag service neither advances nor rolls back, but holds, said once an episode; a person's edit of the flag pauses.
Not guaranteed: that only one controller acts on a flag in the instant in which a lease changes hands; see
`tidegate.rollout.actuator` for why that is harmless.
"""

import asyncio
import logging
import os
import socket
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from tidegate.errors import FlagError, MetricsError, RolloutError
from tidegate.rollout.actuator import Actuator, FlagState, begin, open_to, shut
from tidegate.rollout.analysis import Evidence, Judge, ThresholdJudge, Verdict
from tidegate.rollout.machine import FINAL, JUDGED, Decision, Event, State, after, decide
from tidegate.rollout.metrics import RolloutMetrics
from tidegate.rollout.records import Command, ConflictError, Intent, Lease, LostLeaseError, Rollout
from tidegate.rollout.source import CohortQuery, MetricsSource
from tidegate.rollout.store import Journal

__all__ = ["LEASE_SECONDS", "Controller", "matches"]

LEASE_SECONDS: Final = 5.0
"""How long a lease lasts that is not renewed: a killed controller's successor waits so long at most."""
_RETRY: Final = 1.0
"""Seconds between two tries to shut a flag, or to begin."""

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

    clock: seconds since the epoch. holder: how this controller calls itself in the lease.
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
    ) -> None:
        self.metrics = metrics or RolloutMetrics()
        self.lease: Lease | None = None
        self._journal = journal
        self._actuator = actuator
        self._source = source
        self._judge = judge or ThresholdJudge()
        self._clock = clock
        self._holder = holder or f"{socket.gethostname()}:{os.getpid()}"
        self._locks: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._ticked: dict[int, float] = {}
        self._retry_at: dict[int, float] = {}
        self._busy: _Tasks = {}
        self._obeying: _Tasks = {}
        self._renewed = 0.0

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
        """Shut the flag of every rollout that this firing alert concerns, now; the answer names the rollouts."""
        told = "alert " + ", ".join(f"{name}={value}" for name, value in sorted(labels.items()))
        concerned = [rollout for rollout in self._journal.active() if matches(rollout.spec.alerts, labels)]
        shut_down: list[str] = []
        for rollout in concerned:
            if self.lease is None:
                self._journal.ask(rollout, Event.ALERT, told, self._clock())
            else:
                await self._roll_back(rollout, Event.ALERT, told, {"labels": dict(labels)})
            shut_down.append(rollout.name)
        return shut_down

    async def close(self) -> None:
        """Finish what is being written and give the lease back."""
        await _all(self._obeying)
        await _all(self._busy)
        if self.lease is not None:
            self._journal.release(self.lease)
            self.lease = None

    def _leading(self, now: float) -> bool:
        """Whether this controller may act; renews the lease well before its end."""
        if self.lease is None or not 0 <= now - self._renewed < LEASE_SECONDS / 5:
            lease = self._journal.acquire(self._holder, now, LEASE_SECONDS)
            if lease is not None and lease != self.lease:
                _log.info("holding the lease on %s as %s (token %d)", self._journal.path, lease.holder, lease.token)
            self.lease, self._renewed = lease, now
            self.metrics.leader.set(lease is not None)
        return self.lease is not None

    # --- one rollout -------------------------------------------------------------

    def _due(self, rollout: Rollout, now: float) -> bool:
        """Whether there is something to do: a tick of the fixed grid that nobody did yet, or another try."""
        if rollout.state in (State.PENDING, State.ROLLING_BACK):
            return now >= self._retry_at.get(rollout.id, 0.0)
        at = _grid(now, rollout)
        done = max(self._ticked.get(rollout.id, 0.0), rollout.latest.get("at", 0.0), rollout.entered)
        return rollout.state in JUDGED and at > done

    async def _guarded(self, rollout: Rollout, now: float) -> None:
        """Attend to one rollout; whatever goes wrong with it stays with it."""
        try:
            if rollout.state is State.PENDING:
                await self._begin(rollout, now)
            elif rollout.state is State.ROLLING_BACK:
                async with self._locks[rollout.id]:
                    await self._shut(self._journal.by_id(rollout.id))
            else:
                at = self._ticked[rollout.id] = _grid(now, rollout)
                await self.tick(rollout, at)
        except ConflictError:
            _log.info("%s: changed by somebody else during the tick; reading it again", rollout.name)
        except LostLeaseError as error:
            self.lease = None
            _log.warning("%s: %s", rollout.name, error)
        except Exception:
            self.metrics.errors.labels("controller").inc()
            self._retry_at[rollout.id] = now + _RETRY
            _log.exception("%s: the tick failed", rollout.name)

    async def tick(self, rollout: Rollout, at: float) -> None:
        """One tick of a rollout that is open: look, read, judge, decide, act. `at`: the tick's time on the grid."""
        self.metrics.ticks.labels(rollout.name).inc()
        try:
            flag = await self._actuator.read(rollout.flag, rollout.environment)
        except FlagError as error:
            self.metrics.errors.labels("flag").inc()
            return await self._hold(rollout, f"the flag could not be read: {error}", "flag_unreadable")
        intent = rollout.intent
        if intent is not None and flag == FlagState(enabled=True, percentage=intent.percent):
            return await self._opened(rollout, intent, "found done after an interruption")
        if flag != FlagState(enabled=True, percentage=rollout.percent):
            return await self._drifted(rollout, flag)
        judged = await self._judged(rollout, at)
        if judged is None:
            return None
        rollout, verdicts, evidence = judged
        decision = decide(
            rollout.spec, rollout.state, step=rollout.step, entered=rollout.entered, verdicts=verdicts, now=at
        )
        return await self._carry_out(rollout, decision, evidence, at)

    async def _judged(self, rollout: Rollout, at: float) -> tuple[Rollout, tuple[Verdict, ...], dict[str, Any]] | None:
        """The verdicts on the window that ends at `at`, with their numbers; None if the metrics cannot be read."""
        spec = rollout.spec
        query = CohortQuery(
            flag=spec.flag, select=spec.select, le=spec.objectives.slow.over if spec.objectives.slow else None
        )
        try:
            series = await self._source.samples(query, at - spec.window, at)
        except MetricsError as error:
            self.metrics.errors.labels("metrics").inc()
            await self._hold(rollout, f"metrics: {error}", "metrics")
            return None
        evidence = Evidence.of(spec, series, step=rollout.step, entered=rollout.entered, at=at)
        judgement = self._judge.judge(spec, evidence, rollout.memory)
        self.metrics.judged(rollout, judgement.verdicts)
        numbers: dict[str, Any] = {
            "at": at,
            "series": len(series),
            "verdicts": [asdict(verdict) for verdict in judgement.verdicts],
            "canary": asdict(evidence.canary),
            "control": asdict(evidence.control),
            "warm": asdict(evidence.warm),
        }
        return replace(rollout, memory=judgement.memory, latest=numbers), judgement.verdicts, numbers

    async def _carry_out(self, rollout: Rollout, decision: Decision, evidence: Mapping[str, Any], at: float) -> None:
        if decision.event is Event.BAD:
            await self._roll_back(rollout, Event.BAD, decision.reason, evidence)
        elif decision.event is Event.OPENED:
            assert decision.percent is not None
            await self._open(rollout, decision.percent, decision.reason, evidence, at)
        elif decision.event is Event.UNKNOWN:
            await self._hold(rollout, decision.reason, decision.cause)
        else:
            entered = at if decision.event is Event.BAKE else rollout.entered
            moved = replace(rollout, entered=entered, reason=decision.reason, cause="")
            self._record(moved, decision.event, evidence)

    # --- transitions -------------------------------------------------------------

    async def _begin(self, rollout: Rollout, now: float) -> None:
        """Turn the flag on at 0 % and open it to the first step."""
        self._retry_at[rollout.id] = now + _RETRY
        percent = rollout.spec.steps[0].percent
        async with self._locks[rollout.id]:
            if rollout.intent is None:
                intent = Intent(do="begin", percent=percent, at=now, reason=f"open to {percent} %")
                rollout = self._write(replace(rollout, intent=intent, reason=intent.reason), "intent")
            try:
                await begin(self._actuator, rollout.flag, rollout.environment, percent)
            except FlagError as error:
                self.metrics.errors.labels("flag").inc()
                await self._hold(rollout, f"the flag could not be opened: {error}", "flag_write")
                return
            opened = replace(rollout, step=0, percent=percent, entered=self._clock(), intent=None, cause="")
            try:
                self._record(replace(opened, reason=f"opened to {percent} %"), Event.OPENED)
            except ConflictError:
                await self._undo(rollout)
                raise

    async def _open(self, rollout: Rollout, percent: int, reason: str, evidence: Mapping[str, Any], at: float) -> None:
        """Open the flag to the next step: write the intent, act, read back, write the result."""
        async with self._locks[rollout.id]:
            intent = Intent(do="open", step=rollout.step + 1, percent=percent, at=at, reason=reason)
            rollout = self._write(replace(rollout, intent=intent, reason=reason), "intent", evidence)
            try:
                await open_to(self._actuator, rollout.flag, rollout.environment, percent)
            except FlagError as error:
                self.metrics.errors.labels("flag").inc()
                await self._hold(rollout, f"the flag could not be moved: {error}", "flag_write")
                return
            await self._opened(rollout, intent, f"opened to {percent} %")

    async def _opened(self, rollout: Rollout, intent: Intent, reason: str) -> None:
        moved = replace(rollout, step=intent.step, percent=intent.percent, entered=intent.at, intent=None, cause="")
        self._record(replace(moved, reason=reason), Event.OPENED)

    async def _undo(self, rollout: Rollout) -> None:
        """A flag was turned on for a rollout that was ended in the same instant: shut it again."""
        if self._journal.by_id(rollout.id).state in FINAL:
            await shut(self._actuator, rollout.flag, rollout.environment)

    async def _hold(self, rollout: Rollout, reason: str, cause: str) -> None:
        self.metrics.holds.labels(rollout.name, cause).inc()
        self._record(replace(rollout, reason=reason, cause=cause), Event.UNKNOWN, rollout.latest)

    async def _drifted(self, rollout: Rollout, flag: FlagState) -> None:
        """Somebody moved the flag: respect it, say who if that is known, and wait for a person."""
        editor = None
        try:
            editor = await self._actuator.last_editor(rollout.flag, rollout.environment)
        except FlagError as error:
            self.metrics.errors.labels("flag").inc()
            _log.warning("%s: who edited the flag is not known: %s", rollout.name, error)
        expected = FlagState(enabled=True, percentage=rollout.percent)
        reason = f"the flag is {flag}, left as {expected}: edited by {editor or 'somebody'}"
        self._record(replace(rollout, reason=reason, cause="drift"), Event.DRIFT)

    async def _roll_back(
        self, rollout: Rollout, event: Event, reason: str, evidence: Mapping[str, Any] | None = None
    ) -> None:
        """Decide to shut, write it down, and shut at once. What fails is tried again by `attend`, every second."""
        async with self._locks[rollout.id]:
            now = self._journal.by_id(rollout.id)
            if event is Event.BAD and now.version != rollout.version:
                raise ConflictError(f"rollout {rollout.name} was changed during the tick")
            if event is Event.ALERT and now.state not in JUDGED | {State.PENDING, State.PAUSED}:
                return
            intent = Intent(do="shut", on_request=event is Event.ABORT, at=self._clock(), reason=reason)
            shutting = replace(
                now, latest=rollout.latest, memory=rollout.memory, intent=intent, reason=reason, cause=""
            )
            await self._shut(self._record(shutting, event, evidence))

    async def _shut(self, rollout: Rollout) -> None:
        """Shut the flag of a rollout that is rolling back; called under its lock."""
        intent = rollout.intent
        if rollout.state is not State.ROLLING_BACK or intent is None:
            return
        self._retry_at[rollout.id] = self._clock() + _RETRY
        try:
            await shut(self._actuator, rollout.flag, rollout.environment)
        except FlagError as error:
            self.metrics.errors.labels("flag").inc()
            await self._hold(rollout, f"not shut yet: {error} ({intent.reason})", "flag_write")
            return
        over = replace(rollout, percent=0, intent=None, reason=intent.reason, cause="")
        self._record(over, Event.STOPPED if intent.on_request else Event.SHUT, rollout.latest)

    async def _obey(self, command: Command) -> None:
        """Do what a person asked, and leave the answer in the journal."""
        rollout = self._journal.by_id(command.rollout)
        try:
            if command.kind in (Event.ABORT, Event.ALERT):
                await self._roll_back(rollout, Event(command.kind), command.reason)
            elif command.kind == Event.PAUSE:
                self._record(replace(rollout, reason=command.reason, cause="paused"), Event.PAUSE)
            elif command.kind == Event.RESUME:
                await self._resume(rollout, command.reason)
            else:
                raise RolloutError(f"{command.kind!r} is not a command of this version")
        except (FlagError, RolloutError) as error:
            self._journal.answer(command.id, f"refused: {error}")
            return
        self._journal.answer(command.id, self._journal.by_id(rollout.id).state)

    async def _resume(self, rollout: Rollout, reason: str) -> None:
        """Go on after a pause, at the percentage of the step; a flag that was turned off stays off."""
        after(rollout.state, Event.RESUME)
        flag = await self._actuator.read(rollout.flag, rollout.environment)
        if not flag.enabled:
            raise RolloutError(f"{rollout.flag} was turned off, and only start turns it on: abort, then start anew")
        await open_to(self._actuator, rollout.flag, rollout.environment, rollout.percent)
        moved = replace(rollout, entered=self._clock(), reason=reason, cause="", intent=None)
        self._record(moved, Event.RESUME)

    # --- the journal ---------------------------------------------------------------

    def _record(self, rollout: Rollout, event: Event, evidence: Mapping[str, Any] | None = None) -> Rollout:
        """Move the machine by `event` and write it; a line of the log only when something new began."""
        before = self._journal.by_id(rollout.id)
        state = after(before.state, event)
        new = event not in (Event.GOOD, Event.UNKNOWN) or (state, rollout.cause) != (before.state, before.cause)
        return self._write(replace(rollout, state=state), event if new else None, evidence, came_from=before.state)

    def _write(
        self,
        rollout: Rollout,
        kind: str | None,
        evidence: Mapping[str, Any] | None = None,
        came_from: State | None = None,
    ) -> Rollout:
        if self.lease is None:
            raise LostLeaseError("the lease is not held")
        written = self._journal.record(
            rollout, kind, now=self._clock(), lease=self.lease, evidence=evidence, came_from=came_from
        )
        self.metrics.show(written)
        if kind is not None:
            _log.info("%s: %s: %s", written.name, written.state if kind != "intent" else "intent", written.reason)
        return written
