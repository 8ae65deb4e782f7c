"""Real servers for the suite and for the examples: started on free ports, stopped in the end whatever happens.

Each is a context manager; in tests take the fixtures of `tests.services.fixtures`, which share what can be shared:

    with Valkey() as valkey:
        print(valkey.url)

What pip does not bring is fetched by `python -m tests.services.install`.
"""

from tests.services.postgres import Postgres
from tests.services.prometheus import AlertReceiver, Prometheus, Sample
from tests.services.replicated import RedisCluster, SentinelTrio
from tests.services.server import Server, ServiceError, free_port, wait_until
from tests.services.unleash import Unleash, UnleashAdmin
from tests.services.valkey import Redis, RedisServer, Valkey

__all__ = [
    "AlertReceiver",
    "Postgres",
    "Prometheus",
    "Redis",
    "RedisCluster",
    "RedisServer",
    "Sample",
    "SentinelTrio",
    "Server",
    "ServiceError",
    "Unleash",
    "UnleashAdmin",
    "Valkey",
    "free_port",
    "wait_until",
]
