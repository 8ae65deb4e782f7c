"""What the tests of the Unleash provider share: to run it for the time of a check, and to hear its errors."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

from tests.services import wait_until
from tidegate.flags import FlagContext
from tidegate.flags.unleash import UnleashFlags

ACME = FlagContext(unit="acme", properties={"tenantId": "acme"})


class Errors:
    """An on_error that remembers."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, component: str, error: Exception) -> None:
        assert component == "flags.unleash"
        self.seen.append(str(error))


def run(flags: UnleashFlags, check: Callable[[], Awaitable[None]]) -> None:
    """Start the provider, check, close it."""

    async def main() -> None:
        await flags.start()
        try:
            await check()
        finally:
            await flags.aclose()

    asyncio.run(main())


async def until(condition: Callable[[], object], seconds: float, what: str) -> float:
    """Seconds until the condition held."""
    began = time.monotonic()
    await asyncio.to_thread(wait_until, condition, seconds, what)
    return time.monotonic() - began


def threads_of(flags: UnleashFlags) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(f"{flags._thread_name}-")]
