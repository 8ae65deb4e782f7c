"""One rollout, from what the journal says to what the flag is: look, read, judge, decide, write down, act, write down.

Guaranteed: what is about to be done to a flag stands in the journal before it is done, and its result after, so a
controller that is killed at any instant is resumed by the next one where it stood; an outage of the metrics or of the
flag service neither advances nor rolls back, but holds, said once an episode; a person's edit of the flag pauses.
Not guaranteed: that only one controller acts on a flag in the instant in which a lease changes hands; see
`tidegate.rollout.actuator` for why that is harmless.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from tidegate.errors import FlagError, MetricsError, RolloutError
from tidegate.rollout.actuator import Actuator, FlagState, begin, open_to, shut
from tidegate.rollout.analysis import Evidence, Judge, Verdict
from tidegate.rollout.machine import FINAL, JUDGED, Decision, Event, State, after, decide
from tidegate.rollout.metrics import RolloutMetrics
from tidegate.rollout.records import ConflictError, Intent, Lease, LostLeaseError, Rollout
from tidegate.rollout.source import CohortQuery, MetricsSource
from tidegate.rollout.store import Journal

__all__ = ["Reconciler", "StopCheck"]

StopCheck = Callable[[str, str], Awaitable[str | None]]
"""Why a flag is stopped in an environment; None: it is not. Raises FlagError if that cannot be told."""


_log = logging.getLogger("tidegate.rollout")


class Reconciler:
    """Brings one rollout at a time forward, or back.

    lease: the right to write; without it every change raises LostLeaseError. clock: seconds since the epoch.
    stopped: asked before each look at a flag: a person who stopped it has ended its rollout. While it cannot tell,
        nothing is opened further, and judging goes on.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        actuator: Actuator,
        source: MetricsSource,
        judge: Judge,
        metrics: RolloutMetrics,
        clock: Callable[[], float],
        stopped: StopCheck | None = None,
    ) -> None:
        self.lease: Lease | None = None
        self._journal = journal
        self._actuator = actuator
        self._source = source
        self._judge = judge
        self._metrics = metrics
        self._clock = clock
        self._stopped = stopped
        self._locks: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def tick(self, rollout: Rollout, at: float) -> None:
        """One tick of a rollout that is open: look, read, judge, decide, act. `at`: the tick's time on the grid."""
        self._metrics.ticks.labels(rollout.name).inc()
        unknown = ""
        try:
            if await self._ended_by_stop(rollout):
                return None
        except FlagError as error:
            unknown = str(error)
        try:
            flag = await self._actuator.read(rollout.flag, rollout.environment)
        except FlagError as error:
            self._metrics.errors.labels("flag").inc()
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
        if unknown and decision.event is Event.OPENED:
            return await self._hold(rollout, f"not opened further: {unknown}", "stops_unreadable")
        return await self._carry_out(rollout, decision, evidence, at)

    async def _ended_by_stop(self, rollout: Rollout) -> bool:
        """End a rollout whose flag is stopped. Whether it was.

        Raises:
            FlagError: if that cannot be told.
        """
        if self._stopped is None:
            return False
        try:
            stop = await self._stopped(rollout.flag, rollout.environment)
        except FlagError:
            self._metrics.errors.labels("stops").inc()
            raise
        if stop is None:
            return False
        await self.roll_back(rollout, Event.ABORT, f"{rollout.flag} is {stop}")
        return True

    async def _judged(self, rollout: Rollout, at: float) -> tuple[Rollout, tuple[Verdict, ...], dict[str, Any]] | None:
        """The verdicts on the window that ends at `at`, with their numbers; None if the metrics cannot be read."""
        spec = rollout.spec
        query = CohortQuery(
            flag=spec.flag, select=spec.select, le=spec.objectives.slow.over if spec.objectives.slow else None
        )
        try:
            series = await self._source.samples(query, at - spec.window, at)
        except MetricsError as error:
            self._metrics.errors.labels("metrics").inc()
            await self._hold(rollout, f"metrics: {error}", "metrics")
            return None
        evidence = Evidence.of(spec, series, step=rollout.step, opened=rollout.opened, at=at)
        judgement = self._judge.judge(spec, evidence, rollout.memory)
        self._metrics.judged(rollout, judgement.verdicts)
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
            await self.roll_back(rollout, Event.BAD, decision.reason, evidence)
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

    async def begin(self, rollout: Rollout) -> None:
        """Turn the flag on at 0 % and open it to the first step."""
        try:
            if await self._ended_by_stop(rollout):
                return
        except FlagError as error:
            await self._hold(rollout, f"not opened: {error}", "stops_unreadable")
            return
        percent = rollout.spec.steps[0].percent
        async with self._locks[rollout.id]:
            if rollout.intent is None:
                intent = Intent(do="begin", percent=percent, at=self._clock(), reason=f"open to {percent} %")
                rollout = self._write(replace(rollout, intent=intent, reason=intent.reason), "intent")
            try:
                await begin(
                    self._actuator, rollout.flag, rollout.environment, percent, confirm=lambda: self._unchanged(rollout)
                )
                now = self._clock()
                opened = replace(rollout, step=0, percent=percent, opened=now, entered=now, intent=None, cause="")
                self._record(replace(opened, reason=f"opened to {percent} %"), Event.OPENED)
            except FlagError as error:
                self._metrics.errors.labels("flag").inc()
                await self._hold(rollout, f"the flag could not be opened: {error}", "flag_write")
            except ConflictError:
                await self._undo(rollout)
                raise

    async def _open(self, rollout: Rollout, percent: int, reason: str, evidence: Mapping[str, Any], at: float) -> None:
        """Open the flag to the next step: write the intent, act, read back, write the result."""
        async with self._locks[rollout.id]:
            intent = Intent(do="open", step=rollout.step + 1, percent=percent, at=at, reason=reason)
            again = rollout.intent is not None and (rollout.intent.do, rollout.intent.step) == ("open", intent.step)
            kind = None if again else "intent"
            rollout = self._write(replace(rollout, intent=intent, reason=reason), kind, evidence)
            try:
                await open_to(self._actuator, rollout.flag, rollout.environment, percent)
            except FlagError as error:
                self._metrics.errors.labels("flag").inc()
                await self._hold(rollout, f"the flag could not be moved: {error}", "flag_write")
                return
            await self._opened(rollout, intent, f"opened to {percent} %")

    async def _opened(self, rollout: Rollout, intent: Intent, reason: str) -> None:
        moved = replace(
            rollout,
            step=intent.step,
            percent=intent.percent,
            opened=intent.at,
            entered=intent.at,
            intent=None,
            cause="",
        )
        self._record(replace(moved, reason=reason), Event.OPENED)

    async def _undo(self, rollout: Rollout) -> None:
        """A flag was turned on for a rollout that was ended in the same instant: shut it again."""
        if self._journal.by_id(rollout.id).state in FINAL:
            await shut(self._actuator, rollout.flag, rollout.environment)

    async def _hold(self, rollout: Rollout, reason: str, cause: str) -> None:
        self._metrics.holds.labels(rollout.name, cause).inc()
        self._record(replace(rollout, reason=reason, cause=cause), Event.UNKNOWN, rollout.latest)

    async def _drifted(self, rollout: Rollout, flag: FlagState) -> None:
        """Somebody moved the flag: respect it, say who if that is known, and wait for a person."""
        editor = None
        try:
            editor = await self._actuator.last_editor(rollout.flag, rollout.environment)
        except FlagError as error:
            self._metrics.errors.labels("flag").inc()
            _log.warning("%s: who edited the flag is not known: %s", rollout.name, error)
        expected = FlagState(enabled=True, percentage=rollout.percent)
        reason = f"the flag is {flag}, left as {expected}: edited by {editor or 'somebody'}"
        self._record(replace(rollout, reason=reason, cause="drift"), Event.DRIFT)

    async def roll_back(
        self, rollout: Rollout, event: Event, reason: str, evidence: Mapping[str, Any] | None = None
    ) -> None:
        """Decide to shut, write it down, and shut at once. What fails is tried again by the controller."""
        async with self._locks[rollout.id]:
            fresh = self._journal.by_id(rollout.id)
            if event is Event.BAD and fresh.version != rollout.version:
                raise ConflictError(f"rollout {rollout.name} was changed during the tick")
            if event is Event.ALERT and fresh.state not in JUDGED | {State.PENDING, State.PAUSED}:
                return
            intent = Intent(do="shut", on_request=event is Event.ABORT, at=self._clock(), reason=reason)
            shutting = replace(fresh, latest=rollout.latest, memory=rollout.memory, intent=intent)
            await self._shut(self._record(replace(shutting, reason=reason, cause=""), event, evidence))

    async def shut_again(self, rollout: Rollout) -> None:
        """Try once more to shut the flag of a rollout that is rolling back."""
        async with self._locks[rollout.id]:
            await self._shut(self._journal.by_id(rollout.id))

    async def _shut(self, rollout: Rollout) -> None:
        """Shut the flag of a rollout that is rolling back; called under its lock."""
        intent = rollout.intent
        if rollout.state is not State.ROLLING_BACK or intent is None:
            return
        try:
            await shut(self._actuator, rollout.flag, rollout.environment)
        except FlagError as error:
            self._metrics.errors.labels("flag").inc()
            await self._hold(rollout, f"not shut yet: {error} ({intent.reason})", "flag_write")
            return
        over = replace(rollout, percent=0, intent=None, reason=intent.reason, cause="")
        self._record(over, Event.STOPPED if intent.on_request else Event.SHUT, rollout.latest)

    def pause(self, rollout: Rollout, reason: str) -> None:
        """Leave the flag where it is and stop judging."""
        self._record(replace(rollout, reason=reason, cause="paused"), Event.PAUSE)

    async def resume(self, rollout: Rollout, reason: str) -> None:
        """Go on after a pause, at the percentage of the step; a flag that was turned off stays off."""
        after(rollout.state, Event.RESUME)
        if await self._ended_by_stop(rollout):
            raise RolloutError(f"{rollout.flag} was stopped, which ended the rollout; lift it, then start anew")
        flag = await self._actuator.read(rollout.flag, rollout.environment)
        if not flag.enabled:
            raise RolloutError(f"{rollout.flag} was turned off, and only start turns it on: abort, then start anew")
        await open_to(self._actuator, rollout.flag, rollout.environment, rollout.percent)
        now = self._clock()
        moved = replace(rollout, opened=now, entered=now, reason=reason, cause="", intent=None)
        self._record(moved, Event.RESUME)

    # --- the journal ---------------------------------------------------------------

    def _unchanged(self, rollout: Rollout) -> Rollout:
        """The rollout as the journal has it; raises ConflictError if somebody else has changed it."""
        found = self._journal.by_id(rollout.id)
        if found.version != rollout.version:
            raise ConflictError(f"rollout {rollout.name} was changed by somebody else")
        return found

    def _record(self, rollout: Rollout, event: Event, evidence: Mapping[str, Any] | None = None) -> Rollout:
        """Move the machine by `event` and write it; a line of the log only when something new began."""
        before = self._unchanged(rollout)
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
        self._metrics.show(written)
        if kind is not None:
            _log.info("%s: %s: %s", written.name, written.state if kind != "intent" else "intent", written.reason)
        return written
