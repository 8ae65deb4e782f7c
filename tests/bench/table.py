"""The table that the bench prints, records and compares with."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.frame import Figure

__all__ = ["RECORDED", "load", "markdown", "record", "table"]

RECORDED = Path(__file__).with_name("recorded.json")
"""The table that was recorded last."""


def record(file: Path, figures: Sequence[Figure], *, rounds: int) -> None:
    """Write the figures, and what they depend on, as JSON. Figures of other cases that stand there are kept."""
    kept = load(file).get("figures", {}) if file.exists() else {}
    document = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "cpus": os.cpu_count(),
        "rounds": rounds,
        "figures": kept | {figure.case.title: _figure(figure) for figure in figures},
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
        if its_size.startswith("sockets"):
            continue
        if its_size != size:
            if figure.get("times_raw") is not None or its_size.endswith("iB"):
                continue
            name = title
        target = figure.get("target")
        in_terms = "above" if figure.get("target_above_bare") else "in all"
        rows.append(
            (
                name,
                f"{figure['us']:.1f}" if figure["us"] >= 1 else f"{figure['us']:.2f}",
                f"{figure['above_bare']:+.1f}" if "above_bare" in figure else "",
                f"{target:g} {in_terms}" if target is not None else "",
            )
        )
    return rows


def _figure(figure: Figure) -> dict[str, float | bool]:
    target = figure.case.target
    values = {
        "us": figure.microseconds,
        "times_raw": figure.times_raw,
        "above_bare": figure.above_bare,
        "target": target.microseconds if target is not None and target.of_raw is None else None,
        "target_of_raw": target.of_raw if target is not None else None,
    }
    kept: dict[str, float | bool] = {name: round(value, 3) for name, value in values.items() if value is not None}
    return kept | {"target_above_bare": True} if target is not None and target.above_bare else kept


def table(figures: Sequence[Figure], before: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The lines of the table; `before` are the figures that were recorded last."""
    lines = [f"{'':38}{'µs':>9}{'x raw':>9}{'above bare':>12}{'target':>10}{'':8}{'recorded':>10}{'change':>9}"]
    for figure in figures:
        was = before.get(figure.case.title, {}).get("us")
        lines.append(
            f"{figure.case.title:38}{figure.microseconds:9.3f}{_number(figure.times_raw, '9.2f')}"
            f"{_number(figure.above_bare, '+12.2f')}{_target(figure)}{_verdict(figure)}{_number(was, '10.3f')}"
            f"{_number(figure.microseconds / was * 100 - 100 if was else None, '+8.0f', '%')}".rstrip()
        )
    return lines


def _verdict(figure: Figure) -> str:
    if figure.case.target is None:
        return " " * 8
    return "  missed" if figure.missed else "  met   "


def _target(figure: Figure) -> str:
    target = figure.case.target
    if target is not None and target.of_raw is not None:
        return f"<{1 / target.of_raw:.2f} raw".rjust(10)
    return f"{target.microseconds:{'+' if target.above_bare else ''}.2f}".rjust(10) if target is not None else " " * 10


def _number(value: float | None, form: str, unit: str = "") -> str:
    width = int("".join(c for c in form.partition(".")[0] if c.isdigit())) + len(unit)
    return " " * width if value is None else f"{value:{form}}{unit}"
