"""A small application under a crowd's requests, to be watched in shadow mode: clean, or with mistakes planted in it."""

import asyncio
import gzip
import itertools
import json
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry

from tests.driver import Answer, User, call
from tidegate import CacheLayer, MemoryStore, RoutePolicy
from tidegate.middleware.core.policy import Policies
from tidegate.middleware.layers.asgi import ContextResolver
from tidegate.middleware.layers.breaker import BreakerLayer
from tidegate.middleware.layers.coalesce import CoalesceLayer
from tidegate.middleware.layers.etag import ETagLayer
from tidegate.middleware.layers.shadow_notes import ShadowNotes
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.base import Store

USERS = [User(tenant, f"{name}-{tenant}") for tenant in ("acme", "globex") for name in ("ann", "ben", "cat")]
LANGUAGES = ("en", "de", "fr")

CLEAN = (
    RoutePolicy(route="/clients/{client_id}", ttl=60, share="tenant", tags=("client:{client_id}",), mode="shadow"),
    RoutePolicy(route="/clients/{client_id}/name", invalidates=("client:{client_id}",), mode="shadow"),
    RoutePolicy(route="/pages/{page}", ttl=30, share="public", mode="shadow"),
    RoutePolicy(route="/me", ttl=60, share="user", mode="shadow"),
    RoutePolicy(route="/file", ttl=60, share="tenant", mode="shadow"),
    RoutePolicy(route="/stream", ttl=5, share="tenant", mode="shadow"),
    RoutePolicy(route="/flaky", ttl=2, share="tenant", mode="shadow"),
    RoutePolicy(route="/zipped", ttl=60, share="tenant", mode="shadow"),
    RoutePolicy(route="/cookie", ttl=60, share="tenant", mode="shadow"),
    RoutePolicy(route="/own-words", mode="shadow"),
)
MISTAKEN = (
    RoutePolicy(route="/wide", ttl=60, share="tenant", mode="shadow"),
    RoutePolicy(route="/unvaried", ttl=60, share="tenant", mode="shadow"),
    RoutePolicy(route="/clock", ttl=60, share="tenant", mode="shadow"),
    RoutePolicy(route="/greeting", ttl=60, share="tenant", mode="shadow"),
    RoutePolicy(route="/shuffled", ttl=60, share="tenant", mode="shadow"),
)
PLANTED = {
    ("/wide", "share-too-wide", ""),
    ("/unvaried", "missing-vary", "accept-language"),
    ("/clock", "body-over-time", ""),
    ("/greeting", "per-user-header", "x-greeting"),
    ("/shuffled", "unstable-order", ""),
}


class Clock:
    """Wall-clock seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class App:
    """Answers each of the routes above. It waits a little within each answer, so that requests overlap."""

    def __init__(self, chance: random.Random, clock: Clock) -> None:
        self._chance = chance
        self._clock = clock
        self._numbers = itertools.count()
        self._names: dict[tuple[str, str], int] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path, user = scope["path"], scope["user"]
        fields = dict(scope["headers"])
        language = fields.get(b"accept-language", b"").decode()
        await self._pause()
        self._number = next(self._numbers)
        if path.endswith("/name"):
            await self._rename(path, user, send)
            return
        name = path.split("/")[1].replace("-", "_")
        status, headers, body = getattr(self, name)(path, user, language)
        if not isinstance(body, (list, bytes)):
            body = json.dumps(body).encode()
            headers = [(b"content-type", b"application/json"), *headers]
        chunks = body if isinstance(body, list) else [body]
        headers += [
            (b"date", f"a date, {self._number}".encode()),
            (b"X-Request-Id", b"%d" % self._number),
            (b"server-timing", b"app;dur=%d" % self._number),
        ]
        etag = dict(headers).get(b"etag")
        if etag is not None and fields.get(b"if-none-match") == etag:
            status, chunks = 304, [b""]
        await self._pause()
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for chunk in chunks[:-1]:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await self._pause()
        await send({"type": "http.response.body", "body": chunks[-1]})

    async def _pause(self) -> None:
        for _ in range(self._chance.randrange(4)):
            await asyncio.sleep(0)

    async def _rename(self, path: str, user: User, send: Any) -> None:
        """The data changes at some time before the answer, and so before the purge."""
        failing = self._chance.random() < 0.2
        if not failing:
            client = (user.tenant, path.split("/")[2])
            self._names[client] = self._names.get(client, 0) + 1
        await self._pause()
        await self._pause()
        await send({"type": "http.response.start", "status": 500 if failing else 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def clients(self, path: str, user: User, _language: str) -> Any:
        client = (user.tenant, path.split("/")[2])
        return 200, [], {"client": client[1], "version": self._names.get(client, 0)}

    def pages(self, path: str, _user: User, language: str) -> Any:
        return 200, [(b"vary", b"Accept-Language")], {"page": path, "in": language}

    def me(self, _path: str, user: User, _language: str) -> Any:
        return 200, [(b"x-user", user.username.encode())], {"me": user.username}

    def file(self, _path: str, user: User, _language: str) -> Any:
        return 200, [(b"etag", f'"{user.tenant}"'.encode()), (b"Last-Modified", b"long ago")], b"file" * 1000

    def stream(self, _path: str, _user: User, _language: str) -> Any:
        return 200, [], [b"one", b"two", b"", b"three"]

    def flaky(self, _path: str, _user: User, _language: str) -> Any:
        return (503, [], b"busy") if self._chance.random() < 0.3 else (200, [], b"fine")

    def zipped(self, _path: str, _user: User, _language: str) -> Any:
        packed = gzip.compress(b"same" * 100, mtime=int(self._clock.now) + self._number)
        return 200, [(b"content-encoding", b"gzip")], [packed[:5], packed[5:]]

    def cookie(self, _path: str, _user: User, _language: str) -> Any:
        return 200, [(b"set-cookie", b"session=%d" % self._number)], b"hello"

    def own_words(self, _path: str, user: User, _language: str) -> Any:
        return 200, [(b"cache-control", b"private, no-store")], {"for": user.username, "n": self._number}

    def wide(self, _path: str, user: User, _language: str) -> Any:
        return 200, [], {"hello": user.username}

    def unvaried(self, _path: str, _user: User, language: str) -> Any:
        return 200, [], {"hello": language}

    def clock(self, _path: str, _user: User, _language: str) -> Any:
        return 200, [], {"now": self._clock.now, "n": self._number}

    def greeting(self, _path: str, user: User, _language: str) -> Any:
        return 200, [(b"x-greeting", user.username.encode())], {"same": "for all"}

    def shuffled(self, _path: str, _user: User, _language: str) -> Any:
        members = [("a", 1), ("b", [2.0, {"c": "d"}]), ("e", None), ("f", "g")]
        self._chance.shuffle(members)
        return 200, [], dict(members)


class Watched:
    """An app in shadow mode under a crowd.

    stores: one for each worker; requests go to any of them. Default: one worker with a memory store.
    whole: with the layers inside the cache as well.
    """

    def __init__(
        self,
        seed: int,
        policies: tuple[RoutePolicy, ...],
        *,
        stores: Sequence[Store] = (),
        whole: bool = False,
        **notes: Any,
    ) -> None:
        self.chance = random.Random(seed)
        self.clock = Clock()
        self.registry = CollectorRegistry()
        self.policies = policies
        self.stores = stores or [MemoryStore(clock=self.clock, metrics=Metrics.of(self.registry))]
        self._options = {"clock": self.clock, "analysis": 1.0, "burst": 60.0} | notes
        self._app: Any = App(self.chance, self.clock)
        self.workers = [self._worker(store, whole) for store in self.stores]

    def _worker(self, store: Store, whole: bool) -> CacheLayer:
        metrics = Metrics.of(self.registry)
        resolver = ContextResolver(policies=Policies(self.policies))
        app = self._app
        if whole:
            app = ETagLayer(app, resolver=resolver)
            app = BreakerLayer(app, resolver=resolver, metrics=metrics)
            app = CoalesceLayer(app, resolver=resolver, metrics=metrics)
        return CacheLayer(
            app,
            store=store,
            resolver=resolver,
            share="public",
            shadow=ShadowNotes(metrics=metrics, **self._options),
            metrics=metrics,
            clock=self.clock,
        )

    def request(self) -> Callable[[], Awaitable[Answer]]:
        """Somebody's next request."""
        chance = self.chance
        user = chance.choice(USERS)
        route = chance.choice(self.policies).route
        path = route.format(client_id=chance.randrange(4), page=chance.randrange(3))
        method = "PUT" if path.endswith("/name") else chance.choices(["GET", "HEAD"], [30, 1])[0]
        headers = [("accept-language", chance.choice(LANGUAGES)), ("x-user", user.username)]
        headers.append(("traceparent", f"00-{chance.random()}"))
        if chance.random() < 0.2:
            headers.append(("if-none-match", f'"{user.tenant}"'))
        worker = chance.choice(self.workers)
        return lambda: call(worker, path, method=method, headers=headers, user=user)

    async def _crowd(self, requests: int) -> None:
        for store in self.stores:
            await store.start()
        left = requests
        while left > 0:
            together = min(left, self.chance.randrange(1, 9))
            left -= together
            await asyncio.gather(*[self.request()() for _ in range(together)])
            self.clock.now += self.chance.random() * 0.5
        self.clock.now += 10.0
        for worker in self.workers:
            await worker.shadow.look(most=10_000)
        for store in self.stores:
            await store.aclose()

    def run(self, requests: int = 1500) -> list[dict[str, Any]]:
        """The workers' reports after so many requests."""
        asyncio.run(self._crowd(requests))
        return [worker.shadow.report() for worker in self.workers]


def found(reports: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    """The findings of some reports: route, kind, field."""
    return {(one["route"], one["kind"], one["field"]) for report in reports for one in report["findings"]}


def total(reports: list[dict[str, Any]], result: str) -> int:
    """Requests of all routes with a result."""
    return sum(counts.get(result, 0) for report in reports for counts in report["routes"].values())


if __name__ == "__main__":  # seeds by hand: python -m tests.middleware.layers.shadowing FIRST COUNT [whole]
    import sys

    first, count, whole = int(sys.argv[1]), int(sys.argv[2]), "whole" in sys.argv
    for seed in range(first, first + count):
        began = time.perf_counter()
        both = Watched(seed, CLEAN + MISTAKEN, whole=whole).run()
        clean = Watched(seed, CLEAN, whole=whole).run()
        print(
            seed,
            "missed", sorted(PLANTED - found(both)),
            "wrong", sorted((found(both) - PLANTED) | found(clean)),
            "false mismatches", total(clean, "mismatch"),
            "matches", total(clean, "match"), "uncompared", total(clean, "uncompared"),
            "mismatches", total(both, "mismatch"),
            f"{time.perf_counter() - began:.1f} s",
        )  # fmt: skip
