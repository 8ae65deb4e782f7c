"""Which requests may join each other's runs, by what they are the same, and what is remembered of them."""

from collections import OrderedDict
from typing import Final, cast

from tidegate.middleware.core.identity import Identity
from tidegate.middleware.core.sharing import request_key
from tidegate.middleware.core.storing import Pairs
from tidegate.middleware.layers.asgi import RequestContext, Scope, has_client_certificate
from tidegate.middleware.layers.naming import Named

__all__ = ["Key", "PlainKeys", "Remembered", "by_vary_alone", "key_of", "may_share", "same_user", "tenant_of"]

Key = tuple[object, ...]

_Known = tuple[Identity | None, frozenset[str] | None, str, object, Key, int]
"""Who asks, what is open, from where, with which fields; the key, and its hash."""

_LONGEST: Final = 1024
"""Bytes of a request's fields and path up to which its key is remembered."""


def may_share(scope: Scope, context: RequestContext) -> bool:
    """GET and HEAD without a body; and no client certificate, which nothing in the request's head tells apart."""
    if scope["method"] not in ("GET", "HEAD"):
        return False
    for name, value in cast(Pairs, scope["headers"]):
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0 ")):
            return False
    return context.coalesce_key is not None or not has_client_certificate(scope)


def same_user(context: RequestContext) -> bool:
    if context.identity is None or context.identity.user is None:
        return False
    policy = context.match.policy
    return context.coalesce_key is None or (policy is not None and policy.share == "user")


def tenant_of(context: RequestContext) -> str | None:
    return context.identity.tenant if context.identity is not None else None


def by_vary_alone(context: RequestContext) -> bool:
    """Whether no policy says who shares, and the Vary of what is stored says what counts.

    It says so of answers like that one. What says nothing of being reused may be for one person alone, however many
    have one key: it is then not for sharing.
    """
    return context.coalesce_key is not None and context.match.policy is None


def key_of(scope: Scope, context: RequestContext) -> Key:
    client: tuple[str, int] | None = scope.get("client")
    asked = request_key(
        method=scope["method"],
        headers=scope["headers"],
        narrowed=context.coalesce_key,
        identity=context.identity,
        client=client[0] if client is not None else "",
        url=(
            scope.get("scheme", "http"),
            scope.get("root_path", ""),
            scope.get("raw_path") or scope["path"],
            scope.get("query_string", b""),
        ),
    )
    # The layers inside must be open for both, or one would get what its own gate forbids.
    return (context.is_open("breaker"), context.is_open("etag"), asked)


class PlainKeys:
    """The keys of plain requests (GET, no conditions, no Range, of a known method) as `key_of` makes them, remembered.

    remember: keys, the oldest go first; of requests that are too long for it none is. One takes about 1 KiB.
    """

    def __init__(self, remember: int = 1024) -> None:
        self._remember = remember
        self._known: OrderedDict[Named, _Known] = OrderedDict()

    def of(self, scope: Scope, context: RequestContext, named: Named) -> tuple[Key, int | None]:
        """The key of a request, and its hash where that is known. named: as `Names.of` names its response."""
        decision, narrowed = context.decision, context.coalesce_key
        opened = decision.open if decision is not None else None
        if narrowed is not None:
            key: Key = (opened is None or "breaker" in opened, opened is None or "etag" in opened, (narrowed, "GET"))
            return key, None
        client: tuple[str, int] | None = scope.get("client")
        address, identity, headers = client[0] if client is not None else "", context.identity, scope["headers"]
        # What else a key has, one name has for all requests: to compare these costs a third of what to hash it all.
        known = self._known.get(named)
        if (
            known is not None
            and known[0] is identity
            and known[1] is opened
            and known[2] == address
            and known[3] == headers
        ):
            return known[4], known[5]
        key = key_of(scope, context)
        hashed = hash(key)
        if sum([len(name) + len(value) for name, value in headers]) + len(scope["path"]) <= _LONGEST:
            if len(self._known) >= self._remember:
                self._known.popitem(last=False)
            self._known[named] = (
                identity,
                opened,
                address,
                headers.copy() if type(headers) is list else headers,
                key,
                hashed,
            )
        return key, hashed


class Remembered:
    """Keys for some seconds, bounded; the oldest go first. Kept as hashes: two that meet cost a shared run, no more."""

    def __init__(self, seconds: float, limit: int) -> None:
        self._seconds = seconds
        self._limit = limit
        self.until: OrderedDict[int, float] = OrderedDict()
        """By hash, when what is remembered is over; some of it may be already, see `holds`."""

    def add(self, hashed: int, now: float) -> None:
        """Remember a key. hashed: its hash."""
        self.until[hashed] = now + self._seconds
        self.until.move_to_end(hashed)
        if len(self.until) > self._limit:
            self.until.popitem(last=False)

    def holds(self, hashed: int, now: float) -> bool:
        """Whether it is remembered."""
        until = self.until.get(hashed)
        if until is None:
            return False
        if until <= now:
            self.until.pop(hashed, None)  # another thread may have done so
            return False
        return True
