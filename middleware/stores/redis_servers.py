"""The servers behind an address, and what may be asked of them: look-ups and commands, on two lanes each.

A lane is a connection of its own (`redis_link`): megabytes on their way over the one, written or read, hold up nothing
on the other.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from redis.asyncio.connection import Connection, parse_url
from redis.exceptions import ConnectionError as NotConnectedError
from redis.exceptions import RedisError

from tidegate.addresses import Address
from tidegate.errors import StoreError
from tidegate.middleware.stores.redis_link import Dial, Link, Word, hang_up
from tidegate.middleware.stores.redis_replicas import Replicas
from tidegate.middleware.stores.resolving import connected_to

__all__ = ["Greet", "Lanes", "Many", "OneServer", "Servers", "Way", "dial", "greeted", "scanned"]

Greet = Callable[[Any], Awaitable[str | None]]
"""Called with each new connection before anybody reads over it; returns what stands for its server, None: unknown."""

# redis-py's annotations leave much open; what comes from it is annotated where it is taken.
_parse: Any = parse_url
_tcp: Any = Connection


class Servers(Protocol):
    """One server or many, as the store sees them."""

    @property
    def dial(self) -> Dial | None:
        """Connects to the one server that takes writes; None where there are several."""
        ...

    elsewhere: list[Callable[[str], object]]
    """Called with why, where another server has taken the place of the one that takes writes."""

    ask: Callable[[bytes], Awaitable[Any]] | None
    """The reply to a command as it is sent; None where it depends on the command who is to be asked."""

    def open(self) -> None:
        """Take calls, again after `aclose`."""
        ...

    async def aclose(self) -> None:
        """Close all connections; what waits fails."""
        ...

    def read(self, keys: Sequence[bytes], *, large: bool = False) -> Awaitable[list[bytes | None]]:
        """The values under the keys."""
        ...

    def call(self, key: bytes, *words: Word, large: bool = False) -> Awaitable[Any]:
        """The reply to a command of the server that holds this key."""
        ...

    def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """The names of the keys that match, some at a time; of all servers that take writes."""
        ...

    def on_each(self, *words: Word) -> Awaitable[list[Any]]:
        """The replies to a command of every server that takes writes."""
        ...

    def renew(self, why: str) -> None:
        """Look again which server takes writes: one that was asked to said that it does not."""
        ...

    def reached(self, mark: bytes) -> Awaitable[bool | None]:
        """Whether all that was written to the server of this key has reached a replica; None: there are none.

        mark: a key for nothing else.
        """
        ...


class Closes(Protocol):
    """Something that is to be closed."""

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Many:
    """How many callers may wait for one connection, who is told when more do, and who when a connection was made."""

    most: int
    crowded: Callable[[], object]
    connected: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Way:
    """How to connect to a server of an address: kind and options of redis-py's connection, and the TLS context of all,
    for which certificates are read once.
    """

    kind: Any
    options: dict[str, Any]
    tls: Any = None

    @classmethod
    def of(cls, address: Address) -> "Way":
        """The way to the server, or to the first of those that are named.

        Raises:
            ValueError: if redis-py cannot take its options; the text says why.
        """
        options: dict[str, Any] = dict(_parse(address.url))
        kind = options.pop("connection_class", _tcp)
        options |= {"socket_timeout": None, "socket_connect_timeout": None, "driver_info": None}
        try:
            one = kind(**options)
        except (TypeError, ValueError, RedisError, OSError) as error:
            raise ValueError(str(error).rpartition("__() ")[2]) from error
        return cls(kind, options, getattr(one, "ssl_context", None))

    def to(self, host: str, port: int) -> "Way":
        """The same to another server."""
        return Way(self.kind, self.options | {"host": host, "port": port}, self.tls)

    async def connect(self) -> Any:
        """A connection that is greeted, logged in, and has its database chosen."""
        return await dial(self.kind, self.options, self.tls)


class Lanes:
    """The connections to one server: two for whatever is asked, one to wait for its replicas.

    replicated: it is to have replicas.
    """

    def __init__(self, dial: Dial, many: Many, *, replicated: bool = False) -> None:
        self._many = many
        self.small = Link(dial, max_waiting=many.most, crowded=many.crowded, connected=self._connected)
        # A large reply may be long on its way, and only whole ones are seen.
        self.large = Link(dial, max_waiting=many.most, crowded=many.crowded, silence=5.0)
        self.replicas = Replicas(Link(dial), expected=replicated)

    def open(self) -> None:
        """Take calls, again after `aclose`."""
        self.small.open()
        self.large.open()
        self.replicas.open()

    async def aclose(self) -> None:
        """Close them all; what waits fails."""
        await asyncio.gather(self.small.aclose(), self.large.aclose(), self.replicas.aclose())

    def _connected(self) -> None:
        self._many.connected()
        self.large.doubt()  # what swallowed the one may have swallowed the other, which waits longer

    def renew(self, why: str) -> None:
        """Make them all anew."""
        self.small.renew(why)
        self.large.renew(why)
        self.replicas.renew(why)


class OneServer:
    """A server that holds everything; `dial` may find out anew each time which one that is.

    greet: see `Greet`. Where a connection has led to another server than the last one, the others are made anew too:
        what is read from one and heard from another would not fit together.
    replicated: it is to have replicas.
    finder: what `dial` needs to find it; closed last.
    """

    def __init__(
        self, dial: Dial, many: Many, greet: Greet, *, replicated: bool = False, finder: Closes | None = None
    ) -> None:
        self._greet = greet
        self._finder = finder
        self._server: str | None = None
        self._moves = 0
        self._made = greeted(dial, self._greeted)
        self.elsewhere: list[Callable[[str], object]] = []
        self.dial: Dial | None = self._connect
        self._lanes = Lanes(self._connect, many, replicated=replicated)
        self.open, self.renew = self._lanes.open, self._lanes.renew
        self.reached = self._lanes.replicas.reached
        self.ask: Callable[[bytes], Awaitable[Any]] | None = self._lanes.small.ask

    async def _greeted(self, connection: Any) -> str | None:
        server = await self._greet(connection)
        if server is not None and server != self._server:
            before, self._server = self._server, server
            if before is not None:
                self._renew_all("another server, or another history of it, has taken its place")
        return server

    async def _connect(self) -> Any:
        moves = self._moves
        connection = await self._made()
        if moves != self._moves:
            await hang_up(connection)
            raise StoreError("another server has taken its place meanwhile")
        return connection

    def moved(self, why: str) -> None:
        """Make all connections anew, those too that are being made: they lead to a server that is no longer the right
        one.
        """
        self._moves += 1
        self._renew_all(why)

    def _renew_all(self, why: str) -> None:
        for renew in (self.renew, *self.elsewhere):
            renew(why)

    async def aclose(self) -> None:
        """Close all connections; what waits fails."""
        await self._lanes.aclose()
        if self._finder is not None:
            await self._finder.aclose()

    def read(self, keys: Sequence[bytes], *, large: bool = False) -> Awaitable[list[bytes | None]]:
        """The values under the keys."""
        return (self._lanes.large if large else self._lanes.small).read(keys)

    def call(self, key: bytes, *words: Word, large: bool = False) -> Awaitable[Any]:
        """The reply to a command."""
        return (self._lanes.large if large else self._lanes.small).call(*words)

    def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """The names of the keys that match, some at a time."""
        return scanned(self._lanes.large, pattern)

    async def on_each(self, *words: Word) -> list[Any]:
        """The reply to a command."""
        return [await self._lanes.small.call(*words)]


async def dial(kind: Any, options: dict[str, Any], tls: Any = None) -> Any:
    """A connection of this kind, greeted, logged in, and with its database chosen."""
    connection = kind(**options)
    if tls is not None:
        connection.ssl_context = tls
    socket: Any = None
    try:
        if hasattr(connection, "host"):
            arguments = dict(connection._connection_arguments())  # redis-py has no public way to these
            host, port = arguments.pop("host"), arguments.pop("port")
            try:
                arguments["sock"] = socket = await connected_to(host, port)
            except OSError as error:
                raise NotConnectedError(connection._error_message(error)) from error  # as redis-py says it
            if "ssl" in arguments:
                arguments["server_hostname"] = host
            connection._connection_arguments = lambda: arguments
        await connection.connect()
    except BaseException:
        await connection.disconnect(nowait=True)
        if socket is not None:
            socket.close()
        raise
    return connection


async def scanned(link: Link, pattern: bytes) -> AsyncIterator[list[bytes]]:
    """The names of one server's keys that match, some at a time, each once."""
    cursor, seen = b"0", set[bytes]()
    while True:
        cursor, names = await link.call(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", 500)
        yield [name for name in names if name not in seen]
        seen.update(names)
        if cursor == b"0":
            return


def greeted(dial: Dial, greet: Greet) -> Dial:
    """Connections that are greeted before anybody has them."""

    async def connect() -> Any:
        connection = await dial()
        try:
            await greet(connection)
        except BaseException:
            await hang_up(connection)
            raise
        return connection

    return connect
