"""What is remembered of records that were looked up: of the last ones, and no more than so many bytes."""

import tracemalloc

from tests.middleware.stores.support import ACME, SCOPES, entry
from tidegate.middleware.core.records import Entry
from tidegate.middleware.stores.redis_names import Names
from tidegate.middleware.stores.redis_needs import REMEMBERED, REMEMBERED_BYTES, Needs


def looked_up(needs: Needs, number: int, *, tag: str) -> None:
    """A record with one tag was."""
    record = of(number, tag)
    needed = needs.of(record)
    assert needed is not None
    needs.remember(b"%d" % number, SCOPES, record, needed[0])


def of(number: int, tag: str) -> Entry:
    return entry(tags=((ACME, f"{tag}:{number}"),), positions=((ACME, 0),))


def test_of_records_with_tags_of_a_usual_length_as_many_are_remembered_as_there_may_be() -> None:
    needs = Needs(Names("ns", b""))
    for number in range(REMEMBERED + 10):
        looked_up(needs, number, tag="client:42")
    seen = [number for number in range(REMEMBERED + 10) if needs.seen(b"%d" % number, SCOPES) is not None]
    assert seen == list(range(10, REMEMBERED + 10))


def test_tags_of_any_length_take_no_more_room_than_there_is() -> None:
    needs, length = Needs(Names("ns", b"")), 50_000  # whose names are not remembered either
    fit = REMEMBERED_BYTES // length
    tracemalloc.start()
    try:
        for number in range(3 * fit):
            looked_up(needs, number, tag="x" * length)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.1 * REMEMBERED_BYTES
    seen = [number for number in range(3 * fit) if needs.seen(b"%d" % number, SCOPES) is not None]
    assert seen[-1] == 3 * fit - 1
    assert len(seen) == seen[-1] - seen[0] + 1 > 0.8 * fit, "the last ones"


def test_a_record_that_is_looked_up_again_takes_its_room_once_and_one_that_is_too_large_none() -> None:
    needs = Needs(Names("ns", b""))
    for _ in range(3):
        for number in range(100):
            looked_up(needs, number, tag="x" * 100_000)
    assert all(needs.seen(b"%d" % number, SCOPES) is not None for number in range(100))
    looked_up(needs, 100, tag="x" * REMEMBERED_BYTES)
    looked_up(needs, 101, tag="client:42")
    assert needs.seen(b"100", SCOPES) is None
    assert all(needs.seen(b"%d" % number, SCOPES) is not None for number in (*range(100), 101))
