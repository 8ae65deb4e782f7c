"""What a request's stored responses are called: the resource's URI, the parts of the key, and the key itself.

Making a key costs some microseconds, and the same few thousand are asked for again and again: they are remembered by
all that they are made of, so that a remembered key is that which would be made anew (P2).
"""

from collections import OrderedDict
from typing import Final, NamedTuple

from tidegate.middleware.core.identity import Identity
from tidegate.middleware.core.keys import (
    counted_query,
    digest,
    digest_of_encoded,
    encode_parts,
    path_part,
    primary_parts,
    scope_of,
    tag_of_encoded,
    tag_of_uri,
)
from tidegate.middleware.core.policy import Match, RoutePolicy, Share
from tidegate.middleware.layers.asgi import Scope
from tidegate.middleware.stores.base import PUBLIC_SCOPE, ScopedTag

__all__ = ["Named", "Names", "Uri", "host_of", "uri_of"]

Values = tuple[tuple[bytes, bytes | None], ...]
"""Request fields that select a variant, with their values; None: absent."""

_LONGEST: Final = 1024
"""Bytes and characters of all parts of a name that is remembered: a client may choose most of them."""


# Tuples, which are made in a third of the time that a frozen dataclass takes: every request to a cold cache makes both.


class Uri(NamedTuple):
    """What of a request names the resource: the path as it was sent, and the part of the query that counts."""

    scheme: str
    host: bytes
    raw_path: bytes
    query: bytes

    @property
    def tag(self) -> ScopedTag:
        """The tag that every copy of this resource carries, whatever its share."""
        return PUBLIC_SCOPE, tag_of_uri(self.scheme, self.host, self.raw_path, self.query)


class Named(NamedTuple):
    """A resource as one share sees it: its URI, what its keys are made of, and the primary key.

    policy: by which the query's parts were counted. tag: the URI's. scope: the ledger scope of its entries' own tags.
    """

    policy: RoutePolicy | None
    uri: Uri
    parts: tuple[bytes | None, ...]
    primary: bytes
    tag: ScopedTag
    scope: str


class _Owner(NamedTuple):
    """What all names of one share at one host have in common: the first parts of their keys, and the ledger scope.

    encoded: the same, as it begins a key. origin: scheme and host, as they begin the tag of a URI.
    """

    parts: tuple[bytes | None, ...]
    encoded: bytes
    origin: bytes
    scope: str


class Names:
    """Makes the names of one cache, and remembers the last ones.

    namespace, naming_key: as CacheLayer has them.
    remember: names kept, and as many of variants and owners, the oldest go first; one takes about 0.8 KiB.
    """

    def __init__(self, *, namespace: bytes, naming_key: bytes, remember: int = 8192) -> None:
        self._namespace = namespace
        self.naming_key = naming_key
        self._remember = remember
        self._seen: OrderedDict[tuple[str | bytes | None, ...], Named] = OrderedDict()
        self._owners: OrderedDict[tuple[str | bytes | None, ...], _Owner] = OrderedDict()
        self._variants: OrderedDict[tuple[bytes, Values], bytes] = OrderedDict()

    def of(self, scope: Scope, host: bytes, match: Match, share: Share, identity: Identity | None) -> Named:
        """The names of a request's responses, for one share.

        host: as `host_of` has it.

        Raises:
            ValueError: if the share is `tenant` or `user` and the identity does not name one.
        """
        tenant = user = grants = None
        if share != "public" and identity is not None:
            tenant, grants = identity.tenant, identity.grants
            if share == "user":
                user = identity.user
        get = scope.get
        sent = (
            share, tenant, user, grants, get("scheme", "http"), host,
            scope["path"], get("raw_path"), get("root_path"), get("query_string", b""),
        )  # fmt: skip
        named = self._seen.get(sent)
        if named is None or named.policy is not match.policy:
            named = self._make(scope, match.policy, share, identity, sent[:6])
            if sum(map(len, filter(None, sent))) <= _LONGEST:
                if len(self._seen) >= self._remember:
                    self._seen.popitem(last=False)
                self._seen[sent] = named
        return named

    def _make(
        self,
        scope: Scope,
        policy: RoutePolicy | None,
        share: Share,
        identity: Identity | None,
        asks: tuple[str | bytes | None, ...],
    ) -> Named:
        """asks: what the owner is made of; the host is the last of it."""
        host = asks[-1]
        assert isinstance(host, bytes)
        uri = uri_of(scope, policy, host)
        owner = self._owners.get(asks)
        if owner is None:
            owner = self._owner(uri, share, identity)
            if sum(map(len, filter(None, asks))) <= _LONGEST:
                if len(self._owners) >= self._remember:
                    self._owners.popitem(last=False)
                self._owners[asks] = owner
        rest = (uri.raw_path, uri.query)
        encoded = encode_parts(rest)  # an encoding of parts is those of each, one after the other
        return Named(
            policy,
            uri,
            (*owner.parts, *rest),
            digest_of_encoded(owner.encoded + encoded, self.naming_key),
            (PUBLIC_SCOPE, tag_of_encoded(owner.origin + encoded)),
            owner.scope,
        )

    def _owner(self, uri: Uri, share: Share, identity: Identity | None) -> _Owner:
        parts = primary_parts(
            namespace=self._namespace,
            share=share,
            identity=identity,
            scheme=uri.scheme,
            host=uri.host,
            raw_path=uri.raw_path,
            query=uri.query,
        )
        origin = encode_parts((uri.scheme.encode(), uri.host))
        return _Owner(parts[:-2], encode_parts(parts[:-2]), origin, scope_of(identity, share))

    def apart(self, named: Named, mark: bytes) -> Named:
        """The names of records of another kind about the same resource. mark: of the kind, not b"vary"."""
        parts = (*named.parts, mark)
        return named._replace(parts=parts, primary=digest(parts, self.naming_key))

    def variant(self, named: Named, values: Values) -> bytes:
        """The key of the variant that these values of request fields select (RFC 9111 4.1)."""
        sent = (named.primary, values)
        key = self._variants.get(sent)
        if key is None:
            parts: list[bytes | None] = [*named.parts, b"vary"]
            for name, value in values:
                parts += [name, value]
            key = digest(parts, self.naming_key)
            if sum(len(name) + len(value or b"") for name, value in values) <= _LONGEST:
                if len(self._variants) >= self._remember:
                    self._variants.popitem(last=False)
                self._variants[sent] = key
        return key


def host_of(scope: Scope) -> bytes:
    """The Host line. A request with two of them is some attack or other: joined, it meets nobody else's key."""
    lines = [value for name, value in scope["headers"] if name == b"host"]
    return lines[0] if len(lines) == 1 else b"\x00".join(value.strip().lower() for value in lines)


def uri_of(scope: Scope, policy: RoutePolicy | None, host: bytes | None = None) -> Uri:
    """What of a request names the resource. host: as `host_of` has it, where that is known."""
    host = (host_of(scope) if host is None else host).strip().lower()
    query = counted_query(scope.get("query_string", b""), policy.query if policy is not None else None)
    path = path_part(scope["path"], scope.get("raw_path"), scope.get("root_path") or "")
    return Uri(scope.get("scheme", "http"), host, path, query)
