"""The master that Sentinels name, and its successor as soon as they name that.

Each Sentinel is watched (`sentinel_watch`) from the first connection on. When one of them names a master that is newer
than the one to which a connection was made, `moved` is called: the old one may live on, and takes writes that are lost
until it is told to follow the new one, some ten seconds later. For as long it is not connected to again, though the
Sentinel that had the news may be gone and the others be behind.
A server is taken for the master only if it says itself that it is: Sentinels may still name one that has been demoted.
An answer that a write got from a server that takes none makes the store ask again (`Servers.renew`).

Not guaranteed: anything while no Sentinel can be reached; nor that a Sentinel which was set up anew, with epochs from 0
on, is believed before the connections end, or within these seconds.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from redis.exceptions import RedisError, ResponseError

from tidegate.addresses import Address
from tidegate.errors import StoreError
from tidegate.middleware.stores.redis_link import hang_up
from tidegate.middleware.stores.redis_servers import Way
from tidegate.middleware.stores.sentinel_watch import Named, Watch, asked, named_by

__all__ = ["Sentinels"]

ANSWER: Final = 0.5
"""Seconds for one Sentinel, so that the next is asked while there is time."""

BELIEVED_FOR: Final = 10.0
"""Seconds for which the newest master that was named is held against older ones, though nobody names it any more."""


class Sentinels:
    """Who knows the master of one service.

    failed: called with why a Sentinel could not be watched.
    """

    def __init__(self, address: Address, way: Way, *, failed: Callable[[Exception], object] = lambda _: None) -> None:
        self._service = address.service
        self._way = way
        # Their own login, and no database; TLS as for the servers.
        options = {name: value for name, value in way.options.items() if name not in ("username", "password", "db")}
        self._sentinels = [Way(way.kind, options | address.sentinel_login, way.tls).to(*node) for node in address.nodes]
        self._watches = [Watch(one.connect, self._service, heard=self._heard, failed=failed) for one in self._sentinels]
        self._led_to: set[Named] = set()
        self._last: Named | None = None
        self._last_heard = 0.0
        self.moved: Callable[[str], object] = lambda _: None
        """Called with why the connections that were made lead to no master any more."""

    async def aclose(self) -> None:
        """Watch no more."""
        await asyncio.gather(*[watch.aclose() for watch in self._watches])
        self._led_to.clear()
        self._last = None

    async def connect(self) -> Any:
        """A connection to the master.

        Raises:
            StoreError: if no Sentinel answers or knows the service, or whom they name is not the master.
            RedisError: if the master cannot be connected.
        """
        for watch in self._watches:
            watch.start()
        named = self._newest() or await self._master()
        connection = await self._way.to(named.host, named.port).connect()
        try:
            role, *_ = await _ask(connection, "ROLE")
            if role != b"master" or self._is_replaced(named):
                raise StoreError(f"{named.host}:{named.port} is not the master of {self._service}")
        except BaseException:
            await hang_up(connection)
            raise
        self._led_to.add(named)
        return connection

    def _newest(self) -> Named | None:
        """Whom the Sentinels name that can be heard."""
        return max([watch.named for watch in self._watches if watch.named is not None], default=None)

    def _is_replaced(self, named: Named) -> bool:
        """Whether a newer master is named, or was lately."""
        last = self._last if time.monotonic() - self._last_heard < BELIEVED_FOR else None
        return any(one is not None and one.replaces(named) for one in (self._newest(), last))

    def _heard(self) -> None:
        newest = self._newest()
        if newest is not None and (self._last is None or not self._is_replaced(newest)):
            self._last, self._last_heard = newest, time.monotonic()
        if newest is not None and any(newest.replaces(one) for one in self._led_to):
            self._led_to.clear()
            self.moved(f"the Sentinels have made {newest.host}:{newest.port} the master of {self._service}")

    async def _master(self) -> Named:
        told: list[str] = []
        for sentinel in list(self._sentinels):
            try:
                async with asyncio.timeout(ANSWER):
                    named = await self._named_by(sentinel)
            except (RedisError, OSError) as error:
                told.append(str(error) or f"no answer within {ANSWER:g} s")
            else:
                if named is not None:
                    return named
                told.append(f"it knows no {self._service}")
            # The next time the others come first.
            self._sentinels.remove(sentinel)
            self._sentinels.append(sentinel)
        raise StoreError(f"no Sentinel names the master of {self._service}: {'; '.join(told)}")

    async def _named_by(self, sentinel: Way) -> Named | None:
        connection = await sentinel.connect()
        try:
            replies: list[Any] = []
            for words in asked(self._service):
                try:
                    replies.append(await _ask(connection, *words))
                except ResponseError as error:
                    replies.append(error)
            if isinstance(replies[0], ResponseError):  # its ACL forbids it: any that can be watched is newer
                replies[0] = {b"config-epoch": b"-1"}
            return named_by(replies)
        finally:
            await hang_up(connection)


async def _ask(connection: Any, *words: bytes | str) -> Any:
    await connection.send_command(*words)
    return await connection.read_response()
