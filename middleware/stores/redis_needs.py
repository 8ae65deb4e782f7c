"""Which stamps decide about an entry, and which did for the records that were looked up lately: those are asked for
together with the record the next time, so that a hit takes one round trip.
"""

from collections import OrderedDict
from typing import Final

from tidegate.middleware.core.records import WHOLE_SCOPE, Entry
from tidegate.middleware.stores.redis_names import Names

__all__ = ["Needs"]

REMEMBERED: Final = 16_384
"""Records, about 0.4 KiB each."""

MOST: Final = 32
"""Stamps that are asked for on the mere chance that the record is there."""

Keys = tuple[bytes, ...]


class Needs:
    """Those of one namespace."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._seen: OrderedDict[bytes, Keys] = OrderedDict()

    def foreseen(self, name: bytes) -> Keys:
        """The stamps that the record of this name needed last."""
        return self._seen.get(name, ())

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

    def remember(self, name: bytes, keys: Keys) -> None:
        """The record of this name needed these."""
        if len(keys) <= MOST:
            self._seen[name] = keys
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
