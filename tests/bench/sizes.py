"""`python -m tests.bench.sizes`: what an entry of the memory store takes, and whether its costs grow with its number.

Of memory, by tracemalloc over all that is allocated and kept: *entry* is what entries take that each have an ETag and
a URI of their own, beyond the objects of key and body: its place in the dictionary, its columns, its own part. *own*
are the characters of the last: of the ETag, and of the end of the URI.
"""

import asyncio
import gc
import sys
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from prometheus_client import CollectorRegistry

from tidegate.middleware.core.records import PUBLIC_SCOPE, Entry
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.memory import MemoryStore

__all__ = ["Taken", "entry_of", "key_of", "main", "new_store", "taken_by"]

TENANTS = 50
AT_ONCE = 1000
"""Operations between two steps of the event loop, and in one round of measuring."""


def new_store(entries: int) -> MemoryStore:
    """With room for so many, however large."""
    return MemoryStore(max_bytes=2**40, max_entries=entries, metrics=Metrics.of(CollectorRegistry()))


def key_of(number: int) -> bytes:
    """As long as the layer's: 20 bytes."""
    return b"%020d" % number


def entry_of(number: int, body: bytes) -> Entry:
    """As the cache layer makes one of a JSON answer: nothing in it is shared with another entry yet."""
    tenant = f"tenant:{number % TENANTS}"
    return Entry(
        status=200,
        headers=(
            (b"Content-Type".lower(), bytes(bytearray(b"application/json"))),
            (b"Content-Length".lower(), b"%d" % len(body)),
            (b"Cache-Control".lower(), bytes(bytearray(b"max-age=600"))),
            (b"ETag".lower(), b'"%032x"' % number),
        ),
        body=body,
        born=1.7e9 + number,
        lifetime=600.0,
        tags=((PUBLIC_SCOPE, f"uri:\x014:http\x0112:example.test\x0115:/items/{number:08}\x010:"), (tenant, "items")),
        positions=((tenant, 0), (PUBLIC_SCOPE, 0)),
        own_etag=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Bytes for each entry; see above."""

    entry: float
    own: float


def taken_by(entries: int, body: int) -> Taken:
    """Measure so many entries with bodies of so many bytes."""
    one = entry_of(0, bytes(body))
    made = ((key_of(number), entry_of(number, bytes(body))) for number in range(entries))
    own = len(one.headers[-1][1]) + len(one.tags[0][1].rpartition("/")[2])
    whole = asyncio.run(_allocated(entries, made)) - sys.getsizeof(key_of(0)) - sys.getsizeof(one.body)
    return Taken(entry=whole, own=own)


async def _allocated(entries: int, records: Iterator[tuple[bytes, Entry]]) -> float:
    store = new_store(entries)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for at, (key, record) in enumerate(records):
            assert await store.put(key, record, retain=3600)
            if at % AT_ONCE == 0:
                await asyncio.sleep(0)
        del key, record
        return (tracemalloc.get_traced_memory()[0] - before) / entries
    finally:
        tracemalloc.stop()


async def costs(entries: int) -> dict[str, float]:
    """Microseconds of CPU time of an operation in a full store: medians of rounds, and of a purge the longest.

    A first hit puts the entry together; who is asked for again is there as it was given.
    """
    store = new_store(entries)
    record = entry_of(0, b"x")
    for number in range(entries):
        await store.put(key_of(number), record, retain=3600)
    rounds: dict[str, list[float]] = {"first hit": [], "hit": [], "fill": []}
    purges: list[float] = []
    for at in range(20):
        # Those that were put last are there still. `fill` pushes out one for each that it puts.
        last = entries + at * AT_ONCE - 1
        some = [key_of(last - number) for number in range(AT_ONCE)]
        for which in ("first hit", "hit"):
            began = time.thread_time()
            for key in some:
                store.peek(key)
            rounds[which].append(time.thread_time() - began)
        fresh = [key_of(last + 1 + number) for number in range(AT_ONCE)]
        began = time.thread_time()
        for key in fresh:
            await store.put(key, record, retain=3600)
        rounds["fill"].append(time.thread_time() - began)
    found = {name: median(took) / AT_ONCE * 1e6 for name, took in rounds.items()}
    # All entries carry this tag; those that are asked for drop, as each of them costs a step more than a hit.
    for _ in range(20):
        began = time.thread_time()
        await store.purge({record.tags[1][0]: [record.tags[1][1]]})
        purges.append(time.thread_time() - began)
    longest = 0.0
    for key in fresh:
        began = time.thread_time()
        assert store.peek(key) is None
        longest = max(longest, time.thread_time() - began)
    found |= {
        "purge": median(purges) * 1e6,
        "purge, longest": max(purges) * 1e6,
        "look-up after it, longest": longest * 1e6,
    }
    return found


def main() -> None:
    """Print both."""
    taken = taken_by(100_000, 2048)
    print(
        f"100,000 entries of 2 KiB: {taken.entry:.0f} bytes beyond key and body for each entry, "
        f"of which {taken.own:.0f} are characters of its ETag and URI's end"
    )
    for entries in (10**4, 10**5, 10**6):
        found = asyncio.run(costs(entries))
        print(f"{entries:>9,} entries, us: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))


if __name__ == "__main__":
    main()
