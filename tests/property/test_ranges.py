"""Laws: what a Range gets is exactly the bytes that it names, whole answers stay whole, and no bytes raise."""

from email.parser import BytesParser

from hypothesis import given
from hypothesis import strategies as st

from tidegate.middleware.core.ranges import MAX_RANGES, partial, spans_of

BODIES = st.binary(max_size=60)
ONE = st.tuples(st.integers(0, 70) | st.none(), st.integers(0, 70) | st.none()).filter(lambda one: one != (None, None))


def written(asked: list[tuple[int | None, int | None]]) -> bytes:
    return b"bytes=" + b", ".join(
        (b"" if first is None else b"%d" % first) + b"-" + (b"" if last is None else b"%d" % last)
        for first, last in asked
    )


def named(first: int | None, last: int | None, length: int) -> set[int]:
    """The positions that one range names, by the words of RFC 9110 14.1.2."""
    if first is None:
        assert last is not None
        return set(range(length)[-last:]) if last else set()
    return {at for at in range(length) if at >= first and (last is None or at <= last)}


@given(BODIES, st.lists(ONE, min_size=1, max_size=4))
def test_a_range_gets_the_bytes_that_it_names(body: bytes, asked: list[tuple[int | None, int | None]]) -> None:
    spans = spans_of(written(asked), len(body))
    wanted = [named(first, last, len(body)) for first, last in asked]
    backwards = any(first is not None and last is not None and last < first for first, last in asked)
    overlapping = any(one & other for at, one in enumerate(wanted) for other in wanted[:at])
    if backwards or overlapping or (not body and any(first is None and last for first, last in asked)):
        assert spans is None
    else:
        assert spans == [(min(each), max(each) + 1) for each in wanted if each]


@given(BODIES, st.lists(ONE, min_size=1, max_size=4))
def test_an_answer_in_parts_carries_those_parts(body: bytes, asked: list[tuple[int | None, int | None]]) -> None:
    request = [(b"range", written(asked))]
    headers = [(b"content-type", b"text/x"), (b"content-length", b"%d" % len(body)), (b"etag", b'"a"')]
    spans = spans_of(written(asked), len(body))
    answer = partial(request, headers, body, born=0.0)
    if spans is None:
        assert answer is None
        return
    assert answer is not None
    fields = dict(answer.headers)
    assert fields[b"etag"] == b'"a"'
    assert fields[b"content-length"] == b"%d" % len(answer.body)
    if not spans:
        assert (answer.status, answer.body) == (416, b"")
        assert fields[b"content-range"] == b"bytes */%d" % len(body)
        return
    assert answer.status == 206
    if len(spans) == 1:
        (first, end) = spans[0]
        assert answer.body == body[first:end]
        assert fields[b"content-range"] == b"bytes %d-%d/%d" % (first, end - 1, len(body))
        assert fields[b"content-type"] == b"text/x"
        return
    assert b"content-range" not in fields
    boundary = b"--" + fields[b"content-type"].partition(b"boundary=")[2]
    opening, *parts, end_mark = answer.body.split(boundary)
    assert (opening, end_mark) == (b"", b"--\r\n")
    seen: list[bytes] = []
    for part, (first, end) in zip(parts, spans, strict=True):
        head, _, content = part.removeprefix(b"\r\n").removesuffix(b"\r\n").partition(b"\r\n\r\n")
        said = BytesParser().parsebytes(head)
        assert (said["content-type"], said["content-range"]) == ("text/x", f"bytes {first}-{end - 1}/{len(body)}")
        seen.append(content)
    assert seen == [body[first:end] for first, end in spans]


@given(st.binary(max_size=30), st.integers(0, 50))
def test_no_bytes_raise(value: bytes, length: int) -> None:
    for given_ in (value, b"bytes=" + value):
        spans = spans_of(given_, length)
        assert spans is None or all(0 <= first < end <= length for first, end in spans)


def test_who_asks_for_too_many_parts_gets_the_whole() -> None:
    asked: list[tuple[int | None, int | None]] = [(at * 2, at * 2) for at in range(MAX_RANGES + 1)]
    assert spans_of(written(asked[:-1]), 100) is not None
    assert spans_of(written(asked), 100) is None


def test_a_boundary_never_stands_in_the_body() -> None:
    first = partial([(b"range", b"bytes=0-0,2-2")], [], b"abc", born=0.0)
    assert first is not None
    boundary = dict(first.headers)[b"content-type"].partition(b"boundary=")[2]
    answer = partial([(b"range", b"bytes=0-0,2-2")], [], b"abc" + boundary, born=0.0)
    assert answer is not None
    assert dict(answer.headers)[b"content-type"].partition(b"boundary=")[2] not in b"abc" + boundary
