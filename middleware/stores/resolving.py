"""Connects to a host by its name, without the event loop's threads.

`loop.getaddrinfo` waits in one of the few threads that `asyncio.to_thread` has for the whole application; nothing can
take it out of there. Where names are answered late or not at all, attempts to connect, given up and begun again, would
soon hold all of them, and the application with them (P5). So a name is looked up in a thread of its own, which holds up
no end of the process either, and in one at a time: whoever wants the same name meanwhile waits for the same answer.
"""

import asyncio
import os
import socket
from collections.abc import Sequence
from threading import Lock, Thread
from typing import Any, Final

__all__ = ["connected_to"]

_Found = Sequence[tuple[Any, ...]]
"""As `socket.getaddrinfo` returns them."""

_Waiting = list[tuple[asyncio.AbstractEventLoop, "asyncio.Future[_Found]"]]


class _LookUps:
    """Those that are under way, and who waits for them, in whichever event loop."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew: after a fork the threads are the parent's."""
        self.lock = Lock()
        self.waiting: dict[tuple[str, int], _Waiting] = {}


_look_ups: Final = _LookUps()
os.register_at_fork(after_in_child=_look_ups.forget)


async def connected_to(host: str, port: int) -> socket.socket:
    """A socket that does not block, connected to the first of the host's addresses that takes it.

    Raises:
        OSError: if none does, or the host is not known.
    """
    loop = asyncio.get_running_loop()
    refused: OSError | None = None
    for family, kind, protocol, _, address in await _addresses(host, port):
        try:
            made = socket.socket(family, kind, protocol)
        except OSError as error:  # a family of addresses that this machine has not
            refused = error
            continue
        made.setblocking(False)
        try:
            await loop.sock_connect(made, address)
        except OSError as error:
            made.close()
            refused = error
        except BaseException:
            made.close()
            raise
        else:
            return made
    raise refused or OSError(f"{host} has no address")


async def _addresses(host: str, port: int) -> _Found:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):  # no address: a name
        found = await _looked_up(host, port)
    return found


async def _looked_up(host: str, port: int) -> _Found:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[_Found] = loop.create_future()
    with _look_ups.lock:
        waiting = _look_ups.waiting.get((host, port))
        if waiting is None:
            thread = Thread(target=_look_up, args=(host, port), name="tidegate-names", daemon=True)
            thread.start()
            waiting = _look_ups.waiting[host, port] = []
        waiting.append((loop, answer))
    try:
        return await answer
    finally:
        with _look_ups.lock:
            if (loop, answer) in waiting:
                waiting.remove((loop, answer))


def _look_up(host: str, port: int) -> None:
    found: _Found = ()
    failed: Exception | None = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # a name that cannot be one is told so
        failed = error if isinstance(error, OSError) else OSError(f"{host} is no name of a host")
    with _look_ups.lock:
        waiting = _look_ups.waiting.pop((host, port), [])
    for loop, answer in waiting:
        try:
            loop.call_soon_threadsafe(_settle, answer, found, failed)
        except RuntimeError:
            continue  # the loop is closed: nobody waits any more


def _settle(answer: "asyncio.Future[_Found]", found: _Found, failed: Exception | None) -> None:
    if answer.done():
        return
    if failed is not None:
        answer.set_exception(failed)
    else:
        answer.set_result(found)
