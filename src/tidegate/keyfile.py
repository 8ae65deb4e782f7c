"""Where the sealing keys are, as the settings say: in `store.keys`, or in a file that processes follow.

Rotation: `tidegate keys new` adds a key that seals from a later time; by then every process has read it (they look
every few seconds), or has it with its next deployment. Old keys stay until no record of theirs can be alive.
"""

import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from tidegate.errors import ConfigError, Problem, Problems
from tidegate.files import locked, read_whole, replace_whole
from tidegate.middleware.core.keyring import SECRET_BYTES, KeyRing, SealingKey, written
from tidegate.middleware.stores.base import MAX_RETAIN
from tidegate.settings import StoreSettings

__all__ = ["LEAD", "KeyState", "add_key", "fresh_items", "is_readable_by_others", "ring_reader", "states_of"]

LEAD: Final = 3600.0
"""Seconds after which a new key seals, if nobody says otherwise."""

_MAX_BYTES: Final = 64 * 1024
_WAIT: Final = 5.0
_MODE: Final = 0o600


def ring_reader(store: StoreSettings) -> Callable[[], KeyRing] | None:
    """What reads the ring that these settings name; None if they name none.

    It raises ConfigError, with every problem and no secret.

    Raises:
        ConfigError: if they name two.
    """
    if store.keys and store.key_file is not None:
        fix = "keep one of them: a file can be changed while processes run"
        problem = Problem(path="store.key_file", value=store.key_file, problem="and store.keys are both given", fix=fix)
        raise ConfigError("settings", [problem])
    if store.keys:
        return partial(_parsed, "store.keys", store.keys)
    if store.key_file is not None:
        return partial(_read, Path(store.key_file))
    return None


def _parsed(source: str, items: tuple[str, ...], named: str = "[{}]", first: int = 0) -> KeyRing:
    problems = Problems(source)
    ring = KeyRing.of(items, problems, named=named, first=first)
    problems.raise_if_any()
    return ring


def _read(path: Path) -> KeyRing:
    return _parsed(str(path), tuple(_lines(path)), "line {}", 1)


def _lines(path: Path) -> list[str]:
    try:
        data = read_whole(path, _MAX_BYTES)
        if len(data) > _MAX_BYTES:
            raise OSError(0, "is too large for a key file")
        return data.decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read: {error.strerror if isinstance(error, OSError) else 'it is not UTF-8'}"
        fix = "make it readable, or make one: tidegate keys new FILE"
        raise ConfigError(str(path), [Problem(path="file", value=str(path), problem=problem, fix=fix)]) from error


def fresh_items(draw: Callable[[int], bytes] = secrets.token_bytes) -> list[str]:
    """A naming key and a sealing key, as they are written."""
    return [written("tgn1", draw(SECRET_BYTES)), written("tgk1", draw(SECRET_BYTES))]


def add_key(path: Path, *, now: float, lead: float = LEAD) -> KeyRing:
    """Add a sealing key that seals `lead` seconds from now; make the file, with a naming key, if it is not there.

    The first key of a file seals at once. Everything that stood in it stays.

    Raises:
        ConfigError: if the file has a mistake, or has a key that does not seal yet; it is left as it is.
        OSError: if it cannot be written.
    """
    with locked(path, _WAIT):
        if not path.exists():
            made = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%dT%H:%M:%SZ}"
            text = "\n".join(
                [f"# Keys of Tidegate's store, made {made}. Whoever has them can read it.", *fresh_items()]
            )
        else:
            lines = _lines(path)
            waiting = [key for key in _parsed(str(path), tuple(lines)).keys if key.since > now]
            if waiting:
                shown = f"{datetime.fromtimestamp(waiting[0].since, UTC):%Y-%m-%dT%H:%M:%SZ}"
                problem, fix = f"has a key that will seal from {shown}", "wait until it does"
                raise ConfigError(str(path), [Problem(path="keys", value="***", problem=problem, fix=fix)])
            text = "\n".join([*lines, written("tgk1", secrets.token_bytes(SECRET_BYTES), now + lead)])
            text = re.sub(r"\n\n+(?=[^\n]*\Z)", "\n", text)  # the end of the last line was no line
        replace_whole(path, text + "\n", _MODE)
        return _read(path)


@dataclass(frozen=True, slots=True)
class KeyState:
    """seals: now. since: wall-clock seconds from which it seals. gone_from: from which no record of it is alive; None
    if nothing follows it."""

    key: SealingKey
    seals: bool
    since: float
    gone_from: float | None


def states_of(ring: KeyRing, now: float) -> list[KeyState]:
    """What each key does now, in the order in which they seal."""
    ordered = sorted(ring.keys, key=lambda key: key.since)
    sealing = ring.sealing(now)
    return [
        KeyState(key, key is sealing, key.since, min(later) + MAX_RETAIN if later else None)
        for key in ordered
        for later in [[other.since for other in ordered if other.since > key.since]]
    ]


def is_readable_by_others(path: Path) -> bool:
    """Whether anybody but its owner may read the file."""
    return bool(os.stat(path).st_mode & 0o077)
