"""Whom a flag admits: Unleash's gradual rollout as pure functions, for flags that live in a local file.

A flag is open for a context if it is enabled and any of its strategies admits it. A strategy admits if all of its
constraints hold and the context's place in 1..100, a hash of its stickiness field, is at most the percentage. Raising a
percentage therefore keeps everybody who was in. Whatever this model can say, Unleash's own engine decides alike;
`tests/flags/test_evaluate.py` compares the two. What it could not decide alike is refused with a ConfigError.

Source: https://docs.getunleash.io/reference/activation-strategies and the engine itself (yggdrasil-engine 2.0).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

import mmh3

from tidegate.errors import Problems
from tidegate.vocabulary import BAND_EDGES

__all__ = ["Constraint", "Flag", "FlagContext", "Operator", "Strategy", "band_of", "is_open", "normalized", "open_as"]

Operator = Literal["IN", "NOT_IN"]

_FLAG_NAME = re.compile(r"[A-Za-z0-9._~-]+")
_RESERVED: Final = frozenset({"appName", "currentTime", "environment"})
"""Context fields that the SDK fills in itself."""
_NO_FIELD: Final = frozenset({"default", "random"})
"""Stickiness that is no field: it follows whatever is known, or nothing, and so moves a unit between requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagContext:
    """What flags may know about a request.

    unit: whom the percentage is drawn over (a tenant, user or session), or None where nobody is known.
    properties: context fields under Unleash's names: `tenantId`, `userId`, `sessionId`, `region`, ...
    key: both of the above in one string, unlike for unlike contexts; computed once, so that a decision can be
        remembered under it.
    """

    unit: str | None = field(compare=False)
    properties: Mapping[str, str] = field(default_factory=dict[str, str], compare=False)
    key: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts = ["-" if self.unit is None else f"{len(self.unit)}:{self.unit}"]
        for name, value in self.properties.items():
            parts.append(f"{len(name)}:{name}{len(value)}:{value}")
        object.__setattr__(self, "key", "".join(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A condition on one context field; case sensitive.

    A missing field is in no list: IN does not hold, NOT_IN does. An empty `values` likewise.

    Raises:
        ConfigError: if the field's name or the operator is not one that Unleash would read in the same way.
    """

    field: str
    operator: Operator
    values: frozenset[str]

    def __post_init__(self) -> None:
        problems = Problems("constraint")
        _check_field(problems, "field", self.field)
        if self.operator not in get_args(Operator):
            problems.add("operator", self.operator, "is not an operator of the local file", "write IN or NOT_IN")
        problems.raise_if_any()

    def holds(self, properties: Mapping[str, str]) -> bool:
        """Whether a context with these fields satisfies the condition."""
        return (properties.get(self.field) in self.values) is (self.operator == "IN")


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """A gradual rollout (Unleash: flexibleRollout).

    percentage: how many of 100 places are admitted; a whole number, 0..100.
    stickiness: the context field whose value is hashed. Where a request lacks it, it is not admitted, even at 100.
    group: hashed together with the value; flags with different groups admit different units first.
    constraints: all must hold.
    variant: under which it lets in; None: none. `shadow` is the only one that means anything.

    Raises:
        ConfigError: naming every field that is out of range.
    """

    percentage: int
    group: str
    stickiness: str = "tenantId"
    constraints: tuple[Constraint, ...] = ()
    variant: str | None = None

    def __post_init__(self) -> None:
        problems = Problems("strategy")
        if type(self.percentage) is not int or not 0 <= self.percentage <= 100:
            problems.add("percentage", self.percentage, "is not a percentage", "write a whole number from 0 to 100")
        if _check_field(problems, "stickiness", self.stickiness) and self.stickiness in _NO_FIELD:
            problems.add("stickiness", self.stickiness, "names no field", "write tenantId, userId or sessionId")
        _check_text(problems, "group", self.group)
        if self.variant is not None and self.variant != "shadow":
            # A misspelt one must not open for real what was to be looked at only.
            problems.add(
                "variant", self.variant, "is not a variant that is known here", "write shadow, or leave it out"
            )
        problems.raise_if_any()

    def admits(self, properties: Mapping[str, str]) -> bool:
        """Whether a context with these fields is let in."""
        value = properties.get(self.stickiness)
        if value is None or normalized(self.group, value) > self.percentage:
            return False
        return all(constraint.holds(properties) for constraint in self.constraints)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A flag in one environment: off for everybody, or open for whom any strategy admits.

    Raises:
        ConfigError: if the name is not one that Unleash accepts, or the flag is enabled without a strategy: Unleash
            would open such a flag for everybody.
    """

    name: str
    enabled: bool
    strategies: tuple[Strategy, ...] = ()

    def __post_init__(self) -> None:
        problems = Problems("flag")
        if not _FLAG_NAME.fullmatch(self.name):
            problems.add("name", self.name, "is not a flag name", "use letters, digits and . _ ~ - only")
        if type(self.enabled) is not bool:
            problems.add("enabled", self.enabled, "is neither true nor false", "write true or false")
        elif self.enabled and not self.strategies:
            problems.add(
                "strategies",
                [],
                "is empty in an enabled flag, which Unleash opens for everybody",
                'add a strategy such as {"percentage": 100}, or write "enabled": false',
            )
        problems.raise_if_any()

    @property
    def admits_nobody(self) -> bool:
        """Shut whoever asks."""
        return not self.enabled or all(strategy.percentage == 0 for strategy in self.strategies)

    @property
    def admits_everybody(self) -> bool:
        """Open for whoever has the field that a strategy is sticky by."""
        return self.enabled and any(
            strategy.percentage == 100 and not strategy.constraints for strategy in self.strategies
        )


def is_open(flag: Flag, context: FlagContext) -> bool:
    """Whether the flag is open for this context. Depends on its properties alone, never on the unit."""
    return flag.enabled and any(strategy.admits(context.properties) for strategy in flag.strategies)


def open_as(flag: Flag, context: FlagContext) -> str | None:
    """None if the flag is shut for this context; else the variant of the first strategy that admits it, "" for none."""
    if flag.enabled:
        for strategy in flag.strategies:
            if strategy.admits(context.properties):
                return strategy.variant or ""
    return None


def normalized(group: str, value: str) -> int:
    """The place in 1..100 of a value within a group: Unleash's MurmurHash3 of `group:value`.

    A lone surrogate, which UTF-8 cannot carry, is hashed too, so that every text has a place.
    """
    return mmh3.hash(f"{group}:{value}".encode("utf-8", "surrogatepass"), seed=0, signed=False) % 100 + 1


def band_of(place: int, edges: Sequence[int] = BAND_EDGES) -> str:
    """The band of a place in 1..100: the first edge that admits it, as text. `edges` ascend to 100."""
    for edge in edges:
        if place <= edge:
            return str(edge)
    raise ValueError(f"place {place} is above the last band edge {edges[-1]}; edges must end at 100")


def _check_field(problems: Problems, path: str, name: object) -> bool:
    if not _check_text(problems, path, name):
        return False
    if name in _RESERVED:
        problems.add(path, name, "is filled in by the Unleash SDK, not by the request", "name another context field")
        return False
    return True


def _check_text(problems: Problems, path: str, text: object) -> bool:
    if not isinstance(text, str) or not text:
        problems.add(path, text, "is not a text with at least one character", "write a name in quotes")
    elif '"' in text or "\\" in text:
        problems.add(path, text, "holds a quote or a backslash, which Unleash's engine cannot hash", "leave it out")
    else:
        return True
    return False
