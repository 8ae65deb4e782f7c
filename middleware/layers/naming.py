"""What a request's stored responses are called: the resource's URI, the parts of the key, and the key itself.

Making a key costs microseconds, and the same few thousand are asked for again and again: they are remembered by
all that they are made of, so that a remembered key is that which would be made anew (P2).
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from tidegate.middleware.core.identity import Identity
from tidegate.middleware.core.keys import (
    counted_query,
    digest,
    digest_begun,
    encode_pair,
    encode_parts,
    path_part,
    primary_parts,
    scope_of,
    tag_begun,
    tag_end,
    tag_of_encoded,
    tag_of_uri,
    tag_room,
    variant_values,
)
from tidegate.middleware.core.policy import Match, RoutePolicy, Share
from tidegate.middleware.layers.asgi import Scope
from tidegate.middleware.stores.base import PUBLIC_SCOPE, ScopedTag

__all__ = ["Named", "Names", "Owner", "Uri", "host_of", "uri_of"]

Values = tuple[tuple[bytes, bytes | None], ...]
"""Request fields that select a variant, with their values; None: absent."""

_blank: Final = object.__new__

_LONGEST: Final = 1024
"""Bytes and characters of all parts of a name that is remembered: a client may choose most of them."""


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


class Owner:
    """What all names of one share at one host have in common: the first parts of their keys, and the ledger scope.

    begun: the hash of these parts, to go on from. origin: scheme and host, as they begin the tag of a URI. room: bytes
        of path and query, encoded, up to which that is the one after the other.
    scopes: those of its entries' tags. size: bytes and characters of what a client may choose of it.
    """

    __slots__ = ("begun", "host", "origin", "parts", "room", "scheme", "scope", "scopes", "size")

    def __init__(self, uri: Uri, parts: tuple[bytes | None, ...], naming_key: bytes, scope: str, size: int) -> None:
        self.parts = parts
        self.begun = digest_begun(encode_parts(parts), naming_key)
        self.scheme, self.host = uri.scheme, uri.host
        self.origin = tag_begun(uri.scheme, uri.host)
        self.room = tag_room(self.origin)
        self.scope = scope
        self.scopes = (scope,) if scope == PUBLIC_SCOPE else (scope, PUBLIC_SCOPE)
        self.size = size


class Named:
    """A resource as one share sees it: its URI, what its keys are made of, and the primary key.

    owner: what it has in common with others. end: path and query, as they end the tag of the URI, see `Owner.room`.
    policy: by which the query's parts were counted. rest: what the primary key is made of beyond the owner's parts.
    """

    # A plain class with slots: made in half of the time that a tuple with names takes, and read in a quarter. Every
    # request makes or reads one; few ask for the URI and the parts, which are put together when they are asked for.
    __slots__ = ("end", "owner", "policy", "primary", "rest")

    def __init__(
        self,
        owner: Owner,
        rest: tuple[bytes, ...],
        end: bytes,
        policy: RoutePolicy | None,
        primary: bytes,
    ) -> None:
        self.owner = owner
        self.rest = rest
        self.end = end
        self.policy = policy
        self.primary = primary

    @property
    def uri(self) -> Uri:
        """The resource's."""
        raw_path, query = self.rest[:2]
        return Uri(self.owner.scheme, self.owner.host, raw_path, query)

    @property
    def tag(self) -> ScopedTag:
        """The URI's."""
        return PUBLIC_SCOPE, tag_of_encoded(self.owner.origin, self.end)

    @property
    def scope(self) -> str:
        """The ledger scope of its entries' own tags."""
        return self.owner.scope

    @property
    def parts(self) -> tuple[bytes | None, ...]:
        """What the primary key is made of."""
        return self.owner.parts + self.rest

    def apart(self, mark: bytes, naming_key: bytes) -> "Named":
        """See `Names.apart`."""
        rest = (*self.rest, mark)
        primary = digest(self.owner.parts + rest, naming_key)
        return Named(self.owner, rest, self.end, self.policy, primary)


class Names:
    """Makes the names of one cache, and remembers the last ones that were asked for twice, and their owners.

    What is asked for once, as by who reads everything there is, costs no memory and pushes out nothing. How it is told
    apart: the hashes of the last requests are kept in as many places. Two that meet in one place make each other's name
    be made once more, and no other difference.

    namespace, naming_key: as CacheLayer has them.
    remember: names kept, and as many of variants and owners, the oldest go first; one takes about 0.6 KiB, an owner 1.
    """

    def __init__(self, *, namespace: bytes, naming_key: bytes, remember: int = 8192) -> None:
        self._namespace = namespace
        self.naming_key = naming_key
        self._remember = remember
        self._seen: OrderedDict[tuple[str | bytes | None, ...], Named] = OrderedDict()
        self._find = self._seen.get  # kept, for CPython 3.11 knows no quick way to a method of an OrderedDict
        self._owners: OrderedDict[tuple[str | bytes | None, ...], Owner] = OrderedDict()
        self._variants: OrderedDict[tuple[bytes, Values], bytes] = OrderedDict()
        self._once = array("q", bytes(8 * remember))
        self._owned_once = array("q", bytes(8 * remember))

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
        try:
            sent = (
                share, tenant, user, grants, scope["scheme"], host,
                scope["path"], scope["raw_path"], scope["root_path"], scope["query_string"],
            )  # fmt: skip
        except KeyError:  # a server may leave some of them out; most do not, and to ask for each takes twice as long
            get = scope.get
            sent = (
                share, tenant, user, grants, get("scheme", "http"), host,
                scope["path"], get("raw_path"), get("root_path"), get("query_string", b""),
            )  # fmt: skip
        find = self._find
        named = find(sent)
        if named is None or named.policy is not match.policy:
            named = self._make(sent, scope, match.policy, share, identity)
        return named

    def _make(
        self,
        sent: tuple[Any, ...],
        scope: Scope,
        policy: RoutePolicy | None,
        share: Share,
        identity: Identity | None,
    ) -> Named:
        """sent: what the name is made of; the first six are its owner's, and the host is the last of these."""
        owner = self._owners.get(sent[:6])
        if owner is None:
            owner = self._owner(sent[:6], scope, policy, share, identity)
        raw_path, query = sent[7], sent[9]
        if not raw_path or sent[8] or "?" in sent[6] or raw_path.decode("latin-1") != sent[6]:
            raw_path = path_part(sent[6], raw_path, sent[8] or "")  # which gives back all others
        if query and policy is not None and policy.query is not None:
            query = counted_query(query, policy.query)
        # An encoding of parts is those of each, one after the other, and so is its hash.
        encoded = encode_pair(raw_path, query)
        hashed = owner.begun.copy()
        hashed.update(encoded)
        primary = hashed.digest()
        named = _blank(Named)  # as `__init__` does it, which would take longer than all the rest of it
        named.owner = owner
        named.rest = (raw_path, query)
        named.end = tag_end(raw_path, query, encoded) if b"%" in encoded else encoded  # the second, without the call
        named.policy = policy
        named.primary = primary
        mark = hash((primary, sent[5], sent[9]))  # of one name a client may send many hosts and queries
        at = mark % self._remember
        if self._once[at] != mark:
            self._once[at] = mark
        elif owner.size + _length(sent[6:]) <= _LONGEST:
            if len(self._seen) >= self._remember:
                self._seen.popitem(last=False)
            self._seen[sent] = named
        return named

    def _owner(
        self, asks: tuple[Any, ...], scope: Scope, policy: RoutePolicy | None, share: Share, identity: Identity | None
    ) -> Owner:
        """asks: what it is made of."""
        uri = uri_of(scope, policy, asks[-1])
        parts = primary_parts(
            namespace=self._namespace,
            share=share,
            identity=identity,
            scheme=uri.scheme,
            host=uri.host,
            raw_path=uri.raw_path,
            query=uri.query,
        )
        size = _length(asks)
        owner = Owner(uri, parts[:-2], self.naming_key, scope_of(identity, share), size)
        mark = hash(asks)  # a client may send many hosts
        at = mark % self._remember
        if self._owned_once[at] != mark:
            self._owned_once[at] = mark
        elif size <= _LONGEST:
            if len(self._owners) >= self._remember:
                self._owners.popitem(last=False)
            self._owners[asks] = owner
        return owner

    def apart(self, named: Named, mark: bytes) -> Named:
        """The names of records of another kind about the same resource. mark: of the kind, not b"vary"."""
        return named.apart(mark, self.naming_key)

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

    def shared(self, named: Named, policy: RoutePolicy, request: Iterable[tuple[bytes, bytes]]) -> bytes:
        """The key of requests of which a policy tells nothing apart.

        That counts the fields in its `vary`, which the app's answers need not name.
        """
        if not policy.vary:
            return named.primary
        fields = tuple(dict.fromkeys(name.lower().encode() for name in policy.vary))
        return self.variant(named, variant_values(request, fields))


def _length(parts: tuple[str | bytes | None, ...]) -> int:
    return sum(map(len, filter(None, parts)))


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
