"""From an address to the servers behind it."""

from collections.abc import Callable

from tidegate.addresses import Address
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.redis_cluster import Cluster
from tidegate.middleware.stores.redis_sentinel import Sentinels
from tidegate.middleware.stores.redis_servers import Greet, Many, OneServer, Servers, Way

__all__ = ["connect_to"]


def connect_to(
    url: str, *, max_waiting: int, greet: Greet, connected: Callable[[], object], metrics: Metrics
) -> Servers:
    """The servers at an address (`tidegate.addresses`). Nothing is connected yet.

    max_waiting: callers that may wait for each connection. greet: called with each connection that is made. connected:
    called when one can be used.

    Raises:
        ValueError: if the address cannot be used; the text says why.
    """
    address = Address.of(url)
    way = Way.of(address)
    many = Many(most=max_waiting, crowded=metrics.limits.labels("redis-waiting").inc, connected=connected)
    if address.kind == "cluster":
        return Cluster(address, way, many, greet)
    if address.kind == "sentinel":
        sentinels = Sentinels(address, way, failed=lambda error: metrics.fail("sentinels", error))
        master = OneServer(sentinels.connect, many, greet, replicated=True, finder=sentinels)
        sentinels.moved = master.moved
        return master
    return OneServer(way.connect, many, greet)
