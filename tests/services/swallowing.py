"""A TCP proxy that can go silent, late, or away in the middle of a reply: what no server can be made to show."""

import asyncio
import socket
from contextlib import suppress
from typing import Self

__all__ = ["SwallowingProxy"]


class SwallowingProxy:
    """Passes bytes both ways to a port of this machine until `silent` is set; then it takes them and passes none on.

    Runs in the event loop of whoever enters it. Connections that were made before stay open: nobody is told. What was
    swallowed is missing afterwards, which no network does to a connection that lives on: `cut` or `forget` before it
    speaks again, or `hold` instead.

    delay: seconds by which the server's bytes come later.
    rate: bytes a second that each connection takes to the server; 0: as many as come.
    connections, answers: how many were made, and how many pieces of what the server said were passed on.
    cuts: a reply that is a bulk string or an array is passed on by half, then the connection is reset; a greeting and
        an OK come whole.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._links: set[asyncio.StreamWriter] = set()
        self.silent = False
        self.delay = 0.0
        self.rate = 0.0
        self.cuts = False
        self.port = 0
        self.connections = 0
        self.answers = 0
        self._forgotten = 0
        self._dropping: list[socket.socket] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for each in self._dropping:
            each.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def hold(self) -> None:
        """Pass nothing on until `let_go`, and lose nothing: a network that is away for a while."""
        self._flowing.clear()

    def let_go(self) -> None:
        """Pass on what was held, and what comes."""
        self._flowing.set()

    def cut(self) -> None:
        """Reset all connections."""
        for link in self._links:
            link.transport.abort()

    def forget(self) -> None:
        """Pass nothing on of connections that there are now, as a firewall does that has lost them: nobody is told."""
        self._forgotten = self.connections

    def drop(self) -> None:
        """Reset all connections, and from now on whoever asks for one gets no answer at all, as from an address behind
        a firewall that drops. In any thread but the loop's.

        Nobody accepts, and the one place in the queue is taken: the kernel drops every SYN then.
        """
        queue = self._server.sockets[0].dup()
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result()
        queue.listen(0)
        self._dropping = [queue, socket.create_connection(("127.0.0.1", self.port), 5)]
        with socket.socket() as another:
            another.settimeout(0.2)
            with suppress(TimeoutError):
                another.connect(("127.0.0.1", self.port))
                raise AssertionError("the kernel drops nothing")
        self._loop.call_soon_threadsafe(self.cut)

    def accept(self) -> None:
        """Accept connections again. In any thread but the loop's."""
        queue, filling = self._dropping
        self._dropping = []
        filling.close()
        accepting = asyncio.start_server(self._accept, sock=queue)
        self._server = asyncio.run_coroutine_threadsafe(accepting, self._loop).result()

    async def _hang_up(self) -> None:
        self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        self._links |= {writer, back}
        for work in (self._pass(number, reader, back), self._answer(number, there, writer)):
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _swallows(self, number: int) -> bool:
        return self.silent or number <= self._forgotten

    async def _pass(self, number: int, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                while data := await source.read(65536):
                    await self._flowing.wait()
                    if not self._swallows(number):
                        sink.write(data)
                    if self.rate:
                        await asyncio.sleep(len(data) / self.rate)
        finally:
            self._links.discard(sink)
            sink.close()

    async def _answer(self, number: int, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """As `_pass`, for what the server says; in the order in which it came, however late."""
        loop = asyncio.get_running_loop()
        replies: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def read() -> None:
            with suppress(OSError):
                while data := await source.read(65536):
                    replies.put_nowait((loop.time(), data))
            replies.put_nowait((loop.time(), b""))

        reading = asyncio.create_task(read())
        try:
            while True:
                came, data = await replies.get()
                while loop.time() < came + self.delay:  # noqa: ASYNC110 - the delay may change meanwhile
                    await asyncio.sleep(0.005)
                await self._flowing.wait()
                if not data or sink.is_closing():  # the client is gone: asyncio would warn of each write
                    break
                if self._swallows(number):
                    continue
                self.answers += 1
                if self.cuts and data[:1] in b"*$":
                    sink.write(data[: max(1, len(data) // 2)])
                    break
                sink.write(data)
        finally:
            reading.cancel()
            self._links.discard(sink)
            sink.close()
