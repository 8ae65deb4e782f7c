"""Tracking on real servers: what it hears, and how soon it knows that it hears nothing any more."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from threading import Thread
from typing import Any

import pytest
from redis.asyncio import Redis as Client
from redis.asyncio.connection import Connection

from tests.middleware.stores.support import eventually
from tests.services import RedisServer
from tests.services.swallowing import SwallowingProxy
from tidegate.middleware.stores.ears import Ears
from tidegate.middleware.stores.tracking import LEASE, Tracking


class Ear:
    """A Tracking of the keys under `g:`, and all that it said."""

    def __init__(self, port: int, **options: Any) -> None:
        self.port = port
        self.options = options
        self.names: list[bytes] = []
        self.voids = 0
        self.failures: list[Exception] = []
        self.tracking = Tracking(
            self._dial,
            prefix=b"g:",
            changed=self._changed,
            void=self._void,
            failed=self.failures.append,
            refused_pause=0.02,
        )

    async def _dial(self) -> Any:
        kind: Any = Connection
        connection = kind(host="127.0.0.1", port=self.port, socket_timeout=None, **self.options)
        await connection.connect()
        return connection

    def _changed(self, names: Sequence[bytes]) -> None:
        self.names += names

    def _void(self) -> None:
        assert not self.tracking.live, "everything is voided before anything may be served again"
        self.voids += 1

    async def live(self) -> bool:
        return self.tracking.live


def listening(port: int, body: Callable[[Ear, Any], Awaitable[None]], server: RedisServer, **options: Any) -> None:
    async def run() -> None:
        ear = Ear(port, **options)
        client: Any = Client.from_url(server.url)
        ear.tracking.start()
        try:
            await body(ear, client)
        finally:
            await ear.tracking.aclose()
            await client.aclose()
        assert not ear.tracking.live

    asyncio.run(run())


def test_it_hears_every_change_under_its_prefix_and_no_other(server: RedisServer) -> None:
    async def body(ear: Ear, client: Any) -> None:
        await eventually(ear.live, "it hears", 20.0)
        for number in range(300):
            await client.set(f"g:{number}", "1")
            await client.set(f"e:{number}", "1")
        await client.delete("g:7")

        async def all_heard() -> bool:
            return len(ear.names) >= 301

        await eventually(all_heard, "all changes are heard", 20.0)
        assert ear.names == [b"g:%d" % number for number in (*range(300), 7)]

    listening(server.port, body, server)


def test_a_flushed_database_voids_everything(server: RedisServer) -> None:
    async def body(ear: Ear, client: Any) -> None:
        await eventually(ear.live, "it hears", 20.0)
        ear._void = lambda: None  # type: ignore[method-assign]  # this one comes while it is live
        voids: list[int] = []
        ear.tracking._void = lambda: voids.append(1)
        await client.set("g:1", "1")
        await client.flushdb()

        async def told() -> bool:
            return bool(voids)

        await eventually(told, "the flush is heard", 20.0)

    listening(server.port, body, server)


def test_a_killed_connection_is_known_at_once_and_made_anew_after_everything_was_voided(server: RedisServer) -> None:
    async def body(ear: Ear, client: Any) -> None:
        for number in range(1, 6):
            await eventually(ear.live, "it hears", 20.0)
            assert ear.voids == ear.tracking.connections == number
            await client.client_kill_filter(_type="normal", skipme=True)

            async def deaf() -> bool:
                return not ear.tracking.live

            await eventually(deaf, "it knows", 20.0)

    listening(server.port, body, server)


def test_on_a_half_open_link_time_runs_out_within_a_second(server: RedisServer) -> None:
    async def run() -> None:
        async with SwallowingProxy(server.port) as proxy:
            ear = Ear(proxy.port)
            ear.tracking.start()
            try:
                await eventually(ear.live, "it hears", 20.0)
                proxy.silent = True
                assert ear.tracking.until - time.monotonic() <= LEASE < 1.0, "P4's bound, by construction"

                async def deaf() -> bool:
                    return not ear.tracking.live

                await eventually(deaf, "time runs out", 20.0)
                assert not ear.tracking.live
                proxy.silent = False
                await eventually(ear.live, "it hears again", 20.0)
                assert ear.voids == 2
            finally:
                await ear.tracking.aclose()

    asyncio.run(run())


@pytest.mark.blocks_the_loop("as a process that is stopped does")
def test_a_process_that_was_stopped_for_longer_than_its_lease_knows_nothing(server: RedisServer) -> None:
    async def body(ear: Ear, client: Any) -> None:
        await eventually(ear.live, "it hears", 20.0)
        await client.set("g:1", "1")
        until = ear.tracking.until
        time.sleep(LEASE + 0.05)  # noqa: ASYNC251 - the whole loop is held up, as by a stopped process
        assert until < time.monotonic()
        assert not ear.tracking.live, "before it has read anything"
        await eventually(ear.live, "it hears again", 20.0)
        assert ear.names == [b"g:1"]

    listening(server.port, body, server)


def test_a_server_that_refuses_tracking_is_told_apart(valkey: RedisServer) -> None:
    async def body(ear: Ear, client: Any) -> None:
        await client.execute_command("ACL", "SETUSER", "deaf", "on", ">secret", "~*", "+@all", "-client|tracking")
        try:

            async def refused() -> bool:
                return ear.tracking.refused and len(ear.failures) > 1

            await eventually(refused, "it is refused", 20.0)
            assert not ear.tracking.live
            await client.execute_command("ACL", "SETUSER", "deaf", "+client|tracking")
            await eventually(ear.live, "it hears", 20.0)
            assert not ear.tracking.refused
        finally:
            await client.execute_command("ACL", "DELUSER", "deaf")

    listening(valkey.port, body, valkey, username="deaf", password="secret")


def test_a_server_that_is_not_there_or_hangs_is_tried_again(start_server: Callable[..., RedisServer]) -> None:
    server = start_server()

    async def body(ear: Ear, client: Any) -> None:
        await eventually(ear.live, "it hears", 20.0)
        server.suspend()

        async def failed_twice() -> bool:
            return len(ear.failures) >= 2 and not ear.tracking.live

        await eventually(failed_twice, "a hung server is given up, and another connection as well", 20.0)
        server.resume()
        await eventually(ear.live, "it hears again", 20.0)
        assert ear.voids == ear.tracking.connections >= 2

    listening(server.port, body, server)


def test_a_change_is_told_before_a_request_that_came_with_it_is_served(server: RedisServer) -> None:
    """The loop is held up while a purge is made, and a request is sent after it: both are read in one pass."""

    async def body(ear: Ear, client: Any) -> None:
        await eventually(ear.live, "it hears", 20.0)
        seen: list[list[bytes]] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(1):
                seen.append(list(ear.names))
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as origin:
            link = socket.create_connection(origin.sockets[0].getsockname())
            await asyncio.sleep(0)
            for number in range(20):
                work = Thread(target=lambda: (server.command_reply("SET", f"g:{number}", "1"), link.send(b"?")))  # noqa: B023
                work.start()
                work.join()  # holds the loop up

                async def served(count: int = number + 1) -> bool:
                    return len(seen) == count

                await eventually(served, "the request is served", 20.0)
            link.close()
        assert [len(names) for names in seen] == list(range(1, 21))

    listening(server.port, body, server)


def test_the_end_of_a_connection_is_known_where_it_is_read(server: RedisServer) -> None:
    """Not a pass of the event loop later, when requests that came with it have been answered."""

    async def body(ear: Ear, client: Any) -> None:
        await eventually(ear.live, "it hears", 20.0)
        ears = Ears(lambda _push: None, ear.tracking._deaf)
        assert ear.tracking.live
        assert ears.eof_received() is False
        assert not ear.tracking.live

    listening(server.port, body, server)
