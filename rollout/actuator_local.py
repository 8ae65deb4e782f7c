"""Moves flags in the local flag file, the one that `tidegate.flags.local` reads (its format is described there).

Each change is read, modified and replaced whole: a temporary file beside it, flushed to disk, then renamed over it,
under a lock file, so that readers never see half a file and two writers never lose each other's change.
"""

import asyncio
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from tidegate.errors import FlagError
from tidegate.rollout.actuator import STICKINESS, FlagState
from tidegate.vocabulary import Unit

__all__ = ["LocalActuator"]

_LOCK_WAIT = 2.0
"""Seconds to wait for another writer."""

_Flag = dict[str, Any]


class LocalActuator:
    """An Actuator on one file, which stands for one environment."""

    def __init__(self, path: str | Path, environment: str) -> None:
        self._path = Path(path)
        self._environment = environment

    async def check(self, flag: str, environment: str, unit: Unit) -> FlagState:
        """See Actuator."""
        if environment != self._environment:
            raise FlagError(
                f"{self._path} holds the environment {self._environment!r}, not {environment!r}; "
                f"write environment: {self._environment} or name another flag file"
            )
        found = await asyncio.to_thread(self._find, flag)
        strategy = self._strategy(flag, found)
        stickiness = strategy.get("stickiness", STICKINESS["tenant"])
        if stickiness != STICKINESS[unit]:
            raise FlagError(
                f"{self._path}: the strategy of {flag!r} is sticky by {stickiness!r}, "
                f"but the unit {unit} needs {STICKINESS[unit]!r}"
            )
        return _state(found)

    async def read(self, flag: str, environment: str) -> FlagState:
        """See Actuator."""
        return _state(await asyncio.to_thread(self._find, flag))

    async def set_percentage(self, flag: str, environment: str, percentage: int) -> None:
        """See Actuator."""
        if not 0 <= percentage <= 100:
            raise FlagError(f"{percentage} is not a whole percentage from 0 to 100")

        def change(found: _Flag) -> None:
            self._strategy(flag, found)["percentage"] = percentage

        await asyncio.to_thread(self._change, flag, change)

    async def enable(self, flag: str, environment: str) -> None:
        """See Actuator."""

        def change(found: _Flag) -> None:
            self._strategy(flag, found)
            found["enabled"] = True

        await asyncio.to_thread(self._change, flag, change)

    async def disable(self, flag: str, environment: str) -> None:
        """See Actuator."""

        def change(found: _Flag) -> None:
            found["enabled"] = False

        await asyncio.to_thread(self._change, flag, change)

    async def last_editor(self, flag: str, environment: str) -> str | None:
        """A file does not say who wrote it."""
        return None

    async def close(self) -> None:
        """Nothing is held open."""

    def _find(self, flag: str) -> _Flag:
        return self._flag(self._load(), flag)

    def _change(self, flag: str, change: Callable[[_Flag], None]) -> None:
        try:
            with _locked(self._path.with_name(self._path.name + ".lock")):
                document = self._load()
                change(self._flag(document, flag))
                _replace(self._path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise FlagError(f"{self._path} could not be written: {error.strerror or error}") from error

    def _load(self) -> dict[str, Any]:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"), object_pairs_hook=_no_duplicates)
        except OSError as error:
            raise FlagError(f"{self._path} could not be read: {error.strerror or error}") from error
        except ValueError as error:
            raise FlagError(f"{self._path} is not a flag file: {error}") from error
        if not isinstance(document, dict) or cast(_Flag, document).get("version") != 1:
            raise FlagError(f'{self._path} is not a flag file: it does not say "version": 1')
        return cast(dict[str, Any], document)

    def _flag(self, document: dict[str, Any], flag: str) -> _Flag:
        flags = document.get("flags")
        known = sorted(cast(_Flag, flags)) if isinstance(flags, dict) else []
        if flag not in known:
            raise FlagError(f"{self._path}: there is no flag {flag!r}; it has {', '.join(known) or 'none'}")
        found = cast(_Flag, flags)[flag]
        if not isinstance(found, dict) or not isinstance(cast(_Flag, found).get("enabled"), bool):
            raise FlagError(f'{self._path}: flag {flag!r} does not say "enabled": true or false')
        return cast(_Flag, found)

    def _strategy(self, flag: str, found: _Flag) -> _Flag:
        strategies = _strategies(found)
        if len(strategies) != 1:
            have = f"{len(strategies)} strategies, so which one to move is unclear" if strategies else "no strategy"
            raise FlagError(f'{self._path}: flag {flag!r} has {have}; give it one: {{"percentage": 0}}')
        return strategies[0]


def _strategies(found: _Flag) -> Sequence[_Flag]:
    raw = found.get("strategies")
    items = cast(list[object], raw) if isinstance(raw, list) else []
    return [cast(_Flag, item) for item in items if isinstance(item, dict)]


def _state(found: _Flag) -> FlagState:
    strategies = _strategies(found)
    raw = strategies[0].get("percentage") if len(strategies) == 1 else None
    whole = isinstance(raw, int) and not isinstance(raw, bool) and 0 <= raw <= 100
    return FlagState(enabled=cast(bool, found["enabled"]), percentage=cast(int, raw) if whole else None)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise ValueError(f"{name!r} stands there twice")
        made[name] = value
    return made


@contextmanager
def _locked(path: Path) -> Generator[None, None, None]:
    """Hold an exclusive lock on `path`; it goes away with the process, so nobody can leave it behind."""
    with path.open("a") as file:
        deadline = time.monotonic() + _LOCK_WAIT
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.01)
        yield


def _replace(path: Path, text: str) -> None:
    """Put `text` in place of the file at once; its mode stays, and a link stays a link."""
    target = Path(os.path.realpath(path))
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), target.stat().st_mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
