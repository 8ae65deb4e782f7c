"""The purges that this process made lately: made again where a failover may have lost them.

A failover loses what the old master had not passed on, purges too; and what they had voided would be served again. So
each new connection asks the server who it is (`run_id` and `master_replid`, of which one changes whenever another
server, or another history, takes the old one's place), and before anything is read over it the purges that this server
was not seen to have are made again, *with the stamps that they had*: where they were not lost that changes nothing.

Bounded in age, in number and in bytes: above these, the oldest become one purge of the whole of their scope, above as
many scopes one of everything. So too much is purged after a failover then, never too little.
Not guaranteed: anything about purges of a process that is gone, or older than `age`.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import hiredis
from redis.exceptions import AskError, ResponseError

from tidegate.errors import StoreError
from tidegate.middleware.core.records import PUBLIC_SCOPE, WHOLE_SCOPE, Target, bytes_of
from tidegate.middleware.stores.redis_purge import PURGE, Purging

__all__ = ["RECENT_FOR", "Recent"]

RECENT_FOR: Final = 600.0
"""Seconds that a purge is remembered: ten times what Sentinels give a replica that has lost its master by default."""

MOST_BYTES: Final = 16 * 1024 * 1024
"""Of all names, so that 10,000 tags may have 1.6 KiB each."""

_BATCH: Final = 250
"""Targets in one script: a few milliseconds."""

_SERVERS: Final = 64

_hiredis: Any = hiredis  # its annotations say that a command has one word


class _Made:
    """A purge: its stamp, its number in the order of purges of this process, and when it was made."""

    __slots__ = ("at", "number", "stamp")

    def __init__(self, stamp: int, number: int, at: float) -> None:
        self.stamp = stamp
        self.number = number
        self.at = at


class Recent:
    """The recent purges of one process.

    most: targets remembered. most_bytes: of their names. age: seconds that they are. bites: called for each that is
        forgotten because of the one or the other.
    reissued: called with how many had been lost, and were made again.
    """

    def __init__(
        self,
        purging: Purging,
        *,
        most: int = 10_000,
        most_bytes: int = MOST_BYTES,
        age: float = RECENT_FOR,
        bites: Callable[[], object] = lambda: None,
        reissued: Callable[[int], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._purging = purging
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0
        self._age = age
        self._bites = bites
        self._reissued = reissued
        self._clock = clock
        self._made: OrderedDict[tuple[str, Target], _Made] = OrderedDict()
        self._number = 0
        self._known: OrderedDict[str, int] = OrderedDict()
        """By server, the number of the last purge that it is known to have."""

    def __len__(self) -> int:
        return len(self._made)

    def add(self, scope: str, targets: Sequence[Target], stamp: int) -> None:
        """Remember a purge that was done."""
        self._number += 1
        now = self._clock()
        for target in targets:
            self._keep((scope, target), _Made(stamp, self._number, now))
        self._forget(now)

    def _keep(self, aimed: tuple[str, Target], made: _Made) -> None:
        known = self._made.get(aimed)
        if known is None:
            self._bytes += bytes_of(*aimed)
        if known is None or known.stamp <= made.stamp:
            self._made[aimed] = made
        self._made.move_to_end(aimed)

    def _forget(self, now: float) -> None:
        """Let the old go, and make room."""
        made = self._made
        while made and next(iter(made.values())).at < now - self._age:
            self._bytes -= bytes_of(*made.popitem(last=False)[0])
        while len(made) > self._most or (self._bytes > self._most_bytes and len(made) > 1):
            (scope, target), oldest = made.popitem(last=False)
            self._bytes -= bytes_of(scope, target)
            self._bites()
            # To the young end: a scope that loses one will lose more.
            self._keep((PUBLIC_SCOPE if target == WHOLE_SCOPE else scope, WHOLE_SCOPE), oldest)

    def _since(self, number: int) -> Iterator[tuple[str, list[tuple[Target, int | None]]]]:
        """Those made after that one, by scope, in pieces."""
        scopes: dict[str, list[tuple[Target, int | None]]] = {}
        for (scope, target), made in self._made.items():
            if made.number > number:
                scopes.setdefault(scope, []).append((target, made.stamp))
        for scope, targets in scopes.items():
            for start in range(0, len(targets), _BATCH):
                yield scope, targets[start : start + _BATCH]

    async def greet(self, connection: Any) -> str | None:
        """Make again over a new connection what its server may not have; before anything is read over it.

        Returns what stands for the server and its history; None: it does not say.

        Raises:
            StoreError: if it refuses.
        """
        server = await _identity(connection)
        self._forget(self._clock())
        number = self._number
        pieces = list(self._since(0 if server is None else self._known.get(server, 0)))
        for scope, targets in pieces:
            words = (b"EVAL", PURGE, *self._purging.words(scope, targets))
            await connection.send_packed_command([_hiredis.pack_command(words)], check_health=False)
        self._reissued(sum([await _written(connection) for _ in pieces]))
        if server is not None:
            self._known[server] = number
            self._known.move_to_end(server)
            if len(self._known) > _SERVERS:
                self._known.popitem(last=False)
        return server


async def _written(connection: Any) -> int:
    """How many of the purges in one piece had been lost."""
    try:
        _, _, written = await connection.read_response()
    except AskError:  # MovedError too: in a cluster that slot is another server's, which is greeted itself
        return 0
    except ResponseError as error:
        raise StoreError(f"a purge cannot be made again: {error}") from error
    return int(written)


async def _identity(connection: Any) -> str | None:
    """Of the server and its history."""
    await connection.send_command("INFO", "server", "replication")
    try:
        told: Any = await connection.read_response()
    except ResponseError:
        return None  # an ACL forbids it
    lines = dict(line.partition(":")[::2] for line in told.decode("utf-8", "replace").splitlines())
    run, history = lines.get("run_id"), lines.get("master_replid")
    return f"{run} {history}" if run and history else None
