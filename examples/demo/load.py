"""Real HTTP load: users of many tenants who make the same calls again and again, at a steady rate."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx2

__all__ = ["Load", "Sample", "Tally"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: when it ended (monotonic seconds), how long it took, its status, and whether it was a hit."""

    ended: float
    seconds: float
    status: int
    hit: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What a stretch of load looked like from outside."""

    requests: int
    errors: int
    hits: int
    p50: float
    p99: float
    rate: float

    @property
    def hit_ratio(self) -> float:
        return self.hits / self.requests if self.requests else 0.0


@dataclass
class Load:
    """Sends `rate` requests a second to `base` until it is stopped. One in a hundred is a write.

    Never more than `at_once` are under way: on a machine that cannot keep up, the rate falls instead of a queue
    growing.
    """

    base: str
    rate: float = 160.0
    tenants: int = 20
    users: int = 12
    seed: int = 1
    at_once: int = 100
    samples: list[Sample] = field(default_factory=list[Sample])
    failures: list[str] = field(default_factory=list[str])
    under_way: int = 0

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["Load", None]:
        """Load while the block lasts."""
        # Let go before uvicorn does, after 5 s: a request that meets its closing gets no answer.
        limits = httpx2.Limits(max_connections=128, max_keepalive_connections=128, keepalive_expiry=2)
        async with httpx2.AsyncClient(base_url=self.base, timeout=10, limits=limits) as client:
            task = asyncio.create_task(self._run(client))
            try:
                yield self
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _run(self, client: httpx2.AsyncClient) -> None:
        chance = random.Random(self.seed)
        start, sent = time.monotonic(), 0
        async with asyncio.TaskGroup() as group:
            while True:
                due = int((time.monotonic() - start) * self.rate)
                for _ in range(min(due - sent, self.at_once - self.under_way)):
                    self.under_way += 1
                    group.create_task(self._one(client, *self._draw(chance)))
                sent = max(sent, due)
                await asyncio.sleep(0.01)

    def _draw(self, chance: random.Random) -> tuple[str, str, str]:
        tenant = chance.randrange(self.tenants)
        user = chance.randrange(self.users)
        path = chance.choices(
            ("/api/context/me", "/api/clients", f"/api/clients/{chance.randrange(3)}/engagements"), (5, 3, 2)
        )[0]
        method = "GET"
        if chance.random() < 0.01:
            method, path = "PUT", f"/api/clients/{chance.randrange(3)}"
        return method, path, f"Bearer tenant-{tenant}/user-{tenant}-{user}"

    async def _one(self, client: httpx2.AsyncClient, method: str, path: str, who: str) -> None:
        began = time.monotonic()
        try:
            answer = await client.request(method, path, headers={"authorization": who})
        except httpx2.HTTPError as error:
            self.failures.append(repr(error))
            return
        finally:
            self.under_way -= 1
        ended = time.monotonic()
        hit = "; hit" in answer.headers.get("cache-status", "")
        self.samples.append(Sample(ended, ended - began, answer.status_code, hit))

    def tally(self, since: float, until: float | None = None) -> Tally:
        """What was seen between two moments (monotonic seconds)."""
        until = time.monotonic() if until is None else until
        seen = [sample for sample in self.samples if since <= sample.ended < until]
        took = sorted(sample.seconds for sample in seen)
        return Tally(
            requests=len(seen),
            errors=sum(sample.status >= 500 for sample in seen),
            hits=sum(sample.hit for sample in seen),
            p50=took[len(took) // 2] if took else 0.0,
            p99=took[int(len(took) * 0.99)] if took else 0.0,
            rate=len(seen) / max(until - since, 1e-9),
        )
