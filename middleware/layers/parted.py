"""Parts that an app answered a Range with: kept, joined, served to who asks for what lies in them, and completed.

One part a URL and share is kept, beside the whole and under a key of its own, so that nothing that looks for a whole
response ever finds a part. It needs a lifetime of its own, and is served only while it is fresh.

Who asks for the whole where a part is stored gets it from that and from the rest (`layers.completing`). Only the
process that stored the part looks for it: nobody else's miss costs another look-up.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from tidegate.errors import StoreError
from tidegate.middleware.core.keys import variant_values
from tidegate.middleware.core.message import single_value, storable_headers
from tidegate.middleware.core.parts import cut, is_another, joined, lack_of, place_of, whole_headers
from tidegate.middleware.core.ranges import Partial
from tidegate.middleware.core.reuse import Reuse, judge_reuse
from tidegate.middleware.core.storing import Kept, Refused
from tidegate.middleware.layers.asgi import ASGIApp
from tidegate.middleware.layers.completing import completing
from tidegate.middleware.layers.explaining import Explained
from tidegate.middleware.layers.tee import Pairs
from tidegate.middleware.stores.base import Entry, ScopedTag

__all__ = ["Parted"]

MAX_IN_PART: Final = 1024
"""URLs and shares of which it is known that a part is stored."""

_EXPLICIT: Final = frozenset({"s-maxage", "max-age", "expires"})


class Parted(Explained):
    """One request's dealings with the store, parts among them."""

    _part: Entry | None = None
    _completes = False

    @property
    def _is_ranged(self) -> bool:
        return self._scope["method"] == "GET" and any(name == b"range" for name, _ in self._request)

    def _judged(self, status: int, headers: Pairs, *, own_etag: bool) -> Kept | Refused:
        if status != 206 or own_etag or not self._is_ranged or place_of(headers) is None:
            return super()._judged(status, headers, own_etag=own_etag)
        if single_value(self._request, b"range") is None:
            return Refused("status 206")
        verdict = super()._judged(200, headers, own_etag=False)
        if isinstance(verdict, Kept) and not (verdict.reusable and verdict.rule in _EXPLICIT):
            return Refused("status 206")
        return verdict

    def _part_key(self) -> bytes:
        return self._config.names.apart(self._named, b"part").primary

    def _key_for(self, vary: Sequence[bytes], status: int, headers: Pairs) -> bytes:
        place = place_of(headers) if status == 206 and self._is_ranged else None
        if place is None or (place.first, place.end) == (0, place.total):
            return super()._key_for(vary, status, headers)
        return self._part_key()

    async def _find_part(self) -> tuple[Entry, Reuse] | None:
        """The part that this request selects, if it may be used for it."""
        if self._lookup.positions is None:
            return None
        try:
            record = (await self._config.get(self._context, self._part_key())).record
        except StoreError as error:
            self._config.metrics.fail("store", error)
            return None
        if not isinstance(record, Entry) or record.status != 206 or not record.vary:
            return None
        vary = record.vary[:-1]
        if variant_values(self._request, tuple(name for name, _ in vary)) != vary:
            return None
        self._part = record
        reuse = judge_reuse(record, self._wanted, self._config.clock())
        return (record, reuse) if reuse.fresh else None

    async def _from_part(self) -> tuple[Partial, Reuse] | None:
        """The answer to this Range from the part that is stored, if it has it."""
        found = await self._find_part()
        if found is None:
            return None
        part, reuse = found
        self._forward = b"partial"
        came_for = part.vary[-1][1]
        answer = cut(self._request, part.headers, part.body, came_for=came_for, born=part.born)
        if answer is None:
            return None
        self._in_part = part, reuse, self._part_key()
        return answer, reuse

    async def look(self) -> None:
        """Look up what is stored, in part too, and no more."""
        await super().look()
        if self._lookup.record is None and self._is_ranged:
            await self._from_part()

    async def _completing(self, app: ASGIApp) -> ASGIApp:
        """The app, asked only for what a stored part lacks of the whole, where there is one that can be completed."""
        if self._primary not in self._config.in_part or not self._usable.stores:
            return app
        if self._scope["method"] != "GET" or self._is_ranged:
            return app
        found = await self._find_part()
        lack = lack_of(found[0].headers, found[0].body) if found is not None else None
        if found is None or lack is None:
            return app
        self._forward = b"partial"
        return completing(app, found[0], lack, joined=self._joined, refused=self._refused)

    def _joined(self) -> None:
        self._completes = True
        self._forward = b"partial; fwd-status=206"

    async def _refused(self) -> None:
        """The app did not give what the part lacks: it is not asked for it again."""
        self._context.collapsed = False
        self._config.in_part.pop(self._primary, None)

    def _tags(self, headers: Pairs = ()) -> tuple[ScopedTag, ...]:
        tags = super()._tags(headers)
        if not self._completes or self._part is None:
            return tags
        return tuple(dict.fromkeys((*tags, *self._part.tags)))

    async def _commit(self, status: int, headers: Pairs, body: bytes) -> None:
        if status != 206 or self._kept is None or self._has_body:
            await super()._commit(status, headers, body)
            return
        entry = self._entry_of(206, storable_headers(headers), body, kept=self._kept, sent=headers, own_etag=False)
        old = self._part
        both = joined(old.headers, old.body, entry.headers, body) if old is not None else None
        came_for = single_value(self._request, b"range")
        room = self._room((), trailers=False) or 0
        tags: tuple[ScopedTag, ...] = ()
        if both is not None and len(both[1]) <= room and old is not None:
            entry, tags, came_for = replace(entry, headers=tuple(both[0]), body=both[1]), old.tags, None
        place = place_of(entry.headers, len(entry.body))
        stated = single_value(headers, b"content-length")
        if place is None or (stated is None and place != place_of(entry.headers)):
            return  # shorter than it says, and nothing says that it was not cut off
        if (place.first, place.end) == (0, place.total):
            whole = replace(entry, status=200, headers=tuple(whole_headers(entry.headers, place.total)))
            await self._put(whole, self._kept.vary, known=tags)
            return
        ready = self._ready(
            replace(entry, vary=(*entry.vary, (b"range", came_for))),
            tags=tuple(dict.fromkeys((*self._tags(entry.headers), *tags))),
        )
        left = entry.born + entry.lifetime - self._config.clock()
        if ready is not None and left > 0:
            found = self._lookup.record
            if isinstance(found, Entry) and is_another(entry.headers, found.headers, len(found.body)):
                await self._config.store.delete(self._key)  # the newer one counts (RFC 9111 4)
            await self._config.store.put(self._part_key(), ready[0], retain=left)
            self._config.in_part[self._primary] = None
            if len(self._config.in_part) > MAX_IN_PART:
                self._config.in_part.popitem(last=False)
