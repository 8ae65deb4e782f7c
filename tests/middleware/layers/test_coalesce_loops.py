"""Coalescing where one application is served by several event loops, each in a thread of its own."""

import asyncio
from threading import Thread
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.driver import call
from tests.services import wait_until
from tidegate import RoutePolicy, Tidegate
from tidegate.vocabulary import LAYERS, Layer


class Site:
    """Its first run waits until it is released; the others answer at once."""

    def __init__(self) -> None:
        self.runs = 0
        self.loop: asyncio.AbstractEventLoop | None = None
        self.released = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.runs += 1
        body = b"run %d" % self.runs
        if body == b"run 1":
            self.loop = asyncio.get_running_loop()
            await self.released.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": body})

    def release(self) -> None:
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.released.set)


@pytest.mark.parametrize("layers", [LAYERS, ("cache", "coalesce")], ids=["straight", "general"])
def test_nobody_waits_for_a_run_in_another_event_loop_which_could_not_wake_them(layers: tuple[Layer, ...]) -> None:
    registry = CollectorRegistry()
    policy = RoutePolicy(route="/page", ttl=60, share="public")
    site = Site()
    mounted = Tidegate(policies=[policy], layers=layers, registry=registry)(site)
    found: list[bytes] = []
    other = Thread(target=lambda: found.append(asyncio.run(call(mounted, "/page")).body), daemon=True)
    other.start()
    try:
        wait_until(lambda: site.loop is not None, 30, "the first run")
        found.append(asyncio.run(call(mounted, "/page")).body)
        waited = registry.get_sample_value("tidegate_limits_total", {"limit": "coalesce-wait"})
    finally:
        site.release()
        other.join(30)
    assert (found, waited) == ([b"run 2", b"run 1"], 0.0)
