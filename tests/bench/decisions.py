"""What it costs to decide for all five flags when the unit is known: the names alone, and a context with properties.

Every decision counts in the usage that Unleash is told; that is part of the cost.
"""

from tests.bench.exchanges import Flags
from tests.bench.frame import Bench, Case, Target
from tidegate.flags import FlagContext, Gates

__all__ = ["BENCHES"]

TARGET = Target(microseconds=0.2)


def decisions(bench: Bench) -> list[Case]:
    """A decision that is remembered."""
    flags = Flags(on=True)
    flags.version = 1  # of the instance, as that of the real providers
    gates = Gates(flags)
    context = FlagContext(unit="acme", properties={"tenantId": "acme", "userId": "ann", "region": "eu"})
    names = {"gates": gates, "context": context}

    def verify() -> None:
        before = gates.usage.counts()
        assert len(gates.decide_for("acme", "ann").open) == len(gates.decide(context).open) == 5
        after = gates.usage.counts()
        assert {flag: yes - before[flag][0] for flag, (yes, _) in after.items()} == dict.fromkeys(after, 2)

    return [
        bench.statement("decide, names", 'gates.decide_for("acme", "ann")', names, target=TARGET, verify=verify),
        bench.statement("decide, context", "gates.decide(context)", names, target=TARGET, verify=verify),
    ]


BENCHES = {"decisions": decisions}
