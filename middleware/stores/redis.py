"""The Redis store: stored responses and the purge ledger of all processes, in Redis 7 or later, or in Valkey.

Keys, all under `namespace`:

    <ns>:e:<hex key>          a record (core.codec), expires; of a large one only a token
    <ns>:b:{<ns>:e:<hex key>} the token and the large record, expires; in the same slot
    <ns>:s:{<scope>}          the scope's position: its last stamp; never expires
    <ns>:g:{<scope>}:<tag>    the tag's last purge (`redis_purge`); never expires
    <ns>:g:{<scope>}:*        the last purge of the whole scope; never expires
    <ns>:f:{<scope>}          the scope's floor: the highest stamp that was let go; never expires
    <ns>:i:{<scope>}          the scope's stamped tags by stamp, for trimming
    <ns>:p                    the last purges, for who cannot follow the stamps; in a cluster a channel; never expires
    <ns>:w:{<scope>}          written after a purge, to wait for a replica to have it; expires

Scopes and tags are named by keyed BLAKE2b: nothing of a tenant can be read in Redis. Records are sealed if the store
is given `seals`; else whoever may read Redis can read them.

A purge is one script per scope: stamp = max(server time in microseconds, last stamp + 1). An entry carries the
positions that were read together with the look-up that missed, before the app was asked; it is served iff no stamp of
its tags, and none of its scopes' as a whole, nor their floors, is above its position. A scope that was never purged has
position 0, and its first stamp is a time, so above 0: the first purge too beats every fill that began before it. Where
the script lets a stamp go (too old for any entry to be older, or too many), it raises the floor to it first, so that
this errs to a miss.

Guaranteed: a purge that returned done is honoured by every `get` that begins later, in every process.
Not guaranteed, and said: a failover may lose what was not replicated, but the purges of this process are made again
before anything is read from the new master (`redis_recent`); a server whose policy may evict keys without
expiry (`allkeys-*`) may lose stamps, which is reported at start. A scope that lost its position alone misses on the
tags purged before until it is purged again.
A call waits for as long as its caller lets it (`GuardedStore`); see `redis_link` for what becomes of connections.
"""

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

from redis.exceptions import NoScriptError, ReadOnlyError, RedisError

from tidegate.errors import Problems, StoreError
from tidegate.middleware.core.codec import decode, encode
from tidegate.middleware.core.records import PUBLIC_SCOPE, WHOLE_SCOPE, Aim, Entry, Record, Target
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.affected import Affected
from tidegate.middleware.stores.background import Background
from tidegate.middleware.stores.base import MAX_RETAIN, Lookup, Purge, StoreStats
from tidegate.middleware.stores.redis_cluster import Cluster
from tidegate.middleware.stores.redis_connect import connect_to
from tidegate.middleware.stores.redis_held import Held, held_in, say_whose
from tidegate.middleware.stores.redis_link import Dial, Word
from tidegate.middleware.stores.redis_looking import look_through
from tidegate.middleware.stores.redis_names import Names
from tidegate.middleware.stores.redis_naming import Naming
from tidegate.middleware.stores.redis_policy import check_policy
from tidegate.middleware.stores.redis_purge import PURGE, PURGE_SHA, Purging
from tidegate.middleware.stores.redis_reading import TOKEN_BYTES, Reading
from tidegate.middleware.stores.redis_recent import Recent
from tidegate.middleware.stores.redis_refusals import FullError, told_of
from tidegate.middleware.stores.redis_servers import Servers
from tidegate.middleware.stores.seals import Seals

__all__ = ["RedisStore"]

LARGE: Final = 64 * 1024
"""Bytes of a record above which it is read over the lane of the large ones, so that smaller ones overtake it. Written
are all over that lane, and in one order with what is deleted: there may be many at once."""

RENEW_EVERY: Final = 5.0
"""Seconds between two looks for another master, while the one that is there takes no writes: each costs the look-ups
that are under way."""

T = TypeVar("T")


class RedisStore:
    """Stored responses in Redis.

    url: `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or `redis+cluster://`: see `tidegate.addresses`.
    namespace: first part of every key.
    naming_key: at most 64 bytes; keys the hashes that stand for scopes and tags. All processes need the same.
    max_retain: seconds; no record is kept longer. Stamps older than this are let go.
    max_entry_bytes: a larger record is refused, so that it does not hold up the others on its connection.
    max_stamps: purged tags remembered in one scope; above it the scope's floor rises.
    max_recent: purged tags of this process that are purged again where a failover may have lost them: see `Recent`.
    max_waiting: calls that may wait for each connection; more are refused.
    seals: seals and opens the records; None: they lie there as they are.

    Raises:
        ConfigError: with every option that cannot be used.
    """

    local: bool = False

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "tidegate",
        naming_key: bytes = b"",
        max_retain: float = MAX_RETAIN,
        max_entry_bytes: int = 8 * 1024 * 1024,
        max_stamps: int = 100_000,
        max_recent: int = 10_000,
        max_waiting: int = 10_000,
        seals: Seals | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        problems = Problems("redis store")
        servers: Servers | None = None
        made = metrics if metrics is not None else Metrics.of()
        self._names = names = Names(namespace, naming_key)
        self._purging = purging = Purging(names, retention=max_retain, max_stamps=max_stamps)
        bites, reissued = made.limits.labels("redis-recent-purges").inc, made.purges.labels("reissued").inc
        self._recent = Recent(purging, most=max_recent, bites=bites, reissued=reissued)
        try:
            greet, connected = self._recent.greet, self._was_connected
            servers = connect_to(url, max_waiting=max_waiting, greet=greet, connected=connected, metrics=made)
        except ValueError as error:
            shown = re.sub("//.*@", "//***@", url)  # to the last @: a password may have a slash in it
            fix = "write redis://host:6379/0, rediss://, unix://, redis+sentinel:// or redis+cluster://"
            problems.add("url", shown, f"cannot be used ({error})", fix)
        if not namespace or any(c in namespace for c in "{}: \n"):
            problems.add("namespace", namespace, "is not a name", "use letters, digits, - and _")
        if len(naming_key) > 64:
            problems.add("naming_key", f"<{len(naming_key)} bytes>", "is too long", "give at most 64 bytes")
        for name, value in (("max_retain", max_retain), ("max_entry_bytes", max_entry_bytes)):
            if value <= 0:
                problems.add(name, value, "is not a limit", "give a number above 0")
        for name, value in (("max_stamps", max_stamps), ("max_recent", max_recent), ("max_waiting", max_waiting)):
            if value < 1:
                problems.add(name, value, "is not a limit", "give a whole number above 0")
        problems.raise_if_any()
        assert servers is not None
        self._servers = servers
        self._naming = Naming(names, servers)
        self.stream = names.stream
        # In a cluster the stream would lie in another slot.
        purging.stream, purging.channel = (names.stream, b"") if servers.dial is not None else (b"", names.stream)
        self._max_retain = max_retain
        self._max_entry_bytes = max_entry_bytes
        self._seals = seals
        self._metrics = made
        limits = made.limits
        self._limit_entry = limits.labels("redis-entry-bytes").inc
        self._limit_memory = limits.labels("redis-memory").inc
        self._limit_together = limits.labels("redis-purged-together").inc
        self._written_bytes = self._metrics.store_bytes.labels("written").inc
        self._reading = reading = Reading(names, servers, seals=seals, failure=self._failure, metrics=made)
        self.ask, self.told, self.refusal = reading.ask, reading.told, reading.refusal  # see `Asks`
        self._rejected = 0
        self._background = Background()
        self._check: asyncio.Task[None] | None = None
        self._renewed = -RENEW_EVERY
        self._told: Callable[[], object] = lambda: None

    @property
    def checked(self) -> bool:
        """Whether the server's eviction policy, and what lies there, have been looked at."""
        return self._check is not None and self._check.done() and not self._check.cancelled()

    async def start(self) -> None:
        """Look in the background whether the server may evict stamps, and who sealed what lies there; connections are
        made when they are needed."""
        if self._seals is not None:
            self._seals.start()
        self._servers.open()
        if not (self.checked or self._background.at_work):
            self._check = self._background.begin(self._look_round(), "tidegate-redis-check")

    async def _look_round(self) -> None:
        await check_policy(lambda: self._run(self._servers.on_each(b"INFO", b"memory")), self._metrics)
        with suppress(StoreError):  # a user who may write nothing
            await self._stand()
        await say_whose(self.held, self._metrics)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._seals is not None:
            await self._seals.aclose()
        await self._background.ended()
        await self._servers.aclose()

    async def get(self, key: bytes, scopes: Sequence[str] = ()) -> Lookup:
        """The record if it stands, and positions: see `redis_reading`.

        Raises:
            StoreError: if Redis cannot be reached, refuses, or holds something that is no stamp.
        """
        return await self._reading.get(key, scopes)

    async def put(self, key: bytes, record: Record, *, retain: float) -> bool:
        """Keep a record for `retain` seconds, at most `max_retain`.

        False if it is too large, not to be kept at all, has a tag whose scope it holds no position of, or if the
        server is out of memory.

        Raises:
            StoreError: if Redis cannot be reached, or refuses for another reason.
        """
        milliseconds = int(min(retain, self._max_retain) * 1000)
        data = encode(record) if self._seals is None else self._seals.sealed(key, record, milliseconds / 1000)
        if len(data) > self._max_entry_bytes:
            self._limit_entry()
            self._rejected += 1
            return False
        if milliseconds <= 0 or (isinstance(record, Entry) and self._reading.needed(record) is None):
            return False
        try:
            await self._run(self._write(self._names.record(key), data, milliseconds))
        except FullError:
            self._limit_memory()
            self._rejected += 1
            return False
        self._written_bytes(len(data))
        await self._naming.say()
        return True

    async def _write(self, name: bytes, data: bytes | memoryview, milliseconds: int) -> None:
        call = self._servers.call
        if len(data) <= LARGE:
            await call(name, b"SET", name, data, b"PX", milliseconds, large=True)
            return
        token = b"\0" + os.urandom(TOKEN_BYTES - 1)
        body = self._names.body(name)
        # Both at once. If only one is made, or another writer's come between, the tokens differ: a miss.
        written = await asyncio.gather(
            call(body, b"SET", body, b"".join((token, data)), b"PX", milliseconds, large=True),
            call(name, b"SET", name, token, b"PX", milliseconds, large=True),
            return_exceptions=True,
        )
        for reply in written:
            if isinstance(reply, BaseException):
                raise reply

    async def delete(self, key: bytes) -> None:
        """Forget a record.

        Raises:
            StoreError: if Redis cannot be reached, or refuses.
        """
        name = self._names.record(key)
        await self._run(self._servers.call(name, b"UNLINK", name, self._names.body(name), large=True))

    async def purge(self, tags: Mapping[str, Sequence[Target]]) -> Purge:
        """One script per scope. If one of several fails the others may have been made; purging again is harmless.

        Raises:
            StoreError: if Redis cannot be reached, or refuses.
        """
        for scope, targets in tags.items():
            if not targets:
                continue
            wanted = [WHOLE_SCOPE] if WHOLE_SCOPE in targets else list(dict.fromkeys(targets))
            words = self._purging.words(scope, [(target, None) for target in wanted])
            stamp, folded, _ = await self._run(self._script(self._names.position(scope), words))
            self._recent.add(scope, wanted, int(stamp))
            if folded:
                self._limit_together(folded)
        return Purge("done", sum(map(len, tags.values())))

    async def emptied(self) -> None:
        """The server was emptied, or another database of it. What a purge had voided is gone with its stamp; but a
        response that was on its way since before that purge may come yet: so everything is purged, unless what stands
        in this database to tell that is still there.

        Raises:
            StoreError: if Redis cannot be reached, or refuses.
        """
        here = self._names.here
        if self._servers.dial is None or not await self._run(self._servers.call(here, b"EXISTS", here)):
            await self.purge({PUBLIC_SCOPE: [WHOLE_SCOPE]})  # every entry has its own URI's tag there
            await self._stand()

    async def _stand(self) -> None:
        """Have something stand in this database that goes only with all of it."""
        await self._run(self._servers.call(self._names.here, b"SET", self._names.here, b"1"))

    async def settled(self, tags: Mapping[str, Sequence[Target]]) -> bool | None:
        """Whether a purge of these that was done has reached a replica; None: there is none, nor is there to be one.

        Raises:
            StoreError: if Redis cannot be reached.
        """
        marks = [self._names.mark(scope) for scope, targets in tags.items() if targets]
        reached = await asyncio.gather(*[self._servers.reached(mark) for mark in marks])
        return None if None in reached or not reached else all(reached)

    async def held(self, *, thorough: bool = False) -> Held:
        """What the records that lie there are sealed with, and whether this process has the keys.

        thorough: see `held_in`.

        Raises:
            StoreError: if Redis cannot be reached.
        """
        ids = None if self._seals is None else frozenset(key.id for key in self._seals.ring.keys)
        named = await self._run(self._naming.seen())
        return replace(await self._run(held_in(self._servers, self._names, ids, thorough=thorough)), named=named)

    async def affected(self, tags: Mapping[str, Sequence[Target]]) -> Affected:
        """What a purge of these would take, among the records that are looked at: see `redis_looking`."""
        start = len(self._names.record(b""))
        return await look_through(
            self._servers.scan(self._names.records),
            tags,
            read=partial(self._servers.read, large=True),
            opened=lambda name, data: self._reading.opened(bytes.fromhex(name[start:].decode()), data, decode),
            stands=self._reading.stands,
        )

    @property
    def cluster(self) -> Cluster | None:
        """The servers, if they are a cluster's."""
        return self._servers if isinstance(self._servers, Cluster) else None

    @property
    def dial(self) -> Dial | None:
        """Connects to the server that takes writes; None where there are several."""
        return self._servers.dial

    def elsewhere(self, told: Callable[[str], object]) -> None:
        """Call this when another server has taken the place of the one that takes writes."""
        self._servers.elsewhere.append(told)

    @property
    def stamp_prefix(self) -> bytes:
        """Of all keys whose change may void an entry."""
        return self._names.stamps

    def stamp_names(self, entry: Entry) -> list[bytes]:
        """Of the keys whose change may void an entry: its tags' stamps, and its scopes' as a whole."""
        names = [self._names.stamp(scope, WHOLE_SCOPE) for scope, _ in entry.positions]
        return names + [self._names.stamp(scope, tag) for scope, tag in entry.tags]

    def purged_names(self, tags: Mapping[str, Sequence[Target]]) -> list[bytes]:
        """Of the keys that a purge of these changes."""
        named = self._names.stamp
        return [
            named(scope, target.tags[0] if isinstance(target, Aim) else target)
            for scope, targets in tags.items()
            for target in targets
        ]

    def stats(self) -> StoreStats:
        """What this process knows: how many records it did not keep."""
        return StoreStats(rejected=self._rejected)

    async def _script(self, key: bytes, words: tuple[Word, ...]) -> list[Any]:
        try:
            made: list[Any] = await self._servers.call(key, b"EVALSHA", PURGE_SHA, *words)
        except NoScriptError:
            made = await self._servers.call(key, b"EVAL", PURGE, *words)
        return made

    async def _run(self, asked: Awaitable[T]) -> T:
        try:
            return await asked
        except RedisError as error:
            raise self._failure(error) from error

    def _failure(self, error: RedisError) -> StoreError:
        told = told_of(error)
        if isinstance(error, ReadOnlyError) and time.monotonic() - self._renewed >= RENEW_EVERY:
            self._renewed = time.monotonic()
            self._servers.renew(str(told))
        return told

    def when_connected(self, told: Callable[[], object]) -> None:
        """Call this whenever a connection has been made."""
        self._told = told

    def _was_connected(self) -> None:
        self._told()
