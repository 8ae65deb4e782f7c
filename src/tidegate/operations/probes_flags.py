"""What `tidegate doctor` asks about flags: their source, its tokens and clock, each flag, what stops it."""

import asyncio
import socket
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

from tidegate.errors import FlagError
from tidegate.flags.views import FlagView
from tidegate.operations.asking import Unanswered, ask
from tidegate.operations.doctor import Finding, ProbeError
from tidegate.settings import Settings
from tidegate.stopping import in_thread, shown_place, unheard
from tidegate.vocabulary import FLAGS

__all__ = ["admin_token", "clock", "flags", "resolved", "stop_records"]

_ANSWER_SECONDS: Final = 2.5
_UNLEASH: Final = "is Unleash running there, is flags.unleash_url right, and may this machine reach it?"
_GET_SECONDS: Final = 2.75
"""For an HTTP request in a thread: a little more than its own time, whose error says more."""
_CLOCK_SECONDS: Final = 5.0
"""Clocks may differ by this; the Date of an answer has whole seconds."""


@contextmanager
def _what_to_do(fix: str) -> Generator[None]:
    """Name the fix where nobody answers; who answers and refuses has said why."""
    try:
        yield
    except FlagError as error:
        if hasattr(error, "status"):  # Refused, whose module needs the extra `rollout`
            raise
        raise ProbeError(str(error), fix) from error


async def resolved(url: str) -> None:
    """Look the host's name up, in a thread that holds up nobody if it hangs.

    Raises:
        FlagError: if there is no such host, or no answer.
    """
    parts = urlsplit(url)

    def look_up() -> None:
        try:
            socket.getaddrinfo(parts.hostname, parts.port or 80)
        except OSError as error:
            raise FlagError(f"the host {parts.hostname} is not known: {error.strerror or error}") from error

    await in_thread(look_up, _ANSWER_SECONDS, f"looking up {parts.hostname}")


async def flags(settings: Settings) -> list[Finding]:
    """The source that apps read, and each layer's flag in it."""
    from tidegate.operations.sources import read_flags

    given = settings.flags
    if given.provider == "none":
        told = "flags.provider is none: every layer is open for everybody"
        return [Finding(level="warn", about="flags", text=told, fix="fine to begin with; else use local or unleash")]
    found: list[Finding] = []
    if given.provider == "local" and not await in_thread(Path(given.file).exists, _ANSWER_SECONDS, "the flag file"):
        told = f"there is no flag file {given.file}: every layer is shut"
        return [Finding(level="FAIL", about="flags", text=told, fix="tidegate flags init")]
    if given.provider == "unleash":
        if not given.unleash_token:
            fix = "tidegate flags init --token prints one for TIDEGATE_FLAGS_UNLEASH_TOKEN"
            return [Finding(level="FAIL", about="flags", text="no backend token: apps keep their layers shut", fix=fix)]
        found = _environment_of(given.unleash_token, given.environment)
        with _what_to_do(_UNLEASH):
            await resolved(given.unleash_url)
    asked = time.monotonic()
    with _what_to_do(_UNLEASH if given.provider == "unleash" else "may this user read it?"):
        source = await read_flags(settings, given.environment, tuple(FLAGS.values()), within=_ANSWER_SECONDS)
    took = (time.monotonic() - asked) * 1000
    found.append(Finding(level="ok", about="flags", text=f"{source.origin} answers in {took:.0f} ms"))
    return found + [_flag(name, source.view(name), settings) for name in FLAGS.values()]


def _flag(name: str, view: FlagView | None, settings: Settings) -> Finding:
    from tidegate.flags import UNIT_FIELDS
    from tidegate.operations.status import told_reach

    if view is None:
        return Finding(level="warn", about=name, text="does not exist: shut", fix=f"tidegate flags init {name}")
    field = UNIT_FIELDS[settings.flags.unit]
    faults = view.faults(field)
    told = f"{view}; open for {told_reach(view.reach, settings.flags.unit)}"
    if not faults:
        return Finding(level="ok", about=name, text=told)
    percent_wrong = any(one.percentage is None and one.name == "flexibleRollout" for one in view.strategies)
    grave = view.enabled and (percent_wrong or not view.strategies or view.reach == "everybody")
    return Finding(level="FAIL" if grave else "warn", about=name, text=f"{told}; it {'; '.join(faults)}")


def _environment_of(token: str, environment: str) -> list[Finding]:
    """A backend token names its environment (`project:environment.secret`)."""
    named = token.partition(":")[2].partition(".")[0] if ":" in token else environment
    if named in (environment, "*"):
        return []
    told = f"the backend token reads the environment {named!r}, but flags.environment is {environment!r}"
    return [
        Finding(level="FAIL", about="flags", text=told, fix="give the token of that environment, or name the other")
    ]


async def admin_token(settings: Settings) -> list[Finding]:
    """Whether the controller, and `tidegate kill`, may move flags in Unleash."""
    if settings.flags.provider != "unleash":
        return []
    from tidegate.rollout.unleash_api import UnleashApi

    token = settings.rollout.admin_token
    if not token:
        told, fix = "none: no rollout and no kill in Unleash", "set TIDEGATE_ROLLOUT_ADMIN_TOKEN where those run"
        return [Finding(level="warn", about="admin token", text=told, fix=fix)]
    with _what_to_do(_UNLEASH):
        await resolved(settings.flags.unleash_url)
        api = UnleashApi(settings.flags.unleash_url, token, timeout=_ANSWER_SECONDS)
        try:
            answer = await api.request("GET", "/api/admin/user")
            known = await api.names()  # unlike the user, this asks Unleash's database
        finally:
            await api.close()
    user = cast(Mapping[str, Any], (answer or {}).get("user") or {})
    who = user.get("email") or user.get("username") or "somebody"
    return [
        Finding(
            level="ok",
            about="admin token",
            text=f"Unleash knows it as {who}, and shows {len(known)} flag{'' if len(known) == 1 else 's'}",
        )
    ]


async def clock(settings: Settings) -> list[Finding]:
    """Whether Unleash's clock and ours agree: `until` of a stop and the controller's ticks go by the wall clock."""
    if settings.flags.provider != "unleash":
        return []
    root = settings.flags.unleash_url.rstrip("/").removesuffix("/api")
    with _what_to_do(_UNLEASH):
        await resolved(settings.flags.unleash_url)
        try:
            answer = await in_thread(lambda: ask("GET", f"{root}/health", timeout=_ANSWER_SECONDS), _GET_SECONDS, root)
        except Unanswered as error:
            raise FlagError(f"Unleash's clock: {root} could not be asked: {error}") from error
    date = answer.header("date")
    if date is None:
        return []
    apart = abs(parsedate_to_datetime(date).timestamp() - time.time())
    if apart <= _CLOCK_SECONDS:
        return [Finding(level="ok", about="clock", text="agrees with Unleash's")]
    return [Finding(level="warn", about="clock", text=f"{apart:.0f} s apart from Unleash's", fix="let both follow NTP")]


async def stop_records(settings: Settings) -> list[Finding]:
    """Whether they can be read, and which flags they stop."""
    from tidegate.operations.status import stopped_flags

    if settings.flags.provider == "none":
        return []
    environment = settings.flags.environment
    place = "is that Redis running, and is flags.stops (else store.url) right?"
    fix = place if "://" in shown_place(settings) else "may this user read that file, and is flags.stops right?"
    ends = asyncio.get_running_loop().time() + _ANSWER_SECONDS
    with _what_to_do(f"{fix} An app that starts now keeps its layers shut"):
        async with asyncio.timeout_at(ends):
            stopped = await stopped_flags(settings, environment, tuple(FLAGS.values()))
    found = [
        Finding(level="warn", about="stops", text=f"{name} is stopped {told}", fix=f"tidegate lift {name}")
        for name, told in stopped.items()
    ]
    rights = ""
    try:
        async with asyncio.timeout_at(ends):
            rights = await unheard(settings, environment)
    except (FlagError, TimeoutError) as error:  # who may only read what is stopped has been told that
        text = f"whether a kill is heard at once could not be seen: {error or 'no answer in time'}"
        found.append(Finding(level="warn", about="stops", text=text, fix="grant +eval (docs/mounting.md, Redis)"))
    if rights:
        told = f"a kill is not heard at once but within {settings.flags.poll_interval:g} s: the user in the address of"
        fix = f"grant it {rights} (docs/mounting.md, Redis)"
        text = f"{told} {shown_place(settings)} may not use the channel"
        found.append(Finding(level="warn", about="stops", text=text, fix=fix))
    return found or [Finding(level="ok", about="stops", text=f"no flag is stopped ({shown_place(settings)})")]
