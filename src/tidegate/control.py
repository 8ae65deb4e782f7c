"""Joins the controller with its adapters, as the settings say; what each command of `tidegate.cli` does.

Importing it needs no extra, nor does moving a flag file: what needs the extra `rollout` is imported where it is used.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from tidegate.errors import FlagError, Problems, RolloutError
from tidegate.rollout.actuator import Actuator
from tidegate.rollout.actuator_local import LocalActuator
from tidegate.rollout.machine import FINAL, Event, after
from tidegate.rollout.records import ConflictError, Rollout
from tidegate.rollout.source import MetricsSource
from tidegate.rollout.spec import RolloutSpec
from tidegate.rollout.store import Journal
from tidegate.settings import Settings
from tidegate.stopping import why_stopped

__all__ = [
    "abort",
    "ask",
    "check_actuator",
    "make_actuator",
    "make_source",
    "mark_stopped",
    "notes",
    "run_controller",
    "start",
]

_ANSWER_WITHIN = 10.0
"""Seconds that a command waits for a running controller."""

Say = Callable[[str], None]


def make_actuator(settings: Settings) -> Actuator:
    """What moves the flags.

    Raises:
        ConfigError: if the settings name no provider that can be moved.
    """
    problems = Problems("settings")
    check_actuator(settings, problems)
    problems.raise_if_any()
    flags = settings.flags
    if flags.provider == "local":
        return LocalActuator(flags.file, flags.environment)
    from tidegate.rollout.actuator_unleash import UnleashActuator

    return UnleashActuator(flags.unleash_url, settings.rollout.admin_token)


def make_source(settings: Settings) -> MetricsSource:
    """Where the numbers come from: Prometheus if it is named, else the app's own /metrics.

    Raises:
        ConfigError: if the settings name neither.
    """
    problems = Problems("settings")
    _check_source(settings, problems)
    problems.raise_if_any()
    rollout = settings.rollout
    if rollout.prometheus_url is not None:
        from tidegate.rollout.prometheus import PrometheusSource

        return PrometheusSource(rollout.prometheus_url)
    from tidegate.rollout.scrape import ScrapeSource

    return ScrapeSource(rollout.metrics_urls)


def check_actuator(settings: Settings, problems: Problems) -> None:
    """Note what the settings lack for moving a flag."""
    flags = settings.flags
    if flags.provider == "none":
        problems.add("flags.provider", flags.provider, "has no flag to move", "use local or unleash")
    if flags.provider == "unleash" and not settings.rollout.admin_token:
        problems.add(
            "rollout.admin_token",
            "",
            "cannot move a flag in Unleash",
            "set TIDEGATE_ROLLOUT_ADMIN_TOKEN to an admin token or a personal access token of an Editor",
        )


def _check_source(settings: Settings, problems: Problems) -> None:
    if settings.rollout.prometheus_url is None and not settings.rollout.metrics_urls:
        fix = 'set rollout.prometheus_url, or metrics_urls = ["http://host:8000/metrics"]'
        problems.add("rollout.metrics_urls", (), "names nothing to judge by", fix)


def notes(spec: RolloutSpec, settings: Settings) -> list[str]:
    """What is allowed, but perhaps not meant."""
    bands = settings.flags.bands
    return [
        f"steps[{index}].percent: {step.percent} is not among flags.bands {list(bands)}, so its band mixes two steps"
        for index, step in enumerate(spec.steps)
        if step.percent not in bands
    ]


async def start(spec: RolloutSpec, settings: Settings, say: Say) -> None:
    """Check the flag, and leave the rollout in the journal for the controller.

    Raises:
        FlagError: naming what is wrong with the flag.
        RolloutError: if the flag is open already, or has a rollout that is not over.
    """
    environment = spec.environment or settings.flags.environment
    actuator = make_actuator(settings)
    try:
        found = await actuator.check(spec.flag, environment, spec.unit)
    finally:
        await actuator.close()
    if found.enabled and found.percentage != 0:
        raise RolloutError(
            f"{spec.flag} in {environment} is open already ({found}); a rollout begins at 0 %: "
            f"shut it first (tidegate flags shut {spec.flag}), or leave it"
        )
    await _refuse_stopped(spec.flag, environment, settings, say)
    with Journal(settings.rollout.journal) as journal:
        journal.add(spec, environment, time.time())
        holder = journal.holder(time.time())
    for note in notes(spec, settings):
        say(f"note: {note}")
    if found.limited:
        say(
            f"note: {spec.flag} has conditions, so at 100 % it is open only for those who meet them; "
            f"if that is not meant: tidegate rollout abort {spec.name}, then tidegate flags shut {spec.flag}"
        )
    steps = ", ".join(f"{step.percent} %" for step in spec.steps)
    say(f"{spec.name}: {spec.flag} in {environment} will open to {steps}; see tidegate rollout watch {spec.name}")
    if holder is None:
        say(f"no controller runs on {settings.rollout.journal} yet: tidegate controller")


async def _refuse_stopped(flag: str, environment: str, settings: Settings, say: Say) -> None:
    try:
        stop = await why_stopped(settings, flag, environment)
    except FlagError as error:
        say(f"note: {error}; the controller opens nothing until they can be read")
        return
    if stop is not None:
        raise RolloutError(f"{flag} in {environment} is {stop}; lift it first: tidegate lift {flag}")


async def ask(name: str, command: Event, reason: str, settings: Settings, say: Say) -> None:
    """Leave a command for the controller and wait for its answer.

    Raises:
        RolloutError: if the rollout is over, or no controller answers.
    """
    with Journal(settings.rollout.journal, make=False) as journal:
        rollout = journal.get(name)
        after(rollout.state, command)
        if journal.holder(time.time()) is None:
            raise RolloutError(f"no controller runs on {journal.path}: tidegate controller")
        number = journal.ask(rollout, command, reason, time.time())
        answer = await _answer(journal, number)
    if answer is None:
        raise RolloutError(f"the controller did not answer within {_ANSWER_WITHIN:g} s; the command stays for it")
    if answer.startswith("refused"):
        raise RolloutError(f"{name}: {answer}")
    say(f"{name}: {answer}")


async def abort(name: str, reason: str, settings: Settings, say: Say) -> None:
    """End a rollout and shut its flag: through the controller, or without it if none runs."""
    with Journal(settings.rollout.journal, make=False) as journal:
        rollout = journal.get(name)
        if rollout.state in FINAL:
            raise RolloutError(f"{name} is over: {rollout.state} ({rollout.reason})")
        running = journal.holder(time.time()) is not None
    if running:
        await ask(name, Event.ABORT, reason, settings, say)
        with Journal(settings.rollout.journal, make=False) as journal:
            rollout = journal.by_id(rollout.id)
        if rollout.state not in FINAL:
            raise RolloutError(f"{name} is not shut yet, and the controller goes on trying: {rollout.reason}")
    else:
        await _shut(rollout.flag, rollout.environment, reason, settings, say)


async def _shut(flag: str, environment: str, reason: str, settings: Settings, say: Say) -> None:
    """Shut a flag now, without a controller; then mark its rollout as aborted.

    Raises:
        FlagError: if the flag could not be turned off, or is off but could not be set to 0 %.
    """
    actuator = make_actuator(settings)
    try:
        await actuator.disable(flag, environment)
        say(f"{flag} in {environment} is off")
        for line in mark_stopped(flag, environment, reason, settings, off=True):
            say(line)
        await actuator.set_percentage(flag, environment, 0)
        found = await actuator.read(flag, environment)
        if found.enabled:
            raise FlagError(f"{flag} in {environment} was turned off, but reads back as {found}")
        say(f"{flag} in {environment} is at 0 %")
    finally:
        await actuator.close()


async def run_controller(settings: Settings, *, once: bool) -> bool:
    """Run the controller until a signal ends it, or for one look. False: another controller has the lease.

    Raises:
        ConfigError, RolloutError: if it cannot run with these settings.
    """
    from tidegate.rollout.controller import Controller
    from tidegate.rollout.daemon import Daemon

    rollout = settings.rollout
    problems = Problems("settings")
    if rollout.listen is not None and not rollout.alert_token:
        problems.add("rollout.alert_token", "", "would let everybody shut flags", "set TIDEGATE_ROLLOUT_ALERT_TOKEN")
    check_actuator(settings, problems)
    _check_source(settings, problems)
    problems.raise_if_any()
    actuator, source = make_actuator(settings), make_source(settings)
    async with AsyncExitStack() as stack:
        journal = stack.enter_context(Journal(rollout.journal))
        stack.push_async_callback(actuator.close)
        stack.push_async_callback(source.close)
        controller = Controller(
            journal=journal,
            actuator=actuator,
            source=source,
            clock=time.time,
            stopped=partial(why_stopped, settings),
        )
        if once:
            acted = await controller.attend(wait=True)
            await controller.close()
            return acted
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        daemon = Daemon(controller, journal, clock=time.time, listen=rollout.listen, token=rollout.alert_token)
        logging.getLogger("tidegate.rollout").info("controller %d on %s", os.getpid(), journal.path)
        await daemon.run(stop)
        return True


async def _answer(journal: Journal, number: int) -> str | None:
    deadline = time.monotonic() + _ANSWER_WITHIN
    while time.monotonic() < deadline:
        answer = journal.answered(number)
        if answer is not None:
            return answer
        await asyncio.sleep(0.05)
    return None


def mark_stopped(flag: str, environment: str, reason: str, settings: Settings, *, off: bool) -> list[str]:
    """Mark the active rollout of a flag that a person shut; what was done, for a person. Never raises for the journal.

    off: the flag itself is off. If it is not, only stopped, a controller that runs is left to end the rollout: it goes
        on trying to turn the flag off, which nobody does for a rollout that is over.
    """
    if not Path(settings.rollout.journal).exists():
        return []
    told: list[str] = []
    try:
        with Journal(settings.rollout.journal, make=False) as journal:
            running = journal.holder(time.time()) is not None
            for rollout in journal.active():
                if (rollout.flag, rollout.environment) != (flag, environment):
                    continue
                if running and not off:
                    told.append(
                        f"rollout {rollout.name} is left to the controller, which turns the flag off once it can"
                    )
                    continue
                _stopped(journal, rollout, reason)
                told.append(f"rollout {rollout.name} is aborted")
    except RolloutError as error:
        told.append(f"the journal could not be told: {error}")
    return told


def _stopped(journal: Journal, rollout: Rollout, reason: str) -> None:
    while True:
        state = after(rollout.state, Event.STOPPED)
        over = replace(rollout, state=state, percent=0, intent=None, reason=reason, cause="")
        try:
            journal.record(over, Event.STOPPED, now=time.time(), came_from=rollout.state)
            return
        except ConflictError:
            rollout = journal.by_id(rollout.id)
            if rollout.state in FINAL:
                return
