"""Stores the responses of plain misses, of which the plan has been made: see `straight`."""

from dataclasses import dataclass
from math import inf
from typing import Final

from tidegate.middleware.core.freshness import born_at
from tidegate.middleware.core.policy import RoutePolicy
from tidegate.middleware.core.storing import Kept
from tidegate.middleware.layers.asgi import RequestContext
from tidegate.middleware.layers.fields import Head, Pair
from tidegate.middleware.layers.filling import MAX_TAGS, CacheConfig, tags_of
from tidegate.middleware.layers.naming import Named, Owner
from tidegate.middleware.stores.base import Entry, Keeps, MayKeepAlike, Mould, new_entry

__all__ = ["Keeping", "Labelled", "Plan"]

_MOULDS: Final = 2048
"""Moulds that are remembered, about 0.5 KiB each, and a form that nobody has any more."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of all responses of one shape.

    policy: by which it was judged. kept: None: they are not stored. storable: as RequestContext has it, where they are.
    ours: see `client_fields`. past: see `of_use_past`. room: bytes of a body that may be kept.
    note: for the client. timeless: it is the same whenever it is asked.
    """

    policy: RoutePolicy | None
    kept: Kept | None
    storable: bool
    ours: tuple[Pair, ...]
    past: float
    room: int
    note: Pair
    timeless: bool


_Found = tuple[bytes, Mould, int]
"""How the path and query of a URI begin up to the last slash, a mould for those, and how much of them is in it."""


class Labelled:
    """A plan for plain responses of one head that get an ETag of ours, whose fields are put together already.

    before, after: the lines for the client before its Content-Length, and between that and its ETag; rest: what follows
    that. dated: see `Head`. countable: it counts as storable, by policy or by what it says.
    alike: what is stored of two of them differs in URI, ETag and body alone, and in what the handler says of it.
    lasts: seconds from an entry's birth for which it is of use. again: it was remembered, and serves once more.
    moulds: see `Keeping`.
    """

    __slots__ = ("after", "again", "alike", "before", "countable", "dated", "kept", "lasts", "moulds", "plan", "policy",
                 "rest", "room", "storable")  # fmt: skip

    def __init__(self, head: Head, plan: Plan) -> None:
        replaced = any(name == b"cache-control" for name, _ in plan.ours)
        self.plan, self.policy, self.kept, self.storable = plan, plan.policy, plan.kept, plan.storable
        self.before = tuple([pair for pair in head.before if not (replaced and pair[0] == b"cache-control")])
        self.after = tuple([pair for pair in head.after if not (replaced and pair[0] == b"cache-control")])
        self.rest = (*plan.ours, plan.note)
        self.dated = head.dated
        self.countable = plan.storable or (plan.policy is not None and plan.policy.storable)
        self.room = plan.room if plan.kept is not None else inf
        kept, policy = plan.kept, plan.policy
        self.alike = kept is not None and not (kept.vary or kept.dropped or head.dated or (policy and policy.tags))
        self.lasts = kept.lifetime + plan.past if kept is not None else 0.0
        self.again = False
        self.moulds: dict[Owner, _Found] = {}

    def stored(self, length: bytes, tag: Pair) -> tuple[Pair, ...]:
        """The fields that are stored, with this Content-Length and ETag."""
        return (*self.before, (b"content-length", length), *self.after, tag, *self.rest[:-1])


class Keeping:
    """Stores the plain misses of one cache layer."""

    def __init__(self, config: CacheConfig, store: Keeps) -> None:
        self._config = config
        self._clock = config.clock
        self._keep = store.keep
        self._alike = store.alike() if isinstance(store, MayKeepAlike) else None
        """The store, if it takes in pieces what is like an entry that it has."""
        self._moulds: dict[tuple[Labelled, str, str, bytes], Mould] = {}
        """By plan, scope, origin of the URI, and how its path and query begin, see `Named.end`."""
        self._found: list[dict[Owner, _Found]] = []
        """Those of plans that are remembered for who asked last, so many times as there are of them."""

    def keep_labelled(
        self, labelled: Labelled, length: bytes, tag: Pair, digest: bytes | None, body: bytes, named: Named,
        context: RequestContext, asked: float,
    ) -> bool:  # fmt: skip
        """As `keep`, of a response that has this plan, with this Content-Length and ETag. digest: that it tells."""
        positions = context.positions
        store = self._alike if labelled.alike and context.tags is None else None
        owner, ending = named.owner, named.end
        try:
            if store is not None and len(ending) <= owner.room:
                found = labelled.moulds.get(owner)
                beginning = ending[: ending.rfind(b"/") + 1]
                if found is None or found[0] != beginning:
                    found = self._find(labelled, owner, ending, beginning)
                now = self._clock()
                if found is not None and found[1].positions is positions and asked <= now:
                    born, end = now - (now - asked), ending[found[2] :]  # born: as below
                    if not end.isascii():
                        end = end.decode("latin-1").encode()
                    retain = born + labelled.lasts - now
                    if store.keep_alike(found[1], named.primary, end, tag[1], body, born, retain, digest):
                        return True
            if _is_for_the_general_way(labelled.plan):
                return False
            stored = labelled.stored(length, tag)
            entry = self._put(labelled.plan, 200, stored, body, named, context, asked, labelled.dated)
            if store is not None and entry is not None and labelled.again and positions is not None:
                mould = store.mould(named.primary, entry, positions)
                if mould is not None:
                    self._remember(labelled, owner, ending, mould)
            labelled.again = True
        except Exception as error:  # noqa: BLE001 - P5; counted: the client has its answer
            self._config.metrics.fail("store", error)
        return True

    def _find(self, labelled: Labelled, owner: Owner, ending: bytes, beginning: bytes) -> "_Found | None":
        """A mould for what begins so, or like the first part of that."""
        cut = len(beginning)
        mould = self._moulds.get((labelled, owner.scope, owner.origin, beginning))
        if mould is None:
            cut = ending.find(b"/") + 1
            mould = self._moulds.get((labelled, owner.scope, owner.origin, ending[:cut]))
        if mould is None:
            return None
        if len(self._found) >= _MOULDS:
            self._forget()
        self._found.append(labelled.moulds)
        found = labelled.moulds[owner] = (beginning, mould, cut)
        return found

    def _forget(self) -> None:
        for each in self._found:
            each.clear()
        self._found.clear()

    def _remember(self, labelled: Labelled, owner: Owner, ending: bytes, mould: Mould) -> None:
        """Keep the next ones by this mould, whose URIs begin like that one. ending: of its tag."""
        if len(self._moulds) >= _MOULDS:
            self._moulds.clear()
        self._forget()
        for cut in (ending.rfind(b"/") + 1, ending.find(b"/") + 1):
            if mould.beginning == owner.origin + ending[:cut].decode("latin-1"):
                self._moulds[labelled, owner.scope, owner.origin, ending[:cut]] = mould

    def keep(
        self, plan: Plan, status: int, headers: tuple[Pair, ...], body: bytes, named: Named, context: RequestContext,
        asked: float, dated: bool,
    ) -> bool:  # fmt: skip
        """Store the whole response, as Filling does; False: this way cannot. Never raises.

        headers: with its Content-Length. asked: when the app was. dated: there may be a Date.
        """
        if _is_for_the_general_way(plan):
            return False
        try:
            self._put(plan, status, headers, body, named, context, asked, dated)
        except Exception as error:  # noqa: BLE001 - P5; counted: the client has its answer
            self._config.metrics.fail("store", error)
        return True

    def _put(
        self, plan: Plan, status: int, headers: tuple[Pair, ...], body: bytes, named: Named, context: RequestContext,
        asked: float, dated: bool,
    ) -> Entry | None:  # fmt: skip
        """As `keep`, of what is for this way; returns what the store was given, if it has kept that."""
        kept = plan.kept
        assert kept is not None
        if context.tags or (plan.policy is not None and plan.policy.tags):
            tags = tuple(dict.fromkeys(tags_of(context, named, headers)))
            if len(tags) > MAX_TAGS:
                self._config.metrics.limits.labels("tags").inc()
                return None
        else:
            tags = (named.tag,)
        now = self._clock()
        # The second is what the first makes of a response without an age.
        born = born_at(headers, asked=asked, answered=now) if dated or asked > now else now - (now - asked)
        entry = new_entry(
            status=status,
            headers=headers,
            body=body,
            born=born,
            lifetime=kept.lifetime,
            stale_while_revalidate=kept.stale_while_revalidate,
            stale_if_error=kept.stale_if_error,
            must_revalidate=kept.must_revalidate,
            no_cache=kept.no_cache,
            tags=tags,
            positions=tuple(context.positions.items()) if context.positions is not None else (),
            own_etag=context.own_etag,
        )
        retain = born + kept.lifetime + plan.past - now
        return entry if retain > 0 and self._keep(named.primary, entry, retain=retain) else None


def _is_for_the_general_way(plan: Plan) -> bool:
    kept = plan.kept
    return kept is None or bool(kept.vary) or bool(kept.dropped)
