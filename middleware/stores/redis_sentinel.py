"""The master that Sentinels name, asked for anew before each connection.

A server is taken for the master only if it says itself that it is: Sentinels may still name one that has been demoted.
An answer that a write got from a server that takes none makes the store ask again (`Servers.renew`).
"""

import asyncio
from typing import Any, Final

from redis.exceptions import RedisError

from tidegate.addresses import Address
from tidegate.errors import StoreError
from tidegate.middleware.stores.redis_link import hang_up
from tidegate.middleware.stores.redis_servers import Way

__all__ = ["Sentinels"]

ANSWER: Final = 0.5
"""Seconds for one Sentinel, so that the next is asked while there is time."""


class Sentinels:
    """Who knows the master of one service."""

    def __init__(self, address: Address, way: Way) -> None:
        self._service = address.service
        self._way = way
        # Their own login, and no database; TLS as for the servers.
        options = {name: value for name, value in way.options.items() if name not in ("username", "password", "db")}
        self._sentinels = [Way(way.kind, options | address.sentinel_login, way.tls).to(*node) for node in address.nodes]

    async def connect(self) -> Any:
        """A connection to the master.

        Raises:
            StoreError: if no Sentinel answers or knows the service, or whom they name is not the master.
            RedisError: if the master cannot be connected.
        """
        host, port = await self._master()
        connection = await self._way.to(host, port).connect()
        try:
            role, *_ = await _ask(connection, "ROLE")
            if role != b"master":
                raise StoreError(f"{host}:{port} is not the master of {self._service}")
        except BaseException:
            await hang_up(connection)
            raise
        return connection

    async def _master(self) -> tuple[str, int]:
        told: list[str] = []
        for sentinel in list(self._sentinels):
            try:
                async with asyncio.timeout(ANSWER):
                    named = await self._named_by(sentinel)
            except (RedisError, OSError) as error:
                told.append(str(error) or f"no answer within {ANSWER:g} s")
            else:
                if named is not None:
                    return named[0].decode(), int(named[1])
                told.append(f"it knows no {self._service}")
            # The next time the others come first.
            self._sentinels.remove(sentinel)
            self._sentinels.append(sentinel)
        raise StoreError(f"no Sentinel names the master of {self._service}: {'; '.join(told)}")

    async def _named_by(self, sentinel: Way) -> list[bytes] | None:
        connection = await sentinel.connect()
        try:
            named: list[bytes] | None = await _ask(connection, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
            return named
        finally:
            await hang_up(connection)


async def _ask(connection: Any, *words: str) -> Any:
    await connection.send_command(*words)
    return await connection.read_response()
