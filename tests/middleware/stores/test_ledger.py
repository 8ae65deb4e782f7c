"""The ledger against its definition: the history of purges, read from the beginning for each entry."""

import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.middleware.core.records import WHOLE_SCOPE, Aim, Entry
from tidegate.middleware.stores.ledger import Ledger

SCOPES = st.sampled_from(["public", "tenant:a", "tenant:b"])
TAGS = st.sampled_from(["x", "y", WHOLE_SCOPE])
PURGES = st.dictionaries(SCOPES, st.lists(TAGS, min_size=1, max_size=3), min_size=1, max_size=2)
CARRIED = st.lists(st.tuples(SCOPES, st.sampled_from(["x", "y", "z"])), max_size=3)


def is_void(history: list[dict[str, list[str]]], read_at: int, scopes: list[str], tags: list[tuple[str, str]]) -> bool:
    """Whether a purge since the positions of `scopes` were read concerns it, or a tag has a scope of no position."""
    if any(scope not in scopes for scope, _ in tags):
        return True
    later = history[read_at:]
    return any((scope in purged and WHOLE_SCOPE in purged[scope]) for purged in later for scope in scopes) or any(
        tag in purged.get(scope, ()) for purged in later for scope, tag in tags
    )


@settings(max_examples=400, deadline=None)
@given(st.lists(PURGES, max_size=5), st.data())
def test_an_entry_is_void_where_a_later_purge_concerns_it_and_nowhere_else(
    history: list[dict[str, list[str]]], data: st.DataObject
) -> None:
    ledger = Ledger(max_stamps=100, max_scopes=100)
    scopes = data.draw(st.lists(SCOPES, unique=True, max_size=3))
    tags = data.draw(CARRIED)
    read_at = data.draw(st.integers(0, len(history)))
    for purged in history[:read_at]:
        ledger.positions(scopes)  # others ask too, and what they were told is remembered
        ledger.purge(purged, 0.0)
    positions = tuple(ledger.positions(scopes).items())
    for purged in history[read_at:]:
        ledger.purge(purged, 0.0)
    entry = Entry(status=200, headers=(), body=b"", born=0.0, lifetime=1.0, tags=tuple(tags), positions=positions)
    assert ledger.allows(entry) is not is_void(history, read_at, scopes, tags)


@settings(max_examples=200, deadline=None)
@given(st.lists(PURGES, max_size=8), st.data())
def test_a_ledger_that_forgets_allows_nothing_that_one_that_does_not_refuses(
    history: list[dict[str, list[str]]], data: st.DataObject
) -> None:
    whole = Ledger(max_stamps=100, max_scopes=100)
    limits = data.draw(st.sampled_from([{"max_stamps": 1, "max_scopes": 1}, {"max_bytes": 1600}, {"max_bytes": 300}]))
    small = Ledger(**{"max_stamps": 100, "max_scopes": 100} | limits)
    read_at = data.draw(st.integers(0, len(history)))
    for purged in history[:read_at]:
        whole.purge(purged, 0.0)
        small.purge(purged, 0.0)
    scopes, tags = ["public", "tenant:a", "tenant:b"], tuple(data.draw(CARRIED))
    kept = [ledger.positions(scopes) for ledger in (whole, small)]
    for purged in history[read_at:]:
        whole.purge(purged, 0.0)
        small.purge(purged, 0.0)
    allowed = [
        ledger.allows(
            Entry(status=200, headers=(), body=b"", born=0.0, lifetime=1.0, tags=tags, positions=tuple(read.items()))
        )
        for ledger, read in zip((whole, small), kept, strict=True)
    ]
    assert allowed[0] or not allowed[1]
    if read_at == len(history):
        assert allowed == [True, True]


def test_where_scopes_stand_is_remembered_until_the_next_purge_but_of_long_names_never() -> None:
    ledger = Ledger(max_stamps=100, max_scopes=100)
    short, long = ("tenant:a", "public"), ("tenant:" + "a" * 60_000, "public")
    assert ledger.positions(short) is ledger.positions(short)
    for stamp in range(3):
        assert dict(ledger.positions(long)) == dict.fromkeys(long, stamp)
        assert set(ledger._stood) <= {short}
        ledger.purge({name: ["x"] for name in long}, 0.0)
        assert ledger.positions(short) == {"tenant:a": 0, "public": stamp + 1}


def filled(ledger: Ledger, scope: str, tag: str) -> Entry:
    """An entry that is stored now."""
    positions = tuple(ledger.positions([scope]).items())
    return Entry(status=200, headers=(), body=b"", born=0.0, lifetime=1.0, tags=((scope, tag),), positions=positions)


def test_stamps_take_no_more_bytes_than_they_may_and_a_flood_of_one_scope_costs_the_others_nothing() -> None:
    limit = 256 * 1024
    ledger = Ledger(max_stamps=10_000, max_scopes=10_000, max_bytes=limit)
    ledger.purge({"tenant:a": ["x"]}, 0.0)
    of_another, of_the_same = filled(ledger, "tenant:a", "y"), filled(ledger, "tenant:b", "0" * 5000)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(500):
            ledger.purge({"tenant:a": ["x"], "tenant:b": [f"{number:05000}"]}, 0.0)
            ledger.purge({"tenant:b": [Aim((f"{number:05000}", "z" * 5000), soft=True)]}, 0.0)
        assert tracemalloc.get_traced_memory()[0] - before < limit
    finally:
        tracemalloc.stop()
    assert ledger.forgotten > 400
    assert ledger.allows(of_another), "whose scope purged next to nothing"
    assert not ledger.allows(of_the_same), "what was purged stays purged, though its stamp was let go"


def test_of_many_scopes_the_one_that_has_not_purged_for_longest_loses_its_stamps() -> None:
    limit = 64 * 1024
    ledger = Ledger(max_stamps=10_000, max_scopes=10_000, max_bytes=limit)
    names = [f"tenant:{number}" for number in range(40)]
    entries = {name: filled(ledger, name, "kept") for name in names}
    ledger.purge({"tenant:0": ["0"]}, 0.0)
    for name in names[1:]:
        for number in range(20):
            ledger.purge({name: [str(number)], "tenant:0": ["0"]}, 0.0)
            assert 0 < ledger.bytes <= limit
    allowed = {name for name, entry in entries.items() if ledger.allows(entry)}
    assert allowed == {"tenant:0", *names[-len(allowed) + 1 :]}, "who purged lately keeps them"
    assert 10 < len(allowed) < 30
    assert all(ledger.allows(filled(ledger, name, "kept")) for name in names), "what is stored now stands"
    ledger.purge({name: [WHOLE_SCOPE] for name in names}, 0.0)
    assert ledger.bytes == 0
