"""A Redis Cluster: each key's slot lies on one of several masters, and slots move.

Which master has which slot is asked of any node when it is not known, when a master says that a slot has moved, and
when one cannot be reached; never more often than `LOOK_EVERY`, once for everybody who waits, and in the background for
those who need not. A slot that is on its way is followed (ASK). Replicas are not asked: they may be behind a purge.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError, TryAgainError

from tidegate.addresses import Address
from tidegate.errors import StoreError
from tidegate.middleware.stores.background import Background
from tidegate.middleware.stores.redis_link import CrowdedError, Dial, Link, Word
from tidegate.middleware.stores.redis_servers import Greet, Lanes, Many, Way, greeted, scanned

__all__ = ["Cluster", "Node", "Ranges", "Topology", "joined"]

LOOK_EVERY: Final = 0.1
"""Seconds between two looks at the cluster's slots."""

LOOK: Final = 1.0
"""Seconds for one node to tell the slots."""

HOPS: Final = 5
PAUSE: Final = 0.02
"""Seconds before a command is tried again whose keys are in part on their way."""

SLOTS: Final = 16_384

Node = tuple[str, int]

Ranges = tuple[tuple[int, int], ...]
"""First and last of slots that lie side by side, in order."""

Topology = Mapping[Node, Ranges]
"""The slots of each master."""

_SCRIPTS: Final = frozenset({b"EVAL", b"EVALSHA"})

_slot_of: Any = key_slot


class Cluster:
    """All masters of a cluster, of which `address` names some nodes."""

    dial: Dial | None = None

    def __init__(self, address: Address, way: Way, many: Many, greet: Greet) -> None:
        self._seeds = address.nodes
        self._way = way
        self._many = many
        self._greet = greet
        self.elsewhere: list[Callable[[str], object]] = []
        self.ask: Callable[[bytes], Awaitable[Any]] | None = None
        self.topology_changed: Callable[[Topology | None], object] | None = None
        """Called with who has which slots whenever that was looked at; with None when it is known to be otherwise."""
        self._lanes: dict[Node, Lanes] = {}
        self._slots: list[Node | None] = [None] * SLOTS
        self._closed = False
        self._background = Background()
        self._looking: asyncio.Task[None] | None = None
        self._looked = -LOOK_EVERY
        self._unknown = ""

    def open(self) -> None:
        """Take calls, again after `aclose`."""
        self._closed = False

    async def aclose(self) -> None:
        """Close all connections; what waits fails."""
        self._closed = True
        await self._background.ended()
        lanes, self._lanes = self._lanes, {}
        self._slots[:] = [None] * SLOTS
        await asyncio.gather(*[each.aclose() for each in lanes.values()])

    def renew(self, why: str) -> None:
        """Look again who has which slots."""
        self._look()

    async def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """The names of the keys that match, some at a time, of one master after the other."""
        for node in await self._masters():
            async for names in scanned(self._lane(node, large=True), pattern):
                yield names

    async def on_each(self, *words: Word) -> list[Any]:
        """The replies of all masters."""
        return [await self._lane(node, large=False).call(*words) for node in await self._masters()]

    async def _masters(self) -> list[Node]:
        await asyncio.shield(self._look())
        masters = {node for node in self._slots if node is not None}
        if not masters:
            raise StoreError(self._unknown)
        return sorted(masters)

    async def reached(self, mark: bytes) -> bool | None:
        """Whether all that was written to the master that has the key's slot has reached a replica."""
        return await self._lanes_to(await self._holder(_slot_of(mark))).replicas.reached(mark)

    async def call(self, key: bytes, *words: Word, large: bool = False) -> Any:
        """The reply of the master that has the key's slot."""
        return await self._following(await self._holder(_slot_of(key)), words, large=large)

    async def read(self, keys: Sequence[bytes], *, large: bool = False) -> list[bytes | None]:
        """The values under the keys: one look-up for each slot, all at the same time."""
        places: dict[int, list[int]] = {}
        for place, key in enumerate(keys):
            places.setdefault(_slot_of(key), []).append(place)
        if len(places) == 1:
            return await self._read_slot(next(iter(places)), keys, large=large)
        found = await asyncio.gather(
            *[self._read_slot(slot, [keys[place] for place in of], large=large) for slot, of in places.items()]
        )
        values: list[bytes | None] = [None] * len(keys)
        for of, those in zip(places.values(), found, strict=True):
            for place, value in zip(of, those, strict=True):
                values[place] = value
        return values

    async def _read_slot(self, slot: int, keys: Sequence[bytes], *, large: bool) -> list[bytes | None]:
        node = await self._holder(slot)
        try:
            return await self._lane(node, large=large).read(keys, slot)
        except (AskError, TryAgainError):  # MovedError is an AskError
            # One by one: of several keys that are in part on their way nobody has all.
            return list(await asyncio.gather(*[self._following(node, (b"GET", key), large=large) for key in keys]))
        except (ClusterDownError, StoreError) as error:
            self._doubt(error)
            raise

    async def _following(self, node: Node, words: tuple[Word, ...], *, large: bool) -> Any:
        """The reply to a command, by way of as many nodes as name another one."""
        asking = False
        for _ in range(HOPS):
            lane = self._lane(node, large=large)
            try:
                if asking:  # both at once, so that nothing comes between
                    reply = (await asyncio.gather(lane.call(b"ASKING"), lane.call(*words)))[1]
                    if words[0] in _SCRIPTS:
                        # It is made; but who follows the old node's changes has not heard of it: see tracking_cluster.
                        raise StoreError("redis: a slot is on its way: what was purged there is purged again")
                    return reply
                return await lane.call(*words)
            except MovedError as error:
                node, asking = _named(error, node), False
                self._slots[int(error.slot_id)] = node
                if self.topology_changed is not None:
                    self.topology_changed(None)
                self._look()
            except AskError as error:
                node, asking = _named(error, node), True
            except TryAgainError:
                await asyncio.sleep(PAUSE)
            except (ClusterDownError, StoreError) as error:
                self._doubt(error)
                raise
        raise StoreError(f"redis: the slot has not come to rest after {HOPS} nodes")

    def dial_to(self, node: Node) -> Dial:
        """Connects to this node."""
        return greeted(self._way.to(*node).connect, self._greet)

    def _lane(self, node: Node, *, large: bool) -> Link:
        lanes = self._lanes_to(node)
        return lanes.large if large else lanes.small

    def _lanes_to(self, node: Node) -> Lanes:
        if self._closed:
            raise StoreError("redis: the store is closed")
        lanes = self._lanes.get(node)
        if lanes is None:
            lanes = self._lanes[node] = Lanes(self.dial_to(node), self._many, replicated=True)
        return lanes

    async def _holder(self, slot: int) -> Node:
        node = self._slots[slot]
        if node is None:
            await asyncio.shield(self._look())  # for others too: a caller that leaves does not end it
            node = self._slots[slot]
            if node is None:
                raise StoreError(self._unknown or f"redis: nobody has slot {slot}")
        return node

    def _doubt(self, error: Exception) -> None:
        if not isinstance(error, CrowdedError) and not self._closed:
            self._look()

    def _look(self) -> "asyncio.Task[None]":
        if self._closed:
            raise StoreError("redis: the store is closed")
        if self._looking is None or not self._background.at_work:
            self._looking = self._background.begin(self._find_out(), "tidegate-redis-slots")
        return self._looking

    async def _find_out(self) -> None:
        """Ask one node after the other for the slots; never fails, but says in `_unknown` why it found nothing."""
        clock = asyncio.get_running_loop().time
        if (early := self._looked + LOOK_EVERY - clock()) > 0:
            await asyncio.sleep(early)
        self._looked = clock()
        masters = list({node for node in self._slots if node is not None})
        random.shuffle(masters)
        told: list[str] = []
        for node in dict.fromkeys([*masters, *self._seeds]):
            try:
                async with asyncio.timeout(LOOK):
                    self._take(node, await self._lane(node, large=False).call(b"CLUSTER", b"SLOTS"))
            except (RedisError, OSError, StoreError) as error:
                told.append(f"{node[0]}:{node[1]}: {str(error) or f'no answer within {LOOK:g} s'}")
            else:
                await self._let_go()
                return
        self._unknown = f"redis: no node tells the cluster's slots: {'; '.join(told)}"

    def _take(self, asked: Node, ranges: list[list[Any]]) -> None:
        if not ranges:
            raise StoreError("it has no slots")
        slots: list[Node | None] = [None] * SLOTS
        told: dict[Node, list[tuple[int, int]]] = {}
        for first, last, (host, port, *_), *_ in ranges:
            # No host: that of whoever was asked.
            held_by: Node = (host.decode() if host else asked[0], int(port))
            slots[first : last + 1] = [held_by] * (last + 1 - first)
            told.setdefault(held_by, []).append((first, last))
        before, self._slots = set(self._slots), slots
        if before != {None}:
            for node in set(slots) - before:
                # Whoever was a replica when the connection was greeted has not been told what it may have missed.
                if node is not None and node in self._lanes:
                    self._lanes[node].renew("it has become a master")
        if self.topology_changed is not None:
            self.topology_changed({node: joined(of) for node, of in told.items()})

    async def _let_go(self) -> None:
        """Close the connections to whoever has no slots any more."""
        masters = set(self._slots)
        for node in [node for node in self._lanes if node not in masters]:
            await self._lanes.pop(node).aclose()


def joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same slots in as few ranges as can be."""
    made: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if made and made[-1][1] == first - 1:
            made[-1] = (made[-1][0], last)
        else:
            made.append((first, last))
    return tuple(made)


def _named(error: AskError, asked: Node) -> Node:
    told: Any = error
    return told.host or asked[0], int(told.port)
