"""Entries that are equal in parts have these parts in common, and are what they were."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.middleware.stores.support import entry
from tidegate.middleware.core.records import Entry
from tidegate.middleware.stores.interning import Interning


def made(number: int) -> Entry:
    """Of equal parts that are no other entry's objects."""

    def text(value: str) -> bytes:
        return value.encode() + b""

    tenant = "tenant:" + "".join(["ac", "me"])
    return replace(
        entry(),
        headers=((text("content-type"), text("text/plain")), (text("etag"), b'"%d"' % number)),
        vary=((text("accept"), None),),
        tags=(("".join(["pub", "lic"]), "".join(["uri:", "x"])), (tenant, f"client:{number}")),
        positions=((tenant, 10**9), ("".join(["pub", "lic"]), 10**9)),
    )


SHARED: dict[str, Callable[[Entry], Any]] = {
    "a field with its value": lambda entry: entry.headers[0],
    "the name of a field whose value is its own": lambda entry: entry.headers[1][0],
    "a field that selects": lambda entry: entry.vary[0],
    "a tag": lambda entry: entry.tags[0],
    "the scope of a tag of its own": lambda entry: entry.tags[1][0],
    "the positions": lambda entry: entry.positions,
}


@pytest.mark.parametrize("part", SHARED.values(), ids=list(SHARED))
def test_equal_parts_become_one(part: Callable[[Entry], Any]) -> None:
    interning, one, other = Interning(), made(1), made(2)
    assert part(one) == part(other)
    assert part(one) is not part(other)
    for each in (one, other):
        interning.share(each)
    assert part(one) is part(other)


def test_all_tags_of_one_url_become_one() -> None:
    interning, one, other = Interning(), made(1), made(1)
    one, other = (replace(each, tags=each.tags[:1]) for each in (one, other))
    for each in (one, other):
        interning.share(each)
    assert one.tags is other.tags


def test_an_entry_says_afterwards_what_it_said_before() -> None:
    interning = Interning()
    long = "n" * 300
    for _ in range(3):
        for number in range(5):
            each = made(number)
            each = replace(each, tags=((long, long), *each.tags), headers=((long.encode(), b"v"), *each.headers))
            same = replace(each)
            interning.share(each)
            assert each == same
        interning.clear()


def test_what_is_long_or_seldom_comes_again_is_not_remembered() -> None:
    interning = Interning()
    for number in range(1000):
        each = replace(made(number), tags=(("public", "u" * 300 + str(number)),))
        interning.share(replace(each, headers=((b"content-type", b"x" * 300 + b"%d" % number), *each.headers[1:])))
    assert len(interning._fields) + len(interning._names) < 10
