"""Which requests may share one run of the app, and whether they may share its answer. Pure.

Two requests share a run only if nothing that is known of them tells them apart. Where the cache has said which parts of
a request count, those are compared (and the method, range and conditions); else the identity and everything that the
client sent, and where it sent it from.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from tidegate.middleware.core.identity import Identity
from tidegate.middleware.core.message import directives, field_values, list_members, single_value
from tidegate.middleware.core.storing import Pairs

__all__ = ["TRACE_HEADERS", "refusal_to_share", "request_parts", "stated_length", "told_apart", "varies_on"]

TRACE_HEADERS: Final = frozenset({b"traceparent", b"tracestate"})
"""Request fields that differ in every request and that no answer depends on (W3C Trace Context)."""

_CONDITIONS: Final = (
    b"if-match",
    b"if-modified-since",
    b"if-none-match",
    b"if-range",
    b"if-unmodified-since",
    b"range",
)


def request_parts(
    *,
    method: str,
    headers: Pairs,
    narrowed: bytes | None,
    identity: Identity | None,
    client: str,
    url: Sequence[bytes],
) -> list[bytes | None]:
    """What must be equal for two requests to share a run.

    narrowed: the cache's key, where it knows what counts; it holds identity and URL as far as they do.
    client: the address that the request came from; an app may answer by it, and nothing else tells it.
    url: scheme, root path, raw path, query.
    """
    if narrowed is not None:
        parts: list[bytes | None] = [b"narrowed", narrowed, method.encode()]
        for name in _CONDITIONS:
            values = field_values(headers, name)
            parts.append(b"\x00".join(values) if values else None)
        return parts
    who: tuple[bytes | None, ...] = (None, None, None)
    if identity is not None:
        user = None if identity.user is None else _encode(identity.user)
        who = (_encode(identity.tenant), user, _encode(identity.grants))
    parts = [b"whole", *who, method.encode(), client.encode(), *url]
    for name, value in sorted(headers, key=_name):  # stable: lines of one field keep their order
        if name not in TRACE_HEADERS:
            parts += [name, value]
    return parts


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _name(pair: tuple[bytes, bytes]) -> bytes:
    return pair[0]


def refusal_to_share(status: int, headers: Pairs, *, same_user: bool) -> str | None:
    """Why this response is for the request that ran alone; None if it may be shared.

    same_user: all requests are one user's, so that `private` does not stand between them.
    """
    if status >= 500:
        return "error"
    if field_values(headers, b"set-cookie"):
        return "set-cookie"
    control = directives(field_values(headers, b"cache-control"))
    if b"no-store" in control:
        return "no-store"
    if b"private" in control and not same_user:
        return "private"
    if b"*" in varies_on(headers):
        return "vary"
    kind = single_value(headers, b"content-type") or b""
    if kind.partition(b";")[0].strip().lower() == b"text/event-stream":
        return "stream"
    return None


def varies_on(headers: Pairs) -> tuple[bytes, ...]:
    """The request fields that Vary names, in lower case."""
    return tuple(name.lower() for name in list_members(field_values(headers, b"vary")))


def told_apart(vary: Iterable[bytes], one: Pairs, other: Pairs) -> bool:
    """Whether two requests differ in a field that Vary names (RFC 9111 4.1)."""
    return any(field_values(one, name) != field_values(other, name) for name in vary)


def stated_length(headers: Pairs) -> int | None:
    """Content-Length, if it is stated once and is a number."""
    stated = single_value(headers, b"content-length")
    return int(stated) if stated is not None and stated.isdigit() else None
