"""What happens in the demo, and whether it went as it should.

First round: the canary opens 0 → 1 → 10 → 50 → 100 % while the numbers hold. Second round: at 10 % a fault is switched
on that strikes only requests whose gate is open, and the controller shuts the gate by itself.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx2
from rich.console import Console
from rich.live import Live
from rich.table import Table

from examples.demo.gauge import Meter, draw, line
from examples.demo.load import Load, Tally
from examples.demo.stage import FLAG, Stage
from tidegate.errors import TidegateError
from tidegate.rollout.records import Rollout
from tidegate.rollout.store import Journal

__all__ = ["tell"]

SPEC = """\
name: {name}
flag: {flag}
environment: {environment}
unit: user
interval: 1s
window: 6s
bake: 3s
steps:
  - {{percent: 1, dwell: 7s, min_requests: 5}}
  - {{percent: 10, dwell: 7s, min_requests: 25}}
  - {{percent: 50, dwell: 7s, min_requests: 100}}
  - {{percent: 100, dwell: 7s, min_requests: 100}}
objectives:
  errors: {{max: 2%}}
  slow: {{over: 500ms, max: 5%}}
  hit_ratio: {{min: 20%, warm_up: 4s}}
"""

OVER = frozenset({"done", "rolled_back", "aborted"})


@dataclass
class Demo:
    """The demo while it runs."""

    stage: Stage
    journal: Journal
    load: Load
    meter: Meter
    client: httpx2.AsyncClient
    live: Live | None
    act: str = ""
    said: list[str] = field(default_factory=list[str])
    told: dict[int, int] = field(default_factory=dict[int, int])
    calls: float = 0.0

    def say(self, text: str) -> None:
        """Tell something that stays on the screen."""
        self.said.append(f" {time.monotonic() - self.meter.began:5.1f} s  {text}")
        if self.live is None:
            print(self.said[-1], flush=True)

    async def show(self, rollout: Rollout | None) -> None:
        """Draw the present moment, with what the controller has decided since the last one."""
        try:
            frame = await self.meter.read(self.client, self.act, rollout)
        except httpx2.TimeoutException:
            # A machine too busy to answer /metrics in time costs a frame, not the demo; the controller holds likewise.
            self.say("the application did not answer /metrics in time")
            return
        if rollout is not None:
            entries = self.journal.entries(rollout.id, limit=200)
            for entry in entries[self.told.get(rollout.id, 0) :]:
                if entry.went_to and entry.went_to != entry.came_from:
                    self.say(f"controller: {entry.went_to}: {entry.reason}")
            self.told[rollout.id] = len(entries)
        if self.live is None:
            print(line(frame), flush=True)
        else:
            self.live.update(draw(frame, self.said))
        self.calls = frame.app_calls

    async def watch(self, name: str, until: Callable[[Rollout], bool], *, seconds: float) -> Rollout:
        """Show the rollout each second until something is so.

        Raises:
            TidegateError: if it is not within `seconds`.
        """
        deadline = time.monotonic() + seconds
        shown = 0.0
        while time.monotonic() < deadline:
            rollout = self.journal.get(name)
            if until(rollout):
                await self.show(rollout)
                return rollout
            if time.monotonic() - shown >= 1.0:
                shown = time.monotonic()
                await self.show(rollout)
            await asyncio.sleep(0.05)
        rollout = self.journal.get(name)
        raise TidegateError(f"rollout {name} is still {rollout.state} ({rollout.reason}) after {seconds:.0f} s")

    async def start(self, name: str) -> None:
        """Start a rollout, as a person would: with the command line."""
        spec = self.stage.folder / f"{name}.yaml"
        text = SPEC.format(name=name, flag=FLAG, environment=self.stage.environment)
        spec.write_text(text)
        await _tidegate(self.stage, "rollout", "start", str(spec))


async def _tidegate(stage: Stage, *arguments: str) -> None:
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tidegate.cli", *arguments, env=_environ(stage), stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await running.communicate()
    if running.returncode:
        raise TidegateError(f"tidegate {' '.join(arguments)} failed:\n{output.decode()}")


def _environ(stage: Stage) -> dict[str, str]:
    return {**os.environ, **stage.environ}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was measured, and what did not go as it should."""

    before: Tally
    after: Tally
    calls_before: float
    calls_after: float
    shut_after: float | None
    faults: tuple[str, ...]


async def tell(stage: Stage) -> bool:
    """Run both rounds and print the summary; True if all went as it should."""
    console = Console()
    console.print(f"[bold]Tidegate demo[/] — {stage.parts}")
    load = Load(stage.base)
    meter = Meter(f"{stage.base}/metrics", FLAG)
    with Journal(stage.journal) as journal:
        async with httpx2.AsyncClient(timeout=5) as client, load.running():
            if console.is_terminal:
                with Live(console=console, refresh_per_second=8) as live:
                    result = await _rounds(Demo(stage, journal, load, meter, client, live))
            else:
                result = await _rounds(Demo(stage, journal, load, meter, client, None))
    _summary(console, result)
    return not result.faults


async def _rounds(demo: Demo) -> Result:
    faults: list[str] = []
    demo.act = "gate shut"
    before, calls_before = await _measure(demo, None, 6.0)
    demo.act = "round 1"
    demo.say("round 1: the canary opens while hit ratio, errors and latency hold")
    await demo.start("first")
    first = await demo.watch("first", lambda rollout: rollout.state in OVER, seconds=90)
    if first.state != "done":
        faults.append(f"round 1 ended {first.state} instead of done: {first.reason}")
    after, calls_after = await _measure(demo, first, 6.0)
    demo.act = "round 2"
    demo.say(f"round 2: tidegate kill {FLAG}, tidegate lift, then the same again; at 10 % a fault strikes open gates")
    await _tidegate(demo.stage, "kill", FLAG)
    await _tidegate(demo.stage, "lift", FLAG)
    await demo.start("second")
    shut_after = await _second_round(demo, faults)
    if demo.load.failures:
        why = ", ".join(sorted(set(demo.load.failures)))
        faults.append(f"{len(demo.load.failures)} requests got no answer at all: {why}")
    return Result(
        before=before,
        after=after,
        calls_before=calls_before,
        calls_after=calls_after,
        shut_after=shut_after,
        faults=tuple(faults),
    )


async def _second_round(demo: Demo, faults: list[str]) -> float | None:
    at_ten = await demo.watch("second", lambda rollout: rollout.percent >= 10 or rollout.state in OVER, seconds=60)
    if at_ten.percent != 10:
        faults.append(f"round 2 was {at_ten.state} at {at_ten.percent} % before the fault: {at_ten.reason}")
        return None
    await demo.client.put(f"{demo.stage.base}/demo/fault", json=True)
    struck = time.monotonic()
    demo.say("the fault is on: misses of the canary answer 500")
    second = await demo.watch("second", lambda rollout: rollout.state in OVER, seconds=60)
    shut_after = time.monotonic() - struck
    if second.state != "rolled_back":
        faults.append(f"round 2 ended {second.state} instead of rolled_back: {second.reason}")
    await asyncio.sleep(3.0)  # the flag's poll interval and one second (P8)
    since = time.monotonic()
    await asyncio.sleep(2.0)
    await demo.show(second)
    still = demo.load.tally(since)
    if still.errors or still.hits:
        faults.append(f"with the gate shut there were still {still.errors} errors and {still.hits} hits")
    return shut_after


async def _measure(demo: Demo, rollout: Rollout | None, seconds: float) -> tuple[Tally, float]:
    """Watch for some seconds; what the load saw, and the calls that reached the app per request."""
    began = time.monotonic()
    await demo.show(rollout)
    calls = demo.calls
    while time.monotonic() - began < seconds:
        await asyncio.sleep(1.0)
        await demo.show(rollout)
    tally = demo.load.tally(began)
    return tally, (demo.calls - calls) / max(tally.requests, 1)


def _summary(console: Console, result: Result) -> None:
    table = Table(title="measured from outside, gate shut and wide open")
    for head in ("", "shut", "100 % open"):
        table.add_column(head, justify="left" if not head else "right")
    before, after = result.before, result.after
    table.add_row("requests/s", f"{before.rate:.0f}", f"{after.rate:.0f}")
    table.add_row("calls that reached the app, per request", f"{result.calls_before:.2f}", f"{result.calls_after:.2f}")
    table.add_row("hit ratio", f"{before.hit_ratio:.1%}", f"{after.hit_ratio:.1%}")
    table.add_row("p50", f"{before.p50 * 1000:.1f} ms", f"{after.p50 * 1000:.1f} ms")
    table.add_row("p99", f"{before.p99 * 1000:.1f} ms", f"{after.p99 * 1000:.1f} ms")
    console.print(table)
    if result.shut_after is not None:
        console.print(f"from fault to shut: {result.shut_after:.1f} s")
    for fault in result.faults:
        console.print(f"[bold red]not as it should be:[/] {fault}")
    console.print("[bold]not as it should be[/]" if result.faults else "[bold green]all went as it should[/]")
