"""From an address to the servers behind it."""

from collections.abc import Callable

from tidegate.addresses import Address
from tidegate.middleware.stores.redis_cluster import Cluster
from tidegate.middleware.stores.redis_sentinel import Sentinels
from tidegate.middleware.stores.redis_servers import Greet, Many, OneServer, Servers, Way

__all__ = ["connect_to"]


def connect_to(
    url: str,
    *,
    max_waiting: int,
    crowded: Callable[[], object],
    greet: Greet,
    connected: Callable[[], object] = lambda: None,
) -> Servers:
    """The servers at an address (`tidegate.addresses`). Nothing is connected yet.

    greet: called with each connection that is made. connected: called when one can be used.

    Raises:
        ValueError: if the address cannot be used; the text says why.
    """
    address = Address.of(url)
    way = Way.of(address)
    many = Many(most=max_waiting, crowded=crowded, connected=connected)
    if address.kind == "cluster":
        return Cluster(address, way, many, greet)
    if address.kind == "sentinel":
        return OneServer(Sentinels(address, way).connect, many, greet, replicated=True)
    return OneServer(way.connect, many, greet)
