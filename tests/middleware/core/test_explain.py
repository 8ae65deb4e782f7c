"""Every reason that the cache can have is there in words, with its source."""

import ast
import inspect
from typing import get_args, get_type_hints

import pytest

from tests.docs.test_tables import ASKED, STORED
from tidegate import Identity, RoutePolicy
from tidegate.middleware.core import freshness, storing
from tidegate.middleware.core.explain import aside, layers_of, request_step, response_steps
from tidegate.middleware.core.explain_key import key_of, shown_query
from tidegate.middleware.core.explain_rules import BYPASSED, LIFETIMES, REFUSED, SHARES, Rule, rule_of_refusal
from tidegate.middleware.core.identity import Credentials
from tidegate.middleware.core.keys import counted_query, primary_parts
from tidegate.middleware.core.policy import OTHER, Share
from tidegate.middleware.core.storing import Bypass, Kept, Refused, Usable
from tidegate.vocabulary import LAYERS


def literals(module: object, function: str) -> set[str]:
    """The texts that stand in a function, its docstring apart."""
    tree = ast.parse(inspect.getsource(getattr(module, function)))
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return set(texts) - {ast.get_docstring(tree.body[0], clean=False)}  # type: ignore[arg-type]


def test_every_reason_to_go_past_the_cache_has_its_rule() -> None:
    assert set(BYPASSED) == set(get_args(get_type_hints(Bypass)["reason"])) == set(ASKED)


def test_every_reason_not_to_store_has_its_rule_and_no_rule_is_without_a_reason() -> None:
    assert {rule_of_refusal(Refused(reason)) for reason in STORED} == set(REFUSED.values())
    assert rule_of_refusal(Refused("status 206")) is REFUSED["status"]
    assert rule_of_refusal(Refused("not fresh (policy ttl)")) is REFUSED["not fresh"]


def test_every_rule_that_gives_a_lifetime_has_its_words() -> None:
    told = literals(freshness, "lifetime_of") | literals(storing, "judge_response")
    assert {rule for rule in LIFETIMES if rule not in ("s-maxage", "max-age")} <= told, "no rule without its code"
    assert told - {"ascii"} <= {*LIFETIMES, "no freshness given", "status ", "not fresh (", ")", "credential",
                                "authorization (RFC 9111 3.5)"}, "no rule of the code without its words"  # fmt: skip
    assert set(SHARES) == set(get_args(Share))


@pytest.mark.parametrize("rule", [*BYPASSED.values(), *REFUSED.values(), *LIFETIMES.values()], ids=lambda r: r.words)
def test_every_rule_names_an_rfc_a_promise_or_the_policy(rule: Rule) -> None:
    assert rule.words
    assert rule.source.startswith(("RFC ", "P", "policy"))


def test_a_refusal_says_what_to_change() -> None:
    (step,) = response_steps(Refused("Set-Cookie"), None)
    assert (step.about, step.found) == ("response", "may not be stored: Set-Cookie")
    assert "RFC 9111 7.3" in step.source
    assert step.fix == "set the cookie on another response"


def test_a_targeted_field_is_named_as_the_source_of_the_lifetime() -> None:
    kept = Kept(lifetime=7, stale_while_revalidate=0, stale_if_error=0, must_revalidate=False, vary=(), rule="max-age")
    steps = response_steps(kept, b"cdn-cache-control")
    assert "cdn-cache-control (RFC 9213" in next(step for step in steps if step.about == "lifetime").because


def test_the_share_says_whether_it_comes_from_a_policy_or_from_the_mount() -> None:
    assert "policy of /a" in request_step(Usable("tenant"), RoutePolicy(route="/a", share="tenant")).source
    assert "cache.share" in request_step(Usable("user"), None).source


def test_layers_without_flags_are_open_and_say_so() -> None:
    layers = layers_of(None)
    assert [layer.layer for layer in layers] == list(LAYERS)
    assert all(layer.open and "no flags" in layer.why for layer in layers)


class Decided:
    open = frozenset({"cache"})
    shadow = frozenset({"cache"})
    cohorts = (
        ("tidegate.cache", "10", "canary"),
        ("tidegate.etag", "50", "control"),
        ("tidegate.breaker", "none", "none"),
    )


def test_layers_with_flags_say_band_and_cohort() -> None:
    layers = {layer.layer: layer for layer in layers_of(Decided())}
    assert (layers["cache"].open, layers["cache"].band, layers["cache"].cohort) == (True, "10", "canary")
    assert "band of 10 %, in shadow mode" in layers["cache"].why
    assert "does not let this unit in" in layers["etag"].why
    assert "no unit is known" in layers["breaker"].why
    assert layers["coalesce"].why == "the flags could not be asked"


@pytest.mark.parametrize(
    ("outcome", "reason", "words", "stored"),
    [
        ("bypass", "no-identity", "the share is not public, and nobody is known", False),
        ("shadow", None, "comparison only", False),
        ("hit", None, "ask while it runs", None),
        (None, None, "none is mounted above", None),
    ],
)
def test_a_context_alone_tells_what_it_knows(
    outcome: str | None, reason: str | None, words: str, stored: bool | None
) -> None:
    told = aside(None, OTHER, None, outcome, reason)
    assert words in told.steps[0].because
    assert told.stored is stored


def test_a_key_names_what_counts_and_what_does_not_and_hides_credentials() -> None:
    policy = RoutePolicy(route="/a", query=("page", "token"))
    sent = b"page=1&utm=x&token=abc&;sig=no"
    parts = primary_parts(
        namespace=b"v1", share="user", identity=Identity("acme", "ann", "admin"), scheme="https", host=b"a.test",
        raw_path=b"/a", query=counted_query(sent, policy.query),
    )  # fmt: skip
    asked = [(b"cookie", b"secret"), (b"accept-language", b"EN, de")]
    key = key_of(
        parts, share="user", query=sent, policy=policy, request=asked,
        vary=(b"cookie", b"accept-language", b"x-plan"), credentials=Credentials(), hashed="00",
    )  # fmt: skip
    assert (key.tenant, key.user, key.grants, key.query) == ("acme", "ann", True, "page=1&token=***")
    assert key.left_out == ("utm", ";sig")
    assert key.vary == (("cookie", "***"), ("accept-language", "de, en"), ("x-plan", None))


def test_credentials_behind_a_semicolon_or_spelled_otherwise_are_hidden_too() -> None:
    assert shown_query(b"a=1;sig=abc&%74oken=x&b=2", Credentials()) == "a=1;sig=***&%74oken=***&b=2"
