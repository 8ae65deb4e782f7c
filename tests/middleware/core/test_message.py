"""Reading header fields (RFC 9110 5.6, RFC 9111 5.2)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.middleware.core.message import (
    delta_seconds,
    directives,
    format_date,
    list_members,
    parse_date,
    storable_headers,
)
from tidegate.middleware.core.storing import request_directives


@pytest.mark.parametrize(
    ("lines", "members"),
    [
        ([b"a, b ,c"], [b"a", b"b", b"c"]),
        ([b" ,a,, \t", b"b"], [b"a", b"b"]),
        ([b'private="x, y", max-age=1'], [b'private="x, y"', b"max-age=1"]),
        ([b'a="\\",b", c'], [b'a="\\",b"', b"c"]),
        ([b'a="unclosed, b', b'c="d, e"'], [b'a="unclosed', b"b", b'c="d, e"']),
        ([], []),
    ],
)
def test_lists_split_at_commas_outside_quotes(lines: list[bytes], members: list[bytes]) -> None:
    assert list(list_members(lines)) == members


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([b"Max-Age=5, NO-STORE"], {b"max-age": b"5", b"no-store": None}),
        ([b'max-age="7"'], {b"max-age": b"7"}),
        ([b"max-age=1", b"max-age=2"], {b"max-age": b"1"}),
        ([b'private="a", private'], {b"private": None}),
    ],
)
def test_directives_are_read_without_regard_to_case_and_the_stricter_wins(
    lines: list[bytes], found: dict[bytes, bytes | None]
) -> None:
    assert directives(lines) == found


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"0", 0),
        (b"10", 10),
        (b"99999999999999999999", 2**31),
        (b"-1", None),
        (b"1.0", None),
        (b"", None),
        (None, None),
    ],
)
def test_delta_seconds_are_digits_only(text: bytes | None, seconds: int | None) -> None:
    assert delta_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", [b"Sun, 06 Nov 1994 08:49:37 GMT", b"Sunday, 06-Nov-94 08:49:37 GMT", b"Sun Nov  6 08:49:37 1994"]
)
def test_the_three_forms_of_a_date_are_read(text: bytes) -> None:
    assert parse_date(text) == 784111777


@pytest.mark.parametrize(
    "text",
    [
        b"0",
        b"",
        b"Sun, 06 Nov 1994 08:49:37 UTC",
        b"Sun, 6 Nov 1994 08:49:37 GMT",
        b"Sun, 06 Nov 94 08:49:37 GMT",
        b"Sun, 06 Nov 1994 8:49:37 GMT",
        b"Sun, 31 Feb 1994 08:49:37 GMT",
        b"06 Nov 1994 08:49:37 GMT",
    ],
)
def test_what_is_no_http_date_is_refused(text: bytes) -> None:
    assert parse_date(text) is None


@given(st.integers(min_value=0, max_value=2**32))
def test_dates_round_trip(seconds: int) -> None:
    assert parse_date(format_date(seconds)) == seconds


@given(st.binary(max_size=60))
def test_no_date_text_raises(text: bytes) -> None:
    parse_date(text)


def test_hop_by_hop_fields_are_dropped_and_order_and_duplicates_kept() -> None:
    headers = [(b"Link", b"1"), (b"connection", b"Close, X-Own"), (b"x-own", b"2"), (b"link", b"3"), (b"age", b"4")]
    assert storable_headers(headers) == ((b"link", b"1"), (b"link", b"3"))


@pytest.mark.parametrize(
    ("control", "seconds"),
    [
        ("max-stale", 2**31),
        ("max-stale=5", 5),
        ("max-stale=5, max-stale", 5),
        ("max-stale, max-stale=5", 2**31),
        ("max-stale=", None),
        ('max-stale=""', None),
        ("max-stale=soon", None),
        ("max-age=5", None),
    ],
)
def test_only_max_stale_without_an_argument_takes_what_is_stale_for_however_long(
    control: str, seconds: int | None
) -> None:
    assert request_directives([(b"cache-control", control.encode())]).max_stale == seconds
