"""Whether the servers may throw purge stamps away: looked at when the store starts, and said."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

from tidegate.errors import StoreError
from tidegate.middleware.metrics import Metrics

__all__ = ["SAFE_POLICIES", "check_policy"]

SAFE_POLICIES: Final = frozenset({"noeviction", "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"})
"""Values of `maxmemory-policy` that leave keys without expiry alone."""

_CHECK_EVERY: Final = 5.0
_POLICY: Final = re.compile(r"^maxmemory_policy:(\S+)", re.MULTILINE)


async def check_policy(ask: Callable[[], Awaitable[list[Any]]], metrics: Metrics) -> None:
    """Say so if a server may evict stamps; as soon as all have answered.

    ask: INFO memory of each.
    """
    while True:
        try:
            async with asyncio.timeout(_CHECK_EVERY):
                told = await ask()
        except StoreError as error:
            metrics.fail("redis-check", error)
        except TimeoutError:
            metrics.fail("redis-check", StoreError(f"redis: no answer within {_CHECK_EVERY:g} s"))
        else:
            break
        await asyncio.sleep(_CHECK_EVERY)
    for policy in {found[1] if (found := _POLICY.search(_text(each))) else "unknown" for each in told}:
        if policy in SAFE_POLICIES:
            continue
        problem = f"maxmemory-policy {policy} may evict purge stamps: set noeviction or one of volatile-*"
        metrics.fail("redis-policy", StoreError(problem))


def _text(reply: object) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply)
