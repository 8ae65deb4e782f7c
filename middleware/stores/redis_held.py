"""Whether what lies in Redis was sealed with the keys that this process has.

Names of scopes and tags are made with the naming key, which comes with the sealing keys. So a process without the
application's keys, or with others, writes its purges where the application does not look: they succeed, and purge
nothing. What the records are sealed with tells that apart, and with which naming keys somebody stored lately
(`redis_naming`), before anybody believes that something was purged.

Not guaranteed: only some records are looked at, by their first bytes.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from redis.exceptions import NoPermissionError, RedisError

from tidegate.errors import ABSENT, Problem, StoreError
from tidegate.middleware.core.codec import VERSION as PLAIN
from tidegate.middleware.core.keyring import ID_BYTES
from tidegate.middleware.core.sealing import VERSION as SEALED
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.redis_names import Names
from tidegate.middleware.stores.redis_naming import LATELY, Named
from tidegate.middleware.stores.redis_servers import Servers

__all__ = ["Held", "held_in", "say_whose"]

_ENOUGH: Final = 100
"""Records that are looked at."""

_LOOK_FOR: Final = 1.0
"""Seconds after which no more are, however many keys of others lie there."""

_AT_ONCE: Final = 50
_AGAIN: Final = 5.0
_NOBODY: Final = Named(alike=False, otherwise=0)
_TOKEN: Final = re.compile(rb"\x00.{16}", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """How many records lie there, of those that were looked at.

    has_keys: whether this process has any. plain: not sealed. ours: sealed with a key of this process. strange: with
    another one; ids: of those. all: whether none was left out. named: with which naming keys somebody stored lately.
    """

    has_keys: bool
    plain: int = 0
    ours: int = 0
    strange: int = 0
    ids: tuple[str, ...] = ()
    all: bool = False
    named: Named = _NOBODY

    @property
    def is_nothing(self) -> bool:
        """Whether surely no record lies there."""
        return self.all and not (self.plain or self.ours or self.strange)

    def unreached(self) -> Problem | None:
        """Why no purge of this process reaches what lies there; None: it does, or there is nothing to tell by."""
        alike, otherwise = self.named
        if alike and not otherwise:
            return None
        return self._sealed_otherwise() or (None if alike else self._named_otherwise())

    def problem(self) -> Problem | None:
        """What is wrong with the keys of this process: why no purge of it reaches what lies there, or not all of it; or
        why it does not read that."""
        return self.unreached() or self._sealed_otherwise() or self._named_otherwise()

    def _named_otherwise(self) -> Problem | None:
        alike, otherwise = self.named
        if not otherwise:
            return None
        told = f"has another naming key than processes that stored responses here within {LATELY / 60:g} minutes"
        some = " (others have the same)" if alike else ""
        fix = "give all of them the same: one line that begins with tgn1_"
        return Problem(path=_PATH, value=ABSENT, problem=f"{told}{some}: its purges do not reach these", fix=fix)

    def _sealed_otherwise(self) -> Problem | None:
        unreached = _UNREAD if self.named.alike and not self.named.otherwise else f"{_UNREAD}, and {_UNPURGED}"
        looked = self.plain + self.ours + self.strange
        if not self.has_keys and self.strange:
            told = f"is not given, and of {looked} records looked at in Redis {self.strange} are sealed: {unreached}"
            fix = "give the keys that the application has, as store.key_file or store.keys"
        elif self.ours or not self.has_keys:
            return None
        elif self.strange:
            told = f"has none of the keys that records in Redis are sealed with ({', '.join(self.ids)}): {unreached}"
            fix = "give the keys that the application has"
        elif self.plain and not (self.named.alike and not self.named.otherwise):  # else it was given just now
            told = f"is given, and of {looked} records looked at in Redis none is sealed: {unreached}"
            fix = "leave the keys out if the application has none, else give it these"
        else:
            return None
        return Problem(path=_PATH, value=ABSENT, problem=told, fix=fix)


_PATH: Final = "store.key_file (or store.keys)"
_UNREAD: Final = "this process does not read them"
_UNPURGED: Final = "its purges do not reach them"


async def held_in(servers: Servers, names: Names, ids: Collection[bytes] | None, *, thorough: bool = False) -> Held:
    """What some of the records are sealed with. ids: of this process' keys; None: it has none.

    thorough: look on until one is met that was sealed with these, as long as time is left. Right after keys were given
        or replaced, most records are still those of before.

    Raises:
        RedisError, StoreError: if Redis cannot be asked.
    """
    plain, ours, strange = 0, 0, dict[bytes, int]()
    ends = time.monotonic() + _LOOK_FOR

    def told(*, everything: bool) -> Held:
        shown = tuple(sorted(number.hex() for number in strange))
        others = sum(strange.values())
        return Held(has_keys=ids is not None, plain=plain, ours=ours, strange=others, ids=shown, all=everything)

    async for found in servers.scan(names.records):
        for start in range(0, len(found), _AT_ONCE):
            for head in await _heads(servers, names, found[start : start + _AT_ONCE]):
                number = head[1 : 1 + ID_BYTES]
                if head[:1] == bytes((PLAIN,)):
                    plain += 1
                elif head[:1] == bytes((SEALED,)):
                    if ids is not None and number in ids:
                        ours += 1
                    else:
                        strange[number] = strange.get(number, 0) + 1
            is_told = ours or ids is None or not thorough
            if is_told and plain + ours + sum(strange.values()) >= _ENOUGH:
                return told(everything=False)
            if time.monotonic() > ends:
                return told(everything=False)
        if time.monotonic() > ends:  # what was found was nobody's
            return told(everything=False)
    return told(everything=True)


async def _heads(servers: Servers, names: Names, records: Sequence[bytes]) -> list[bytes]:
    """How each begins. What is no string has no beginning: it is nobody's record."""

    async def head(name: bytes) -> bytes:
        with suppress(RedisError):
            began: bytes = await servers.call(name, b"GETRANGE", name, 0, 16, large=True)
            if _TOKEN.fullmatch(began):  # a large one lies elsewhere, behind its token
                body = names.body(name)
                began = await servers.call(body, b"GETRANGE", body, len(began), 2 * len(began), large=True)
            return began
        return b""

    return await asyncio.gather(*map(head, records))


async def say_whose(look: Callable[[], Awaitable[Held]], metrics: Metrics) -> None:
    """Say so if what lies there is sealed otherwise than this process seals; as soon as it can be looked at."""
    while True:
        try:
            async with asyncio.timeout(_AGAIN):
                held = await look()
        except (StoreError, TimeoutError) as error:
            if isinstance(error.__cause__, NoPermissionError):
                metrics.fail("redis-check", error)
                return  # it will not be otherwise the next time
            late = isinstance(error, TimeoutError)
            metrics.fail("redis-check", StoreError(f"redis: no answer within {_AGAIN:g} s") if late else error)
            await asyncio.sleep(_AGAIN)
            continue
        problem = held.problem()
        if problem is not None:
            metrics.fail("redis-keys", StoreError(str(problem)))
        return
