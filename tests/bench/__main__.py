"""`python -m tests.bench [NAME …] [--check] [--record [FILE]]`: what Tidegate costs, against a raw ASGI function."""

import argparse
import pkgutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Final

import tests.bench
from tests.bench.calibration import factors
from tests.bench.facts import Fact
from tests.bench.frame import Bench, Case, measure
from tests.bench.table import RECORDED, calibrated, load, record, table

__all__ = ["benches", "main"]

Maker = Callable[[Bench], Iterable[Case | Fact]]

SECONDS: Final = 0.03


def benches() -> dict[str, Maker]:
    """Every bench by name, from the modules of this package that have `BENCHES`."""
    found: dict[str, Maker] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(tests.bench.__path__)):
        if not module.startswith(("_", "test_")):
            found |= getattr(import_module(f"tests.bench.{module}"), "BENCHES", {})
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 where a target is missed that was to be checked."""
    known = benches()
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to measure: {', '.join(known)} (default: all)")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed, and say which")
    parser.add_argument("--record", nargs="?", type=Path, const=RECORDED, metavar="FILE", help="keep the table as JSON")
    parser.add_argument("--rounds", type=int, default=21, help="interleaved rounds (default 21)")
    told = (
        f"CPU seconds for a case in a round (default {SECONDS}); with less, what is measured once is measured in part"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help=told)
    chosen = parser.parse_args(argv)
    unknown = [name for name in chosen.names if name not in known]
    if unknown:
        parser.error(f"no bench is called {', '.join(unknown)}; there are {', '.join(known)}")
    with Bench() as bench:
        made = [each for name in chosen.names or known for each in known[name](bench)]
        cases = {case.title: case for case in made if isinstance(case, Case)}
        measured = measure(list(cases.values()), rounds=chosen.rounds, seconds=chosen.seconds, progress=_progress)
        machine, each = factors(measured)
        figures = [replace(figure, machine=machine) for figure in measured]
        part = min(1.0, chosen.seconds / SECONDS)
        counted = [fact.counted(part) for fact in made if isinstance(fact, Fact)]
    before = load(RECORDED)["figures"] if RECORDED.exists() else {}
    print("\n".join([*table(figures, before, counted), *calibrated(machine, each)]))
    if chosen.record is not None:
        record(chosen.record, figures, counted, rounds=chosen.rounds, machine=machine if each else None)
    failed = [one.missed for one in (*figures, *counted) if one.missed] if chosen.check else []
    for line in failed:
        print(f"missed: {line}")
    return 1 if failed else 0


def _progress(told: str) -> None:
    print(f"bench: {told}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
