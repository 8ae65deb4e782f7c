"""What is packed comes out as it was, lies in the row that it says, and takes what is counted for it."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.middleware.stores.packing import Held, measured, opened, packed, row_of, taken_by

LENGTHS = [0, 1, 4095, 4096, 4097, 65534, 65535, 65536, 70_000]
"""Around all that makes a difference."""


def check(row: int, number: int, born: float, own: bytes, body: bytes) -> None:
    piece = packed(row, number, born, own, body)
    assert opened(piece) == (row, number, born, own, body)
    assert row_of(piece) == row
    assert measured(piece) == (row, number, taken_by(len(own), len(body)))
    held = Held()
    held.row = row
    assert row_of(held) == row


@pytest.mark.parametrize("own", LENGTHS)
@pytest.mark.parametrize("body", LENGTHS)
def test_an_entry_of_any_size_comes_out_as_it_was(own: int, body: int) -> None:
    check(7, 3, 1.7e9, b"o" * own, b"b" * body)


NUMBERS = st.integers(0, 2**32 - 1)


@given(NUMBERS, NUMBERS, st.floats(allow_nan=False), st.binary(max_size=300), st.binary(max_size=300))
def test_whatever_it_says_it_says_afterwards(row: int, number: int, born: float, own: bytes, body: bytes) -> None:
    check(row, number, born, own, body)


def test_a_small_body_lies_with_the_rest_and_a_large_one_is_not_copied() -> None:
    small, large = b"s" * 4096, b"l" * 4097
    assert isinstance(packed(1, 1, 1.0, b"own", small), bytes)
    assert opened(packed(1, 1, 1.0, b"own", large))[-1] is large


@pytest.mark.parametrize("body", [0, 4096, 4097, 100_000])
def test_what_it_takes_is_what_is_counted(body: int) -> None:
    """But for the object that any piece of bytes is, and what comes before the own part."""
    piece = packed(1, 1, 1.0, b"o" * 50, bytes(body))
    taken = sys.getsizeof(piece) if isinstance(piece, bytes) else sum(map(sys.getsizeof, (piece, *piece)))
    assert abs(taken - sys.getsizeof(b"") - 18 - taken_by(50, body)) <= 15
