"""One process of a run: `python -m tests.promises.chaos.process reader|writer FOLDER NUMBER URL PORTS SEED`.

PORTS: of the servers that may be the one behind the URL, with commas between.
"""

import asyncio
import logging
import os
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from tests.promises.chaos.board import (
    ENTITIES,
    WRITERS,
    Board,
    Call,
    Count,
    Done,
    Phase,
    Source,
    scope_of,
    write_notes,
    writer_of,
)
from tidegate import Settings, Tidegate
from tidegate.middleware.core.records import WHOLE_SCOPE, Entry
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.base import Lookup
from tidegate.middleware.stores.guard import GuardedStore
from tidegate.middleware.stores.redis import RedisStore

TRIPS: Final = 4
"""Questions and answers, one after the other, in which a server tells everything."""

ASKING: Final = 4
"""Calls at a time in one reader."""

HOT: Final = 6
"""Entities of each writer that are changed far more often than the others, also several times in a millisecond."""


class Reader:
    """Asks for entities as the cache layer does: memory, else Redis, else the app, whose answer it stores."""

    def __init__(self, board: Board, number: int, url: str, ports: list[int], chance: random.Random) -> None:
        self._board = board
        self._number = number
        self._ports = ports
        self._chance = chance
        self._notes: list[Call] = []
        self._proved = 0.0
        settings = Settings.of({"store": {"url": url, "budget": 0.5}})
        self._tide = Tidegate(settings, registry=CollectorRegistry())
        self._store = self._tide.store

    async def run(self) -> list[Call]:
        """Until the last phase; returns what each call saw."""
        await self._tide.start()
        proving = asyncio.create_task(self._prove())
        await self._hears()
        self._board.add(self._number, Count.READY)
        await asyncio.gather(*(self._keep_asking() for _ in range(ASKING)))
        await self._hears()
        for _ in range(2):  # what the first time found in Redis or stored there, the second time may find in memory
            for entity in range(ENTITIES):
                await self._ask(entity, final=True)
        proving.cancel()
        await asyncio.wait([proving])
        await self._tide.aclose()
        return self._notes

    async def _keep_asking(self) -> None:
        while self._board.phase < Phase.CHECK and os.getppid() != 1:
            await asyncio.sleep(self._chance.uniform(0, 0.004))
            await self._ask(self._chance.randrange(ENTITIES))

    async def _ask(self, entity: int, *, final: bool = False) -> None:
        key = b"entity-%d" % entity
        began, proved = time.monotonic(), self._proved
        source, record = Source.MEMORY, self._store.peek(key)
        found: Lookup | None = None
        if record is None:
            found = await self._store.get(key, (scope_of(entity),))
            source, record = Source.REDIS, found.record
        if isinstance(record, Entry):
            version = int(record.body)
        else:
            source, version = Source.APP, await self._fill(key, entity, found)
        self._board.add(self._number, Count[source.name])
        self._notes.append(Call(self._number, began, proved, entity, version, source, final))

    async def _fill(self, key: bytes, entity: int, found: Lookup | None) -> int:
        await asyncio.sleep(self._chance.uniform(0, 0.003))
        version = self._board.version(entity)
        await asyncio.sleep(self._chance.uniform(0, 0.003))
        if found is not None and found.positions is not None:
            entry = Entry(
                status=200,
                headers=(),
                body=b"%d" % version,
                born=time.time(),
                lifetime=3600.0,
                tags=((scope_of(entity), f"entity:{entity}"),),
                positions=tuple(found.positions.items()),
            )
            await self._store.put(key, entry, retain=3600.0)
        return version

    async def _hears(self) -> None:
        await _until(lambda: self._store.stats().extra["near_live"] == 1.0)

    async def _prove(self) -> None:
        """Know up to when all that the servers had to tell is here: they send in order of time, and the loop reads what
        has come before it runs what waits for this answer. Over a stream one tells when it is asked the next time: that
        has happened, and was answered, after some more questions."""
        links: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        try:
            while True:
                for port in self._ports:
                    if port not in links:
                        with suppress(OSError):  # it has died
                            links[port] = await asyncio.open_connection("127.0.0.1", port)
                sent = time.monotonic()
                for port in [port for port in links if not await _answers(*links[port])]:
                    links.pop(port)[1].close()
                    sent = self._proved  # what else it had sent is unknown
                if links:
                    self._proved = sent
                await asyncio.sleep(0.01)
        finally:
            for _, writer in links.values():
                writer.close()


async def _answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    try:
        for _ in range(TRIPS):
            writer.write(b"PING\r\n")
            await reader.readuntil(b"\r\n")
            await asyncio.sleep(0)  # what was read in the same pass is worked off
    except (OSError, asyncio.IncompleteReadError):
        return False
    return True


class Writer:
    """Changes entities, then purges their tags."""

    def __init__(self, board: Board, number: int, url: str, chance: random.Random) -> None:
        self._board = board
        self._number = number
        self._chance = chance
        self._notes: list[Done] = []
        self._registry = CollectorRegistry()
        metrics = Metrics.of(self._registry)
        self._store = GuardedStore(RedisStore(url, metrics=metrics), budget=5.0, metrics=metrics)
        self._own = [entity for entity in range(ENTITIES) if writer_of(entity) == number % WRITERS]

    async def run(self) -> list[Done]:
        """Until the second phase; returns which purges were done, and when."""
        await self._store.start()
        self._board.add(self._number, Count.READY)
        while self._board.phase < Phase.SETTLE and os.getppid() != 1:
            if self._board.total(Count.PURGES) > 100 + self._board.total(Count.MEMORY):
                await asyncio.sleep(0.01)  # a slow machine must find something in memory that a purge can void
                continue
            await self._write(self._some())
            if self._chance.random() < 0.7:
                await asyncio.sleep(self._chance.uniform(0, 0.012))
        await _until(lambda: not self._store.stats().extra["purges_pending"])
        await self._store.aclose()
        reissued = self._registry.get_sample_value("tidegate_purges_total", {"outcome": "reissued"})
        self._board.add(self._number, Count.REISSUED, int(reissued or 0))
        return self._notes

    def _some(self) -> list[int]:
        if self._chance.random() < 0.02:
            whole = scope_of(self._chance.choice(self._own))
            return [entity for entity in self._own if scope_of(entity) == whole]
        own = self._own[:HOT] if self._chance.random() < 0.6 else self._own
        return self._chance.sample(own, self._chance.randint(1, 3))

    async def _write(self, entities: list[int]) -> None:
        versions = {entity: self._board.raise_version(entity) for entity in entities}
        tags: dict[str, list[str]] = {}
        for entity in entities:
            tags.setdefault(scope_of(entity), []).append(f"entity:{entity}")
        if len(entities) > 3:
            tags = {scope: [WHOLE_SCOPE] for scope in tags}
        purge = await self._store.purge(tags)
        at = time.monotonic()
        if purge.state == "done":
            self._notes += [Done(at, entity, version) for entity, version in versions.items()]
            self._board.add(self._number, Count.PURGES)
        else:
            self._board.add(self._number, Count.PENDING)


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(0.01)


def main(role: str, folder: str, number: str, url: str, ports: str, seed: str) -> None:
    """Run, and leave the notes in the folder."""
    logging.getLogger("tidegate").setLevel(logging.CRITICAL)  # that connections fail is what is wanted here
    board = Board(Path(folder, "board"))
    chance = random.Random(f"{seed} {number}")
    if role == "reader":
        reader = Reader(board, int(number), url, [int(port) for port in ports.split(",")], chance)
        write_notes(Path(folder, f"{number}.calls"), asyncio.run(reader.run()))
    else:
        write_notes(Path(folder, f"{number}.purges"), asyncio.run(Writer(board, int(number), url, chance).run()))
    board.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
