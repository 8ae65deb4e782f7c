"""What apps say oddly, in part or too late misleads nobody who asks after: RFC 9111 3, 4 and 5.2, RFC 9110 12 to 15."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.driver import Answer, Origin, User, call
from tests.middleware.layers.test_parts import Ranged
from tests.middleware.layers.test_refresh import settled
from tests.middleware.layers.test_validation import ANN, LM, Bench, Conditional, run

BOB = User("acme", "bob")
FRESH = ("cache-control", "max-age=60")
Fields = Sequence[tuple[str, str]]


def two(headers: Fields, *, first: Fields = (), second: Fields = (), share: Any = "tenant", **of: Any) -> list[Answer]:
    """Ann's answer and then Bob's, from an app that says this."""
    bench = Bench(Origin(headers=headers, **of), share=share)

    async def story() -> list[Answer]:
        return [await bench.get(0, *first), await bench.get(0, *second, user=BOB)]

    return run(story)


class Unsatisfied:
    """An app that has nothing of any Range, and says for how long as it does of everything."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        ranged = any(name == b"range" for name, _ in scope["headers"])
        headers = [(b"cache-control", b"public, max-age=60"), (b"content-length", b"0" if ranged else b"3")]
        headers += [(b"content-range", b"bytes */3")] if ranged else []
        await send({"type": "http.response.start", "status": 416 if ranged else 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if ranged else b"abc"})


@pytest.mark.parametrize("share", ["user", "tenant", "public"])
def test_that_there_is_nothing_of_one_range_is_not_said_to_others(share: Any) -> None:
    app = Unsatisfied()
    bench = Bench(app, share=share)

    async def story() -> list[Answer]:
        return [await bench.get(0, ("range", "bytes=99-")), await bench.get(), await bench.get()]

    answers = run(story)
    assert [answer.status for answer in answers] == [416, 200, 200]
    assert [answer.hit for answer in answers] == [False, False, True]


def test_our_own_416_does_not_say_for_how_long() -> None:
    kept = [("cache-control", "max-age=60"), ("expires", "Thu, 01 Jan 2099 00:00:00 GMT"), ("etag", '"a"')]
    _, answer = two([*kept, ("cdn-cache-control", "max-age=60")], second=[("range", "bytes=99-")])
    assert (answer.status, answer.hit, answer.header("etag")) == (416, True, '"a"')
    assert [answer.header(name) for name in ("cache-control", "expires", "cdn-cache-control")] == [None] * 3


@pytest.mark.parametrize("vary", ['"x", y', "x y", "x;y", "x, *", "x*", "é"])
def test_a_vary_that_cannot_be_read_selects_nothing_for_anybody(vary: str) -> None:
    _, other = two([FRESH, ("vary", vary)], first=[("x", "1")], second=[("x", "2")])
    assert not other.hit


@pytest.mark.parametrize(
    "control", ['max-age=60, x="a, no-store', 'max-age=60, x="a\\", no-store', 'x="a, private, max-age=60']
)
def test_a_quote_that_is_never_closed_hides_no_directive(control: str) -> None:
    assert not two([("cache-control", control)])[1].hit


@pytest.mark.parametrize("kind", ["private", "no-cache"])
def test_all_fields_that_may_not_be_kept_are_left_out(kind: str) -> None:
    lines = [("cache-control", f'max-age=60, {kind}="x-one"'), ("cache-control", f'{kind}="X-Two, x-three"')]
    _, hit = two([*lines, ("x-one", "1"), ("x-two", "2"), ("x-three", "3"), ("x-four", "4")])
    assert hit.hit
    assert [hit.header(f"x-{name}") for name in ("one", "two", "three", "four")] == [None, None, None, "4"]


@pytest.mark.parametrize("kind", ["private", "no-cache"])
@pytest.mark.parametrize("name", ["content-encoding", "Content-Type", "vary", "x-one, cache-control"])
def test_without_a_field_that_is_needed_to_read_it_nothing_is_kept(kind: str, name: str) -> None:
    headers = [("cache-control", f'max-age=60, {kind}="{name}"'), ("content-encoding", "gzip"), ("vary", "x")]
    assert not two([*headers, ("content-type", "text/plain")])[1].hit


@pytest.mark.parametrize(
    ("control", "age", "hit"),
    [
        ("max-age=00000000000000000060", None, True),
        ("max-age=60", "00000000000000000061", False),
        ("max-age=99999999999999999999", "99999999999999999998", False),
        ("max-age=60", "-1", True),
        ("max-age=60", "4294967297", False),
        ("max-age=-1", None, False),
        ("max-age=0x60", None, False),
        ("max-age=60.5", None, False),
        ("max-age=\u0661", None, False),
        ("max-age=60;x", None, False),
    ],
)
def test_absurd_numbers_make_nothing_fresher_than_it_is(control: str, age: str | None, hit: bool) -> None:
    encoded = control.encode().decode("latin-1")
    assert two([("cache-control", encoded), *([("age", age)] if age else [])])[1].hit is hit


@pytest.mark.parametrize(
    ("expires", "hit"),
    [
        ("Fri, 31 Dec 9999 23:59:59 GMT", True),
        ("Thu, 01 Jan 2099 00:00:00 GMT", True),
        ("Thu, 01 Jan 2099 1_1:2:03 GMT", False),
        ("Thu, 01 Jan 2099 +1:02:03 GMT", False),
        ("Thu, 01 Jan 2099 24:00:00 GMT", False),
        ("Thu, 01 Jan 10000 00:00:00 GMT", False),
        ("Thu, 01 Jan 0000 00:00:00 GMT", False),
        ("Thursday, 01-Jan-70 00:00:00 GMT", True),
        ("Thursday, 01-Jan-73 00:00:00 GMT", True),
        ("Thursday, 01-Jan-74 00:00:00 GMT", False),
        ("Thursday, 01-Jan-99 00:00:00 GMT", False),
        ("-1", False),
        ("0", False),
    ],
)
def test_odd_dates_are_read_strictly_and_two_digits_as_at_most_fifty_years_from_now(expires: str, hit: bool) -> None:
    # The clock of the bench stands in November 2023.
    assert two([("expires", expires)])[1].hit is hit


@pytest.mark.parametrize(("seconds", "status"), [(0, 200), (1, 206), (60, 206)])
@pytest.mark.parametrize("dated", [True, False])
def test_a_date_names_a_version_only_if_no_other_can_have_been_made_in_its_second(
    seconds: int, status: int, dated: bool
) -> None:
    said = [
        FRESH,
        ("last-modified", LM),
        *([("date", f"Wed, 01 Jan 2020 00:0{seconds // 60}:0{seconds % 60} GMT")] if dated else []),
    ]
    bench = Bench(Origin(b"0123456789", headers=said))
    bench.clock.now = 1_577_836_800.0 + seconds

    async def story() -> Answer:
        await bench.get()
        return await bench.get(0, ("range", "bytes=0-1"), ("if-range", LM))

    answer = run(story)
    assert (answer.hit, answer.status) == (True, status)


def test_a_suffix_of_nothing_is_the_whole() -> None:
    _, answer = two([FRESH], second=[("range", "bytes=-5")], body=b"")
    assert (answer.hit, answer.status, answer.body) == (True, 200, b"")


# --- what a 304 says -----------------------------------------------------------------


@pytest.mark.parametrize("hidden", [("connection", "vary"), ("connection", "Close, Vary")])
def test_what_selected_a_response_selects_it_after_a_renewal_too(hidden: tuple[str, str]) -> None:
    app = Conditional(("etag", '"a"'), FRESH, ("vary", "x"), hidden)
    bench = Bench(app)

    async def story() -> list[bool]:
        await bench.get(0, ("x", "1"))
        renewed = await bench.get(61, ("x", "1"))
        assert renewed.header("cache-status") == "Tidegate; fwd=stale; fwd-status=304; stored"
        return [(await bench.get(0, ("x", each))).hit for each in "121"]

    assert run(story) == [True, False, True]


def test_a_304_that_varies_by_more_is_served_to_fewer() -> None:
    app = Conditional(("etag", '"a"'), FRESH, ("vary", "x"), vary="X, y")
    bench = Bench(app)

    async def story() -> list[Answer]:
        one = (("x", "1"), ("y", "1"))
        await bench.get(0, *one)
        await bench.get(61, *one)
        return [await bench.get(0, *one), await bench.get(0, ("x", "1"), ("y", "2")), await bench.get(0, ("y", "1"))]

    same, *others = run(story)
    assert (same.hit, same.header("vary")) == (True, "x, y")
    assert [other.hit for other in others] == [False, False]


@pytest.mark.parametrize("vary", ["*", "y, *", "x y"])
def test_a_304_by_which_nothing_selects_it_any_more_ends_its_storage(vary: str) -> None:
    app = Conditional(("etag", '"a"'), FRESH, vary=vary)
    bench = Bench(app)

    async def story() -> list[Answer]:
        await bench.get()
        return [await bench.get(61), await bench.get()]

    renewed, after = run(story)
    assert (renewed.status, renewed.body, after.hit) == (200, b"one", False)


@pytest.mark.parametrize(
    ("name", "value"),
    [("content-length", "99"), ("content-encoding", "br"), ("content-range", "bytes 0-1/2"), ("content-type", "a/b")],
)
def test_a_304_changes_nothing_that_describes_the_bytes(name: str, value: str) -> None:
    app = Conditional(("etag", '"a"'), FRESH, ("content-type", "text/plain"), **{name.replace("-", "_"): value})
    bench = Bench(app)

    async def story() -> list[Answer]:
        return [await bench.get(), await bench.get(61), await bench.get()]

    first, *others = run(story)
    assert [other.header(name) for other in others] == [first.header(name)] * 2
    assert others[1].hit


@pytest.mark.parametrize("validator", [("etag", '"a"'), ("last-modified", LM)])
def test_a_head_that_does_not_say_which_version_it_is_of_renews_and_ends_nothing(validator: tuple[str, str]) -> None:
    app = Conditional(validator, ("cache-control", "max-age=60, stale-if-error=600"))
    bench = Bench(app)

    async def story() -> list[Answer]:
        await bench.get()
        del app.headers[validator[0]]
        return [await bench.get(61, method="HEAD"), await bench.get()]

    head, again = run(story)
    assert (head.hit, again.hit) == (False, False)
    assert app.methods == ["GET", "HEAD", "GET"]
    # It was still there to be asked about.
    assert app.asked[2].keys() & {b"if-none-match", b"if-modified-since"}


# --- failures while something stale is at hand ------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_an_error_in_the_background_takes_nothings_place_though_it_says_for_how_long(status: int) -> None:
    app = Conditional(("cache-control", "max-age=60, stale-while-revalidate=600"))
    bench = Bench(app)

    async def story() -> list[Answer]:
        await bench.get()
        app.status, app.body = status, b"broken"
        answers = [await bench.get(61)]
        await settled(bench.layer._refreshes)
        return [*answers, await bench.get()]

    assert [(answer.status, answer.body) for answer in run(story)] == [(200, b"one")] * 2
    assert len(app.asked) >= 2


# --- parts --------------------------------------------------------------------------------


def test_a_joined_part_gives_to_each_range_what_it_names() -> None:
    app = Ranged()
    bench = Bench(app)

    async def story() -> list[Answer]:
        return [await bench.get(0, ("range", f"bytes={each}")) for each in ("0-3", "4-6", "4-6", "0-3", "0-6")]

    answers = run(story)
    assert [answer.body for answer in answers] == [b"0123", b"456", b"456", b"0123", b"0123456"]
    assert app.calls == 2


class Framed(Origin):
    """Sends several parts, and says wrongly that they are one."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        body = b"--x\r\ncontent-range: bytes 0-1/1000\r\n\r\nab\r\n--x--"
        headers = [(b"cache-control", b"max-age=60"), (b"content-type", b"Multipart/byteranges; boundary=x")]
        headers += [(b"content-range", b"bytes 0-999/1000"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 206, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def test_nothing_is_cut_from_the_frame_round_several_parts() -> None:
    app = Framed()
    bench = Bench(app)

    async def story() -> bool:
        await bench.get(0, ("range", "bytes=0-1,5-6"))
        return (await bench.get(0, ("range", "bytes=0-1"))).hit

    assert not run(story)
    assert app.calls == 2


@pytest.mark.parametrize(
    ("one", "other", "kept"),
    [
        ({"etag": '"a"'}, {"etag": '"b"'}, False),
        ({"etag": '"a"'}, {"etag": '"a"'}, True),
        ({"last-modified": LM}, {"last-modified": "Thu, 02 Jan 2020 00:00:00 GMT"}, False),
        ({"etag": '"a"'}, {}, True),
    ],
)
def test_a_part_of_a_newer_version_ends_the_older_whole(one: dict[str, str], other: dict[str, str], kept: bool) -> None:
    app = Ranged(FRESH, *one.items())
    bench = Bench(app)

    async def story() -> list[Answer]:
        await bench.get()
        app.said, app.whole = {"cache-control": "max-age=60", **other}, b"abcdefghij"
        await bench.get(0, ("range", "bytes=2-5"), ("cache-control", "no-cache"))
        return [await bench.get(0, ("range", "bytes=2-5")), await bench.get()]

    part, whole = run(story)
    assert part.hit
    assert part.body == (b"2345" if kept else b"cdef")
    assert (whole.hit, whole.body) == (kept, b"0123456789" if kept else b"abcdefghij")


def test_a_part_that_is_shorter_than_it_says_is_joined_to_nothing() -> None:
    """Nobody knows which of its ends is missing."""
    app = Ranged()
    bench = Bench(app)

    async def story() -> list[Answer]:
        app.place = "bytes 4-9/10"
        await bench.get(0, ("range", "bytes=5-9"))
        app.place = None
        await bench.get(0, ("range", "bytes=0-3"))
        return [await bench.get(), await bench.get()]

    assert [answer.body for answer in run(story)] == [b"0123456789"] * 2


def test_a_head_for_a_part_is_answered_by_the_app_alone() -> None:
    app = Ranged()
    bench = Bench(app)

    async def story() -> Answer:
        await bench.get(0, ("range", "bytes=2-5"))
        return await call(bench.layer, method="HEAD", headers=[("range", "bytes=2-5")], user=ANN)

    assert not run(story).hit


# --- what a write clears ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "cleared"),
    [
        ("/b", True),
        ("b", True),
        ("/x/../b", True),
        ("/b#f", True),
        ("//example.test/b", True),
        ("HTTP://EXAMPLE.TEST/b", True),
        ("http://example.test:80/b", True),
        ("http://example.test:443/b", False),
        ("https://example.test/b", False),
        ("http://evil.test/b", False),
        ("http://example.test@evil.test/b", False),
        ("http://example.test.evil.test/b", False),
        ("http://[", False),
        ("/c", False),
    ],
)
@pytest.mark.parametrize("name", ["location", "content-location"])
def test_a_write_clears_what_it_names_of_its_own_origin_for_every_share(
    name: str, location: str, cleared: bool
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        said = [FRESH] if scope["method"] == "GET" else [(name, location)]
        await Origin(headers=said)(scope, receive, send)

    bench = Bench(app)

    async def story() -> list[bool]:
        await call(bench.layer, "/b", user=ANN)
        assert (await call(bench.layer, "/b", user=ANN)).hit
        await call(bench.layer, "/a", method="PATCH", user=User("globex", "eve"))
        return [(await call(bench.layer, "/b", user=ANN)).hit]

    assert run(story) == [not cleared]
