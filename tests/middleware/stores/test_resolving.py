"""Names of servers that are looked up late, in vain, or as several addresses."""

import asyncio
import errno
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.middleware.stores.support import SCOPES, entry, eventually, hears, new_metrics, write
from tests.services import RedisServer
from tidegate.middleware.stores.guard import GuardedStore
from tidegate.middleware.stores.redis import RedisStore
from tidegate.middleware.stores.resolving import connected_to
from tidegate.middleware.stores.tiered import in_front_of

NAME = "cache.example"
_real = socket.getaddrinfo


class Names:
    """Answers for NAME when it is told to, with these addresses."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.addresses: list[str] = ["127.0.0.1"]
        self.asked = 0

    def __call__(self, host: str, port: int, *rest: Any, flags: int = 0, **more: Any) -> Any:
        if host != NAME or flags & socket.AI_NUMERICHOST:
            return _real(host, port, *rest, flags=flags, **more)
        self.asked += 1
        self.answers.wait(60.0)
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.addresses]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    made = Names()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    yield made
    made.answers.set()


def test_a_name_that_nobody_answers_takes_none_of_the_applications_threads(valkey: RedisServer, names: Names) -> None:
    async def run() -> None:
        metrics = new_metrics()
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        far = RedisStore(f"redis://{NAME}:{valkey.port}", metrics=metrics)
        tiered = in_front_of(far, max_bytes=1 << 20, metrics=metrics)
        guard = GuardedStore(tiered, metrics=metrics)
        await guard.start()

        async def given_up() -> bool:
            assert (await guard.get(b"key", SCOPES)).record is None
            return metrics.errors.labels("tracking")._value.get() >= 2

        await eventually(given_up, "attempts to connect were given up and begun again", 30.0)
        async with asyncio.timeout(20.0):
            assert await asyncio.to_thread(threading.get_ident) != threading.get_ident()
        assert names.asked == 1, "whoever wants the name waits for one answer"
        names.answers.set()
        await hears(tiered)
        await write(guard, b"key", entry())
        await guard.aclose()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("addresses", "told"),
    [([], "not known"), (["127.0.0.2"], "Connect call failed")],
    ids=["no address", "nobody there"],
)
def test_a_name_that_leads_nowhere_is_an_error_that_says_so(names: Names, addresses: list[str], told: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    names.addresses = addresses
    names.answers.set()
    with pytest.raises(OSError, match=told):
        asyncio.run(connected_to(NAME, port))


def test_what_is_no_name_is_an_error_of_the_connection() -> None:
    with pytest.raises(OSError, match="no name of a host"):
        asyncio.run(connected_to("a" * 64 + ".example", 6379))


def test_of_several_addresses_the_first_that_takes_a_connection_is_used(names: Names) -> None:
    names.addresses = ["127.0.0.2", "127.0.0.1"]
    names.answers.set()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made = asyncio.run(connected_to(NAME, listening.getsockname()[1]))
        assert made.getpeername() == listening.getsockname()
        made.close()


def test_a_family_of_addresses_that_the_machine_has_not_is_passed_over(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    names.addresses = ["127.0.0.2", "127.0.0.1"]
    names.answers.set()
    kind, made = socket.socket, []

    def lacking(*of: Any, **more: Any) -> socket.socket:
        made.append(of)
        if len(made) == 1:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return kind(*of, **more)

    async def run(port: int) -> None:
        monkeypatch.setattr(socket, "socket", lacking)
        try:
            (await connected_to(NAME, port)).close()
        finally:
            monkeypatch.undo()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        asyncio.run(run(listening.getsockname()[1]))
    assert len(made) == 2


def test_who_gives_up_leaves_the_answer_to_the_others_in_whichever_loop(names: Names) -> None:
    found: list[Any] = []

    def work(port: int, wanted: Callable[[socket.socket], object]) -> None:
        wanted(asyncio.run(connected_to(NAME, port)))

    async def run(port: int) -> None:
        other = threading.Thread(target=work, args=(port, found.append))
        other.start()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await connected_to(NAME, port)
        names.answers.set()
        await asyncio.to_thread(other.join)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        asyncio.run(run(listening.getsockname()[1]))
    for made in found:
        made.close()
    assert len(found) == 1
