"""docs/caching.md says of each directive and field what the code does with it, and leaves none out."""

import re
from typing import Any

import pytest

from tests.docs.pages import Page
from tests.docs.test_tables import words
from tidegate.middleware.core.groups import MAX_GROUPS, group_tags
from tidegate.middleware.core.policy import RoutePolicy
from tidegate.middleware.core.reuse import DISCONNECTED, judge_reuse
from tidegate.middleware.core.storing import Kept, RequestDirectives, judge_response, request_directives
from tidegate.middleware.core.targeted import TARGETED
from tidegate.middleware.layers.tee import FAILURES, UNREACHABLE
from tidegate.middleware.stores.base import Entry

PAGE = Page.of("docs/caching.md")
ASKED, SAID = PAGE.table("Requests"), PAGE.table("Responses")
REQUESTS = {
    "max-age",
    "max-stale",
    "min-fresh",
    "no-cache",
    "no-store",
    "no-transform",
    "only-if-cached",
    "stale-if-error",
}
RESPONSES = {
    "immutable", "max-age", "must-revalidate", "must-understand", "no-cache", "no-store", "no-transform", "private",
    "proxy-revalidate", "public", "s-maxage", "stale-if-error", "stale-while-revalidate",
}  # fmt: skip
"""IANA's registry of cache directives, as far as these RFCs go."""


def written(directive: str) -> bytes:
    return directive.replace("=N", "=30").replace("a, b", "x-a, x-b").encode()


def name_of(directive: str) -> str:
    return directive.partition("=")[0]


def verdict(control: bytes, *, status: int = 200, share: Any = "public", known: bool = True) -> Any:
    headers = [(b"cache-control", control)] if control else []
    headers += [(b"last-modified", b"Wed, 01 Jan 2020 00:00:00 GMT"), (b"x-a", b"1")]
    policy = RoutePolicy(route="/", stale_if_error=5, stale_while_revalidate=5, share=share) if known else None
    asked = [] if known else [(b"authorization", b"Bearer x")]
    return judge_response(
        status=status,
        headers=headers,
        request=asked,
        share=share,
        policy=policy,
        default_ttl=None,
        now=1.7e9,
        known=known,
        validator=True,
    )


def changes(directive: bytes) -> bool:
    """Whether there is any response of which the directive changes what becomes of it."""
    bases = (b"", b"max-age=60", b"no-store, max-age=60")
    cases: list[dict[str, Any]] = [{}, {"status": 418}, {"share": "user"}, {"known": False}]
    return any(
        verdict(b", ".join([directive, base] if base else [directive]), **case) != verdict(base, **case)
        for base in bases
        for case in cases
    )


@pytest.mark.parametrize("row", ASKED, ids=lambda row: row[0])
def test_what_a_requests_directive_does(row: list[str]) -> None:
    for directive in words(row[0]):
        read = request_directives([(b"cache-control", written(directive))])
        assert (read != RequestDirectives()) is not row[2].startswith("nothing:")


@pytest.mark.parametrize("row", SAID, ids=lambda row: row[0])
def test_what_a_responses_directive_does(row: list[str]) -> None:
    for directive in words(row[0]):
        assert changes(written(directive)) is not row[2].startswith("nothing:")


def test_no_directive_is_left_out_and_each_names_its_source() -> None:
    assert {name_of(word) for row in ASKED for word in words(row[0])} == REQUESTS
    assert {name_of(word) for row in SAID for word in words(row[0])} == RESPONSES
    obeyed = {name_of(word) for row in ASKED if not row[2].startswith("nothing:") for word in words(row[0])}
    assert obeyed == {name.replace("_", "-") for name in RequestDirectives.__dataclass_fields__}
    for row in [*ASKED, *SAID, *PAGE.table("Targeted fields"), *PAGE.table("Stale"), *PAGE.table("Other fields")]:
        assert re.fullmatch(r"RFC \d{4}( \d+(\.\d+)*)?", row[1]), row


def test_the_words_of_the_table_hold() -> None:
    for strict in ("must-revalidate", "proxy-revalidate", "s-maxage=30", "no-cache"):
        kept = verdict(b"max-age=60, " + strict.encode())
        assert isinstance(kept, Kept)
        assert kept.must_revalidate, strict
        assert (kept.stale_if_error, kept.stale_while_revalidate) == (0, 0)
        assert f"`{strict.partition('=')[0]}`" in PAGE.section("Stale")
    assert verdict(b'private="x-a, x-b", max-age=60').dropped == {b"x-a", b"x-b"}
    assert verdict(b"s-maxage=30, max-age=60").lifetime == 30


def test_the_targeted_fields_stand_in_their_order() -> None:
    told = [words(row[0])[0].lower().encode() for row in PAGE.table("Targeted fields")]
    assert told == [*TARGETED, b"cache-control"]


def test_the_numbers_of_what_is_stale_and_of_groups_are_those_of_the_code() -> None:
    _, error, cut_off, _ = PAGE.table("Stale")
    assert {int(number) for number in re.findall(r"\b5\d\d\b", error[0])} == FAILURES
    assert {int(number) for number in re.findall(r"\b5\d\d\b", cut_off[0])} == UNREACHABLE
    assert f"for {DISCONNECTED:g} seconds" in cut_off[0]
    entry = Entry(status=200, headers=(), body=b"", born=0.0, lifetime=10.0)
    assert judge_reuse(entry, RequestDirectives(), 10 + DISCONNECTED).disconnected
    assert not judge_reuse(entry, RequestDirectives(), 10.5 + DISCONNECTED).disconnected
    groups = ", ".join(f'"{number}"' for number in range(MAX_GROUPS + 5)).encode()
    assert len(group_tags([(b"cache-groups", groups)], "http", b"h")) == MAX_GROUPS
    assert PAGE.section("Other fields").count(f"up to {MAX_GROUPS}") == 2
