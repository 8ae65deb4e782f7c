"""Which requests may share one run of the app, and whether they may share its answer. Pure.

Two requests share a run only if nothing that is known of them tells them apart. Where the cache has said which parts of
a request count, those are compared (and the method, range and conditions); else the identity and everything that the
client sent, and where it sent it from.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final

from tidegate.middleware.core.identity import REWRITING, Identity
from tidegate.middleware.core.message import directives, field_values, lowered, vary_names
from tidegate.middleware.core.storing import Kept, Pairs, judge_response
from tidegate.middleware.core.targeted import TARGETED, control_of

__all__ = ["TRACE_HEADERS", "Answer", "is_for_all", "judge_answer", "request_key", "told_apart"]

TRACE_HEADERS: Final = frozenset({b"traceparent", b"tracestate"})
"""Request fields that differ in every request and that no answer depends on (W3C Trace Context)."""

_CONDITIONS: Final = frozenset(
    {b"if-match", b"if-modified-since", b"if-none-match", b"if-range", b"if-unmodified-since", b"range"}
)
_name = itemgetter(0)


def request_key(
    *,
    method: str,
    headers: Pairs,
    narrowed: bytes | None,
    identity: Identity | None,
    client: str,
    url: Sequence[str | bytes],
) -> tuple[object, ...]:
    """What must be equal for two requests to share a run. A key of plain values: for comparing, not for keeping.

    narrowed: the cache's key, where it knows what counts; it holds identity and URL as far as they do.
    client: the address that the request came from; an app may answer by it, and nothing else tells it.
    url: scheme, root path, raw path, query.
    """
    if narrowed is not None:
        return (narrowed, method, *[tuple(pair) for pair in headers if pair[0] in _CONDITIONS])
    # Sorting is stable: lines of one field keep their order.
    head = [tuple(pair) for pair in sorted(headers, key=_name) if pair[0] not in TRACE_HEADERS]
    return (identity, method, client, *url, *head)


@dataclass(frozen=True, slots=True)
class Answer:
    """What followers must know of a response's start.

    refused: why it is for the request that ran alone; None if it may be shared.
    length: the stated Content-Length; None where it is not stated, or not once.
    vary: the request fields that Vary names, in lower case.
    """

    refused: str | None
    length: int | None
    vary: tuple[bytes, ...]


def judge_answer(status: int, headers: Pairs, *, same_user: bool) -> Answer:
    """Decide about a response's start, in one pass over its fields.

    same_user: all requests are one user's, so that `private` does not stand between them.
    A targeted field forbids as Cache-Control does; it permits nothing that that forbids, though it decides alone about
    storing (RFC 9213 2.2): to run alone is always right.
    """
    refused = "error" if status >= 500 else None
    control: list[bytes] = []
    vary: list[bytes] = []
    varied: list[tuple[bytes, bytes]] = []
    lengths: list[bytes] = []
    targeted: list[tuple[bytes, bytes]] = []
    for cased, value in headers:
        name = cased.lower()
        if name == b"content-length":
            lengths.append(value.strip())
        elif name == b"cache-control":
            control.append(value)
        elif name == b"vary":
            varied.append((b"vary", value))
        elif name == b"access-control-allow-origin" and value.strip() != b"*":
            vary.append(b"origin")
        elif name == b"set-cookie":
            refused = refused or "set-cookie"
        elif name == b"content-type" and value.partition(b";")[0].strip().lower() == b"text/event-stream":
            refused = refused or "stream"
        elif name in TARGETED:
            targeted.append((name, value))
    if control:
        refused = refused or _forbidden(directives(control), same_user=same_user)
    if targeted:
        refused = refused or _forbidden(control_of(targeted).directives, same_user=same_user)
    if varied:
        names = vary_names(varied)
        refused, vary = refused if names is not None else refused or "vary", [*(names or ()), *vary]
    length = int(lengths[0]) if len(lengths) == 1 and lengths[0].isdigit() else None
    return Answer(refused, length, tuple(vary))


def _forbidden(said: Mapping[bytes, bytes | None], *, same_user: bool) -> str | None:
    if b"no-store" in said:
        return "no-store"
    # The fields that no-cache="..." names are of one answer, and left out where it is stored (RFC 9111 5.2.2.4).
    return "private" if not same_user and (b"private" in said or said.get(b"no-cache")) else None


def is_for_all(status: int, headers: Pairs, now: float) -> bool:
    """Whether an answer says for itself that it may be reused, by everybody whom its Vary does not tell apart.

    now: wall-clock seconds.
    """
    verdict = judge_response(
        status=status, headers=lowered(headers), request=(), share="public", policy=None, default_ttl=None, now=now
    )
    return isinstance(verdict, Kept) and verdict.reusable


def told_apart(vary: Iterable[bytes], one: Pairs, other: Pairs) -> bool:
    """Whether two requests differ in a field that Vary names (RFC 9111 4.1), or in one that passes for the URL."""
    if [pair for pair in one if pair[0] in REWRITING] != [pair for pair in other if pair[0] in REWRITING]:
        return True
    return any(field_values(one, name) != field_values(other, name) for name in vary)
