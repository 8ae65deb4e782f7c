"""The ledger against its definition: the history of purges, read from the beginning for each entry."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.middleware.core.records import WHOLE_SCOPE, Entry
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
    whole, small = Ledger(max_stamps=100, max_scopes=100), Ledger(max_stamps=1, max_scopes=1)
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
