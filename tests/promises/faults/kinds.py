"""The faults: what is done to a server, or to the way to it, and how it ends."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

from tests.services import Redis, RedisServer, ServiceError, Valkey, wait_until
from tests.services.swallowing import SwallowingProxy

__all__ = ["ABSENT", "FAILOVER", "FAULTS", "Fault", "Metric", "Place"]

Act = Callable[["Place"], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A counter, with labels beside that of the store."""

    name: str
    labels: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        labels = ",".join(f'{label}="{value}"' for label, value in self.labels)
        return f"{self.name}{{{labels}}}"


def operations(operation: str, result: str) -> Metric:
    """Those of the store that ended like this."""
    return Metric(name="tidegate_store_operations_total", labels=(("operation", operation), ("result", result)))


REFUSED: Final = operations("get", "error")
SILENT: Final = operations("get", "timeout")
UNWRITTEN: Final = operations("put", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that can become of a Redis.

    name: as docs/failures.md has it. server: whom it is done to.
    begin, end: do it, and undo it; both return when it is done.
    purge: what becomes of a purge meanwhile. reads: whether look-ups go on. untouched: whether one can see meanwhile
        that the server still has what was purged.
    proxied: the worker reaches the server through a proxy.
    severs: whether connections are lost by it, so that recovery is heard of by the next one.
    says: in a line of the log. counted: by which metric, with which of its labels; both as docs/failures.md has it.
    lasts: seconds, so that more than one probe fails, and a connection that is silent is given up.
    options: of the server.
    """

    name: str
    server: type[RedisServer]
    begin: Act
    end: Act
    says: str
    counted: Metric
    purge: Literal["pending", "done"] = "pending"
    reads: bool = False
    untouched: bool = False
    severs: bool = False
    proxied: bool = False
    lasts: float = 1.6
    options: tuple[tuple[str, str], ...] = ()


class Place:
    """A server of its own, with the user `app`, and perhaps a proxy in front."""

    def __init__(self, server: RedisServer, proxy: SwallowingProxy | None) -> None:
        self.server = server
        self.proxy = proxy
        self.let_in()

    @classmethod
    @asynccontextmanager
    async def of(cls, fault: Fault) -> AsyncGenerator["Place"]:
        """Start what the fault is done to."""
        server = fault.server(options=dict(fault.options))
        await asyncio.to_thread(server.start)
        try:
            if not fault.proxied:
                yield cls(server, None)
                return
            async with SwallowingProxy(server.port) as proxy:
                yield cls(server, proxy)
        finally:
            await asyncio.to_thread(server.kill)

    @property
    def direct(self) -> str:
        """The server's address."""
        return f"redis://app:secret@127.0.0.1:{self.server.port}/0"

    @property
    def url(self) -> str:
        """The address that the worker has."""
        return self.direct if self.proxy is None else f"redis://app:secret@127.0.0.1:{self.proxy.port}/0"

    @property
    def link(self) -> SwallowingProxy:
        """The proxy."""
        assert self.proxy is not None
        return self.proxy

    def tell(self, *words: str) -> bytes:
        """A command to the server."""
        return self.server.command_reply(*words)

    def info(self, section: str, name: str) -> str:
        """One figure of INFO."""
        told = self.tell("INFO", section).decode()
        return next(line.partition(":")[2] for line in told.splitlines() if line.startswith(name + ":"))

    def let_in(self) -> None:
        """Let the user in."""
        self.tell("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all")

    def throw_out(self) -> None:
        """Let it in no more, and end what it has."""
        self.tell("ACL", "SETUSER", "app", "off")
        with suppress(ServiceError):
            self.tell("CLIENT", "KILL", "USER", "app")

    def back(self) -> None:
        """Start the server, with what it had."""
        self.server.start()
        self.let_in()

    def save(self, *, fails: bool) -> None:
        """Have it save its data, where that fails because a folder lies in the way."""
        way = self.server.directory / "dump.rdb"
        if fails:
            (way / "in the way").mkdir(parents=True)
        else:
            (way / "in the way").rmdir()
            way.rmdir()
        self.tell("BGSAVE")
        wanted = "err" if fails else "ok"
        wait_until(
            lambda: (
                self.info("persistence", "rdb_bgsave_in_progress") == "0"
                and self.info("persistence", "rdb_last_bgsave_status") == wanted
            ),
            20,
            f"the last save is {wanted}",
        )


def _link(name: str, value: Any) -> Act:
    def act(place: Place) -> None:
        setattr(place.link, name, value)

    return act


def _tell(*words: str) -> Act:
    def act(place: Place) -> None:
        place.tell(*words)

    return act


def _sounds_again(place: Place) -> None:
    place.link.forget()  # what was swallowed is missing: these connections are no more, and nobody is told
    place.link.silent = False


FAULTS: Final = (
    Fault(
        name="refused",
        says="Error 111 connecting to",
        counted=REFUSED,
        severs=True,
        server=Redis,
        begin=lambda place: place.server.stop(),
        end=Place.back,
        options=(("appendonly", "yes"),),
    ),
    Fault(
        name="hangs",
        says="get: no answer within 50 ms",
        counted=SILENT,
        server=Valkey,
        begin=lambda place: place.server.suspend(),
        end=lambda place: place.server.resume(),
    ),
    Fault(
        name="black hole",
        says="get: no answer within 50 ms",
        counted=SILENT,
        severs=True,
        server=Redis,
        begin=_link("silent", True),
        end=_sounds_again,
        untouched=True,
        proxied=True,
        lasts=4.0,
    ),
    Fault(
        name="drops",
        says="no connection within 2 s, login included",
        counted=SILENT,
        severs=True,
        server=Valkey,
        begin=lambda place: place.link.drop(),
        end=lambda place: place.link.accept(),
        untouched=True,
        proxied=True,
        lasts=4.0,
    ),
    Fault(
        name="one second late",
        says="get: no answer within 50 ms",
        counted=SILENT,
        server=Valkey,
        begin=_link("delay", 1.0),
        end=_link("delay", 0.0),
        proxied=True,
    ),
    Fault(
        name="dies mid-reply",
        says="the server closed the connection",
        counted=REFUSED,
        server=Redis,
        begin=_link("cuts", True),
        end=_link("cuts", False),
        proxied=True,
    ),
    Fault(
        name="out of memory",
        says="",
        counted=Metric(name="tidegate_limits_total", labels=(("limit", "redis-memory"),)),
        server=Valkey,
        begin=_tell("CONFIG", "SET", "maxmemory", "1"),
        end=_tell("CONFIG", "SET", "maxmemory", "0"),
        purge="done",
        reads=True,
    ),
    Fault(
        name="read-only replica",
        says="You can't write against a read only replica",
        counted=UNWRITTEN,
        server=Redis,
        begin=_tell("REPLICAOF", "127.0.0.1", "1"),
        end=_tell("REPLICAOF", "NO", "ONE"),
        reads=True,
        untouched=True,
    ),
    Fault(
        name="MISCONF",
        says="MISCONF",
        counted=UNWRITTEN,
        server=Valkey,
        begin=lambda place: place.save(fails=True),
        end=lambda place: place.save(fails=False),
        reads=True,
        untouched=True,
        options=(("save", "3600 1"),),
    ),
    Fault(
        name="auth revoked",
        says="invalid username-password pair or user is disabled",
        counted=REFUSED,
        server=Redis,
        begin=Place.throw_out,
        end=Place.let_in,
        severs=True,
    ),
)

FAILOVER: Final = Fault(
    name="failover",
    server=Redis,
    begin=lambda _: None,
    end=lambda _: None,
    says="Error 111 connecting to",
    counted=REFUSED,
    severs=True,
)
"""A master that dies and is replaced: done to a trio of Sentinels by the test itself."""

ABSENT: Final = "not there yet"
"""No fault of a server: there is none when the app starts."""
