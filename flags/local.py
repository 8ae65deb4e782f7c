"""Flags from one JSON file: the provider that needs no server, and the format that the rollout writes.

    {"version": 1,
     "flags": {
       "tidegate.cache": {
         "enabled": true,
         "strategies": [
           {"percentage": 10,
            "stickiness": "tenantId",
            "group": "tidegate.cache",
            "constraints": [{"field": "tenantId", "operator": "IN", "values": ["acme"]}]}]}}}

One file is one environment; UTF-8, at most 1 MiB.

version      1; required.
flags        flag name -> flag; required, may be empty. A flag that is not named is shut.
enabled      true or false; required. false shuts the flag for everybody and keeps its strategies.
strategies   list; required, and not empty where `enabled` is true. The flag is open if any of them admits.
percentage   whole number, 0..100; required.
stickiness   the context field that is hashed; default "tenantId". Not admitted where it is missing, even at 100.
group        what it is hashed with; default the flag's name.
variant      "shadow": the layer compares and does not act (the cache can); default none.
constraints  list; default []. All must hold. `field`, `operator` (IN or NOT_IN) and `values` (texts) are required.

Anything else (another key, a key given twice, a number in quotes) makes the whole file unusable: a reader that guessed
could open a layer for more than was meant. Who writes the file replaces it (`os.replace` of a finished neighbour), so
that nobody reads half of it, and shuts a flag by `enabled: false` before anything else.

`LocalFlags` promises: a change is in force one `poll_interval` and one read after it was made, whatever the event loop
does, for the file is watched from a thread. A file that becomes unusable or disappears leaves the last good state in
force; that is reported once per fault, not per look, and `health()` shows it with growing staleness. It does not
promise to survive a fork: start it in each worker.
"""

import asyncio
import json
import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from tidegate.errors import ABSENT, FlagError, Problems
from tidegate.flags.evaluate import Constraint, Flag, FlagContext, Strategy, is_open, open_as
from tidegate.flags.provider import Extent, ProviderHealth, Reach
from tidegate.flags.report import OnError, Reporter

__all__ = ["MAX_BYTES", "LocalFlags", "parse_flags"]

MAX_BYTES = 1 << 20
"""A flag file larger than this is refused, so that a wrong path cannot fill the memory."""

_FIRST_LOOK = 5.0
"""Seconds that a start waits for the first reading."""


class LocalFlags:
    """A flag provider that reads and watches one file.

    path: the file. It may be missing at first: flags are shut until it appears.
    poll_interval: seconds between two looks at the file. Each look reads it whole and compares the bytes; its time
        stamp would miss a second change within one tick of the file system's clock.
    on_error: hears, as "flags.local", of a file that cannot be used; once per fault. Default: the log.

    Raises:
        ConfigError: if `poll_interval` is not a positive number.
    """

    def __init__(self, path: str | Path, *, poll_interval: float = 0.5, on_error: OnError | None = None) -> None:
        if not 0 < poll_interval < math.inf:
            problems = Problems("LocalFlags")
            problems.add("poll_interval", poll_interval, "is not a positive number of seconds", "write 0.5")
            problems.raise_if_any()
        self.version = 0
        self._path = Path(path)
        self._poll_interval = poll_interval
        self._report = Reporter("flags.local", on_error)
        self._flags: Mapping[str, Flag] = {}
        self._content: bytes | None = None
        self._seen_at = -math.inf
        self._fault = ""
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._watcher: threading.Thread | None = None

    async def start(self) -> None:
        """Read the file, then watch it. Never raises for what is in it: a file that cannot be used leaves all shut.

        Waits for the first reading 5 s at most, in case the file system does not answer.

        May be called again after `aclose`, and in a forked child, which has no watching thread.
        """
        if self._watcher is not None and self._watcher.is_alive() and not self._stop.is_set():
            return
        self._stop = stop = threading.Event()
        looked = threading.Event()
        self._watcher = threading.Thread(
            target=self._watch, args=(stop, looked), name="tidegate-flags-local", daemon=True
        )
        self._watcher.start()
        await asyncio.to_thread(looked.wait, _FIRST_LOOK)

    async def aclose(self) -> None:
        """Stop watching; the last state stays in force."""
        self._stop.set()
        self._wake.set()
        if self._watcher is not None:
            # Bounded: a look may hang in a file system that does not answer. The thread is a daemon.
            await asyncio.to_thread(self._watcher.join, 1.0)

    def poll_now(self) -> None:
        """Look at the file now. Returns at once; from any thread."""
        self._wake.set()

    def is_enabled(self, flag: str, context: FlagContext) -> bool:
        """Whether the flag is open for this context; a flag that the file does not name is shut."""
        found = self._flags.get(flag)
        return found is not None and is_open(found, context)

    def open_as(self, flag: str, context: FlagContext) -> str | None:
        """None if the flag is shut for this context; else the variant of the first strategy that admits it, or ""."""
        found = self._flags.get(flag)
        return open_as(found, context) if found is not None else None

    def reach(self, flag: str) -> Reach:
        """Whom the flag admits; nobody where the file does not name it."""
        found = self._flags.get(flag)
        if found is None or found.admits_nobody:
            return "nobody"
        return "everybody" if found.admits_everybody else "some"

    def extent(self, flag: str) -> Extent | None:
        """How far the flag's only strategy opens it; None where it has several, is off or is not named."""
        found = self._flags.get(flag)
        if found is None or not found.enabled or len(found.strategies) != 1:
            return None
        only = found.strategies[0]
        return Extent(percentage=only.percentage, stickiness=only.stickiness, group=only.group)

    def health(self) -> ProviderHealth:
        """Ready once a good file was read; stale since the last look that found one; the fault of the last look."""
        return ProviderHealth(
            ready=self._content is not None,
            staleness=time.monotonic() - self._seen_at,
            detail=self._fault,
        )

    def _watch(self, stop: threading.Event, looked: threading.Event) -> None:
        self._look()
        looked.set()
        while not stop.is_set():
            self._wake.wait(self._poll_interval)
            self._wake.clear()
            if not stop.is_set():
                self._look()

    def _look(self) -> None:
        now = time.monotonic()
        try:
            content = _read(self._path)
            if content != self._content:
                self._flags = parse_flags(content, str(self._path))
                self._content = content
                self.version += 1  # last, so that nobody remembers an old decision under the new version
        except Exception as error:  # noqa: BLE001 - reported; a watcher that died would hide every later shutting
            if str(error) != self._fault:
                self._fault = str(error)
                self._report(error)
            return
        self._seen_at = now
        self._fault = ""


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        fix = "; tidegate flags init makes one (flags.file)" if isinstance(error, FileNotFoundError) else ""
        raise FlagError(f"the flag file {path} cannot be read: {error.strerror or error}{fix}") from error
    if len(content) > MAX_BYTES:
        raise FlagError(f"the flag file {path} is larger than {MAX_BYTES} bytes")
    return content


def parse_flags(content: str | bytes, source: str) -> Mapping[str, Flag]:
    """The flags of a flag file, by name.

    source: what to call the file in an error.

    Raises:
        ConfigError: with every problem found, each under its path (`flags["tidegate.cache"].strategies[0].percentage`).
    """
    problems = Problems(source)
    root = _object(problems, "", _parse_json(content, problems), required=("version", "flags"))
    version = root.get("version", 1)
    if type(version) is not int or version != 1:
        problems.add("version", version, "is not a version of this format", "write 1")
    flags: dict[str, Flag] = {}
    for name, raw in _object(problems, "flags", root.get("flags", {}), required=None).items():
        flag = _flag(problems, f"flags[{json.dumps(name, ensure_ascii=False)}]", name, raw)
        if flag is not None:
            flags[name] = flag
    problems.raise_if_any()
    return flags


def _parse_json(content: str | bytes, problems: Problems) -> object:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        unique = dict(found)
        if len(unique) != len(found):
            names = [name for name, _ in found]
            for name in unique:
                if names.count(name) > 1:
                    problems.add(
                        name, names.count(name), "is how often this key is given in one object", "give it once"
                    )
        return unique

    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        return cast(object, json.loads(text, object_pairs_hook=pairs))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        problems.add(where, error.doc[error.pos : error.pos + 20], f"is not JSON: {error.msg}", "correct it there")
    except UnicodeDecodeError as error:
        problems.add(f"byte {error.start}", error.object[error.start : error.end], "is not UTF-8", "save it as UTF-8")
    except RecursionError:
        problems.add("(file)", "", "is nested too deeply", "follow the format in the documentation")
    except ValueError as error:
        problems.add("(file)", "", f"holds a number that cannot be read: {error}", "write whole percentages, 0 to 100")
    problems.raise_if_any()
    return None


_STAND_IN = Strategy(percentage=0, group="stand-in")
"""Takes the place of a strategy that was found wrong, so that its flag is not called empty on top of that."""


def _flag(problems: Problems, path: str, name: str, raw: object) -> Flag | None:
    before = len(problems)
    value = _object(problems, path, raw, required=("enabled", "strategies"))
    entries = _list(problems, f"{path}.strategies", value.get("strategies", []))
    strategies = [_strategy(problems, f"{path}.strategies[{i}]", name, entry) for i, entry in enumerate(entries)]
    if not strategies and len(problems) > before:
        strategies = [_STAND_IN]
    with problems.under(path):
        return Flag(name=name, enabled=value.get("enabled", False), strategies=tuple(strategies))
    return None


def _strategy(problems: Problems, path: str, flag: str, raw: object) -> Strategy:
    value = _object(
        problems, path, raw, required=("percentage",), optional=("stickiness", "group", "variant", "constraints")
    )
    entries = _list(problems, f"{path}.constraints", value.get("constraints", []))
    constraints = [_constraint(problems, f"{path}.constraints[{i}]", entry) for i, entry in enumerate(entries)]
    with problems.under(path):
        return Strategy(
            percentage=value.get("percentage", 0),
            stickiness=value.get("stickiness", "tenantId"),
            group=value.get("group", flag),
            constraints=tuple(constraint for constraint in constraints if constraint is not None),
            variant=value.get("variant"),
        )
    return _STAND_IN


def _constraint(problems: Problems, path: str, raw: object) -> Constraint | None:
    value = _object(problems, path, raw, required=("field", "operator", "values"))
    texts: list[str] = []
    for i, item in enumerate(_list(problems, f"{path}.values", value.get("values", []))):
        if isinstance(item, str):
            texts.append(item)
        else:
            problems.add(f"{path}.values[{i}]", item, "is not a text", "put it in quotes")
    with problems.under(path):
        return Constraint(
            field=value.get("field", "missing"), operator=value.get("operator", "IN"), values=frozenset(texts)
        )
    return None


def _object(
    problems: Problems, path: str, raw: object, *, required: tuple[str, ...] | None, optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The known keys of a JSON object; what is missing, unknown or no object is noted. required=None: any key goes."""
    if not isinstance(raw, dict):
        problems.add(path or "(file)", raw, "is not an object", "write {...}")
        return {}
    found = cast(dict[str, Any], raw)
    if required is None:
        return found
    prefix = f"{path}." if path else ""
    known = (*required, *optional)
    for name in required:
        if name not in found:
            problems.add(prefix + name, ABSENT, "is missing", "add it")
    for name in found:
        if name not in known:
            problems.add(prefix + name, found[name], "is not known here", f"use only {', '.join(known)}")
    return {name: found[name] for name in known if name in found}


def _list(problems: Problems, path: str, raw: object) -> list[object]:
    if not isinstance(raw, list):
        problems.add(path, raw, "is not a list", "write [...]")
        return []
    return cast(list[object], raw)
