"""The rules of the cache in words: for every reason that the judging functions give, what it means and what to do.

The reasons themselves come from `core.storing`, `core.freshness` and `core.reuse`; nothing is judged here.
`tests/middleware/core/test_explain.py` sees to it that no reason is left without words.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tidegate.middleware.core.freshness import POLICY_STATUSES
from tidegate.middleware.core.storing import Bypass, Refused

__all__ = ["BYPASSED", "LIFETIMES", "REFUSED", "SHARES", "Rule", "rule_of_bypass", "rule_of_refusal"]


@dataclass(frozen=True, slots=True)
class Rule:
    """words: the rule. source: RFC and section, promise of Tidegate's, or policy. fix: what to change; may be empty."""

    words: str
    source: str
    fix: str = ""


SHARES: Final[Mapping[str, Rule]] = {
    "public": Rule("what is stored may be served to everybody", "policy or mount"),
    "tenant": Rule("what is stored may be served to this tenant only, under the same grants", "P2, policy or mount"),
    "user": Rule("what is stored may be served to this user only, under the same grants", "P2, policy or mount"),
}

BYPASSED: Final[Mapping[str, Rule]] = {
    "method": Rule("only answers to GET and HEAD are stored and served", "RFC 9111 3, RFC 9110 9.2.3"),
    "policy-off": Rule("the route's policy has mode off", "policy", 'give the policy mode = "serve"'),
    "body": Rule("the request has a body, which is no part of a key", "P2", "send GET and HEAD without a body"),
    "conditional": Rule(
        "If-Match and If-Unmodified-Since are the app's to answer", "RFC 9110 13.1", "leave those fields out"
    ),
    "credential": Rule(
        "the request carries a credential, and nobody knows whose it is",
        "P2, RFC 9111 3.5",
        "let identify() name the tenant and user, or ask without the credential",
    ),
    "no-identity": Rule(
        "the share is not public, and nobody is known",
        "P2",
        "mount Tidegate inside authentication and give it identify=, or give the route a policy with share public",
    ),
    "no-user": Rule(
        "the share is user, and the identity names a tenant only",
        "P2",
        "let identify() name the user, or give the route a policy with share tenant",
    ),
    "path": Rule(
        "the path has dot segments, and the app may take it for a page of the one who asks",
        "P2, RFC 3986 5.2.4",
        "ask for the path without them, or give the route a policy with share user",
    ),
    "no-store": Rule("the client says no-store", "RFC 9111 5.2.1.5", "ask without Cache-Control: no-store"),
}

REFUSED: Final[Mapping[str, Rule]] = {
    "body": Rule(
        "the app has read a body of the request, which is no part of a key; over HTTP/2 the head need not tell of one",
        "P2",
        "send GET without a body",
    ),
    "status": Rule("a part or a bare confirmation is not stored by itself", "RFC 9111 3.3, 4.3.3"),
    "no-store": Rule("the response says no-store", "RFC 9111 5.2.2.5", "leave no-store out"),
    "no-cache": Rule(
        "the response is to be asked about before each use, and gives nothing to ask with",
        "RFC 9111 5.2.2.4",
        "give it an ETag or Last-Modified, or leave no-cache out",
    ),
    "private": Rule(
        "the response is for one user, and the share is wider",
        "RFC 9111 5.2.2.7",
        "give the route's policy share user, or leave private out",
    ),
    "Vary: *": Rule(
        "nothing tells to which requests the response may be served again",
        "RFC 9110 12.5.5, RFC 9111 4.1",
        "name in Vary the request fields that it depends on",
    ),
    "Set-Cookie": Rule(
        "the cookie is one client's, and would be served to the next",
        "P2, RFC 9111 7.3",
        "set the cookie on another response",
    ),
    "malformed": Rule(
        "a field holds a line break or NUL, or Content-Length stands twice: it would split or cut short every hit",
        "P2, RFC 9110 5.5, 8.6",
        "send no field that holds what a client sent without a look at it",
    ),
    "credential": Rule(
        "it was asked with a cookie of nobody knows whom, so it may be for that client only",
        "P2",
        "let identify() name who asks, or ask without the cookie",
    ),
    "must-understand": Rule(
        "the response asks for caches that know the rules of its status, and this one does not",
        "RFC 9111 5.2.2.3",
        "leave must-understand out",
    ),
    "authorization (RFC 9111 3.5)": Rule(
        "it was asked with Authorization and would be stored for everybody",
        "RFC 9111 3.5",
        "give the route a policy, or the response public, s-maxage or must-revalidate",
    ),
    "no freshness given": Rule(
        "neither the response nor a policy says how long it is fresh",
        "RFC 9111 4.2.1, 4.2.2",
        "send Cache-Control: max-age, or give the route a policy with a ttl (not for errors)",
    ),
    "not fresh": Rule(
        "it is stale from the start, and there is nothing to ask about it with",
        "RFC 9111 4.2",
        "give it a longer lifetime, or an ETag or Last-Modified",
    ),
}
"""By the reason's first words: `status 206` is under `status`, `not fresh (max-age)` under `not fresh`."""

LIFETIMES: Final[Mapping[str, Rule]] = {
    "s-maxage": Rule("s-maxage, which is for shared caches", "RFC 9111 5.2.2.10"),
    "max-age": Rule("max-age", "RFC 9111 5.2.2.1"),
    "expires": Rule("Expires less Date", "RFC 9111 5.3"),
    "policy ttl": Rule("the policy's ttl, since the response says nothing", "policy"),
    "heuristic": Rule("a tenth of the time since Last-Modified, a day at most", "RFC 9111 4.2.2"),
    "no-cache": Rule("no-cache: the app is asked about it before each use", "RFC 9111 5.2.2.4"),
}


_UNTIMED: Final = Rule(
    "which says for itself how long it is fresh or is not stored: a policy's ttl is for "
    + ", ".join(map(str, sorted(POLICY_STATUSES))),
    "RFC 9111 4.2.1, 4.2.2, policy",
    "see why the app answers so; to store it, send Cache-Control: max-age with it",
)


def rule_of_bypass(verdict: Bypass) -> Rule:
    """The rule by which a request goes past the cache."""
    return BYPASSED[verdict.reason]


def rule_of_refusal(verdict: Refused, status: int | None = None) -> Rule:
    """The rule by which a response is not stored. status: the response's, where it is known."""
    if verdict.reason == "no freshness given" and status is not None and status not in POLICY_STATUSES:
        return Rule(f"it is a {status}, {_UNTIMED.words}", _UNTIMED.source, _UNTIMED.fix)
    found = REFUSED.get(verdict.reason)
    if found is not None:
        return found
    return next(rule for words, rule in REFUSED.items() if verdict.reason.startswith(words))
