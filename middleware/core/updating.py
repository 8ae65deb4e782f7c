"""What a validation says of a stored response: the fields to ask with, and those that an answer renews.

RFC 9111 3.2 (updating stored fields), 4.3.1 (asking), 4.3.3 and 4.3.4 (a 304), 4.3.5 (a HEAD).
"""

from collections.abc import Sequence
from typing import Final

from tidegate.middleware.core.message import field_values, list_members, single_value, storable_headers
from tidegate.middleware.core.validators import CONDITIONAL_HEADERS, weak_match

__all__ = ["conditions", "has_validator", "is_about", "updated", "without_conditions"]

Pairs = Sequence[tuple[bytes, bytes]]

_KEPT: Final = frozenset({b"content-encoding", b"content-length", b"content-range", b"content-type", b"vary"})
"""What describes the stored bytes, or chose them: a message without these bytes cannot change it."""

_RENEWED: Final = frozenset({b"age", b"cache-status", b"date"})


def has_validator(headers: Pairs) -> bool:
    """Whether a response can be asked about."""
    return any(name in (b"etag", b"last-modified") for name, _ in headers)


def conditions(headers: Pairs, *, own_etag: bool) -> list[tuple[bytes, bytes]]:
    """The conditions that ask whether a stored response still holds; empty where nothing can be asked.

    own_etag: the stored ETag was made by our layer: the app does not know it.
    """
    asked: list[tuple[bytes, bytes]] = []
    etag = None if own_etag else single_value(headers, b"etag")
    if etag is not None:
        asked.append((b"if-none-match", etag))
    modified = single_value(headers, b"last-modified")
    if modified is not None:
        asked.append((b"if-modified-since", modified))
    return asked


def is_about(headers: Pairs, stored: Pairs, *, own_etag: bool, head: bool = False) -> bool:
    """Whether an answer without a body speaks of this stored response (RFC 9111 4.3.4, 4.3.5)."""
    etag, ours = single_value(headers, b"etag"), single_value(stored, b"etag")
    if etag is not None and not own_etag and (ours is None or not weak_match(etag, ours)):
        return False
    modified = single_value(headers, b"last-modified")
    if etag is None and modified is not None and modified != single_value(stored, b"last-modified"):
        return False
    if not head:
        return True
    length = single_value(headers, b"content-length")
    return length is None or length == single_value(stored, b"content-length")


def updated(stored: Pairs, news: Pairs) -> tuple[tuple[bytes, bytes], ...]:
    """The stored fields with those of the answer in their place; what is about the connection never counts.

    What Vary names grows and never shrinks: the stored response was selected by the fields that it named then.
    """
    told = storable_headers(news)
    fresh = [pair for pair in told if pair[0] not in _KEPT]
    varying = {name.lower() for name in list_members(field_values(stored, b"vary"))}
    more = [name for name in list_members(field_values(told, b"vary")) if name.lower() not in varying]
    if more:
        fresh.append((b"vary", b", ".join(more)))
    # Of a stored ETag that is weakly the same, the stored one names the stored bytes.
    if field_values(stored, b"etag"):
        fresh = [pair for pair in fresh if pair[0] != b"etag"]
    # The stored Date is that of the stored message; without a new one the renewed response begins now.
    names = {name for name, _ in fresh if name != b"vary"} | _RENEWED
    return (*(pair for pair in stored if pair[0] not in names), *fresh)


def without_conditions(headers: Pairs) -> list[tuple[bytes, bytes]]:
    """A request's fields without the client's conditions."""
    return [pair for pair in headers if pair[0] not in CONDITIONAL_HEADERS]
