"""What a response's Cache-Status says, in words (RFC 9211), for caches that one can only ask over HTTP."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

import http_sf

from tidegate.middleware.core.explain_rules import BYPASSED, REFUSED, Rule, rule_of_refusal
from tidegate.middleware.core.message import field_values
from tidegate.middleware.core.storing import Refused

__all__ = ["CacheSaid", "read_cache_status"]

Pairs = Sequence[tuple[bytes, bytes]]

_FORWARDED: Final[Mapping[str, str]] = {
    "bypass": "it was configured to stand aside",
    "method": "the method has to be forwarded",
    "uri-miss": "nothing was stored for the URL",
    "vary-miss": "nothing was stored for these request fields (Vary)",
    "miss": "nothing stored was of use",
    "request": "what was stored would have done, but the client insisted",
    "stale": "what was stored was no longer fresh",
    "partial": "only a part was stored",
}
"""RFC 9211 2.2."""

_DETAILS: Final[Mapping[str, str]] = {
    "stale-if-error": "stale; it stood in for a failure of the app (RFC 5861 4)",
    "stale-while-revalidate": "stale; the app is asked in the background (RFC 5861 3)",
    "disconnected": "stale; it stood in for a 502 or 504 (RFC 9111 4.2.4)",
    "limit-body": "the answer is not stored: its body is longer than max_body (P6)",
    "limit-headers": "the answer is not stored: it has too many bytes of header fields (P6)",
    "only-if-cached": "the client wanted a stored response or none (RFC 9111 5.2.1.7)",
}


@dataclass(frozen=True, slots=True)
class CacheSaid:
    """One cache on the response's way. words: what it said. rule: why, where the cache is Tidegate and said so."""

    cache: str
    words: tuple[str, ...]
    rule: Rule | None = None


def read_cache_status(headers: Pairs) -> list[CacheSaid] | None:
    """Each cache that the field names, the one nearest to the app first; None if the field is no list (RFC 9651)."""
    lines = field_values(headers, b"cache-status")
    if not lines:
        return []
    try:
        members = cast(Sequence[tuple[object, Mapping[str, object]]], http_sf.parse(b", ".join(lines), tltype="list"))
    except ValueError:
        return None
    return [_said(str(name), parameters) for name, parameters in members if not isinstance(name, list)]


def _said(cache: str, found: Mapping[str, object]) -> CacheSaid:
    words: list[str] = []
    if found.get("hit") is True:
        words.append("answered from the store")
    forward = found.get("fwd")
    if forward is not None:
        words.append(f"asked the app: {_FORWARDED.get(str(forward), str(forward))}")
    if "fwd-status" in found:
        words.append(f"which answered {found['fwd-status']}")
    ttl = found.get("ttl")
    if isinstance(ttl, int):
        words.append(f"fresh for {ttl} s more" if ttl >= 0 else f"stale for {-ttl} s")
    if found.get("stored") is True:
        words.append("the answer is being stored")
    if found.get("collapsed") is True:
        words.append("the answer of an identical request, which stores it")
    detail = str(found["detail"]) if "detail" in found else None
    rule = None
    if detail is not None:
        rule = _rule(cache, str(forward), detail)
        words.append(_DETAILS.get(detail, detail))
    if "key" in found:
        words.append(f"key {found['key']}")
    return CacheSaid(cache, tuple(words), rule)


def _rule(cache: str, forward: str, detail: str) -> Rule | None:
    if cache != "Tidegate":
        return None
    if forward == "bypass":
        return BYPASSED.get(detail)
    return rule_of_refusal(Refused(detail)) if any(detail.startswith(words) for words in REFUSED) else None
