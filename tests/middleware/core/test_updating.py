"""What a 304 or a HEAD says of a stored response (RFC 9111 3.2, 4.3)."""

import pytest

from tidegate.middleware.core.updating import conditions, is_about, updated

LM = b"Wed, 01 Jan 2020 00:00:00 GMT"
STORED = ((b"etag", b'"a"'), (b"last-modified", LM), (b"content-length", b"4"), (b"x", b"1"), (b"date", b"old"))


def test_the_stored_validators_are_asked_with_but_our_own_etag() -> None:
    assert conditions(STORED, own_etag=False) == [(b"if-none-match", b'"a"'), (b"if-modified-since", LM)]
    assert conditions(STORED, own_etag=True) == [(b"if-modified-since", LM)]
    assert conditions([(b"x", b"1")], own_etag=False) == []


@pytest.mark.parametrize(
    ("news", "head", "about"),
    [
        ([], False, True),
        ([(b"etag", b'"a"')], False, True),
        ([(b"etag", b'W/"a"')], False, True),
        ([(b"etag", b'"b"')], False, False),
        ([(b"last-modified", LM)], False, True),
        ([(b"last-modified", b"Thu, 02 Jan 2020 00:00:00 GMT")], False, False),
        ([(b"content-length", b"5")], False, True),
        ([(b"content-length", b"5")], True, False),
        ([(b"content-length", b"4"), (b"etag", b'"a"')], True, True),
    ],
)
def test_an_answer_speaks_of_the_stored_response(news: list[tuple[bytes, bytes]], head: bool, about: bool) -> None:
    assert is_about(news, STORED, own_etag=False, head=head) is about


def test_new_fields_take_the_place_of_the_stored_ones_but_for_those_of_the_body_and_the_connection() -> None:
    news = [
        (b"x", b"2"),
        (b"x", b"3"),
        (b"y", b"new"),
        (b"content-length", b"0"),
        (b"content-type", b"other/x"),
        (b"connection", b"z"),
        (b"z", b"1"),
        (b"set-cookie", b"a=b"),
        (b"etag", b'W/"a"'),
    ]
    assert updated(STORED, news) == (
        (b"etag", b'"a"'),
        (b"last-modified", LM),
        (b"content-length", b"4"),
        (b"x", b"2"),
        (b"x", b"3"),
        (b"y", b"new"),
    )
