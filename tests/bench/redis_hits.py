"""Hits in a Redis store over sockets, sealed and with no memory in front, against handlers that ask Redis themselves.

All on one Valkey, served as in `sockets`. What is counted is the CPU time of the server that answers, not Valkey's.
"""

from typing import Final

from tests.bench.frame import RAW, Bench, Case, Target
from tests.bench.sockets import SIZED, served
from tests.services import Valkey

__all__ = ["BENCHES"]

PLAN: Final = "the plan's handler"
GOT: Final = "handler, bytes of one GET"
# 4 and 2.2 times as many requests with one core.
TARGET: Final = Target(of_others=((f"{PLAN}, {SIZED}", 1 / 4), (f"{GOT}, {SIZED}", 1 / 2.2)))


def redis_hits(bench: Bench) -> list[Case]:
    """The target is the cache layer's."""
    url = bench.closing.enter_context(Valkey()).url

    def case(app: str, name: str, *, hit: bool, target: Target | None = None) -> Case:
        return served(bench, f"shared:{app}", name, hit=hit, target=target, BENCH_REDIS=url)

    return [
        served(bench, "served:raw", RAW, hit=False),
        case("plan", PLAN, hit=False),
        case("got", GOT, hit=False),
        case("sealed", "Redis hit, sealed, cache alone", hit=True, target=TARGET),
        case("sealed_five", "Redis hit, sealed, five layers", hit=True),
    ]


BENCHES = {"redis-hits": redis_hits}
