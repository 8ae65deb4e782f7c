"""The rollout's state machine: a table, and the one pure function that picks the next event from the evidence.

Two rules that the table keeps: nothing leads out of a final state, and once a rollout shuts it only shuts
(`rolling_back` leads to `rolled_back` or `aborted`, whatever else happens). `diagram()` draws the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tidegate.errors import RolloutError
from tidegate.rollout.analysis import Cause, Verdict, worst
from tidegate.rollout.fields import show_duration
from tidegate.rollout.spec import RolloutSpec

__all__ = ["ACTIVE", "FINAL", "JUDGED", "TABLE", "Decision", "Event", "State", "after", "decide", "diagram"]


class State(StrEnum):
    """Where a rollout is. `observing` and `holding` belong to a step."""

    PENDING = "pending"
    OBSERVING = "observing"
    HOLDING = "holding"
    PAUSED = "paused"
    BAKING = "baking"
    DONE = "done"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"


class Event(StrEnum):
    """What can happen to a rollout."""

    OPENED = "opened"
    """The flag was opened to the first step, or to the next."""
    GOOD = "good"
    """All objectives hold; the dwell is not over."""
    UNKNOWN = "unknown"
    """No evidence, or no answer from Prometheus or the flag service."""
    BAKE = "bake"
    """The last step has dwelt on good evidence."""
    FINISH = "finish"
    """The bake is over on good evidence."""
    BAD = "bad"
    """An objective is missed."""
    ALERT = "alert"
    """A firing alert matches."""
    ABORT = "abort"
    """A person asked for the flag to be shut."""
    DRIFT = "drift"
    """The flag is not as the controller left it: somebody edited it."""
    PAUSE = "pause"
    RESUME = "resume"
    SHUT = "shut"
    """The flag is shut, for cause."""
    STOPPED = "stopped"
    """The flag is shut, because a person wanted it (abort, kill)."""


_SHUTTING: Final = {
    Event.BAD: State.ROLLING_BACK,
    Event.ALERT: State.ROLLING_BACK,
    Event.ABORT: State.ROLLING_BACK,
    Event.STOPPED: State.ABORTED,
}
_LOOKED_AFTER: Final = {**_SHUTTING, Event.DRIFT: State.PAUSED, Event.PAUSE: State.PAUSED}
_STEP: Final = {
    **_LOOKED_AFTER,
    Event.OPENED: State.OBSERVING,
    Event.GOOD: State.OBSERVING,
    Event.UNKNOWN: State.HOLDING,
    Event.BAKE: State.BAKING,
}

TABLE: Final[Mapping[State, Mapping[Event, State]]] = {
    State.PENDING: {
        Event.OPENED: State.OBSERVING,
        Event.UNKNOWN: State.PENDING,
        Event.ALERT: State.ROLLING_BACK,
        Event.ABORT: State.ROLLING_BACK,
        Event.STOPPED: State.ABORTED,
    },
    State.OBSERVING: _STEP,
    State.HOLDING: _STEP,
    State.PAUSED: {
        Event.RESUME: State.OBSERVING,
        Event.ALERT: State.ROLLING_BACK,
        Event.ABORT: State.ROLLING_BACK,
        Event.STOPPED: State.ABORTED,
    },
    State.BAKING: {
        **_LOOKED_AFTER,
        Event.GOOD: State.BAKING,
        Event.UNKNOWN: State.BAKING,
        Event.FINISH: State.DONE,
    },
    State.ROLLING_BACK: {
        Event.UNKNOWN: State.ROLLING_BACK,
        Event.ABORT: State.ROLLING_BACK,
        Event.SHUT: State.ROLLED_BACK,
        Event.STOPPED: State.ABORTED,
    },
    State.DONE: {},
    State.ROLLED_BACK: {},
    State.ABORTED: {},
}
"""(state, event) -> next state. What is not in it cannot happen."""

FINAL: Final = frozenset(state for state, events in TABLE.items() if not events)
ACTIVE: Final = frozenset(TABLE) - FINAL
JUDGED: Final = frozenset({State.OBSERVING, State.HOLDING, State.BAKING})
"""States in which evidence is read."""


def after(state: State, event: Event) -> State:
    """The state that `event` leads to.

    Raises:
        RolloutError: if the event cannot happen in this state; the message names what can.
    """
    try:
        return TABLE[state][event]
    except KeyError:
        possible = ", ".join(sorted(TABLE[state])) or "nothing: it is over"
        raise RolloutError(f"a rollout that is {state} cannot take {event}; possible: {possible}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do now, and why.

    event: what happens to the machine. OPENED asks for the flag to be opened to `percent` first, BAD for it to be shut.
    cause: a fixed word for a hold, for the metric and to tell one episode of holding from the next; else empty.
    """

    event: Event
    reason: str
    cause: str = ""
    percent: int | None = None


def decide(
    spec: RolloutSpec, state: State, *, step: int, entered: float, verdicts: tuple[Verdict, ...], now: float
) -> Decision:
    """The decision for a judged state (see JUDGED). `entered`: when the step, or the bake, began."""
    outcome = worst(verdicts)
    told = "; ".join(dict.fromkeys(verdict.reason for verdict in verdicts if verdict.outcome == outcome))
    if outcome == "bad":
        return Decision(event=Event.BAD, reason=told)
    if outcome == "unknown":
        return Decision(event=Event.UNKNOWN, reason=told or "nothing was judged", cause=_cause(verdicts))
    baking = state is State.BAKING
    stay = spec.bake if baking else spec.steps[step].dwell
    age = now - entered
    if age < stay:
        word = "bake" if baking else "dwell"
        lasting = f"{word} {show_duration(int(age))} of {show_duration(stay)}"
        return Decision(event=Event.GOOD, reason=f"{told}; {lasting}")
    if baking:
        return Decision(event=Event.FINISH, reason=f"{told}; baked {show_duration(stay)}")
    if step + 1 == len(spec.steps):
        return Decision(event=Event.BAKE, reason=f"{told}; dwelt {show_duration(stay)} at {spec.steps[step].percent} %")
    percent = spec.steps[step + 1].percent
    reason = f"{told}; dwelt {show_duration(stay)} at {spec.steps[step].percent} %: open to {percent} %"
    return Decision(event=Event.OPENED, reason=reason, percent=percent)


def _cause(verdicts: tuple[Verdict, ...]) -> Cause:
    causes: list[Cause] = [verdict.cause for verdict in verdicts if verdict.outcome == "unknown"]
    return causes[0] if causes else "no_data"


def diagram() -> str:
    """The table as text, one line for each state that an event leads to."""
    lines: list[str] = []
    for state, events in TABLE.items():
        if not events:
            lines.append(f"{state} (final)")
        for target in dict.fromkeys(events.values()):
            by = ", ".join(event for event, to in events.items() if to is target)
            arrow = "stays" if target is state else f"-> {target}"
            lines.append(f"{state} {arrow}  on {by}")
    return "\n".join(lines)
