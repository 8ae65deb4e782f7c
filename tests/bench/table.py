"""The table that the bench prints, records and compares with."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.calibration import CALIBRATED
from tests.bench.facts import Counted
from tests.bench.frame import BARE, Figure

__all__ = ["RECORDED", "calibrated", "load", "markdown", "record", "table"]

RECORDED = Path(__file__).with_name("recorded.json")
"""The table that was recorded last."""


def record(
    file: Path, figures: Sequence[Figure], counted: Sequence[Counted] = (), *, rounds: int, machine: float | None
) -> None:
    """Write the figures, and what they depend on, as JSON. Figures of other cases that stand there are kept.

    machine: as `Figure` has it. None: it was not measured now.
    """
    before = load(file) if file.exists() else {}
    kept = before.get("figures", {})
    document: dict[str, Any] = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "cpus": os.cpu_count(),
        "machine": round(machine, 2) if machine is not None else before.get("machine", 1.0),
        "rounds": rounds,
        "figures": kept
        | {figure.case.title: _figure(figure) for figure in figures}
        | {one.fact.name: _counted(one) for one in counted},
    }
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def load(file: Path) -> dict[str, Any]:
    """A table that was recorded."""
    loaded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return loaded


def markdown(document: Mapping[str, Any], size: str) -> list[tuple[str, ...]]:
    """The rows of the table in the docs: all that was recorded for one size, and what has none."""
    rows: list[tuple[str, ...]] = []
    for title, figure in document["figures"].items():
        name, _, its_size = title.rpartition(", ")
        if its_size.startswith("sockets") or its_size == CALIBRATED:
            continue
        if "unit" in figure:
            most = figure.get("target")
            rows.append((title, f"{figure['value']:g} {figure['unit']}", "", f"{most:g}" if most is not None else ""))
            continue
        if its_size != size:
            if figure.get("times_raw") is not None or its_size.endswith("iB"):
                continue
            name = title
        target = figure.get("target")
        above = figure.get("target_above")
        in_terms = "in all" if above is None else "above" if above == BARE else f"above *{above}*"
        rows.append(
            (
                name,
                f"{figure['us']:.1f}" if figure["us"] >= 1 else f"{figure['us']:.2f}",
                f"{figure['above_bare']:+.1f}" if "above_bare" in figure else "",
                f"{target:g} {in_terms}" if target is not None else "",
            )
        )
    return rows


def _figure(figure: Figure) -> dict[str, float | str]:
    target = figure.case.target
    values = {
        "us": figure.microseconds,
        "times_raw": figure.times_raw,
        "above_bare": figure.above_bare,
        "per_second": figure.per_second,
        "of_raw": figure.of_raw,
        "target": target.microseconds
        if target is not None and target.of_raw is None and not target.of_others
        else None,
        "target_of_raw": target.of_raw if target is not None else None,
        "times_other": min(figure.times_others.values(), default=None),
    }
    kept: dict[str, float | str] = {name: round(value, 3) for name, value in values.items() if value is not None}
    return kept | {"target_above": target.above} if target is not None and target.above else kept


def _counted(one: Counted) -> dict[str, float | str]:
    kept: dict[str, float | str] = {"value": round(one.value, 3), "unit": one.fact.unit}
    return kept | ({"target": one.fact.most} if one.fact.most is not None else {})


def calibrated(factor: float, each: Mapping[str, float]) -> list[str]:
    """What is said of this machine beside that of the targets; nothing, if nothing of it was measured."""
    if not each:
        return []
    told = ", ".join(f"{name} {times:.2f}" for name, times in each.items())
    return [f"This machine takes {factor:.2f} times as long as that on which the targets were set ({told})."]


def table(
    figures: Sequence[Figure], before: Mapping[str, Mapping[str, float]], counted: Sequence[Counted] = ()
) -> list[str]:
    """The lines of the table, servers and what was counted last; `before` are the figures that were recorded last."""
    inside = [figure for figure in figures if figure.per_second is None]
    served = [figure for figure in figures if figure.per_second is not None]
    lines: list[str] = []
    if inside:
        lines.append(f"{'':44}{'µs':>9}{'x raw':>9}{'above bare':>12}{'recorded':>10}{'change':>9}  target")
        lines += [_line(figure, before.get(figure.case.title, {}).get("us")) for figure in inside]
    if served:
        lines.append(f"{'':44}{'req/s':>9}{'x raw':>9}{'by CPU':>12}{'recorded':>10}{'change':>9}  target")
        lines += [_served(figure, before.get(figure.case.title, {}).get("of_raw")) for figure in served]
    if counted:
        lines.append(f"{'':44}{'':9}{'unit':>9}{'':12}{'recorded':>10}{'change':>9}  target")
        lines += [_told(one, before.get(one.fact.name, {}).get("value")) for one in counted]
    return lines


def _line(figure: Figure, was: float | None) -> str:
    return (
        f"{figure.case.title:44}{figure.microseconds:9.3f}{_number(figure.times_raw, '9.2f')}"
        f"{_number(figure.above_bare, '+12.2f')}{_number(was, '10.3f')}{_change(figure.microseconds, was)}"
        f"{_verdict(figure)}"
    ).rstrip()


def _served(figure: Figure, was: float | None) -> str:
    by_cpu = 1 / figure.times_raw if figure.times_raw else None
    return (
        f"{figure.case.title:44}{_number(figure.per_second, '9.0f')}{_number(figure.of_raw, '9.2f')}"
        f"{_number(by_cpu, '12.2f')}{_number(was, '10.2f')}{_change(figure.of_raw, was)}{_verdict(figure)}"
    ).rstrip()


def _told(one: Counted, was: float | None) -> str:
    fact = one.fact
    verdict = f"  {'missed' if one.missed else 'met'}, at most {fact.most:g}" if fact.most is not None else ""
    recorded = f"{_number(was, '10.3g')}{_change(one.value, was)}"
    return f"{fact.name:44}{one.value:9.3g}{fact.unit:>9}{'':12}{recorded}{verdict}".rstrip()


def _change(now: float | None, was: float | None) -> str:
    return _number(now / was * 100 - 100 if was and now else None, "+8.0f", "%")


def _verdict(figure: Figure) -> str:
    target = figure.case.target
    if target is None:
        return ""
    word = "missed" if figure.missed else "met"
    if target.of_others:
        terms = (
            f"{figure.times_others.get(other, 0):.2f} of {other}, at most {part:g}" for other, part in target.of_others
        )
        return f"  {word}, {'; '.join(terms)}"
    if target.of_raw is not None:
        return f"  {word}, at least {target.of_raw:.2f} x raw by CPU"
    spent = f"{figure.above_other:+.2f}, " if figure.above_other is not None and target.above != BARE else ""
    terms = f" above {target.above}" if target.above else ""
    sign = "+" if target.above else ""
    here = f", here {figure.may_cost:{sign}.2f}" if figure.machine != 1 else ""
    return f"  {word}, {spent}at most {target.microseconds:{sign}g}{here}{terms}"


def _number(value: float | None, form: str, unit: str = "") -> str:
    width = int("".join(c for c in form.partition(".")[0] if c.isdigit())) + len(unit)
    return " " * width if value is None else f"{value:{form}}{unit}"
