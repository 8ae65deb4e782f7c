"""Flags as a person sees them: what stands in a file or in Unleash, whom it is open for, what is wrong with it.

Pure. The same view of both sources, so that what is said about a flag does not depend on where it lives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from tidegate.flags.evaluate import Flag
from tidegate.flags.provider import Reach

__all__ = ["ConstraintView", "FlagView", "StrategyView", "view_of_flag", "view_of_unleash"]

_GRADUAL: Final = "flexibleRollout"
_Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstraintView:
    """A condition. plain: it means no more than field, operator and values say (not inverted, case counts)."""

    field: str
    operator: str
    values: tuple[str, ...]
    plain: bool = True

    def __str__(self) -> str:
        return f"{self.field} {self.operator} {', '.join(self.values)}{'' if self.plain else ' (inverted or no case)'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyView:
    """A strategy that counts.

    percentage: None if none stands there (`written` does) that is a whole number from 0 to 100: Unleash then admits
        nobody. segments: how many segments limit it besides. variant: under which it lets in; empty: none. `shadow`
        is shadow mode.
    """

    name: str
    percentage: int | None
    written: str
    stickiness: str
    group: str
    constraints: tuple[ConstraintView, ...] = ()
    segments: int = 0
    variant: str = ""

    def __str__(self) -> str:
        if self.name != _GRADUAL:
            text = f"strategy {self.name!r}"
        else:
            text = f"{self.written if self.percentage is None else self.percentage} % by {self.stickiness}"
        if self.constraints:
            text += f" where {' and '.join(map(str, self.constraints))}"
        if self.segments:
            text += f" in {self.segments} segments"
        return f"{text} as {self.variant}" if self.variant else text

    @property
    def reach(self) -> Reach:
        """Whom it admits, among those who have the field that it is sticky by."""
        if self.name == _GRADUAL and not self.percentage:
            return "nobody"
        whole = self.name == "default" or (self.name == _GRADUAL and self.percentage == 100)
        return "everybody" if whole and not self.constraints and not self.segments else "some"


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagView:
    """A flag in one environment.

    strategies: those that count. disabled: how many were set aside. needs: the flags that must (or, with `not`, must
    not) be open too; whether they are is not told here.
    """

    name: str
    enabled: bool
    strategies: tuple[StrategyView, ...]
    disabled: int = 0
    needs: tuple[str, ...] = ()

    def __str__(self) -> str:
        what = "; or ".join(map(str, self.strategies)) or "no strategy"
        if self.disabled:
            what += f" ({self.disabled} disabled)"
        if self.needs:
            what += f", and only with {' and '.join(self.needs)}"
        return f"{'on' if self.enabled else 'off'}, {what}"

    @property
    def reach(self) -> Reach:
        """Whom it is open for. On without a strategy, Unleash opens it for everybody; what it needs may shut it."""
        if not self.enabled:
            return "nobody"
        reaches = {strategy.reach for strategy in self.strategies} or {"everybody"}
        if "everybody" in reaches and not self.needs:
            return "everybody"
        return "nobody" if reaches == {"nobody"} else "some"

    def faults(self, field: str) -> list[str]:
        """What is wrong with it for a rollout drawn over `field`, each with its fix."""
        if not self.strategies:
            if self.enabled:
                return [
                    "is on without a strategy, so open for everybody: shut it, then give it one (tidegate flags init)"
                ]
            if self.disabled:
                return ["has disabled strategies only; Unleash would open it for everybody: enable or delete them"]
            return ["has no strategy; Unleash would open it for everybody when it is turned on: tidegate flags init"]
        found = [fault for strategy in self.strategies for fault in _faults(strategy, self.name, field)]
        if len(self.strategies) > 1:
            found.append(f"has {len(self.strategies)} strategies, of which a rollout can move none: leave one")
        return found


def _faults(strategy: StrategyView, flag: str, field: str) -> list[str]:
    if strategy.name != _GRADUAL:
        return [f"has the strategy {strategy.name!r}, which a rollout cannot move: use a gradual rollout"]
    found: list[str] = []
    if strategy.percentage is None:
        found.append(
            f"has the percentage {strategy.written!r}, which is open for nobody: write a whole number 0 to 100"
        )
    if strategy.stickiness != field:
        found.append(f"is sticky by {strategy.stickiness!r}, but flags.unit draws over {field!r}: make them agree")
    if strategy.group != flag:
        found.append(f"is hashed with the group {strategy.group!r}, so its bands are wrong: make the group {flag!r}")
    return found


def view_of_flag(flag: Flag) -> FlagView:
    """The view of a flag of the local file."""
    strategies = tuple(
        StrategyView(
            name=_GRADUAL,
            percentage=strategy.percentage,
            written=str(strategy.percentage),
            stickiness=strategy.stickiness,
            group=strategy.group,
            constraints=tuple(
                ConstraintView(field=one.field, operator=one.operator, values=tuple(sorted(one.values)))
                for one in strategy.constraints
            ),
            variant=strategy.variant or "",
        )
        for strategy in flag.strategies
    )
    return FlagView(name=flag.name, enabled=flag.enabled, strategies=strategies)


def view_of_unleash(name: str, state: _Json) -> FlagView:
    """The view of a flag as Unleash describes it, to clients or, for one environment, to administrators."""
    every = _objects(state.get("strategies"))
    live = [one for one in every if not one.get("disabled")]
    return FlagView(
        name=name,
        enabled=state.get("enabled") is True,
        strategies=tuple(_strategy(one) for one in live),
        disabled=len(every) - len(live),
        needs=tuple(map(_need, _objects(state.get("dependencies")))),
    )


def _need(raw: _Json) -> str:
    variants = " or ".join(map(str, cast(Sequence[object], raw.get("variants") or ())))
    text = f"{raw.get('feature')} as {variants}" if variants else str(raw.get("feature"))
    return text if raw.get("enabled", True) else f"not {text}"


def _strategy(raw: _Json) -> StrategyView:
    given = raw.get("parameters")
    parameters: _Json = cast(_Json, given) if isinstance(given, dict) else {}
    written = str(parameters.get("rollout", ""))
    whole = written.isascii() and written.isdigit() and len(written) <= 3 and int(written) <= 100
    return StrategyView(
        name=str(raw.get("name")),
        percentage=int(written) if whole else None,
        written=written,
        stickiness=str(parameters.get("stickiness", "default")),
        group=str(parameters.get("groupId", "")),
        constraints=tuple(_constraint(one) for one in _objects(raw.get("constraints"))),
        segments=len(cast(Sequence[object], raw.get("segments") or ())),
        variant=" or ".join(str(one.get("name")) for one in _objects(raw.get("variants"))),
    )


def _constraint(raw: _Json) -> ConstraintView:
    values = cast(Sequence[object], raw.get("values") or ([raw["value"]] if raw.get("value") is not None else []))
    return ConstraintView(
        field=str(raw.get("contextName")),
        operator=str(raw.get("operator")),
        values=tuple(map(str, values)),
        plain=not raw.get("inverted") and not raw.get("caseInsensitive"),
    )


def _objects(value: object) -> list[_Json]:
    if not isinstance(value, list):
        return []
    return [cast(_Json, one) for one in cast(list[object], value) if isinstance(one, dict)]
