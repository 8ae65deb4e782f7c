"""Servers that hold together: a master with a replica and three Sentinels, and a cluster of three masters and replicas.

Both take about two seconds to come up, most of it the servers' own fixed delays.
"""

import socket
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import ClassVar, Self

from tests.services.server import ServiceError, free_port, wait_until
from tests.services.valkey import Redis, RedisServer, Valkey

__all__ = ["RedisCluster", "Sentinel", "SentinelTrio"]

UP_SECONDS = 30.0
"""They wait for each other, on a machine that may be crowded."""


Tls = Mapping[str, str]


def over_tls(tls: Tls | None) -> dict[str, str]:
    """Directives of a server that speaks TLS, with others too; none without."""
    if tls is None:
        return {}
    return {"tls-port": str(free_port()), "tls-auth-clients": "no", "tls-replication": "yes", **tls}


class Sentinel(Redis):
    """One Sentinel. It keeps what it learns in its configuration file, which the server rewrites.

    tls: its directives; then it asks the master over TLS.
    """

    name: ClassVar[str] = "sentinel"

    def __init__(self, master: RedisServer, *, service: str, down_after: float, tls: Tls | None = None) -> None:
        super().__init__(options=over_tls(tls))
        port = master.options.get("tls-port", master.port)
        self._settings = [
            f"port {self.port}",
            f"bind {self.host}",
            f"dir {self.directory}",
            f"sentinel monitor {service} {master.host} {port} 2",
            f"sentinel down-after-milliseconds {service} {down_after * 1000:.0f}",
            f"sentinel failover-timeout {service} 4000",
            *(f"{name} {value}" for name, value in self.options.items()),
        ]

    def command(self) -> list[str]:
        """Program and arguments; writes the configuration at the first call."""
        file = self.directory / "sentinel.conf"
        if not file.exists():
            file.write_text("\n".join(self._settings) + "\n")
        return [str(self.binary()), str(file), "--sentinel"]

    def connected(self) -> socket.socket:
        """A connection to it: it has no unix socket."""
        return socket.create_connection((self.host, self.port), 1.0)


class _Servers:
    """Several servers that are started and stopped together."""

    servers: tuple[RedisServer, ...]

    def start(self) -> Self:
        """Start them and return when they hold together.

        Raises:
            ServiceError: if they do not in time.
        """
        with ExitStack() as stack:
            for server in self.servers:
                stack.enter_context(server)
            self._join()
            stack.pop_all()
        return self

    def stop(self) -> None:
        """Stop them all."""
        for server in reversed(self.servers):
            server.kill()  # they keep nothing, and a Sentinel would only see the others die

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _join(self) -> None:
        raise NotImplementedError


class SentinelTrio(_Servers):
    """Redis 7: a master, a replica, and three Sentinels that call it `service`.

    down_after: seconds of silence after which the master is given up; by default more than a crowded machine causes.
    tls: directives that name certificate, key and authority; then all of them speak TLS, on ports of their own.
    """

    service = "main"

    def __init__(self, *, down_after: float = 60.0, tls: Tls | None = None) -> None:
        at_once = {"repl-diskless-sync-delay": "0"}
        self.master = Redis(options=at_once | over_tls(tls))
        port = self.master.options.get("tls-port", self.master.port)
        self.replica = Redis(options=at_once | over_tls(tls) | {"replicaof": f"{self.master.host} {port}"})
        self.sentinels = tuple(
            Sentinel(self.master, service=self.service, down_after=down_after, tls=tls) for _ in range(3)
        )
        self.servers = (self.master, self.replica, *self.sentinels)

    @property
    def url(self) -> str:
        """Address of the service."""
        named = ",".join(f"{one.host}:{one.port}" for one in self.sentinels)
        return f"redis+sentinel://{named}/{self.service}/0"

    @property
    def tls_url(self) -> str:
        """The same over TLS."""
        named = ",".join(f"{one.host}:{one.options['tls-port']}" for one in self.sentinels)
        return f"rediss+sentinel://{named}/{self.service}/0"

    def flush(self) -> None:
        """Delete every key."""
        self.master.flush()

    def cut_off(self) -> None:
        """The replica hears of nothing more, and goes on answering."""
        self.replica.command_reply("REPLICAOF", self.replica.host, str(free_port()))

    def keep_two_masters(self) -> None:
        """The master will refuse to follow another: after a forced failover it goes on, not for ten seconds only."""
        self.master.command_reply("ACL", "SETUSER", "default", "-slaveof", "-replicaof")

    def fail_over(self, *, forced: bool = False) -> None:
        """The master dies, and the replica is made master; returns when it is, though not all may know.

        forced: the master lives, and is told some ten seconds later; returns when all Sentinels name the other.

        Raises:
            ServiceError: if it is not made so in time.
        """
        if not forced:
            self.master.kill()

        def begun() -> bool:
            try:
                return self.sentinels[0].command_reply("SENTINEL", "FAILOVER", self.service) == b"OK"
            except ServiceError as refused:
                return "INPROG" in str(refused)

        def promoted() -> bool:
            try:
                return b"role:master" in self.replica.command_reply("INFO", "replication")
            except OSError:  # Sentinels cut everybody's connections to whom they promote
                return False

        wait_until(begun, UP_SECONDS, "a Sentinel fails over")
        wait_until(promoted, UP_SECONDS, "the replica is the master")
        if forced:
            named = f"address={self.replica.host}:{self.replica.port},".encode()
            wait_until(
                lambda: all(named in one.command_reply("INFO", "sentinel") for one in self.sentinels),
                UP_SECONDS,
                "all Sentinels name the replica",
            )

    def _join(self) -> None:
        def joined() -> bool:
            for one in self.sentinels:
                told = one.command_reply("INFO", "sentinel").decode()
                if "slaves=1" not in told or "sentinels=3" not in told or "status=ok" not in told:
                    return False
            return "master_link_status:up" in self.replica.command_reply("INFO", "replication").decode()

        wait_until(joined, UP_SECONDS, "the Sentinels know each other and the replica")


class RedisCluster(_Servers):
    """Valkey 9: three masters and a replica of each.

    spare: further nodes that belong to it and have no slots.
    tls: directives that name certificate, key and authority: then it is Redis 7, and all speak TLS on ports of their
        own.
    """

    def __init__(self, *, spare: int = 0, tls: Tls | None = None) -> None:
        kind = Valkey if tls is None else Redis
        self.servers = tuple(
            kind(
                options={
                    "cluster-enabled": "yes",
                    "cluster-port": str(free_port()),
                    "cluster-config-file": "nodes.conf",
                    "cluster-node-timeout": "3000",
                    "cluster-require-full-coverage": "no",
                    "repl-diskless-sync-delay": "0",
                }
                | (over_tls(tls) | {"tls-cluster": "yes"} if tls is not None else {})
            )
            for _ in range(6 + spare)
        )
        self.masters, self.replicas, self.spare = self.servers[:3], self.servers[3:6], self.servers[6:]

    @property
    def url(self) -> str:
        """Address by the masters."""
        return f"redis+cluster://{','.join(f'{one.host}:{one.port}' for one in self.masters)}"

    @property
    def tls_url(self) -> str:
        """The same over TLS."""
        named = ",".join(f"{one.host}:{one.options['tls-port']}" for one in self.masters)
        return f"rediss+cluster://{named}"

    def lose_a_master(self) -> None:
        """The second of them dies; returns when its replica has taken over.

        Raises:
            ServiceError: if it has not in time.
        """
        self.masters[1].kill()
        wait_until(
            lambda: b"role:master" in self.replicas[1].command_reply("INFO", "replication"),
            UP_SECONDS,
            "the replica has taken over",
        )

    def flush(self) -> None:
        """Delete every key."""
        for one in self.servers:
            if b"role:master" in one.command_reply("INFO", "replication"):
                one.flush()

    def _join(self) -> None:
        edges = (0, 5461, 10923, 16384)
        for number, one in enumerate(self.servers):
            one.command_reply("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        for one, first, end in zip(self.masters, edges, edges[1:], strict=False):
            one.command_reply("CLUSTER", "ADDSLOTSRANGE", str(first), str(end - 1))
        for one in self.servers[1:]:
            bus = one.options["cluster-port"]
            port = one.options.get("tls-port", str(one.port))
            self.servers[0].command_reply("CLUSTER", "MEET", one.host, port, bus)
        for one, master in zip(self.replicas, self.masters, strict=True):
            name = master.command_reply("CLUSTER", "MYID").decode()
            wait_until(lambda one=one, name=name: _replicates(one, name), UP_SECONDS, "a replica follows its master")
        wait_until(
            lambda: all(_whole(one, len(self.servers)) for one in self.servers), UP_SECONDS, "the cluster is whole"
        )


def _replicates(server: RedisServer, master: str) -> bool:
    """Tell it to, which it refuses until it knows the master."""
    try:
        return server.command_reply("CLUSTER", "REPLICATE", master) == b"OK"
    except ServiceError:
        return False


def _whole(server: RedisServer, nodes: int) -> bool:
    told = server.command_reply("CLUSTER", "INFO").decode()
    ready = "cluster_state:ok" in told and "cluster_slots_ok:16384" in told and f"cluster_known_nodes:{nodes}" in told
    if "role:slave" in (role := server.command_reply("INFO", "replication").decode()):
        return ready and "master_link_status:up" in role
    return ready
