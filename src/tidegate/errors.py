"""Everything that Tidegate raises, in one tree, and the collector that reports all problems at once.

TidegateError
├── ConfigError            a spec, settings file or policy is wrong; carries every Problem
├── StoreError             a store could not answer; layers treat it as a miss (P5)
├── FlagError              a flag, environment or strategy is missing or unusable
│   └── UnknownFlagError   surely there is no such flag, or no such environment
├── MetricsError           Prometheus or /metrics could not be read; the judge holds
└── RolloutError           a rollout cannot do what was asked (wrong state, unknown name)
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from reprlib import Repr
from typing import Final

__all__ = [
    "ABSENT",
    "ConfigError",
    "FlagError",
    "MetricsError",
    "Problem",
    "Problems",
    "RolloutError",
    "StoreError",
    "TidegateError",
    "UnknownFlagError",
]


class TidegateError(Exception):
    """Base of all errors that Tidegate raises."""


class StoreError(TidegateError):
    """A store could not answer in time, or answered nonsense."""


class FlagError(TidegateError):
    """A flag, its environment or its strategy is missing, or the flag service refused."""


class UnknownFlagError(FlagError):
    """There is no flag of this name, or it has no such environment; certain, not a guess from a lone 404."""


class MetricsError(TidegateError):
    """A metrics source could not be read. Never evidence of anything (P7)."""


class RolloutError(TidegateError):
    """A rollout cannot do what was asked; the message says why and what to do."""


ABSENT: Final = object()
"""The value of a Problem about what does not stand there at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with a piece of configuration.

    `path` names the field as a person would point at it (`steps[2].percent`), `value` is what stands there (ABSENT:
    nothing), `problem` says what is wrong with it, `fix` what to write instead.
    """

    path: str
    value: object
    problem: str
    fix: str

    def __str__(self) -> str:
        if self.value is ABSENT:
            return f"{self.path} {self.problem}; {self.fix}"
        shown = _shown(self.value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        return f"{self.path}: {shown} {self.problem}; {self.fix}"


_SHORT: Final = Repr()
_SHORT.maxlevel = 4
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxfrozenset = _SHORT.maxdict = 8
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200


def _shown(value: object) -> str:
    """A short text of any value, also of one that YAML's aliases have made of itself a billion times over."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"<{type(value).__name__} too long to show>"


class ConfigError(TidegateError, ValueError):
    """Configuration that cannot be used; `problems` holds every fault found, not only the first."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{source}: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]))


class Problems:
    """Collects problems, so that a reader of configuration can go on after the first."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._found: list[Problem] = []

    def add(self, path: str, value: object, problem: str, fix: str) -> None:
        """Note one problem and go on."""
        self._found.append(Problem(path=path, value=value, problem=problem, fix=fix))

    def __bool__(self) -> bool:
        return bool(self._found)

    def __len__(self) -> int:
        return len(self._found)

    @contextmanager
    def under(self, prefix: str) -> Generator[None, None, None]:
        """Take in the problems of a ConfigError raised inside, with `prefix` before their paths."""
        try:
            yield
        except ConfigError as error:
            for found in error.problems:
                path = prefix + found.path if found.path.startswith("[") else f"{prefix}.{found.path}"
                self.add(path, found.value, found.problem, found.fix)

    def raise_if_any(self) -> None:
        """Raise one ConfigError with everything that was noted, or return.

        Raises:
            ConfigError: if at least one problem was added.
        """
        if self._found:
            raise ConfigError(self._source, self._found)
