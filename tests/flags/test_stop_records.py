"""Stop records: what a reader makes of what it sees. Silence lifts nothing."""

import json
from dataclasses import replace

import pytest

from tidegate.errors import FlagError
from tidegate.flags.stop_records import MAX_NUMBER, StopRecord, StopView, decode, encode, next_number

FLAG = "tidegate.cache"
STOP = StopRecord(
    flag=FLAG, environment="production", stopped=True, number=10, since=100.0, reason="fire", by="ann@desk"
)
LIFTED = replace(STOP, stopped=False, number=11)


def view_of(*records: StopRecord | bytes | None) -> tuple[StopView, list[str]]:
    """A reader that has seen these, one after the other, and what it had to say about the last."""
    view, wrong = StopView([FLAG, "tidegate.etag"], "production"), [""]
    for record in records:
        raw = encode(record) if isinstance(record, StopRecord) else record
        wrong = view.take({} if raw is None else {FLAG: raw})
    return view, wrong


def test_a_record_is_read_as_it_was_written() -> None:
    for record in (STOP, replace(STOP, until=200.5), replace(STOP, reason='"number": 7, \u2028 \ud800')):
        assert decode(encode(record), FLAG, "production") == record
    assert len(decode(encode(replace(STOP, reason="x" * 9999)), FLAG, "production").reason) == 500


@pytest.mark.parametrize(
    "change",
    [
        {"number": 0},
        {"number": 1.5},
        {"number": MAX_NUMBER + 1},
        {"number": True},
        {"stopped": "no"},
        {"since": None},
        {"since": float("nan")},
        {"until": "tomorrow"},
        {"until": 1e300},
        {"flag": "tidegate.etag"},
        {"environment": "development"},
    ],
)
def test_what_is_no_record_of_this_flag_is_refused_and_counts_as_stopped(change: dict[str, object]) -> None:
    raw = json.dumps(json.loads(encode(LIFTED)) | change).encode()
    with pytest.raises(FlagError, match=FLAG):
        decode(raw, FLAG, "production")
    view, wrong = view_of(raw)
    assert view.stopped(1000) == {FLAG}
    assert "counts as stopped" in wrong[0]


@pytest.mark.parametrize("raw", [b"", b"\xff", b"[]", b"[" * 100_000, b"7", b"{}", encode(STOP) + b" " * 20_000])
def test_garbage_counts_as_stopped_until_something_good_stands_there(raw: bytes) -> None:
    assert view_of(raw)[0].stopped(1000) == {FLAG}
    assert view_of(raw, LIFTED)[0].stopped(1000) == frozenset()
    assert view_of(LIFTED, raw)[0].stopped(1000) == {FLAG}
    assert view_of(LIFTED, raw, LIFTED)[0].stopped(1000) == frozenset()


def test_only_a_newer_record_lifts() -> None:
    assert view_of(STOP)[0].stopped(1000) == {FLAG}
    assert view_of(STOP, LIFTED)[0].stopped(1000) == frozenset()
    assert view_of(STOP, LIFTED, replace(STOP, number=12))[0].stopped(1000) == {FLAG}


def test_a_stop_outlives_a_home_that_was_emptied_or_went_back_in_time_and_that_is_said() -> None:
    emptied, told = view_of(STOP, None)
    assert emptied.stopped(1000) == {FLAG}
    assert told == [f"the stop record of {FLAG} is gone; the stop stands until it is lifted"]
    earlier, told = view_of(STOP, replace(LIFTED, number=9))
    assert earlier.stopped(1000) == {FLAG}
    assert "older than the one known before" in told[0]
    assert view_of(STOP, None, LIFTED)[0].stopped(1000) == frozenset()
    assert view_of(STOP, LIFTED, None)[1] == []


def test_a_stop_ends_by_itself_at_its_until() -> None:
    view, _ = view_of(replace(STOP, until=500.0))
    assert (view.stopped(499.9), view.stopped(500.0)) == ({FLAG}, frozenset())
    assert (view.next_end(499.0), view.next_end(500.0)) == (500.0, float("inf"))


def test_numbers_grow_whatever_stands_there() -> None:
    assert next_number(1.0, None) == 1_000_000
    assert next_number(1.0, encode(STOP)) == 1_000_000
    assert next_number(1e-6, encode(STOP)) == 11
    for garbage in (b"", b"[]", b'{"number": 1e400}', b'{"number": -5}', b'{"number": %d}' % MAX_NUMBER, b"[" * 10**5):
        assert next_number(1.0, garbage) == 1_000_000


def test_a_stop_that_could_not_be_read_is_not_lifted_by_silence_nor_by_an_older_record() -> None:
    for seen in ((b"{}", None), (LIFTED, b"{}", None), (LIFTED, b"{}", replace(LIFTED, number=9))):
        view, told = view_of(*seen)
        assert view.stopped(1000) == {FLAG}
        assert told
    assert view_of(b"{}", None, LIFTED)[0].stopped(1000) == frozenset()
