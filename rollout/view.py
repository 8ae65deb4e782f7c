"""A rollout as others see it: a mapping for JSON, lines for a log. Pure."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tidegate.rollout.fields import show_duration, show_ratio
from tidegate.rollout.records import Entry, Rollout

__all__ = ["age", "entry_line", "headline", "summary", "verdict_lines"]


def summary(rollout: Rollout, entries: Sequence[Entry]) -> dict[str, Any]:
    """Everything about a rollout that JSON can hold; times in seconds since the epoch."""
    return {
        "name": rollout.name,
        "flag": rollout.flag,
        "environment": rollout.environment,
        "state": str(rollout.state),
        "step": rollout.step,
        "steps": [step.percent for step in rollout.spec.steps],
        "percent": rollout.percent,
        "opened": rollout.opened,
        "entered": rollout.entered,
        "reason": rollout.reason,
        "cause": rollout.cause,
        "created": rollout.created,
        "updated": rollout.updated,
        "latest": dict(rollout.latest),
        "log": [
            {
                "at": entry.at,
                "kind": entry.kind,
                "from": entry.came_from,
                "to": entry.went_to,
                "reason": entry.reason,
                "evidence": dict(entry.evidence),
            }
            for entry in entries
        ],
    }


def headline(rollout: Rollout) -> str:
    """One line: name, state, how far, where."""
    step = f"step {rollout.step + 1} of {len(rollout.spec.steps)}"
    return (
        f"{rollout.name}: {rollout.state} at {rollout.percent} % ({step}), {rollout.flag} in {rollout.environment}: "
        f"{rollout.reason or 'waiting for a controller'}"
    )


def verdict_lines(latest: Mapping[str, Any]) -> list[str]:
    """One line an objective: outcome, and the reason with its numbers; control beside it where it speaks."""
    lines: list[str] = []
    for verdict in latest.get("verdicts", ()):
        control = verdict["control"]
        beside = ""
        if control is not None and "control" not in verdict["reason"]:
            beside = f" [control {show_ratio(control)}]"
        lines.append(f"{verdict['objective']:<9} {verdict['outcome']:<7} {verdict['reason']}{beside}")
    return lines


def entry_line(entry: Entry) -> str:
    """One line of the log, with local time."""
    moved = f"{entry.came_from} -> {entry.went_to}" if entry.came_from != entry.went_to else entry.went_to
    clock = time.strftime("%H:%M:%S", time.localtime(entry.at))
    return f"{clock} {entry.kind:<8} {moved:<25} {entry.reason}"


def age(seconds: float) -> str:
    """A span as a person says it: 5s, 2m5s, 1h2m."""
    whole = max(0, int(seconds))
    if whole < 60:
        return show_duration(whole)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60}s"
    return f"{whole // 3600}h{whole % 3600 // 60}m"
