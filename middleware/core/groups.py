"""What a response says about other stored responses: the groups that it is in, and what it makes out of date.

RFC 9875 (Cache-Groups, Cache-Group-Invalidation) and RFC 9111 4.4 (Location and Content-Location of the same origin).
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, cast
from urllib.parse import urljoin, urlsplit

import http_sf

from tidegate.middleware.core.keys import encode_parts
from tidegate.middleware.core.message import field_values

__all__ = ["group_tags", "invalidated_groups", "invalidated_targets"]

Pairs = Sequence[tuple[bytes, bytes]]

MAX_GROUPS: Final = 64
"""Members of a field that are looked at; RFC 9875 asks for 32 at least."""


def group_tags(headers: Pairs, scheme: str, host: bytes) -> list[str]:
    """The tags of the groups that a response says it belongs to. Groups belong to an origin (RFC 9875 2)."""
    return _tags(headers, b"cache-groups", scheme, host)


def invalidated_groups(headers: Pairs, scheme: str, host: bytes) -> list[str]:
    """The tags of the groups that a successful answer to an unsafe request invalidates (RFC 9875 3)."""
    return _tags(headers, b"cache-group-invalidation", scheme, host)


def _tags(headers: Pairs, field: bytes, scheme: str, host: bytes) -> list[str]:
    lines = field_values(headers, field)
    if not lines:
        return []
    try:
        members = cast(Sequence[tuple[object, object]], http_sf.parse(b", ".join(lines), tltype="list"))
    except ValueError:
        return []
    names = [item for item, _ in members if isinstance(item, str)][:MAX_GROUPS]
    # Hashed: the ledger counts tags, and is not to hold what a response may make as long as it likes.
    return [
        "group:" + blake2b(encode_parts((scheme.encode(), host, name.encode())), digest_size=20).hexdigest()
        for name in dict.fromkeys(names)
    ]


def _bare(authority: str, scheme: str) -> str:
    """Without the port that goes without saying (RFC 9110 4.2.3)."""
    return authority.removesuffix(":443" if scheme == "https" else ":80")


def invalidated_targets(
    headers: Pairs, *, scheme: str, host: bytes, raw_path: bytes, query: bytes
) -> list[tuple[bytes, bytes]]:
    """Raw path and query of the URIs in Location and Content-Location, where they are of the request's own origin.

    Of another origin they say nothing here: a response may not throw out what belongs to others (RFC 9111 4.4).
    """
    base = f"{scheme}://{host.decode('latin-1')}{raw_path.decode('latin-1')}" + (
        "?" + query.decode("latin-1") if query else ""
    )
    found: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        if name not in (b"location", b"content-location"):
            continue
        try:
            target = urlsplit(urljoin(base, value.decode("latin-1").strip()))
        except ValueError:
            continue
        if target.scheme == scheme and _bare(target.netloc.lower(), scheme) == _bare(host.decode("latin-1"), scheme):
            found.append(((target.path or "/").encode("latin-1"), target.query.encode("latin-1")))
    return found
