"""What shadow mode keeps of an answer instead of its body: digests, and the header fields that ought to be the same.

Two answers to the same key are compared by their sights. A sight tells whether the bodies were the same, whether they
were the same but for the order of a JSON text's members and elements, which fields differed, and (as digests) who asked
and with which request fields, so that differences can be laid to what goes with them: `core.shadow_kinds`.

Bounded whatever an app or a client sends: names, lengths of values, size, depth and number of nodes of JSON texts.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, cast

from xxhash import xxh3_128_digest, xxh3_128_hexdigest

from tidegate.middleware.core.identity import CREDENTIAL_HEADERS, Identity
from tidegate.middleware.core.keys import encode_parts
from tidegate.middleware.core.message import HOP_BY_HOP, field_values, list_members

__all__ = [
    "MAX_FIELDS",
    "MAX_JSON",
    "VOLATILE",
    "Named",
    "Sight",
    "asked_with",
    "compared_headers",
    "decode_sight",
    "encode_sight",
    "order_free",
    "who_asked",
]

Pairs = Sequence[tuple[bytes, bytes]]
Named = tuple[tuple[str, str], ...]

VOLATILE: Final = frozenset(
    {
        "age",
        "alt-svc",
        "cache-status",
        "cf-ray",
        "content-length",
        "date",
        "expires",
        "nel",
        "report-to",
        "request-id",
        "server-timing",
        "set-cookie",
        "traceparent",
        "tracestate",
        "via",
        "x-amzn-trace-id",
        "x-cloud-trace-context",
        "x-correlation-id",
        "x-process-time",
        "x-request-id",
        "x-response-time",
        "x-runtime",
        "x-trace-id",
    }
)
"""Response fields that may differ between two answers without meaning anything. Content-Length goes with the body."""

UNTOLD: Final = (
    (CREDENTIAL_HEADERS - {b"cookie"})
    | HOP_BY_HOP
    | {
        b"cache-control",
        b"content-length",
        b"forwarded",
        b"host",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"pragma",
        b"range",
        b"request-id",
        b"traceparent",
        b"tracestate",
        b"x-correlation-id",
        b"x-forwarded-for",
        b"x-real-ip",
        b"x-request-id",
    }
)
"""Request fields that are no reason for another answer: they are in the key, are who asks, or name one request.

A cookie may be: it says more than who asks (a theme, an experiment).
"""

NEGOTIATION: Final[tuple[bytes, ...]] = (
    b"accept",
    b"accept-language",
    b"accept-encoding",
    b"origin",
    b"user-agent",
    b"x-requested-with",
)
"""Looked at first, so that a client's odd fields do not push them out."""

_SECRET: Final = re.compile(r"auth(?!or)|api-?key|cookie|csrf|password|secret|session|signature|token|xsrf", re.I)
"""Names of response fields whose values are kept as digests only: examples are shown to people."""

MAX_FIELDS: Final = 32
"""Fields of an answer or a question that are kept and, over all sights of a key, compared."""
MAX_NAME: Final = 64
"""Bytes of a request field's name; a client's longer ones are no reason for anything, and would take up memory (P6)."""
MAX_VALUE: Final = 200
"""Characters of a response field's value that are kept; of longer ones the beginning and a digest."""
MAX_JSON: Final = 16 * 1024
"""Bytes of a JSON text that is looked into. Larger ones are compared as they are."""
MAX_NODES: Final = 4096
MAX_DEPTH: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One answer of the app.

    at: wall-clock seconds at which the app was asked.
    who, tenant: digests of the identity that asked and of its tenant; empty where nobody was known.
    asked: request fields that might matter, with digests of their values.
    body, length: digest and bytes of the body.
    order: digest of a JSON text in which order and spacing do not count; empty where that is not known.
    headers: response fields, without those that may always differ; values may be shortened, and secrets are digests.
    excerpt: the beginning of the body; empty unless somebody asked to keep some.
    """

    at: float
    who: str
    tenant: str
    asked: Named
    status: int
    body: str
    length: int
    order: str
    headers: Named
    excerpt: str = ""


def encode_sight(sight: Sight) -> bytes:
    """A sight as bytes, for a store."""
    fields = [
        sight.at, sight.who, sight.tenant, sight.asked, sight.status, sight.body, sight.length, sight.order,
        sight.headers, sight.excerpt,
    ]  # fmt: skip
    return json.dumps(fields).encode()


def decode_sight(data: bytes) -> Sight:
    """The sight that `encode_sight` made these bytes of.

    Raises:
        ValueError: if it did not.
    """
    try:
        at, who, tenant, asked, status, body, length, order, headers, excerpt = cast(list[Any], json.loads(data))
        return Sight(
            at=float(at),
            who=str(who),
            tenant=str(tenant),
            asked=tuple((str(name), str(value)) for name, value in asked),
            status=int(status),
            body=str(body),
            length=int(length),
            order=str(order),
            headers=tuple((str(name), str(value)) for name, value in headers),
            excerpt=str(excerpt),
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{len(data)} bytes are no sight") from error


def who_asked(identity: Identity | None, key: bytes) -> tuple[str, str]:
    """Digests of an identity and of its tenant; ("", "") for nobody. Unreadable without the key."""
    if identity is None:
        return "", ""
    parts = [
        None if part is None else part.encode("utf-8", "surrogatepass")
        for part in (identity.tenant, identity.user, identity.grants)
    ]
    return _digest(encode_parts(parts), key), _digest(encode_parts(parts[:1]), key)


def asked_with(headers: Pairs, key: bytes) -> Named:
    """The request fields that might be a reason for another answer, with keyed digests of their values."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name not in UNTOLD and len(name) <= MAX_NAME:
            found.setdefault(name, []).append(value.strip(b" \t"))
    names = [name for name in NEGOTIATION if name in found]
    names += [name for name in found if name not in NEGOTIATION][: MAX_FIELDS - len(names)]
    return tuple((name.decode("latin-1"), _digest(encode_parts(found[name]), key)) for name in names)


def _digest(data: bytes, key: bytes) -> str:
    return blake2b(data, digest_size=8, key=key).hexdigest()


def compared_headers(headers: Pairs, *, own_etag: bool) -> Named:
    """The response fields that ought to be the same for all who share the answer, in the order of their names.

    headers: as the app gave them, names in lower case. own_etag: the ETag is ours, made of the body.
    """
    dropped = HOP_BY_HOP | {member.lower() for member in list_members(field_values(headers, b"connection"))}
    found: dict[str, str] = {}
    for name, value in headers:
        text = name.decode("latin-1")
        if text in VOLATILE or name in dropped or (own_etag and text == "etag"):
            continue
        line = value.decode("latin-1").strip(" \t")
        found[text] = f"{found[text]}, {line}" if text in found else line
    return tuple((name[:MAX_VALUE], _shown(name, found[name])) for name in sorted(found)[:MAX_FIELDS])


def _shown(name: str, value: str) -> str:
    if _SECRET.search(name):
        return f"digest {xxh3_128_hexdigest(value.encode('latin-1'))}"
    if len(value) <= MAX_VALUE:
        return value
    return f"{value[: MAX_VALUE - 40]}… {xxh3_128_hexdigest(value.encode('latin-1'))}"


class _TooMuch(Exception):
    """A JSON text with more nodes, or nested deeper, than is looked at."""


def order_free(body: bytes) -> str:
    """A digest of a JSON text in which the order of members and elements, and spacing, do not count.

    Empty if it is not JSON, or too large, too deep or too much of it. Takes a time in proportion to its length.
    """
    if not body or len(body) > MAX_JSON:
        return ""
    try:
        # Numbers stay as they are written: 1.0 is not 1.00 here, and a long one is never converted.
        value = json.loads(body, parse_float=_Number, parse_int=_Number, parse_constant=_Number)
        return _Shape().of(value, MAX_DEPTH).hex()
    except (ValueError, RecursionError, _TooMuch):
        return ""


class _Number(str):
    """A number of a JSON text as it was written."""

    __slots__ = ()


class _Shape:
    """Digests of nodes, each made of its children's digests in their order: so each byte counts once, not per level."""

    def __init__(self) -> None:
        self._left = MAX_NODES

    def of(self, value: object, depth: int) -> bytes:
        """The digest of one node."""
        self._left -= 1
        if self._left < 0 or depth < 0:
            raise _TooMuch
        if isinstance(value, dict):
            members = cast(dict[str, object], value).items()
            return _joined(b"{", (xxh3_128_digest(_text(name)) + self.of(one, depth - 1) for name, one in members))
        if isinstance(value, list):
            return _joined(b"[", (self.of(one, depth - 1) for one in cast(list[object], value)))
        if isinstance(value, str):
            return xxh3_128_digest((b"0" if isinstance(value, _Number) else b'"') + _text(value))
        return xxh3_128_digest(repr(value).encode())


def _joined(opening: bytes, digests: Iterable[bytes]) -> bytes:
    return xxh3_128_digest(opening + b"".join(sorted(digests)))


def _text(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")
