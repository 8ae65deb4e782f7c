"""Real HTTP load, from a thread of its own: users of many tenants who ask for the same again and again."""

import asyncio
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import httpx2

from tests.services import wait_until
from tidegate.flags.evaluate import normalized

__all__ = ["Crowd", "Sample", "batch", "hit_ratio", "is_canary"]

FLAG = "tidegate.cache"
LIMITS = httpx2.Limits(max_connections=100, max_keepalive_connections=100, keepalive_expiry=2)
"""An idle connection is let go before uvicorn closes it, after 5 s: a request that meets the closing gets no answer."""
USERS = 200
"""Enough for 1 in 10 to be a score, and few enough to be seen again within a second or two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request as its sender saw it.

    began, ended: seconds since the epoch. status: 0 if there was no answer. gated: the cache layer had a hand in it.
    worker, maker: process ids of who answered, and of whose handler made the answer.
    """

    user: str
    path: str
    began: float
    ended: float
    status: int
    gated: bool
    hit: bool
    worker: str = ""
    maker: str = ""


def is_canary(user: str, percent: int) -> bool:
    """Whether a user is among those for whom the flag is open at `percent`."""
    return normalized(FLAG, user) <= percent


def hit_ratio(samples: Sequence[Sample]) -> float:
    """Hits among requests for what may be stored."""
    storable = [sample for sample in samples if sample.path != "/now"]
    return sum(sample.hit for sample in storable) / max(len(storable), 1)


@dataclass
class Crowd:
    """Sends `rate` requests a second to 127.0.0.1:`port` while it is entered, for USERS users of some tenants.

    unique: give each request a query of its own, as a release does that appends a timestamp to every address.
    """

    port: int
    rate: float = 120.0
    seed: int = 1
    tenants: int = 10
    unique: bool = False
    samples: list[Sample] = field(default_factory=list[Sample])

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="crowd")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=15)
        assert not self._thread.is_alive(), "the crowd does not go home"

    def between(self, since: float, until: float = float("inf")) -> list[Sample]:
        """Requests that began in this span (seconds since the epoch) and are over."""
        return [sample for sample in list(self.samples) if since <= sample.began < until]

    def next(self, count: int, *, since: float | None = None, seconds: float = 15.0) -> list[Sample]:
        """The requests that begin from now (or `since`) on, once there are `count`."""
        start = time.time() if since is None else since
        wait_until(lambda: len(self.between(start)) >= count, seconds, f"{count} requests are answered")
        return self.between(start)

    async def _run(self) -> None:
        chance = random.Random(self.seed)
        began, sent = time.monotonic(), 0
        limits = LIMITS
        async with (
            httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=8, limits=limits) as client,
            asyncio.TaskGroup() as group,
        ):
            while not self._stop.is_set():
                due = int((time.monotonic() - began) * self.rate)
                for number in range(sent, due):
                    group.create_task(self._one(client, *draw(chance, self.tenants), number))
                sent = max(sent, due)
                await asyncio.sleep(0.01)

    async def _one(self, client: httpx2.AsyncClient, user: str, path: str, number: int) -> None:
        self.samples.append(await ask(client, user, f"{path}?at={number}" if self.unique else path))


def draw(chance: random.Random, tenants: int = 10) -> tuple[str, str]:
    """Some user, and what they ask for."""
    number = chance.randrange(USERS)
    return f"tenant{number % tenants}.user{number}", chance.choices(("/me", "/clients", "/now"), (5, 3, 2))[0]


async def ask(client: httpx2.AsyncClient, user: str, path: str) -> Sample:
    """One request by one user; by nobody if that is empty."""
    began = time.time()
    headers = httpx2.Headers()
    status = 0
    try:
        who = {"x-tenant": user.partition(".")[0], "x-user": user} if user else {}
        answer = await client.get(path, headers=who)
        status, headers = answer.status_code, answer.headers
    except httpx2.HTTPError:
        pass  # status 0 tells the test
    said = headers.get("cache-status", "")
    return Sample(
        user=user,
        path=path.partition("?")[0],
        began=began,
        ended=time.time(),
        status=status,
        gated="Tidegate" in said,
        hit="; hit" in said,
        worker=headers.get("x-worker", ""),
        maker=headers.get("x-maker", ""),
    )


def batch(port: int, count: int, *, seed: int = 1, at_once: int = 32, by_nobody: str = "") -> list[Sample]:
    """`count` requests, `at_once` at a time, over connections of their own; all are answered when this returns.

    by_nobody: a path to ask for without an identity, so that it is in no cohort, instead of what users ask for.
    """

    async def send() -> list[Sample]:
        chance = random.Random(seed)
        turn = asyncio.Semaphore(at_once)
        limits = LIMITS
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=8, limits=limits) as client:

            async def one(user: str, wanted: str) -> Sample:
                async with turn:
                    return await ask(client, user, wanted)

            return await asyncio.gather(*(one(*(("", by_nobody) if by_nobody else draw(chance))) for _ in range(count)))

    return asyncio.run(send())
