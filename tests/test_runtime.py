"""What the layers need ends with the application, whatever the server does to the task of its lifespan."""

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.driver import Origin, User, call, scope_of
from tests.flags.following import until
from tests.middleware.stores.support import entry
from tests.provider import FixedFlags
from tidegate import Settings, Tidegate
from tidegate.errors import TidegateError
from tidegate.flags import ProviderHealth
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.base import StoreStats
from tidegate.middleware.stores.memory import MemoryStore


class Parting(FixedFlags):
    """A provider whose farewell takes a while, as a last report to a server does."""

    def __init__(self) -> None:
        super().__init__(is_open=False)
        self.begun = 0

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
        tide = Tidegate(provider=provider, registry=CollectorRegistry())
        life = asyncio.create_task(tide(app)({"type": "lifespan"}, asyncio.Event().wait, None))  # type: ignore[arg-type]
        await until(lambda: provider.started, 20, "the start")
        for _ in range(3):
            life.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(life, return_exceptions=True)
        assert tide.stops is not None
        await tide.stops.aclose()  # which the end would have done

    asyncio.run(serve())


class Held(Parting):
    """A provider that starts when a test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.held = asyncio.Event()
        self.looks = 0

    async def start(self) -> None:
        await self.held.wait()
        await super().start()

    def health(self) -> ProviderHealth:
        self.looks += 1
        return super().health()


def test_the_first_request_without_a_lifespan_does_not_wait_for_a_source_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tidegate.runtime.FIRST_REQUEST_WAITS", 0.05)

    async def serve() -> None:
        provider, origin = Held(), Origin(b"body")
        tide = Tidegate(provider=provider, registry=CollectorRegistry())
        app = tide(origin)
        async with asyncio.timeout(20):
            for _ in range(2):
                assert (await call(app)).body == b"body"
        assert not provider.started
        provider.held.set()
        await until(lambda: provider.started, 20, "the start goes on in the background")
        await tide.aclose()

    asyncio.run(serve())


def test_a_first_request_that_is_cancelled_does_not_take_the_start_with_it() -> None:
    async def serve() -> None:
        provider = Held()
        tide = Tidegate(provider=provider, registry=CollectorRegistry())
        app = tide(Origin(b"body"))
        first = asyncio.create_task(call(app))
        for _ in range(3):
            await asyncio.sleep(0)
        assert tide._runtime.loop is asyncio.get_running_loop()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        provider.held.set()
        await until(lambda: provider.started and provider.looks, 20, "the gates are looked after")
        await tide.aclose()

    asyncio.run(serve())


def test_the_end_does_not_wait_for_a_start_that_hangs() -> None:
    async def serve() -> None:
        provider = Held()
        tide = Tidegate(provider=provider, registry=CollectorRegistry())
        first = asyncio.create_task(call(tide(Origin(b"body"))))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await tide.aclose()
            assert (await first).body == b"body"
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "tidegate-start"]

    asyncio.run(serve())


def test_loops_that_take_turns_leave_one_timer_each() -> None:
    tide = Tidegate(provider=Parting(), registry=CollectorRegistry())
    app = tide(Origin(b"body"))
    loops = [asyncio.new_event_loop() for _ in range(2)]
    for _ in range(5):
        for loop in loops:
            loop.run_until_complete(call(app))
    for loop in loops:
        loop.run_until_complete(asyncio.sleep(2 * tide._runtime._look_every))
    left = [handle for loop in loops for handle in loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
    assert len(left) <= len(loops)
    loops[1].run_until_complete(tide.aclose())
    for loop in loops:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def test_what_is_held_in_memory_shows_in_the_metrics_without_flags_and_without_requests() -> None:
    class Unsure(MemoryStore):
        """A store that cannot always say what it holds."""

        unsure = False

        def stats(self) -> StoreStats:
            if self.unsure:
                raise RuntimeError("nobody knows")
            return super().stats()

    registry = CollectorRegistry()
    store = Unsure(metrics=Metrics.of(registry))

    def shown() -> tuple[float | None, ...]:
        names = ("tidegate_memory_entries", "tidegate_memory_bytes")
        return tuple(registry.get_sample_value(name) for name in names)

    async def serve() -> None:
        tide = Tidegate(store=store, registry=registry)
        app = tide(Origin(b"body", headers=[("cache-control", "max-age=60")]))
        await tide.start()
        assert shown() == (0, 0)
        for path in ("/a", "/b", "/a"):
            await call(app, path, user=User("acme", "ann"))
        held = store.stats()
        assert held.entries == 2
        await until(lambda: shown() == (2, held.bytes), 20, "what is held, in the metrics")
        store.unsure = True
        await until(lambda: registry.get_sample_value("tidegate_errors_total", {"component": "store"}), 20, "the error")
        store.unsure = False
        await tide.purge_all()
        await store.put(b"key", entry(b"other"), retain=60)
        await until(lambda: shown() == (store.stats().entries, store.stats().bytes), 20, "what is held now")
        await tide.aclose()

    asyncio.run(serve())


@pytest.mark.parametrize("kind", ["lifespan", "http"])
def test_a_server_that_runs_no_asyncio_is_told_what_is_wrong(kind: str) -> None:
    """Driven by hand, as trio drives it: no event loop of asyncio's runs."""

    async def nobody(*_: Any) -> Any:
        raise AssertionError("the app is not reached")

    mounted = Tidegate(Settings())(nobody)
    scope = {"type": "lifespan"} if kind == "lifespan" else scope_of()
    with pytest.raises(TidegateError, match="runs on asyncio only"):
        mounted(scope, nobody, nobody).send(None)  # type: ignore[attr-defined]
