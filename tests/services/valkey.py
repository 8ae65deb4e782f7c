"""Valkey 9 and Redis 7: the same flags, the same wire, two real servers."""

import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from tests.services.programs import redis_server, valkey_server
from tests.services.server import Server, ServiceError, free_port

__all__ = ["Redis", "RedisServer", "Valkey"]


class RedisServer(Server):
    """A server that speaks the Redis protocol, on a TCP port and on a unix socket, without persistence.

    `options` are configuration directives: `RedisServer(options={"maxmemory": "8mb"})`.
    """

    start_seconds: ClassVar[float] = 10.0

    def __init__(self, *, options: Mapping[str, str] | None = None, port: int | None = None) -> None:
        super().__init__()
        self.host = "127.0.0.1"
        self.port = port or free_port()
        self.unix_socket = self.directory / "server.sock"
        self.options = dict(options or {})

    @property
    def url(self) -> str:
        """Address over TCP, as redis-py's `from_url` takes it."""
        return f"redis://{self.host}:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """Address over the unix socket."""
        return f"unix://{self.unix_socket}"

    def binary(self) -> Path:
        """The program."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """Program and arguments."""
        given = {
            "bind": self.host,
            "port": str(self.port),
            "unixsocket": str(self.unix_socket),
            "dir": str(self.directory),
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
        } | self.options
        return [str(self.binary()), *(part for key, value in given.items() for part in (f"--{key}", value))]

    def answers(self) -> bool:
        """Whether PING is answered with PONG, and not that it loads its data still."""
        try:
            return self.command_reply("PING") == b"PONG"
        except ServiceError as error:
            if "LOADING" in str(error):
                return False
            raise

    def flush(self) -> None:
        """Delete every key (connected clients with tracking are told)."""
        if self.command_reply("FLUSHALL") != b"OK":
            raise ServiceError(f"{self.name} refused FLUSHALL")

    def version(self) -> str:
        """Version that the running server names; Valkey's own where it has one (it calls itself Redis 7.2 too)."""
        info = self.command_reply("INFO", "server").decode()
        found = re.search(r"^valkey_version:(\S+)", info, re.M) or re.search(r"^redis_version:(\S+)", info, re.M)
        if found is None:
            raise ServiceError(f"{self.name} names no version: {info[:200]!r}")
        return found[1]

    def connected(self) -> socket.socket:
        """A connection on which nobody waits longer than a second."""
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(1.0)
        try:
            link.connect(str(self.unix_socket))
        except OSError:
            link.close()
            raise
        return link

    def command_reply(self, *words: str) -> bytes:
        """Run one command that answers with a line or one string; for the plumbing of tests, not for their subject.

        Raises:
            OSError: nobody answered within a second.
            ServiceError: the server answered with an error.
        """
        parts = [f"*{len(words)}\r\n", *(f"${len(word.encode())}\r\n{word}\r\n" for word in words)]
        with self.connected() as link:
            link.sendall("".join(parts).encode())
            with link.makefile("rb") as answer:
                line = answer.readline().rstrip()
                if line.startswith(b"-"):
                    raise ServiceError(f"{self.name} answered {words} with {line.decode()}")
                return answer.read(int(line[1:])) if line.startswith(b"$") else line[1:]


class Valkey(RedisServer):
    """Valkey 9."""

    name: ClassVar[str] = "valkey"

    def binary(self) -> Path:
        """The program."""
        return valkey_server()


class Redis(RedisServer):
    """Debian's redis-server 7, unpacked beside the repository or found on PATH."""

    name: ClassVar[str] = "redis"

    def binary(self) -> Path:
        """The program."""
        return redis_server().program

    def environment(self) -> dict[str, str]:
        """Where its shared libraries were unpacked."""
        return redis_server().environment
