"""A key for a person to read: what selects a stored response, part by part.

Credentials are never shown: fields and query parameters that are known to carry one have `***` as value.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tidegate.middleware.core.identity import Credentials, parameter_names
from tidegate.middleware.core.keys import counted_query, variant_values
from tidegate.middleware.core.policy import RoutePolicy, Share

__all__ = ["HIDDEN", "Key", "key_of", "shown_query", "shown_url"]

Pairs = Sequence[tuple[bytes, bytes]]

HIDDEN: Final = "***"
_SEPARATORS: Final = re.compile(b"([&;])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What selects the stored response. What is None is no part of the key.

    grants: whether a hash of grants is in it. query: the part that counts. left_out: parameters that do not count.
    vary: request fields that count, with their values as they are compared (None: absent). hash: as `key` in
    Cache-Status.
    """

    namespace: str
    share: Share
    tenant: str | None
    user: str | None
    grants: bool
    scheme: str
    host: str
    raw_path: str
    query: str
    left_out: tuple[str, ...] = ()
    vary: tuple[tuple[str, str | None], ...] = ()
    hash: str


def key_of(
    parts: Sequence[bytes | None],
    *,
    share: Share,
    query: bytes,
    policy: RoutePolicy | None,
    request: Pairs,
    vary: Sequence[bytes],
    credentials: Credentials,
    hashed: str,
) -> Key:
    """The parts of a key (as `primary_parts` gives them) for a person. query: the whole query, as it was sent."""
    _, namespace, _, tenant, user, grants, scheme, host, raw_path, counted = parts
    counting = policy.query if policy is not None else None
    left_out = [part for part in query.split(b"&") if part and counted_query(part, counting) != part]
    values = variant_values(request, vary)
    return Key(
        namespace=_text(namespace),
        share=share,
        tenant=_named(tenant),
        user=_named(user),
        grants=bool(grants),
        scheme=_text(scheme),
        host=_text(host),
        raw_path=_text(raw_path),
        query=shown_query(counted or b"", credentials),
        left_out=tuple(_text(parameter_names(part)[0]) for part in left_out),
        vary=tuple((_text(name), _shown(name, value, credentials)) for name, value in values),
        hash=hashed,
    )


def _shown(name: bytes, value: bytes | None, credentials: Credentials) -> str | None:
    if value is None:
        return None
    return HIDDEN if name in credentials.headers else _text(value)


def shown_query(query: bytes, credentials: Credentials) -> str:
    """A query string with the values of credentials hidden."""
    pieces = _SEPARATORS.split(query)  # the separators stand between
    return _text(
        b"".join(
            piece if credentials.query.isdisjoint(parameter_names(piece)) else piece.partition(b"=")[0] + b"=***"
            for piece in pieces
        )
    )


def shown_url(scheme: str, host: bytes, raw_path: bytes, query: bytes, credentials: Credentials) -> str:
    """A URL with the values of credentials in its query hidden."""
    return f"{scheme}://{_text(host)}{_text(raw_path)}" + (f"?{shown_query(query, credentials)}" if query else "")


def _named(part: bytes | None) -> str | None:
    return None if part is None else part.decode("utf-8", "surrogatepass")


def _text(part: bytes | None) -> str:
    return (part or b"").decode("latin-1")
