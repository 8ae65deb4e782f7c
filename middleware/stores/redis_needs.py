"""Which stamps decide about an entry, and which did for the records that were looked up lately: those are asked for
together with the record the next time, so that a hit takes one round trip.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from sys import getsizeof
from types import MappingProxyType
from typing import Final

from tidegate.middleware.core.codec import LONGEST, Alike
from tidegate.middleware.core.records import WHOLE_SCOPE, Entry
from tidegate.middleware.stores.redis_link import pack
from tidegate.middleware.stores.redis_names import Names

__all__ = ["Needs", "Seen"]

REMEMBERED: Final = 4_096
"""Records, mostly of about 2 KiB."""

REMEMBERED_BYTES: Final = 16 * 1024 * 1024
"""Of all of them: tags are as long as an app makes them."""

MOST: Final = 32
"""Stamps that are asked for on the mere chance that the record is there."""

_OBJECTS: Final = 1024
"""Bytes of the objects that make one up."""

Keys = tuple[bytes, ...]


class Seen:
    """A record that was looked up: the keys of what is to be asked for, which are its own, those of the positions of
    some scopes, and those of the stamps that it needed; and the question, as it is sent.

    tags, positions: those of the entry: another with the same needs the same stamps. decode: decodes it. large: it lies
        elsewhere. unpurged: the positions of the scopes if they never were. size: its bytes, or some more.
    """

    __slots__ = ("decode", "large", "positions", "question", "scopes", "size", "tags", "unpurged", "words")

    def __init__(self, scopes: Sequence[str], entry: Entry, words: Keys) -> None:
        self.scopes = scopes
        self.words = words
        self.question = pack((b"MGET", *words))
        self.decode = Alike().decode
        self.large = False
        self.unpurged: Mapping[str, int] = MappingProxyType(dict.fromkeys(scopes, 0))
        self.tags = entry.tags
        self.positions = entry.positions
        names = sum([getsizeof(scope) + getsizeof(tag) for scope, tag in entry.tags])
        self.size = _OBJECTS + LONGEST + names + 2 * len(self.question)


class Needs:
    """Those of one namespace."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._seen: OrderedDict[bytes, Seen] = OrderedDict()
        self._bytes = 0

    def seen(self, key: bytes, scopes: Sequence[str]) -> Seen | None:
        """What is known of the record of a key, where the positions of these scopes are asked for."""
        seen = self._seen.get(key)
        return seen if seen is not None and seen.scopes == scopes else None

    def of(self, entry: Entry) -> tuple[Keys, list[int]] | None:
        """The stamps that decide about an entry, and its position for each; None: of one of its tags it has none."""
        held = dict(entry.positions)
        stamp, floor = self._names.stamp, self._names.floor
        keys = [stamp(scope, WHOLE_SCOPE) for scope in held]
        keys += [floor(scope) for scope in held]
        limits = [*held.values(), *held.values()]
        for scope, tag in entry.tags:
            if scope not in held:
                return None
            keys.append(stamp(scope, tag))
            limits.append(held[scope])
        return tuple(keys), limits

    def remember(self, key: bytes, scopes: Sequence[str], entry: Entry, keys: Keys) -> None:
        """The record of a key is this entry, and needs these stamps."""
        if len(keys) > MOST:
            return
        seen = Seen(scopes, entry, (self._names.record(key), *map(self._names.position, scopes), *keys))
        before = self._seen.pop(key, None)
        self._bytes -= before.size if before is not None else 0
        if seen.size > REMEMBERED_BYTES // 16:
            return  # one is not worth so many others
        self._bytes += seen.size
        self._seen[key] = seen
        while len(self._seen) > REMEMBERED or self._bytes > REMEMBERED_BYTES:
            _, oldest = self._seen.popitem(last=False)
            self._bytes -= oldest.size
