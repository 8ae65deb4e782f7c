"""What a remembered head says is what reading the fields anew says, wherever their Content-Length stands."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.middleware.layers import fields
from tidegate.middleware.layers.fields import Head, Heads, Pair, read

LENGTHS = [(b"content-length", b"5"), (b"content-length", b"512"), (b"Content-Length", b"7")]
OTHERS = [
    (b"content-type", b"text/html"),
    (b"content-type", b"text/event-stream"),
    (b"Content-Type", b"text/html"),
    (b"cache-control", b"no-store"),
    (b"Cache-Control", b"max-age=60"),
    (b"vary", b"Cookie"),
    (b"set-cookie", b"a=1"),
    (b"etag", b'"v1"'),
    (b"last-modified", b"yesterday"),
    (b"expires", b"0"),
    (b"date", b"today"),
    (b"content-encoding", b"gzip"),
    (b"connection", b"close"),
    (b"age", b"1"),
    (b"x-split", b"a\r\nb: c"),
    (b"x-nul\x00", b""),
    (b"x-long", b"y" * 2000),
]
RESPONSES = st.tuples(
    st.lists(st.sampled_from(OTHERS), max_size=3),
    st.sampled_from(LENGTHS),
    st.lists(st.sampled_from(OTHERS), max_size=3),
).map(lambda parts: [*parts[0], parts[1], *parts[2]])
ALL: list[Pair] = [*LENGTHS, *OTHERS]


def said(head: Head) -> list[Any]:
    return [getattr(head, name) for name in Head.__slots__ if name not in ("length", "plans", "size")]


@settings(max_examples=300, deadline=None)
@given(st.lists(RESPONSES, min_size=1, max_size=12))
def test_a_head_says_the_same_whether_it_is_remembered_or_not(responses: list[list[Pair]]) -> None:
    heads = Heads()
    for lines in [*responses, *responses, *(same for each in responses for same in [each] * 3)]:
        given_lines = list(lines)
        found = heads.of(lines)
        assert lines == given_lines
        assert found is not None
        head, length = found
        fresh = read(lines)
        assert said(head) == said(fresh)
        assert fresh.length == (b"content-length", length)
        assert [*head.before, (b"content-length", length), *head.after] == [(n.lower(), v) for n, v in lines]
        assert head.size == sum(len(n) + len(v) for n, v in lines) - len(b"content-length") - len(length)


def test_what_the_lines_say_is_told() -> None:
    told = {line: read([line]) for line in ALL}
    assert {line for line, head in told.items() if not head.fit} == {
        (b"connection", b"close"), (b"age", b"1"), (b"x-split", b"a\r\nb: c"), (b"x-nul\x00", b"")
    }  # fmt: skip
    assert [line for line, head in told.items() if head.labelled] == [(b"etag", b'"v1"')]
    assert [line for line, head in told.items() if head.coded] == [(b"content-encoding", b"gzip")]
    assert [line for line, head in told.items() if head.streams] == [(b"content-type", b"text/event-stream")]
    assert [line for line, head in told.items() if head.dated] == [(b"date", b"today")]
    assert {line: head.shape for line, head in told.items() if head.shape} == {
        (b"cache-control", b"no-store"): ((b"cache-control", b"no-store"),),
        (b"Cache-Control", b"max-age=60"): ((b"cache-control", b"max-age=60"),),
        (b"vary", b"Cookie"): ((b"vary", b"Cookie"),),
        (b"set-cookie", b"a=1"): ((b"set-cookie", b""),),
        (b"etag", b'"v1"'): ((b"etag", b""),),
        (b"last-modified", b"yesterday"): ((b"last-modified", b""),),
        (b"expires", b"0"): ((b"expires", b""),),
    }
    assert not read([LENGTHS[0], LENGTHS[0]]).fit, "two lengths say nothing"


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [(b"x", b"y")],
        [("content-length", "5")],
        [(b"content-length", bytearray(b"5"))],
        [(b"content-length", b"5"), (b"x", bytearray(b"y"))],
        [(b"content-length", b"5"), (b"x", memoryview(b"y"))],
        [(b"content-length", b"5"), [b"x", b"y"]],
        [(b"content-length", b"5"), (b"x", "y")],
        [(b"content-length", b"5"), (b"x", b"y", b"z")],
        [(b"content-length",)],
        [None],
    ],
)
def test_what_asgi_does_not_allow_is_left_alone(lines: list[Any]) -> None:
    heads = Heads()
    for _ in range(3):
        assert heads.of(lines) is None


def test_heads_are_remembered_from_the_second_time_on_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "_REMEMBERED", 16)
    heads = Heads()

    def of(*lines: Pair) -> Head:
        found = heads.of([(b"content-length", b"5"), *lines])
        assert found is not None
        return found[0]

    usual = (b"content-type", b"text/html")
    first = of(usual)
    second = of(usual)
    assert second is not first
    assert of(usual) is second
    for number in range(100):
        of((b"x-request-id", b"%d" % number))
        assert of(usual) is second, "what occurs once pushes nothing out"
    long = (b"x-long", b"y" * 2000)
    assert len({id(head) for head in [of(long) for _ in range(5)]}) == 5
    seen = [of((b"x", b"%d" % number)) for number in range(40) for _ in range(3)]
    assert len(seen) == 120
    assert len(heads._known) <= 16  # pyright: ignore[reportPrivateUsage]
