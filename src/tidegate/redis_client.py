"""A blocking client of redis-py for an address of any kind: for commands and threads, never for an event loop."""

from typing import Any

from redis import Redis, RedisCluster, connection
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry
from redis.sentinel import Sentinel

from tidegate.addresses import Address

__all__ = ["is_replica", "memory_of", "open_client"]

# redis-py's annotations leave much open; what comes from it is annotated where it is taken.
_redis: Any = Redis
_cluster: Any = RedisCluster
_node: Any = ClusterNode
_sentinel: Any = Sentinel
_connection: Any = connection


def open_client(url: str, *, timeout: float, **options: Any) -> Any:
    """The client. One of a cluster asks it for its slots here; the others connect when they are used.

    timeout: seconds for a connection, and for an answer.
    options: further ones of redis-py's connections.

    Raises:
        ValueError, TypeError: if the address cannot be used.
        RedisError: if no node of a cluster answers.
    """
    address = Address.of(url)
    options |= {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": Retry(NoBackoff(), 0)}
    if address.kind == "one":
        return _redis.from_url(address.url, **options)
    given: dict[str, Any] = {**_connection.parse_url(address.url), **options}
    if given.pop("connection_class", None) is not None:
        given["ssl"] = True
    for name in ("host", "port"):
        given.pop(name, None)
    if address.kind == "cluster":
        given.pop("db", None)
        return _cluster(startup_nodes=[_node(host, port) for host, port in address.nodes], **given)
    own = {name: value for name, value in given.items() if name not in ("username", "password", "db")}
    sentinels = _sentinel(list(address.nodes), sentinel_kwargs=own | address.sentinel_login, **given)
    return sentinels.master_for(address.service)


def memory_of(client: Any) -> list[dict[str, Any]]:
    """`INFO memory` of every server that takes writes.

    Raises:
        RedisError: if one cannot be asked.
    """
    if isinstance(client, RedisCluster):
        told: Any = _cluster.info(client, "memory", target_nodes=_cluster.PRIMARIES)
        return [told] if "maxmemory_policy" in told else list(told.values())
    return [client.info("memory")]


def is_replica(client: Any) -> bool:
    """Whether the server follows another and takes no writes. Of a cluster, and behind Sentinels, masters are asked.

    Raises:
        RedisError: if it cannot be asked.
    """
    if isinstance(client, RedisCluster):
        return False
    told = client.info("replication")
    return bool(told.get("role") == "slave")
