"""Which requests may join each other's runs, by what they are the same, and what is remembered of them."""

from collections import OrderedDict
from typing import cast

from tidegate.middleware.core.sharing import request_key
from tidegate.middleware.core.storing import Pairs
from tidegate.middleware.layers.asgi import RequestContext, Scope, has_client_certificate

__all__ = ["Key", "Remembered", "key_of", "may_share", "same_user"]

Key = tuple[object, ...]


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


class Remembered:
    """Keys for some seconds, bounded; the oldest go first. Kept as hashes: two that meet cost a shared run, no more."""

    def __init__(self, seconds: float, limit: int) -> None:
        self._seconds = seconds
        self._limit = limit
        self._until: OrderedDict[int, float] = OrderedDict()

    def add(self, key: Key, now: float) -> None:
        """Remember a key."""
        hashed = hash(key)
        self._until[hashed] = now + self._seconds
        self._until.move_to_end(hashed)
        if len(self._until) > self._limit:
            self._until.popitem(last=False)

    def holds(self, key: Key, now: float) -> bool:
        """Whether it is remembered."""
        if not self._until:
            return False
        hashed = hash(key)
        until = self._until.get(hashed)
        if until is None:
            return False
        if until <= now:
            del self._until[hashed]
            return False
        return True
