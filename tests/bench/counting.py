"""What the cohort counters cost a request, for all five flags: in memory, and in a worker's file."""

from tempfile import TemporaryDirectory

from tests.bench.exchanges import Flags
from tests.bench.frame import Bench, Case
from tidegate.flags import Gates
from tidegate.middleware.cohorts import CohortCounters

__all__ = ["BENCHES"]

COUNT = "count(cohorts, seconds=0.004, error=False, storable=True, hit=True)"


def counting(bench: Bench) -> list[Case]:
    """Counting a hit."""
    gates = Gates(Flags(on=True))
    folder = bench.closing.enter_context(TemporaryDirectory())
    cases: list[Case] = []
    for name, directory in (("count cohorts, one process", None), ("count cohorts, workers", folder)):
        counters = CohortCounters(gates.label_combinations(), directory=directory)
        bench.closing.callback(counters.close)
        names = {"count": counters.count, "cohorts": gates.decide_for("acme", "ann").cohorts}
        cases.append(bench.statement(name, COUNT, names))
    return cases


BENCHES = {"counting": counting}
