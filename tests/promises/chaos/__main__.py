"""`make chaos`: the chaos of the suite, longer, with progress and figures: on one server, the same over a stream, then
with a failover from a master that dies, from one that lives on, and in a cluster, by tracking and on a channel.
"""

import argparse
import asyncio
import random
from dataclasses import replace

from tests.promises.chaos.stage import Kind, Plan, play
from tests.services import Redis, RedisCluster, RedisServer, SentinelTrio, Valkey


def main() -> None:
    """Play and print; fail if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.promises.chaos", description=__doc__)
    parser.add_argument("--purges", type=int, default=30_000, help="how many at least (default: 30000)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="default: another one each time")
    parser.add_argument("--redis", action="store_true", help="on Debian's Redis 7, not on Valkey")
    given = parser.parse_args()
    times = given.purges / 3000
    plan = Plan(
        purges=given.purges,
        kills=round(100 * times),
        silences=round(3 * times),
        from_memory=round(5000 * times),
        from_redis=round(500 * times),
        patience=60.0 * max(1.0, times),
    )
    with Redis() if given.redis else Valkey() as server:
        once(server, server.name, plan, given.seed)
        server.flush()
        once(server, f"over a stream on {server.name}", replace(plan, stream=True), given.seed)
    for forced in (False, True):
        with SentinelTrio() as trio:
            named = "Sentinels over redis, whose master lives on" if forced else "Sentinels over redis"
            once(trio, named, replace(plan, silences=0, failover=True, forced=forced), given.seed)
    for deaf in (False, True):
        with RedisCluster() as cluster:
            named = "a cluster, on a channel," if deaf else "a cluster"
            once(cluster, named, replace(plan, silences=0, failover=True, stream=deaf), given.seed)


def once(server: Kind, name: str, plan: Plan, seed: int) -> None:
    """One play."""
    one = server if isinstance(server, RedisServer) else server.servers[0]
    version = one.version()
    print(f"{name} {version}, seed {seed}, {plan}", flush=True)
    played = asyncio.run(play(server, plan, seed, lambda line: print(line, flush=True)))
    print(played.table())
    if played.verdict.broken:
        raise SystemExit(f"broken: {played.verdict.broken}")


if __name__ == "__main__":
    main()
