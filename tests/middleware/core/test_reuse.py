"""When a stored response may be used: RFC 9111 4.2.4 and 5.2.1, RFC 5861."""

from dataclasses import replace

import pytest

from tidegate.middleware.core.records import Entry
from tidegate.middleware.core.reuse import judge_reuse
from tidegate.middleware.core.storing import RequestDirectives

PLAIN = Entry(status=200, headers=(), body=b"", born=1000.0, lifetime=60.0)
SWR = replace(PLAIN, stale_while_revalidate=30.0)
SIE = replace(PLAIN, stale_if_error=300.0)
STRICT = replace(PLAIN, must_revalidate=True)
ASK = replace(PLAIN, no_cache=True, must_revalidate=True)
ANY = RequestDirectives()


@pytest.mark.parametrize(
    ("entry", "wanted", "age", "may"),
    [
        (PLAIN, ANY, 0, "fresh"),
        (PLAIN, ANY, 59, "fresh"),
        (PLAIN, ANY, 60, "disconnected"),
        (PLAIN, ANY, 121, ""),
        (PLAIN, RequestDirectives(no_cache=True), 0, "disconnected"),
        (PLAIN, RequestDirectives(max_age=10), 11, "disconnected"),
        (PLAIN, RequestDirectives(max_age=10), 10, "fresh"),
        (PLAIN, RequestDirectives(min_fresh=20), 41, "disconnected"),
        (PLAIN, RequestDirectives(max_stale=30), 90, "fresh"),
        (PLAIN, RequestDirectives(max_stale=30), 91, "disconnected"),
        (PLAIN, RequestDirectives(max_stale=30, max_age=70), 80, "disconnected"),
        (PLAIN, RequestDirectives(max_stale=30, no_cache=True), 80, "disconnected"),
        (SWR, ANY, 60, "while_revalidating disconnected"),
        (SWR, ANY, 89, "while_revalidating disconnected"),
        (SWR, ANY, 90, "disconnected"),
        (SWR, RequestDirectives(max_age=60), 70, "disconnected"),
        (SWR, RequestDirectives(no_cache=True), 70, "disconnected"),
        (SWR, RequestDirectives(min_fresh=1), 70, "disconnected"),
        (SIE, ANY, 360, "stale_on_error"),
        (SIE, ANY, 361, ""),
        (STRICT, ANY, 59, "fresh"),
        (STRICT, ANY, 61, ""),
        (STRICT, RequestDirectives(max_stale=1000), 61, ""),
        (ASK, ANY, 0, ""),
        (ASK, RequestDirectives(max_stale=1000), 1, ""),
    ],
)
def test_a_stored_response_may_be_used(entry: Entry, wanted: RequestDirectives, age: float, may: str) -> None:
    reuse = judge_reuse(entry, wanted, entry.born + age)
    names = ("fresh", "stale_on_error", "while_revalidating", "disconnected")
    assert " ".join(name for name in names if getattr(reuse, name)) == may
    assert (reuse.age, reuse.ttl) == (age, 60 - age)


@pytest.mark.parametrize(
    ("entry", "wanted", "age", "insists"),
    [
        (PLAIN, RequestDirectives(max_age=0), 1, True),
        (PLAIN, RequestDirectives(min_fresh=30), 31, True),
        (PLAIN, RequestDirectives(no_cache=True), 59, True),
        (STRICT, RequestDirectives(no_cache=True), 59, True),
        (PLAIN, RequestDirectives(no_cache=True), 60, False),
        (PLAIN, RequestDirectives(max_age=0), 61, False),
        (ASK, RequestDirectives(no_cache=True), 1, False),
        (PLAIN, ANY, 60, False),
    ],
)
def test_only_of_a_fresh_response_it_is_the_request_that_insists(
    entry: Entry, wanted: RequestDirectives, age: float, insists: bool
) -> None:
    """RFC 9211 2.2: `request` where it was fresh, else `stale`."""
    reuse = judge_reuse(entry, wanted, entry.born + age)
    assert (reuse.fresh, reuse.insists) == (False, insists)
