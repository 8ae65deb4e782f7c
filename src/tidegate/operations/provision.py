"""`tidegate flags init`: what there is to make, decided apart from making it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from tidegate.errors import FlagError, Problems
from tidegate.flags.views import FlagView
from tidegate.operations.desk import Desk
from tidegate.vocabulary import FLAGS

__all__ = ["Plan", "Step", "chosen", "init", "plan"]

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing to make. name: of the flag or the field."""

    kind: Literal["field", "flag", "strategy"]
    name: str
    field: str

    def __str__(self) -> str:
        match self.kind:
            case "field":
                return f"the context field {self.name}, with stickiness"
            case "flag":
                return f"the flag {self.name}, off, at 0 % by {self.field}"
            case "strategy":
                return f"in {self.name}, which is off and has no strategy, one at 0 % by {self.field}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to make, in this order, and what is left as it is."""

    steps: tuple[Step, ...]
    left: tuple[str, ...]


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """The flags to make: those that are named, else one for each layer.

    Raises:
        ConfigError: naming each that looks like a layer's flag and is none.
    """
    problems = Problems("flags init")
    for name in names:
        if name.startswith("tidegate.") and name not in FLAGS.values():
            near = get_close_matches(name, FLAGS.values(), n=1)
            problems.add(
                "FLAG", name, "is the flag of no layer", f"use {near[0] if near else ', '.join(FLAGS.values())}"
            )
    problems.raise_if_any()
    return tuple(dict.fromkeys(names or FLAGS.values()))


def plan(found: Mapping[str, FlagView | None], field: str, *, field_known: bool) -> Plan:
    """What is missing for rollouts drawn over `field`. A flag that has a strategy, or is on, is never touched."""
    steps = [] if field_known else [Step(kind="field", name=field, field=field)]
    left: list[str] = []
    for name, view in found.items():
        if view is None:
            steps.append(Step(kind="flag", name=name, field=field))
        elif not view.enabled and not view.strategies and not view.disabled:
            steps.append(Step(kind="strategy", name=name, field=field))
        else:
            left.append(f"{name} is left as it is: {view}")
            left.extend(f"  {name} {fault}" for fault in view.faults(field))
    return Plan(steps=tuple(steps), left=tuple(left))


async def init(desk: Desk, names: Sequence[str], field: str, say: Say, *, dry_run: bool) -> None:
    """Make what is missing, and read back; with `dry_run` only say what would be made.

    Raises:
        FlagError: if something could not be made, or what was made does not read back as open for nobody. What was
            made before stays; a second call goes on from there.
    """
    todo = plan(await desk.look(names), field, field_known=await desk.knows_field(field))
    making: Mapping[str, Callable[[Step], Awaitable[None]]] = {
        "field": lambda step: desk.make_field(step.name),
        "flag": lambda step: desk.make_flag(step.name, step.field),
        "strategy": lambda step: desk.make_strategy(step.name, step.field),
    }
    for step in todo.steps:
        if not dry_run:
            await making[step.kind](step)
        say(f"{'would make' if dry_run else 'made'} {step}")
    for line in todo.left:
        say(line)
    if not todo.steps:
        say("nothing to make")
    made = [step.name for step in todo.steps if step.kind != "field"]
    if made and not dry_run:
        wrong = [
            f"{name} ({view or 'gone'})"
            for name, view in (await desk.look(made)).items()
            if view is None or view.reach != "nobody"
        ]
        if wrong:
            raise FlagError(f"not open for nobody after it was made, so somebody else is at it: {', '.join(wrong)}")
