"""Costs that are no microseconds of a request: measured once, and told in their own unit."""

import asyncio
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from tests.bench.exchanges import POLICY, five
from tests.bench.frame import Bench
from tests.bench.sizes import Taken, entry_of, key_of, new_store, taken_by
from tests.driver import User, call, scope_of
from tidegate.middleware.core.policy import DEFAULT_MAX_BODY

__all__ = ["BENCHES", "Counted", "Fact"]

MIB: Final = 1024 * 1024
AT_ONCE: Final = 200
"""Clients that ask for the same at the same time."""
PIECE: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that is measured once.

    measure: its value. It is given how much of the whole there is time for: 1 is all that the name says.
    most: what it may be at most; None: nobody has said.
    """

    name: str
    unit: str
    measure: Callable[[float], float]
    most: float | None = None

    def counted(self, part: float) -> "Counted":
        """Measure it, with this part of the whole."""
        return Counted(self, self.measure(part))


@dataclass(frozen=True, slots=True)
class Counted:
    """What was measured."""

    fact: Fact
    value: float

    @property
    def missed(self) -> str:
        """What it is and what it may be, where that is less; else nothing."""
        fact = self.fact
        if fact.most is None or self.value <= fact.most:
            return ""
        return f"{fact.name}: {self.value:.3g} {fact.unit}, target {fact.most:g}"


def facts(bench: Bench) -> list[Fact]:
    """Coalescing, a large purge, memory for an entry, memory for a stream."""

    @cache
    def taken(part: float) -> Taken:
        return taken_by(round(10**5 * part), 64)

    return [
        Fact(name=f"runs of {AT_ONCE} identical misses at once", unit="runs", measure=_runs(bench), most=1),
        Fact(name="purge of a tag with 10^6 entries, longest", unit="µs", measure=_purge, most=1000),
        Fact(
            name="entry in memory beyond key and body", unit="bytes", measure=lambda part: taken(part).entry, most=150
        ),
        Fact(
            name="the store's own part of that", unit="bytes", measure=lambda part: taken(part).entry - taken(part).own
        ),
        Fact(
            name="growth while 100 MB are streamed",
            unit="MiB",
            measure=_growth(bench),
            most=2 + DEFAULT_MAX_BODY / MIB,
        ),
    ]


def _purge(part: float) -> float:
    """The longest of some purges of a tag that every entry carries, and of the look-ups that find out afterwards."""

    async def measure() -> float:
        entries = round(10**6 * part)
        store, record = new_store(entries), entry_of(0, b"x")
        for number in range(entries):
            store.keep(key_of(number), record, retain=3600)
            if number % 1000 == 0:
                await asyncio.sleep(0)
        scope, tag = record.tags[1]
        longest = 0.0
        for number in range(20):
            before = time.perf_counter()
            await store.purge({scope: [tag]})
            purged = time.perf_counter()
            assert store.peek(key_of(number)) is None
            longest = max(longest, purged - before, time.perf_counter() - purged)
        return longest * 1e6

    return asyncio.run(measure())


def _runs(bench: Bench) -> Callable[[float], float]:
    """How often a handler that takes 100 ms runs for clients that all ask for one page."""

    def measure(part: float) -> float:
        runs = 0

        async def page(scope: Any, receive: Any, send: Any) -> None:
            nonlocal runs
            runs += 1
            await asyncio.sleep(0.1)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"page"})

        app = five(bench, page, POLICY)

        async def ask() -> None:
            nonlocal runs
            await call(app, scope=scope_of("/begin"))  # flags are known a moment after the first request
            runs = 0
            made = [scope_of("/page", user=User("acme", "ann")) for _ in range(AT_ONCE)]
            answers = await asyncio.gather(*[call(app, scope=scope) for scope in made])
            assert [answer.body for answer in answers] == [b"page"] * AT_ONCE

        bench.run(ask())
        return runs

    return measure


def _growth(bench: Bench) -> Callable[[float], float]:
    """What Python has allocated at most while a long response of a route that stores passes through all layers."""

    def measure(part: float) -> float:
        pieces = round(100 * MIB * part / PIECE)
        passed = 0

        async def page(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for number in range(pieces):
                # Each piece is new, as from a file: whoever keeps it keeps 64 KiB.
                await send({"type": "http.response.body", "body": bytes([number % 256]) * PIECE, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        app = five(bench, page, POLICY)

        async def receive() -> Any:
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            nonlocal passed
            passed += len(message.get("body", b""))
            await asyncio.sleep(0)

        bench.warm(app, [scope_of("/begin", method="HEAD")])
        passed = 0
        tracemalloc.start()
        try:
            bench.run(app(scope_of("/page", user=User("acme", "ann")), receive, send))  # type: ignore[arg-type]
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert passed == pieces * PIECE
        return peak / MIB

    return measure


BENCHES = {"facts": facts}
