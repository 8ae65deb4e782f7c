"""P1, P4: a cache that is shut for everybody asks the app for nobody's sake any more."""

import asyncio
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from tests.driver import User, call
from tests.promises.epoch_stage import FlagFile
from tests.services import wait_until
from tidegate import Settings, Tidegate

ANN = User("acme", "ann")


def test_refreshes_in_the_background_end_when_the_gate_is_shut_for_everybody(tmp_path: Path) -> None:
    flags = FlagFile(tmp_path / "flags.json")
    settings = {"flags": {"provider": "local", "file": str(flags.path), "poll_interval": 0.1}}
    tide = Tidegate(Settings.of(settings), registry=CollectorRegistry())
    begun, ended = asyncio.Event(), asyncio.Event()
    calls = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
        headers = [
            (b"cache-control", b"max-age=1, stale-while-revalidate=600"),
            (b"age", b"5"),
            (b"content-length", b"0"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    stack = tide(app)

    async def ask() -> str:
        return (await call(stack, "/page", user=ANN)).header("cache-status") or ""

    async def story() -> None:
        nonlocal calls
        assert tide.gates is not None
        # The gate is open from the first request that finds the flags known.
        async with asyncio.timeout(60):
            while "stored" not in await ask():
                calls = 0
                await asyncio.to_thread(wait_until, lambda: tide.gates and tide.gates.known, 20, "the flags are known")
            assert "stale-while-revalidate" in await ask()
            await begun.wait()
            flags.set(0)
            await ended.wait()
        await tide.aclose()

    asyncio.run(story())
    assert calls == 2
