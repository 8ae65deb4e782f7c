"""Reading fields of a specification: durations, ratios, and tables of named fields, every problem noted with its path.

A parser takes the raw value and returns the meant one, or raises `Refusal` with what is wrong and how to put it right.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, cast

from tidegate.errors import ABSENT, Problems

__all__ = ["REQUIRED", "Field", "Parser", "Refusal", "duration", "ratio", "read_table", "show_duration", "show_ratio"]

Parser = Callable[[object], Any]

_UNITS: Final[Mapping[str, float]] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST: Final = 3650 * 86400.0
_DURATION: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*")
_PERCENT: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")


class Refusal(Exception):
    """A value that cannot be used: `problem` says what is wrong with it, `fix` what to write."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"{problem}; {fix}")
        self.problem = problem
        self.fix = fix


class _Required:
    """Stands for the default of a field that has none."""

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Final = _Required()


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """How to read one field.

    parse: makes the value, or raises Refusal. None: the caller reads it (lists and tables inside).
    default: what an absent field means, or REQUIRED.
    fix: said when a required field is absent.
    """

    parse: Parser | None
    default: object = REQUIRED
    fix: str = ""


def duration(raw: object) -> float:
    """Seconds from `500ms`, `15s`, `10m`, `2h`, `1d`, or from a number of seconds; never negative.

    Raises:
        Refusal: if it is none of them.
    """
    seconds: float = -1
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        seconds = raw
    elif isinstance(raw, str) and (found := _DURATION.fullmatch(raw)):
        seconds = float(found[1]) * _UNITS[found[2]]
    if not 0 <= seconds <= _LONGEST:
        raise Refusal("is not a duration", "write a duration such as 500ms, 15s, 10m or 2h; at most ten years")
    return float(seconds)


def ratio(raw: object) -> float:
    """A number from 0 to 1, from `1%` or `0.01`.

    Raises:
        Refusal: if it is neither; a bare 5 is refused, because it may mean 5 % or a mistake.
    """
    fix = "write a ratio such as 1% or 0.01"
    if isinstance(raw, str):
        found = _PERCENT.fullmatch(raw)
        value = float(found[1]) / 100 if found else math.nan
    else:
        value = raw if isinstance(raw, int | float) and not isinstance(raw, bool) else math.nan
    if not 0 <= value <= 1:
        raise Refusal("is not a ratio between 0 and 1", fix)
    return float(value)


def show_duration(seconds: float) -> str:
    """Seconds as a person writes them: 0.5 -> 500ms, 90 -> 90s, 600 -> 10m."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:g}ms"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


def show_ratio(value: float) -> str:
    """A ratio as percent with at most four digits: 0.01 -> 1%, 0.00123 -> 0.123%."""
    return f"{value * 100:.4g}%"


def read_table(path: str, raw: object, fields: Mapping[str, Field], problems: Problems) -> dict[str, Any]:
    """The values of the fields that could be read; every other one is noted in `problems`.

    A field with `parse=None` comes through raw. Absent fields come with their default; a field that was refused, or is
    required and absent, is missing from the answer.
    """
    prefix = f"{path}." if path else ""
    if not isinstance(raw, Mapping):
        problems.add(path or "(top)", raw, "is not a mapping", f"write fields: {', '.join(fields)}")
        return {}
    table = cast(Mapping[object, object], raw)
    for name in table:
        if name not in fields:
            problems.add(f"{prefix}{name}", table[name], "is not a field here", _did_you_mean(str(name), fields))
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in table:
            if field.default is REQUIRED:
                problems.add(f"{prefix}{name}", ABSENT, "is missing", field.fix)
            else:
                values[name] = field.default
        elif field.parse is None:
            values[name] = table[name]
        else:
            try:
                values[name] = field.parse(table[name])
            except Refusal as refusal:
                problems.add(f"{prefix}{name}", table[name], refusal.problem, refusal.fix)
    return values


def _did_you_mean(name: str, known: Mapping[str, object]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
