"""What the layers need ends with the application, whatever the server does to the task of its lifespan."""

import asyncio
from typing import Any

from prometheus_client import CollectorRegistry

from tests.flags.following import until
from tidegate import Tidegate
from tidegate.flags import FlagContext, ProviderHealth, Reach


class Parting:
    """A provider whose farewell takes a while, as a last report to a server does."""

    version = 1

    def __init__(self) -> None:
        self.started = False
        self.begun = 0
        self.ended = 0

    def is_enabled(self, flag: str, context: FlagContext) -> bool:
        return False

    def reach(self, flag: str) -> Reach:
        return "nobody"

    def health(self) -> ProviderHealth:
        return ProviderHealth(ready=True, staleness=0.0, detail="")

    async def start(self) -> None:
        self.started = True

    async def aclose(self) -> None:
        self.begun += 1
        for _ in range(50):
            await asyncio.sleep(0)
        self.ended += 1


def test_the_end_is_waited_for_by_a_server_that_drops_the_lifespan_when_shutdown_is_complete() -> None:
    provider = Parting()
    inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    sent: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def serve() -> None:
        layers = Tidegate(provider=provider, registry=CollectorRegistry())(app)
        life = asyncio.create_task(layers({"type": "lifespan"}, inbox.get, send))
        for kind in ("lifespan.startup", "lifespan.shutdown"):
            await inbox.put({"type": kind})
            await until(lambda done=f"{kind}.complete": done in sent, 20, f"the end of {kind}")  # type: ignore[misc]
        life.cancel()  # uvicorn ends the loop here
        await asyncio.gather(life, return_exceptions=True)

    asyncio.run(serve())
    assert (provider.begun, provider.ended) == (1, 1)


def test_an_end_that_is_cut_off_before_it_began_leaves_nothing_unawaited() -> None:
    provider = Parting()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    async def serve() -> None:
        layers = Tidegate(provider=provider, registry=CollectorRegistry())(app)
        life = asyncio.create_task(layers({"type": "lifespan"}, asyncio.Event().wait, None))  # type: ignore[arg-type]
        await until(lambda: provider.started, 20, "the start")
        for _ in range(3):
            life.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(life, return_exceptions=True)

    asyncio.run(serve())
