"""Cache keys: one injective encoding of everything that selects a stored response, hashed with a key.

A key is built from the identity itself, so isolation is structural (P2): no response header, tag or policy can make two
identities' keys meet. Parts are length-prefixed; "absent" differs from "empty". The path is the raw one, as it was
sent: `/a%2Fb` is not `/a/b`.
"""

import re
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final
from urllib.parse import unquote, unquote_to_bytes

from tidegate.middleware.core.identity import CREDENTIAL_HEADERS, Identity, parameter_names
from tidegate.middleware.core.message import list_members
from tidegate.middleware.core.policy import Share

__all__ = [
    "SCHEMA",
    "climbs",
    "counted_query",
    "digest",
    "digest_begun",
    "encode_pair",
    "encode_parts",
    "path_part",
    "primary_parts",
    "scope_of",
    "tag_begun",
    "tag_end",
    "tag_of_encoded",
    "tag_of_uri",
    "tag_room",
    "variant_values",
]

SCHEMA = b"tidegate-key-1"
"""Version of this encoding. Changing what a key is made of changes it, so that old entries are never misread."""


_DOTS: Final = re.compile(r"(?:[/\\]|%2f|%5c)(?:\.|%2e){1,2}(?:[/\\;]|%2f|%5c|\Z)", re.IGNORECASE)
"""A segment `.` or `..` between slashes, backslashes or such that are encoded still; parameters may follow it."""

_PORTS: Final = {"http": b":80", "https": b":443"}
"""At the end of a host, what says no more than the scheme does (RFC 9110 4.2.3)."""

_SHORT: Final = 256
_BEFORE: Final = [b"\x01%d:" % size for size in range(_SHORT)]
"""What stands before a part that is there, by its length."""

_LONGEST_URI = 256
"""Bytes of a URI that stands in its tag as it is."""


def encode_parts(parts: Iterable[bytes | None]) -> bytes:
    """Injective: each part with its length before it; None is not the empty string."""
    return b"".join([b"\x00" if part is None else b"\x01%d:%b" % (len(part), part) for part in parts])


def encode_pair(one: bytes, other: bytes) -> bytes:
    """What `encode_parts` makes of two parts that are there, in a third of the time."""
    size, other_size = len(one), len(other)
    if size < _SHORT and other_size < _SHORT:
        return b"".join((_BEFORE[size], one, _BEFORE[other_size], other))
    return encode_parts((one, other))


def primary_parts(
    *,
    namespace: bytes,
    share: Share,
    identity: Identity | None,
    scheme: str,
    host: bytes,
    raw_path: bytes,
    query: bytes,
) -> tuple[bytes | None, ...]:
    """What selects a URL's responses for one share.

    Raises:
        ValueError: if the share is `tenant` or `user` and the identity does not name one.
    """
    tenant = user = grants = None
    if share != "public":
        if identity is None:
            raise ValueError(f"share {share!r} needs an identity")
        tenant, grants = _text(identity.tenant), _text(identity.grants)
        if share == "user":
            if identity.user is None:
                raise ValueError("share 'user' needs Identity.user")
            user = _text(identity.user)
    return (SCHEMA, namespace, share.encode(), tenant, user, grants, scheme.encode(), host, raw_path, query)


def path_part(path: str, raw_path: bytes | None, root_path: str) -> bytes:
    """What stands for the path in a key: what was sent, and what the app sees as well where the two do not agree.

    They agree where one ends with the other: a mount cuts its prefix off the path (some put a slash behind it), a
    server puts its `root_path` before it. Where something has rewritten the path, or a mount has cut both, requests for
    two resources look as if one had been sent.
    """
    sent = raw_path.partition(b"?")[0] if raw_path else path.encode("utf-8", "surrogatepass")
    if not root_path and sent.decode("latin-1") == path:
        return sent
    whole = unquote(sent.decode("latin-1"))
    seen = path.removesuffix("/") if not whole.endswith("/") else path
    mounted = not root_path or whole.startswith(root_path) or path.startswith(root_path)
    if not raw_path or (mounted and (whole.endswith(seen) or path.endswith(whole))):
        return sent
    return encode_parts((sent, path.encode("utf-8", "surrogatepass"), root_path.encode("utf-8", "surrogatepass")))


def climbs(path: str) -> bool:
    """Whether a decoded path has segments `.` or `..`, which clients take out before they ask (RFC 3986 5.2.4).

    Also as some apps, proxies and file servers read them: with a backslash for a slash, with a parameter (`..;x`), or
    encoded twice.
    """
    if "/." not in path and "\\" not in path and "%" not in path:
        return False
    return _DOTS.search(path) is not None


def _text(name: str) -> bytes:
    """UTF-8; a lone surrogate (a JSON token can hold one) has its own bytes too, so that every text has a key."""
    return name.encode("utf-8", "surrogatepass")


def digest(parts: Sequence[bytes | None], naming_key: bytes) -> bytes:
    """The key under which a store keeps the record: 20 bytes of keyed BLAKE2b, so that nothing of it is readable."""
    return digest_begun(encode_parts(parts), naming_key).digest()


def digest_begun(parts: bytes, naming_key: bytes) -> blake2b:
    """The hash of parts that are encoded already, which others may follow."""
    return blake2b(parts, digest_size=20, key=naming_key)


def variant_values(
    request: Iterable[tuple[bytes, bytes]], names: Sequence[bytes]
) -> tuple[tuple[bytes, bytes | None], ...]:
    """The values of the fields that Vary names, as far as a difference can mean anything; absent is None.

    Lines are joined and white space round commas does not count (RFC 9111 4.1), but in a field that may be a
    credential. In Accept-Language neither case nor the order of languages of one weight counts (RFC 9110 12.5.4).
    """
    wanted: dict[bytes, list[bytes]] = {name: [] for name in names}
    for name, value in request:
        if name in wanted:
            wanted[name].append(value.strip(b" \t"))
    return tuple((name, _plain(name, values) if values else None) for name, values in wanted.items())


def _plain(name: bytes, values: Sequence[bytes]) -> bytes:
    if name in CREDENTIAL_HEADERS:
        return b", ".join(values)
    if name == b"accept-language":
        return b", ".join(sorted(b"".join(member.lower().split()) for member in list_members(values)))
    if len(values) == 1 and b"," not in values[0]:
        return values[0]
    return b", ".join(list_members(values))


def counted_query(query: bytes, counted: Sequence[str] | None) -> bytes:
    """The part of a raw query string that counts: all of it as sent, or the named parameters in their order.

    `;` does not separate parameters: a name hidden behind one is part of the value before it, and so of the key. A name
    is known decoded too, as the app will read it, or `%70age=2` would be stored as the answer to no `page` at all.
    """
    if counted is None or not query:
        return query
    names = {name.encode() for name in counted}
    return b"&".join(part for part in query.split(b"&") if not names.isdisjoint(parameter_names(part)))


def scope_of(identity: Identity | None, share: Share) -> str:
    """The ledger scope of an entry's own tags."""
    return "public" if share == "public" or identity is None else f"tenant:{identity.tenant}"


def tag_of_uri(scheme: str, host: bytes, raw_path: bytes, query: bytes) -> str:
    """The tag that every entry of a URI carries, whatever its share, so that an unsafe request clears them all.

    A long one is hashed: the ledger counts tags, and what any client may send is not to fill the memory.
    """
    return tag_of_encoded(tag_begun(scheme, host), tag_end(raw_path, query, encode_pair(raw_path, query)))


def tag_begun(scheme: str, host: bytes) -> str:
    """How all tags of URIs of an origin begin, but those of long ones. A port that goes without saying is left out."""
    port = _PORTS.get(scheme)
    return "uri:" + encode_parts((scheme.encode(), host.removesuffix(port) if port else host)).decode("latin-1")


def tag_room(origin: str) -> int:
    """Bytes of the other two parts, encoded, up to which a tag that begins so is the one after the other."""
    return len("uri:") + _LONGEST_URI - len(origin)


def tag_end(raw_path: bytes, query: bytes, encoded: bytes) -> bytes:
    """The other two parts of a tag, encoded. encoded: as `encode_pair` makes it of them as they were sent.

    The keys of `/@` and `/%40` differ, for an app may tell them apart; but most do not, and clients encode as they
    like: a write by one of the two names clears what is stored under the other (RFC 3986 6.2.2.2).
    """
    return encode_pair(unquote_to_bytes(raw_path), unquote_to_bytes(query)) if b"%" in encoded else encoded


def tag_of_encoded(origin: str, end: bytes) -> str:
    """As `tag_of_uri`. origin: as `tag_begun` has it. end: as `tag_end`."""
    tag = origin + end.decode("latin-1")
    if len(end) <= tag_room(origin):
        return tag
    return "uri:" + blake2b(tag[4:].encode("latin-1"), digest_size=20).hexdigest()
