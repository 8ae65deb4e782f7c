"""An app behind the five layers on one Redis, and the same app bare; every answer is looked at."""

import asyncio
import logging
import os
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any, Final, Self

from prometheus_client import CollectorRegistry

from tests.driver import User, call
from tidegate import RoutePolicy, Settings, Tidegate
from tidegate.errors import StoreError
from tidegate.middleware.core.identity import Identity
from tidegate.middleware.core.keys import scope_of
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.base import Entry, Purge, Record
from tidegate.middleware.stores.redis import RedisStore
from tidegate.middleware.stores.tiered import in_front_of

__all__ = ["CALLERS", "PAGES", "REQUESTS", "Crowd", "LogLines", "Stage", "World"]

CALLERS: Final = 50
REQUESTS: Final = 1000
PAGES: Final = 40
"""Pages that are asked for again and again; others only once."""

ANN: Final = User("acme", "ann")
PADDING: Final = b"." * 2048


class Noted(RedisStore):
    """A Redis store that takes down under which key a page is stored."""

    keys: dict[str, bytes]

    async def put(self, key: bytes, record: Record, *, retain: float) -> bool:
        if isinstance(record, Entry):
            self.keys[record.body.partition(b" ")[0].decode()] = key
        return await super().put(key, record, retain=retain)


class World:
    """What the app answers from: each page has a version, which a POST raises."""

    def __init__(self) -> None:
        self.versions: dict[str, int] = {}

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        page = scope["path"].rpartition("/")[2]
        if scope["method"] == "POST":
            self.versions[page] = self.versions.get(page, 0) + 1
        body = b"%s %d %s" % (page.encode(), self.versions.get(page, 0), PADDING)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


@dataclass
class Crowd:
    """What a crowd of requests saw. seconds: of each request; bare: of the same to the bare app, asked just before."""

    hits: int = 0
    warm: int = 0
    seconds: list[float] = field(default_factory=list[float])
    bare: list[float] = field(default_factory=list[float])
    took: float = 0.0

    @property
    def share(self) -> float:
        """Of hits, among those to pages that are asked for again and again."""
        return self.hits / max(1, self.warm)

    def __str__(self) -> str:
        above = 1000 * (median(self.seconds) - median(self.bare))
        return f"{len(self.seconds)} requests, {self.share:.1%} hits of {self.warm}, median {above:.1f} ms above bare"


class LogLines(logging.Handler):
    """Keeps when each component had a line in the log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[tuple[str, float]] = []
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((str(record.args[0] if isinstance(record.args, tuple) else ""), record.created))
        self.text += record.getMessage() + "\n"

    def closest(self) -> float:
        """Seconds between the two lines of one component that lie closest."""
        gaps = [999.0]
        for component in {component for component, _ in self.lines}:
            gaps += [b - a for a, b in pairwise(at for one, at in self.lines if one == component)]
        return min(gaps)


class Stage:
    """A worker in this process.

    url: of its Redis. direct: the same, by a way that has no fault.
    world: what it answers from. memory: whether it keeps in its memory what it read there.
    old: answers that were older than what this worker itself had written before they were asked for.
    """

    def __init__(
        self, url: str, direct: str, *, world: World | None = None, memory: bool = False, budget: float = 0.05
    ) -> None:
        self.registry = registry = CollectorRegistry()
        self.metrics = Metrics.of(registry)
        self.world = world if world is not None else World()
        far = Noted(url, metrics=self.metrics)
        far.keys = {}
        self._keys = far.keys
        self._address = direct
        self._direct = RedisStore(direct, metrics=Metrics.of(CollectorRegistry()))
        self.tide = Tidegate(
            Settings.of({"store": {"budget": budget}}),
            policies=[RoutePolicy(route="/page/{page}", ttl=600, share="tenant", tags=("page:{page}",))],
            store=in_front_of(far, max_bytes=64 * 1024 * 1024, metrics=self.metrics) if memory else far,
            registry=registry,
        )
        self.stack = self.tide(self.world.app)
        self.old: list[str] = []
        self.mixed: list[str] = []
        self.asked_again = 0
        self.looked = 0
        self._cold = 0
        self._written: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        await self.tide.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.tide.aclose()
        await self._direct.aclose()

    async def get(self, page: object) -> bool:
        """Whether it was a hit; the body is that of the page, and no older than this worker's writes before it."""
        name, wanted = str(page), self._written.get(str(page), 0)
        answer = await call(self.stack, f"/page/{name}", user=ANN)
        assert answer.status == 200
        shown, version, padding = answer.body.split(b" ")
        if shown != name.encode() or padding != PADDING:
            self.mixed.append(f"{name}: {answer.body[:20]!r}")
        self.asked_again += bool(wanted)
        if int(version) < wanted:
            self.old.append(f"{name}: {int(version)} < {wanted}")
        return answer.hit

    async def purge_elsewhere(self, page: str) -> None:
        """Change a page and purge it as another process does, which shares nothing with this worker but Redis."""
        other = RedisStore(self._address, metrics=Metrics.of(CollectorRegistry()))
        self.world.versions[page] = self.world.versions.get(page, 0) + 1
        await other.purge({scope_of(Identity("acme"), "tenant"): [f"page:{page}"]})
        self._written[page] = self.world.versions[page]
        await other.aclose()

    async def lies_there(self, page: str) -> int | None:
        """The version of the page that whoever looks it up in Redis is given; None: none.

        Raises:
            StoreError: if Redis does not answer.
        """
        self.looked += 1
        try:
            async with asyncio.timeout(1.0):
                found = (await self._direct.get(self._keys[page])).record
        except TimeoutError as error:
            raise StoreError("no answer") from error
        return int(found.body.split(b" ")[1]) if isinstance(found, Entry) else None

    async def write(self, page: str) -> None:
        """Change a page by a request of this worker's."""
        answer = await call(self.stack, f"/page/{page}", method="POST", user=ANN)
        assert answer.status == 200
        self._written[page] = self.world.versions[page]

    async def purge(self, page: str) -> Purge:
        """Change a page outside of any request, and purge it."""
        self.world.versions[page] = self.world.versions.get(page, 0) + 1
        purge = await self.tide.purge(f"page:{page}", tenant="acme")
        self._written[page] = self.world.versions[page]
        return purge

    def cold(self) -> str:
        """A page that nobody has asked for."""
        self._cold += 1
        return f"cold-{os.getpid()}-{id(self)}-{self._cold}"

    async def bare(self) -> float:
        """Seconds of a request to the bare app."""
        return await timed(call(self.world.app, "/page/bare", user=ANN))

    async def crowd(self, *, cold: int = 0) -> Crowd:
        """1,000 requests of 50 callers; `cold` of each ten are for a page that nobody has asked for."""
        crowd = Crowd()

        async def caller(number: int) -> None:
            for turn in range(REQUESTS // CALLERS):
                crowd.bare.append(await self.bare())
                began = time.perf_counter()
                if turn % 10 < cold:
                    await self.get(self.cold())
                else:
                    hit = await self.get((number * 7 + turn) % PAGES)
                    crowd.hits += hit  # not in one line: it would add to what was there before the answer
                    crowd.warm += 1
                crowd.seconds.append(time.perf_counter() - began)

        began = time.perf_counter()
        await asyncio.gather(*(caller(number) for number in range(CALLERS)))
        crowd.took = time.perf_counter() - began
        return crowd

    async def burst(self) -> list[float]:
        """Seconds of each of 50 requests for cold pages that come at once."""
        return list(await asyncio.gather(*(timed(self.get(self.cold())) for _ in range(CALLERS))))

    def count(self, name: str, **labels: str) -> float:
        """A metric of this worker."""
        return self.registry.get_sample_value(name, labels) or 0.0

    @property
    def errors(self) -> float:
        """Failures of the store that were counted."""
        return self.count("tidegate_errors_total", component="store")

    @property
    def opened(self) -> float:
        """How often the breaker opened, probes that failed included."""
        return self.count("tidegate_breaker_transitions_total", breaker="store", to="open")

    @property
    def live(self) -> float:
        """Whether memory in front may answer, as 0 or 1."""
        return self.tide.store.stats().extra["near_live"]

    def peeks(self, page: str) -> object:
        """What memory in front would give."""
        return self.tide.store.peek(self._keys[page])

    @property
    def pending(self) -> float:
        """Tags of purges that the store has not taken."""
        return self.tide.store.stats().extra["purges_pending"]


async def timed(work: Coroutine[Any, Any, object]) -> float:
    """Seconds until it is done."""
    began = time.perf_counter()
    await work
    return time.perf_counter() - began
