"""Stop records: what they say, how they are written, and what a reader makes of what it sees.

A record stands for one flag in one environment. A kill writes one that stops the flag; `lift` does not delete it, but
writes a newer one that does not. So silence lifts nothing: a reader that has seen a stop keeps it while the record is
missing, older than the one it knows (a server that was flushed, or restored from a backup), or unreadable. Numbers tell
which of two records is newer: they are times in microseconds, raised where needed so that they always grow.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, cast

from tidegate.errors import FlagError

__all__ = ["MAX_NUMBER", "MAX_RECORD_BYTES", "Seen", "StopRecord", "StopView", "decode", "encode", "next_number"]

MAX_NUMBER: Final = 2**53 - 1
"""The largest number of a record: what a double holds exactly, since Redis' scripts count in doubles."""

MAX_RECORD_BYTES: Final = 16 * 1024
"""A record larger than this is not one of ours."""

_TEXT: Final = 500
"""Longest reason or name that is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRecord:
    """That a flag is stopped in an environment, or that it no longer is.

    stopped: False in the record that lifts.
    number: grows with each record of the flag; the larger one counts.
    since, until: seconds since the epoch, by the wall clock; the stop ends by itself at `until`; None: it does not.
    reason, by: for people; `by` is `user@host`.
    """

    flag: str
    environment: str
    stopped: bool
    number: int
    since: float
    until: float | None = None
    reason: str = ""
    by: str = ""

    def in_force(self, now: float) -> bool:
        """Whether it stops the flag at this time of the wall clock."""
        return self.stopped and (self.until is None or now < self.until)


Seen = Mapping[str, bytes]
"""What a home holds: flag -> record as written. A flag without a record is not in it."""


def encode(record: StopRecord) -> bytes:
    """The record as it is written: JSON, so that a person can read it where it lies."""
    held = asdict(record) | {"reason": record.reason[:_TEXT], "by": record.by[:_TEXT]}
    return json.dumps(held, ensure_ascii=True, sort_keys=True).encode()


def decode(raw: bytes, flag: str, environment: str) -> StopRecord:
    """The record of this flag and environment.

    Raises:
        FlagError: if it is not one.
    """
    if len(raw) > MAX_RECORD_BYTES:
        raise FlagError(f"the stop record of {flag} has {len(raw)} bytes")
    try:
        found: object = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FlagError(f"the stop record of {flag} is not JSON: {error}") from error
    held = cast(dict[str, Any], found) if isinstance(found, dict) else {}
    since, until, number = held.get("since"), held.get("until"), held.get("number")
    good = (
        (held.get("flag"), held.get("environment")) == (flag, environment)
        and isinstance(held.get("stopped"), bool)
        and type(number) is int
        and 0 < number <= MAX_NUMBER
        and _is_time(since)
        and (until is None or _is_time(until))
    )
    if not good:
        raise FlagError(f"the stop record of {flag} in {environment} is not one: {raw[:80]!r}")
    return StopRecord(
        flag=flag,
        environment=environment,
        stopped=held["stopped"],
        number=cast(int, number),
        since=cast(float, since),
        until=cast("float | None", until),
        reason=str(held.get("reason", ""))[:_TEXT],
        by=str(held.get("by", ""))[:_TEXT],
    )


def next_number(now: float, held: bytes | None) -> int:
    """A number for a new record: the time in microseconds, or one more than the record has that is there."""
    number = int(now * 1_000_000)
    try:
        found: object = json.loads(held) if held is not None else None
    except (ValueError, RecursionError):
        found = None
    last = cast(dict[str, Any], found).get("number") if isinstance(found, dict) else None
    return max(number, last + 1) if type(last) is int and 0 < last < MAX_NUMBER else number


class StopView:
    """What one reader knows of the stops of its flags; bounded, since the flags are named beforehand."""

    def __init__(self, flags: Iterable[str], environment: str) -> None:
        self.flags: tuple[str, ...] = tuple(dict.fromkeys(flags))
        self._environment = environment
        self._known: dict[str, StopRecord] = {}
        self._unreadable: dict[str, str] = {}

    def take(self, seen: Seen) -> list[str]:
        """Take in what a home holds; the answer says, for a person, what is wrong with it."""
        wrong: list[str] = []
        for flag in self.flags:
            known, raw = self._known.get(flag), seen.get(flag)
            if raw is None:
                if flag in self._unreadable or (known is not None and known.stopped):
                    wrong.append(f"the stop record of {flag} is gone; the stop stands until it is lifted")
                continue
            try:
                record = decode(raw, flag, self._environment)
            except FlagError as error:
                self._unreadable[flag] = str(error)
                wrong.append(f"{error}; the flag counts as stopped")
                continue
            if known is not None and record.number < known.number:
                wrong.append(f"the stop record of {flag} is older than the one known before, which is kept")
            else:
                self._known[flag] = record
                self._unreadable.pop(flag, None)
        return wrong

    def stopped(self, now: float) -> frozenset[str]:
        """The flags that are stopped at this time of the wall clock."""
        by_record = {flag for flag, record in self._known.items() if record.in_force(now)}
        return frozenset(by_record | self._unreadable.keys())

    def next_end(self, now: float) -> float:
        """When the next stop ends by itself; infinite if none does."""
        ends = [record.until for record in self._known.values() if record.in_force(now) and record.until is not None]
        return min(ends, default=math.inf)


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12
