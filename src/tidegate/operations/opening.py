"""`tidegate flags open` and `shut`: a flag for a few named units, by hand, before a rollout takes it over.

Guaranteed: nobody but the named units is let in at any instant of it: the percentage is written together with the
constraint, and only then is the flag turned on; what does not read back as meant is turned off again. A flag that is
open already in some other way, or that a rollout owns, is not touched. Conditions that may be somebody else's are
taken away only where that is asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Final

from tidegate.errors import FlagError, Problems
from tidegate.flags import UNIT_FIELDS
from tidegate.flags.views import ConstraintView, FlagView
from tidegate.operations.desk import Desk
from tidegate.vocabulary import FLAGS

__all__ = ["Only", "only", "open_for", "shut"]

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Only:
    """Whom to let in: those whose context field has one of these values."""

    field: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.field} {', '.join(self.values)}"


def only(texts: Sequence[str]) -> Only:
    """Read `FIELD=VALUE` texts, which name one field.

    Raises:
        ConfigError: naming what is not of this form.
    """
    problems = Problems("flags open")
    pairs = [text.partition("=") for text in texts]
    for text, (field, _, value) in zip(texts, pairs, strict=True):
        if not field or not value:
            problems.add("--only", text, "names no field and value", "write tenantId=acme")
        elif "," in value:
            each = " ".join(f"--only {field}={one.strip()}" for one in value.split(",") if one.strip())
            problems.add("--only", text, "is one value with a comma in it, not several", f"write {each}")
        elif (meant := _FIELDS.get(_bare(field))) not in (None, field):
            problems.add(
                "--only", text, "names a field that no request has, so it would let nobody in", f"write {meant}={value}"
            )
    fields = list(dict.fromkeys(field for field, _, _ in pairs))
    if len(fields) > 1 and not problems:
        problems.add("--only", ", ".join(fields), "are several fields", "name one, as often as you like")
    problems.raise_if_any()
    return Only(field=fields[0], values=tuple(sorted({value for _, _, value in pairs})))


def _bare(field: str) -> str:
    return field.lower().replace("_", "").replace("-", "").removesuffix("id")


_FIELDS: Final = {_bare(field): field for field in UNIT_FIELDS.values()}
"""What people write for a unit's field, to the field. Other fields come from `Tidegate(properties=…)`."""


async def open_for(desk: Desk, name: str, whom: Only, field: str, say: Say) -> None:
    """Open the flag for `whom` and for nobody else. field: what its strategy must be sticky by.

    Raises:
        FlagError: if the flag is not fit for it, is open in another way, or does not read back as meant.
    """
    found = await _one(desk, name)
    if faults := found.faults(field):
        raise FlagError(f"{name} in {desk.environment} {'; '.join(faults)}")
    if found.enabled and found.reach != "nobody" and not _is_only(found):
        raise FlagError(f"{name} in {desk.environment} is open already ({found}): tidegate flags shut {name}")
    if found.strategies and not _simple(found) and not _left_by_kill(found, whom):
        raise FlagError(
            f"{name} in {desk.environment} has conditions, of somebody else or of what was killed ({found}); "
            f"if nobody needs them, take them away: {_clearing(name)}"
        )
    try:
        await desk.aim(name, whom.field, whom.values, 100)
        _expect(await _one(desk, name), whom)
        if not found.enabled:
            await desk.turn(name, on=True)
            _expect(await _one(desk, name), whom, enabled=True)
    except FlagError:
        await desk.turn(name, on=False)
        raise
    variant = found.strategies[0].variant
    say(f"{name} in {desk.environment} is open for {whom} only{f', as {variant}' if variant else ''}")


async def shut(desk: Desk, name: str, say: Say, *, clear: bool = False) -> None:
    """Turn the flag off, then take away what `open_for` has written, so that a rollout can begin.

    clear: take away any condition of its one strategy, whoever has written it.

    Raises:
        FlagError: if it does not read back as off at 0 %, or cannot be cleared. It may be off all the same.
    """
    await desk.turn(name, on=False)
    found = await _one(desk, name)
    if found.enabled:
        raise FlagError(f"{name} in {desk.environment} was turned off, but reads back as {found}")
    if clear and (len(found.strategies) != 1 or found.strategies[0].segments):
        raise FlagError(
            f"{name} in {desk.environment} is off, but only the conditions of one strategy without segments can be "
            f"taken away here ({found}): use Unleash's pages, or edit the file"
        )
    if not clear and not _simple(found):
        clearing = f"; if nobody needs them: {_clearing(name)}" if len(found.strategies) == 1 else ""
        say(
            f"{name} in {desk.environment} is off; its conditions stay, since they may be somebody else's: "
            f"{found}{clearing}"
        )
        return
    await desk.aim(name, "", (), 0)
    found = await _one(desk, name)
    if found.enabled or found.strategies[0].percentage != 0 or found.strategies[0].constraints:
        raise FlagError(f"{name} in {desk.environment} was shut, but reads back as {found}")
    say(f"{name} in {desk.environment} is {found}")


def _clearing(name: str) -> str:
    return f"tidegate flags shut {name} --clear"


async def _one(desk: Desk, name: str) -> FlagView:
    views: Mapping[str, FlagView | None] = await desk.look((name,))
    found = views[name]
    if found is None:
        near = [] if name in FLAGS.values() else get_close_matches(name, FLAGS.values(), n=1)
        fix = f"; did you mean {near[0]!r}?" if near else f": tidegate flags init {name}"
        raise FlagError(f"there is no flag {name!r} in {desk.environment}{fix}")
    return found


def _simple(found: FlagView) -> bool:
    """One strategy, limited by nothing but what `open_for` writes: one condition, and that at 100 %."""
    if len(found.strategies) != 1 or found.strategies[0].segments:
        return False
    strategy, conditions = found.strategies[0], found.strategies[0].constraints
    if len(conditions) != 1:
        return not conditions
    return strategy.percentage == 100 and conditions[0].operator == "IN" and conditions[0].plain


def _left_by_kill(found: FlagView, whom: Only) -> bool:
    """Off at 0 % with just the condition that is asked for: to open it so takes nothing from anybody."""
    if found.enabled or len(found.strategies) != 1 or found.strategies[0].segments:
        return False
    strategy = found.strategies[0]
    wanted = (ConstraintView(field=whom.field, operator="IN", values=whom.values),)
    plain = tuple(replace(one, values=tuple(sorted(one.values))) for one in strategy.constraints)
    return strategy.percentage == 0 and plain == wanted


def _is_only(found: FlagView) -> bool:
    return _simple(found) and bool(found.strategies[0].constraints)


def _expect(found: FlagView, whom: Only, *, enabled: bool | None = None) -> None:
    if (
        not _is_only(found)
        or found.strategies[0].constraints[0].field != whom.field
        or set(found.strategies[0].constraints[0].values) != set(whom.values)
        or (enabled is not None and found.enabled != enabled)
    ):
        raise FlagError(f"{found.name} was to be open for {whom}, but reads back as {found}; it was turned off")
