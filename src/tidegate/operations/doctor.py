"""`tidegate doctor`: every part of an installation looked at, all at once, each within three seconds.

Guaranteed: whatever hangs, refuses or talks nonsense becomes a line; no probe holds up another; no secret is shown.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tidegate.errors import ConfigError, TidegateError
from tidegate.operations.masking import Mask
from tidegate.settings import Settings

__all__ = ["PROBE_SECONDS", "SECTIONS", "Finding", "Probe", "ProbeError", "examine", "load", "shown_as"]

PROBE_SECONDS: Final = 3.0
"""Seconds for each probe; they run at the same time."""

SECTIONS: Final = ("cache", "store", "flags", "telemetry", "rollout")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line. about: the part. fix: what to do, empty where nothing is to be done."""

    level: Literal["ok", "warn", "FAIL"]
    about: str
    text: str
    fix: str = ""


class ProbeError(TidegateError):
    """What a probe could not do, and what to do about it."""

    def __init__(self, told: str, fix: str) -> None:
        super().__init__(told)
        self.fix = fix


Probe = Callable[[Settings], Awaitable[list[Finding]]]


def load(path: str | None, environ: Mapping[str, str] = os.environ) -> tuple[Settings, list[Finding]]:
    """The settings, and what is wrong with them; a section that is wrong keeps its defaults: the rest is seen."""
    try:
        return Settings.load(path, environ), []
    except ConfigError as error:
        wrong = [
            Finding(level="FAIL", about="settings", text=f"{each.path}: {each.value!r} {each.problem}", fix=each.fix)
            for each in error.problems
        ]
    good = [section for section in SECTIONS if _loads(path, environ, section)]
    for section in SECTIONS:
        if good and section not in good:
            told = f"what follows of {section} is about its defaults, not about your settings"
            wrong.append(Finding(level="warn", about="settings", text=told))
    if not good and Path(path or environ.get("TIDEGATE_CONFIG") or "tidegate.toml").exists():
        told = "what follows is about the defaults, not about your settings"
        wrong.append(Finding(level="warn", about="settings", text=told))
    return Settings.load(path, environ, only=good) if good else Settings(), wrong


def _loads(path: str | None, environ: Mapping[str, str], section: str) -> bool:
    try:
        Settings.load(path, environ, only=(section,))
    except ConfigError:
        return False
    return True


async def examine(settings: Settings, probes: Mapping[str, Probe]) -> list[Finding]:
    """What every probe finds, in their order."""
    mask = Mask(settings)
    found = await asyncio.gather(*(_bounded(about, probe, settings) for about, probe in probes.items()))
    return [
        Finding(level=one.level, about=one.about, text=mask(one.text), fix=mask(one.fix))
        for several in found
        for one in several
    ]


async def _bounded(about: str, probe: Probe, settings: Settings) -> list[Finding]:
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            return await probe(settings)
    except TimeoutError:
        text, fix = f"no answer within {PROBE_SECONDS:g} s", "is it running, and may this machine reach it?"
    except ModuleNotFoundError as error:
        extra = "rollout" if error.name == "httpx2" else "all"
        text, fix = f"{error.name} is not installed", f"pip install 'tidegate[{extra}]'"
    except ConfigError as error:
        text, fix = "; ".join(map(str, error.problems)), "correct that setting"
    except TidegateError as error:
        text, fix = str(error), error.fix if isinstance(error, ProbeError) else ""
    except Exception as error:  # noqa: BLE001 - a probe that breaks must not hide what the others found; it is a line
        text, fix = f"{type(error).__name__}: {error}", "this should not happen; please report it"
    return [Finding(level="FAIL", about=about, text=text, fix=fix)]


def shown_as(finding: Finding) -> dict[str, Any]:
    """A finding as JSON."""
    return {"level": finding.level, "about": finding.about, "text": finding.text, "fix": finding.fix or None}
