"""Draws a rollout as it goes: with rich on a terminal, as plain lines elsewhere."""

import time
from collections.abc import Callable, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tidegate.rollout.fields import show_ratio
from tidegate.rollout.machine import FINAL, State
from tidegate.rollout.records import Entry, Rollout
from tidegate.rollout.store import Journal
from tidegate.rollout.view import age, entry_line, headline, verdict_lines

__all__ = ["draw", "watch"]

_LOOK = 0.5
"""Seconds between two looks at the journal."""
_COLOURS = {"good": "green", "bad": "red", "unknown": "yellow"}


def watch(journal: Journal, name: str, console: Console, *, sleep: Callable[[float], None] = time.sleep) -> State:
    """Show a rollout until it is over; the answer is how it ended.

    Raises:
        RolloutError: if the journal knows no such rollout.
    """
    rollout = journal.get(name)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(draw(rollout, journal.entries(rollout.id, 8), time.time()), refresh=True)
                if rollout.state in FINAL:
                    return rollout.state
                sleep(_LOOK)
                rollout = journal.by_id(rollout.id)
    return _plain(journal, rollout, console, sleep)


def _plain(journal: Journal, rollout: Rollout, console: Console, sleep: Callable[[float], None]) -> State:
    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    say(headline(rollout))
    told, judged = 0, 0.0
    while True:
        entries = journal.entries(rollout.id, 1000)
        for entry in entries[told:]:
            say(entry_line(entry))
        told = len(entries)
        if rollout.latest.get("at", 0.0) > judged:
            judged = rollout.latest["at"]
            for line in verdict_lines(rollout.latest):
                say(f"  {line}")
        if rollout.state in FINAL:
            return rollout.state
        sleep(_LOOK)
        rollout = journal.by_id(rollout.id)


def draw(rollout: Rollout, entries: Sequence[Entry], now: float) -> Group:
    """Steps as a bar, each objective with canary, control and limit, the last decisions."""
    title = Text(f"{rollout.name}  {rollout.flag} in {rollout.environment}", style="bold")
    state = Text(f"{rollout.state} at {rollout.percent} % for {age(now - rollout.entered)}", style=_style(rollout))
    if rollout.reason:
        state.append(f"\n{rollout.reason}", style="default")
    log = Text("\n".join(entry_line(entry) for entry in entries), style="dim")
    return Group(title, _bar(rollout), state, _objectives(rollout), log)


def _bar(rollout: Rollout) -> Text:
    bar = Text()
    for index, step in enumerate(rollout.spec.steps):
        reached = rollout.percent >= step.percent
        here = reached and index == rollout.step and rollout.state not in FINAL
        mark, style = ("●", "bold cyan") if here else ("●", "green") if reached else ("○", "dim")
        bar.append(f"{'──' if index else ''}{mark} {step.percent}% ", style=style)
    return bar


def _objectives(rollout: Rollout) -> Table:
    table = Table(expand=False)
    for column in ("objective", "canary", "control", "limit", "requests", "verdict", "why"):
        table.add_column(column, overflow="fold")
    for verdict in rollout.latest.get("verdicts", ()):
        ratio, control, requests = verdict["ratio"], verdict["control"], verdict["requests"]
        table.add_row(
            verdict["objective"],
            "-" if ratio is None else show_ratio(ratio),
            "-" if control is None else show_ratio(control),
            show_ratio(verdict["limit"]),
            "-" if requests is None else f"{requests:.0f}",
            Text(verdict["outcome"], style=_COLOURS[verdict["outcome"]]),
            verdict["reason"],
        )
    return table


def _style(rollout: Rollout) -> str:
    if rollout.state in (State.ROLLING_BACK, State.ROLLED_BACK, State.ABORTED):
        return "bold red"
    return "bold yellow" if rollout.state in (State.HOLDING, State.PAUSED) else "bold green"
