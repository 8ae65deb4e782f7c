"""What comes over a connection and what leaves by it, from a server that does as it is told: what no real one shows at
will."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from redis.asyncio.connection import Connection
from redis.exceptions import NoScriptError, ResponseError

from tests.middleware.stores.support import eventually
from tidegate.middleware.stores.redis_wire import Wire


class Stage:
    """A wire, the server at its other end, and what the wire told."""

    def __init__(
        self,
        wire: Wire,
        writer: asyncio.StreamWriter,
        server: asyncio.StreamWriter,
        reads: asyncio.StreamReader,
        told: list[Any],
    ) -> None:
        self.wire = wire
        self.writer = writer
        self.server = server
        self.reads = reads
        self.told = told

    async def says(self, *pieces: bytes) -> None:
        """The server sends these, one after the other, each when the last has come."""
        for piece in pieces:
            before = self.wire.heard
            self.server.write(piece)

            async def come(before: int = before) -> bool:
                return self.wire.heard > before or self.wire.lost.done()

            await eventually(come, f"{piece!r} comes", 20.0)


def wired(writer: asyncio.StreamWriter, told: list[Any], resumed: Callable[[], None]) -> Wire:
    connection = SimpleNamespace(_writer=writer, _parser=Connection()._parser)
    return Wire(connection, told.append, resumed)


def on_stage(body: Callable[[Stage], Awaitable[None]]) -> None:
    async def run() -> None:
        ends: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
        ends = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(lambda *both: ends.set_result(both), "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        _, writer = await asyncio.open_connection(host, port)
        reads, says = await ends
        told: list[Any] = []
        wire = wired(writer, told, lambda: told.append("resumed"))
        try:
            await body(Stage(wire, writer, says, reads, told))
        finally:
            for end in (says, writer):
                end.close()
                await end.wait_closed()
            server.close()
            await server.wait_closed()

    asyncio.run(run())


def test_replies_are_told_in_their_order_however_they_come_and_what_is_refused_is_told_as_redis_py_has_it() -> None:
    async def body(stage: Stage) -> None:
        await stage.says(b"$3\r\nab", b"c", b"\r\n+OK\r\n*2\r\n:1\r", b"\n_\r\n")
        assert stage.told == [b"abc", b"OK", [1, None]]
        await stage.says(b"-NOSCRIPT No matching script.\r\n-ERR unknown\r\n:7\r\n")
        missing, unknown, seven = stage.told[3:]
        assert type(missing) is NoScriptError
        assert type(unknown) is ResponseError
        assert seven == 7
        assert not stage.wire.lost.done()

    on_stage(body)


def test_a_push_is_nobodys_reply() -> None:
    async def body(stage: Stage) -> None:
        await stage.says(b"+1\r\n>2\r\n+message\r\n+text\r\n+2\r\n")
        assert stage.told == [b"1", b"2"]

    on_stage(body)


def test_a_server_that_is_not_to_be_asked_ends_the_connection_and_nothing_is_told_any_more() -> None:
    for said, why in ((b"-LOADING it is\r\n", "it is"), (b"-NOAUTH first\r\n", "first"), (b"?!\r\n", "Protocol error")):

        async def body(stage: Stage, said: bytes = said, why: str = why) -> None:
            await stage.says(b"+1\r\n" + said + b"+2\r\n")
            assert why in str(await stage.wire.lost)
            await stage.says(b"+3\r\n")
            assert stage.told == [b"1"]

        on_stage(body)


def test_a_failure_of_whoever_is_told_ends_it_too() -> None:
    async def body(stage: Stage) -> None:
        def fails(_: Any) -> None:
            raise ZeroDivisionError("a bug")

        stage.wire._replied = fails
        await stage.says(b"+1\r\n")
        assert isinstance(await stage.wire.lost, ZeroDivisionError)

    on_stage(body)


def test_the_end_is_known_when_the_server_has_said_its_last_word() -> None:
    async def body(stage: Stage) -> None:
        stage.server.write(b"+1\r\n")
        stage.server.write_eof()
        assert "closed" in str(await asyncio.wait_for(stage.wire.lost, 20.0))
        assert stage.told == [b"1"]

    on_stage(body)


def test_a_server_that_takes_nothing_is_written_no_more_until_it_does() -> None:
    async def body(stage: Stage) -> None:
        stage.server.transport.pause_reading()
        sent = 0

        async def full() -> bool:
            nonlocal sent
            if not stage.wire.full:
                stage.wire.write(bytes(1 << 20))
                sent += 1 << 20
            return stage.wire.full

        await eventually(full, "it is full", 20.0)
        assert not stage.told
        stage.server.transport.resume_reading()
        await asyncio.wait_for(stage.reads.readexactly(sent), 20.0)

        async def resumed() -> bool:
            return stage.told == ["resumed"] and not stage.wire.full

        await eventually(resumed, "it may be written to again", 20.0)

    on_stage(body)


def test_a_connection_that_is_closed_already_is_lost() -> None:
    async def body(stage: Stage) -> None:
        stage.writer.close()
        assert wired(stage.writer, [], lambda: None).lost.done()

    on_stage(body)
