"""How records are read from Redis, and what their stamps say of them.

A record that was looked up lately is asked for together with the positions of the scopes and the stamps that it needed
then (`redis_needs`), in one command that was packed before: one round trip.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from redis.exceptions import RedisError

from tidegate.errors import StoreError
from tidegate.middleware.core.codec import CodecError, decode
from tidegate.middleware.core.records import Entry, Record
from tidegate.middleware.core.softening import softened
from tidegate.middleware.metrics import Metrics, adding
from tidegate.middleware.stores.base import Lookup
from tidegate.middleware.stores.redis_names import Names
from tidegate.middleware.stores.redis_needs import Needs, Seen
from tidegate.middleware.stores.redis_servers import Servers
from tidegate.middleware.stores.redis_stamps import VOID, judge, stamp_of
from tidegate.middleware.stores.seals import Seals

__all__ = ["TOKEN_BYTES", "Reading"]

TOKEN_BYTES: Final = 17
"""Of what lies in the place of a large record: a zero, which no record begins with, and a random number."""

Values = Sequence[bytes | None]

Opened = Callable[[bytes, bytes, Callable[[bytes | memoryview], Record]], Record | None]
"""Given a key, the bytes under it, and what decodes them, such as `codec.decode`."""

_tuple: Any = tuple
_found: Final[Callable[[tuple[Record, Mapping[str, int], bool]], Lookup]] = partial(_tuple.__new__, Lookup)
"""Makes a Lookup of all its parts, in half the time."""


class Reading:
    """What a store reads.

    failure: what it makes of a refusal by Redis.
    """

    def __init__(
        self,
        names: Names,
        servers: Servers,
        *,
        seals: Seals | None,
        failure: Callable[[RedisError], StoreError],
        metrics: Metrics,
    ) -> None:
        self._names = names
        self._servers = servers
        self.opened: Opened = seals.opened if seals is not None else self._decoded
        """The record of a key that these bytes are; None, and counted, if they are none."""
        self._failure = failure
        self._metrics = metrics
        self._read_bytes = adding(metrics.store_bytes.labels("read"))
        self._needs = Needs(names)
        self.needed = self._needs.of
        """See `Needs.of`."""
        self._clock = time.time

    def ask(self, key: bytes, scopes: Sequence[str]) -> tuple[Awaitable[Any], Seen] | None:
        """See `Asks`: of what was looked up before and was not large, where one server has it all."""
        asks = self._servers.ask
        seen = self._needs.seen(key, scopes) if asks is not None else None
        if asks is None or seen is None or seen.large:
            return None
        return asks(seen.question), seen

    def told(self, key: bytes, scopes: Sequence[str], seen: Seen, values: Values) -> Lookup | None:
        """See `Asks`."""
        found = values[0]
        if found is None:
            return Lookup(None, _positions(scopes, values[1 : len(scopes) + 1]))
        size = len(found)
        if size == TOKEN_BYTES and found[0] == 0:
            seen.large = True
            return None
        self._read_bytes(size)
        purged = values.count(None) != len(values) - 1
        positions = _positions(scopes, values[1 : len(scopes) + 1]) if purged else seen.unpurged
        record = self.opened(key, found, seen.decode)
        if type(record) is not Entry:
            return Lookup(record, positions)
        if record.tags is not seen.tags or record.positions is not seen.positions:
            if record.tags != seen.tags or record.positions != seen.positions:
                needed = self.needed(record)
                if needed is not None:
                    self._needs.remember(key, scopes, record, needed[0])
                return None
            seen.tags, seen.positions = record.tags, record.positions  # as `decode` gives them again, most likely
        if not purged:
            return _found((record, positions, False))
        stamps = values[len(scopes) + 1 :]
        return self._verdict(record, positions, stamps) if any(stamps) else Lookup(record, positions)

    def refusal(self, error: Exception) -> Exception:
        """See `Asks`."""
        return self._failure(error) if isinstance(error, RedisError) else error

    async def get(self, key: bytes, scopes: Sequence[str] = ()) -> Lookup:
        """Record, positions, and the stamps that the record needed last time, in one round trip; in a second one its
        stamps if they are others now, after a large record's own.

        Raises:
            StoreError: if Redis cannot be reached, refuses, or holds something that is no stamp.
        """
        name, tail = self._names.record(key), len(scopes) + 1
        seen = self._needs.seen(key, scopes)
        values = await self.read(seen.words if seen is not None else [name, *map(self._names.position, scopes)])
        positions = _positions(scopes, values[1:tail])
        found = values[0]
        large = found is not None and len(found) == TOKEN_BYTES and found[0] == 0
        if seen is not None:
            seen.large = large
        if found is not None and large:
            found = await self._large(name, found)
        if found is None:
            return Lookup(None, positions)
        self._read_bytes(len(found))
        record = self.opened(key, found, decode)
        if type(record) is not Entry:
            return Lookup(record, positions)
        if seen is not None and record.tags == seen.tags and record.positions == seen.positions:
            return self._verdict(record, positions, values[tail:])
        needed = self.needed(record)
        if needed is None:
            return Lookup(None, positions)
        self._needs.remember(key, scopes, record, needed[0])
        return self._verdict(record, positions, await self.read(needed[0]) if needed[0] else ())

    def _decoded(self, _: bytes, data: bytes, decoded: Callable[[bytes | memoryview], Record]) -> Record | None:
        """As `opened`, where they are not sealed."""
        try:
            return decoded(data)
        except CodecError as error:
            self._metrics.fail("redis-codec", error)
            return None

    async def _large(self, name: bytes, token: bytes) -> bytes | None:
        """The large record that was written together with this token; None if another has taken its place."""
        (found,) = await self.read([self._names.body(name)], large=True)
        return found[len(token) :] if found is not None and found.startswith(token) else None

    def _verdict(self, entry: Entry, positions: Mapping[str, int], stamps: Values) -> Lookup:
        """What its stamps say of it: see `judge`."""
        if not any(stamps):
            return Lookup(entry, positions)
        needed = self.needed(entry)
        assert needed is not None  # else nobody could have asked for the stamps
        soft = judge(needed[0], stamps, needed[1])
        if soft == VOID:
            return Lookup(None, positions)
        if soft:
            # The server's clock: where it is ahead of ours, the purge was not in the future all the same.
            entry = softened(entry, min(soft / 1_000_000, self._clock()))
        return Lookup(entry, positions, soft > 0)

    async def stands(self, entry: Entry) -> bool:
        """Whether nothing has voided it."""
        needed = self.needed(entry)
        return needed is not None and judge(needed[0], await self.read(needed[0]), needed[1]) != VOID

    async def read(self, keys: Sequence[bytes], *, large: bool = False) -> Values:
        """The values under the keys.

        Raises:
            StoreError: if Redis cannot be reached, or refuses.
        """
        try:
            return await self._servers.read(keys, large=large)
        except RedisError as error:
            raise self._failure(error) from error


def _positions(scopes: Sequence[str], values: Values) -> dict[str, int]:
    return {scope: stamp_of(value) for scope, value in zip(scopes, values, strict=True)}
