"""What an app gave in part is kept, joined and served in part (RFC 9111 3.3 and 3.4), and never mixed."""

import asyncio
from typing import Any

import pytest

from tests.driver import Answer, User, call
from tests.middleware.layers.test_validation import ANN, Bench, run
from tidegate.middleware.core.policy import RoutePolicy

WHOLE = bytes(range(48, 58))


class Ranged:
    """An app that answers `bytes=first-last` and `bytes=first-`, and says whatever else it is told to."""

    def __init__(self, *said: tuple[str, str], whole: bytes = WHOLE) -> None:
        self.said = dict(said) or {"cache-control": "max-age=60", "etag": '"a"'}
        self.whole = whole
        self.calls = 0
        self.place: str | None = None
        self.asked: list[dict[bytes, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        self.asked.append(fields := dict(scope["headers"]))
        asked = fields.get(b"range")
        headers = [(name.encode(), value.encode()) for name, value in self.said.items()]
        body, status = self.whole, 200
        named = fields.get(b"if-range", self.said.get("etag", "").encode())
        if asked is not None and scope["method"] == "GET" and named == self.said.get("etag", "").encode():
            first, last = (int(number or len(body) - 1) for number in asked[6:].split(b"-"))
            body, status = self.whole[first : last + 1], 206
            place = self.place or f"bytes {first}-{last}/{len(self.whole)}"
            headers.append((b"content-range", place.encode()))
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def asked(app: Ranged, *ranges: str, **options: Any) -> list[Answer]:
    """The answers to these Ranges, one after the other; an empty one asks for the whole."""
    bench = Bench(app, **options)

    async def story() -> list[Answer]:
        return [await bench.get(0, *([("range", each)] if each else [])) for each in ranges]

    return run(story)


@pytest.mark.parametrize(
    ("again", "body", "place"),
    [
        ("bytes=2-5", b"2345", "bytes 2-5/10"),
        ("bytes=3-4", b"34", "bytes 3-4/10"),
        ("bytes=5-5", b"5", "bytes 5-5/10"),
        ("Bytes= 3-4", b"34", "bytes 3-4/10"),
    ],
)
def test_a_part_answers_for_what_lies_in_it(again: str, body: bytes, place: str) -> None:
    app = Ranged()
    first, second = asked(app, "bytes=2-5", again)
    assert (first.hit, second.hit, app.calls) == (False, True, 1)
    assert (second.status, second.body, second.header("content-range")) == (206, body, place)
    assert second.header("content-length") == str(len(body))
    assert second.header("etag") == '"a"'


def test_a_part_at_the_end_answers_for_open_and_suffix_ranges() -> None:
    app = Ranged()
    _, *others = asked(app, "bytes=4-9", "bytes=6-", "bytes=-2")
    assert [(each.hit, each.body) for each in others] == [(True, b"6789"), (True, b"89")]


@pytest.mark.parametrize("again", ["bytes=1-4", "bytes=5-6", "bytes=6-9"])
def test_what_a_part_lacks_is_the_apps_to_answer(again: str) -> None:
    app = Ranged()
    _, second = asked(app, "bytes=2-5", again)
    assert (second.hit, app.calls) == (False, 2)


def test_who_asks_for_the_whole_or_with_head_or_conditions_never_gets_a_part() -> None:
    app = Ranged()
    bench = Bench(app)

    async def story() -> None:
        await bench.get(0, ("range", "bytes=2-5"))
        assert (await bench.get(0, ("range", "bytes=2-5"))).hit
        head = await bench.get(0, ("range", "bytes=2-5"), method="HEAD")
        assert (head.status, head.hit) == (200, False)
        for condition in (("if-none-match", '"b"'), ("if-range", '"b"'), ("if-range", 'W/"a"')):
            other = Bench(Ranged())
            await other.get(0, ("range", "bytes=2-5"))
            assert not (await other.get(0, ("range", "bytes=2-5"), condition)).hit
        assert (await bench.get(0, ("range", "bytes=2-5"), ("if-range", '"a"'))).hit
        whole = await bench.get()
        assert (whole.status, whole.hit, whole.body) == (200, False, WHOLE)

    run(story)


@pytest.mark.parametrize("order", [("bytes=0-3", "bytes=4-9"), ("bytes=4-9", "bytes=0-3"), ("bytes=0-6", "bytes=3-9")])
def test_parts_with_the_same_strong_etag_that_lack_nothing_together_are_the_whole(order: tuple[str, str]) -> None:
    app = Ranged()
    *_, whole, some = asked(app, *order, "", "bytes=2-5")
    assert (whole.hit, whole.status, whole.body, app.calls) == (True, 200, WHOLE, 2)
    assert whole.header("content-range") is None
    assert whole.header("content-length") == "10"
    assert (some.hit, some.body) == (True, b"2345")


def test_parts_that_meet_are_one_longer_part_and_parts_with_a_gap_are_not() -> None:
    app = Ranged()
    *_, both = asked(app, "bytes=1-3", "bytes=4-6", "bytes=2-5")
    assert (both.hit, both.body) == (True, b"2345")
    *_, later, earlier = asked(Ranged(), "bytes=1-2", "bytes=5-6", "bytes=5-5", "bytes=1-1")
    assert (later.hit, earlier.hit) == (True, False)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {}),
        ({"etag": 'W/"a"'}, {"etag": 'W/"a"'}),
        ({"etag": '"a"'}, {"etag": '"b"'}),
        ({"etag": '"a"'}, {}),
        ({"last-modified": "Wed, 01 Jan 2020 00:00:00 GMT"}, {"last-modified": "Wed, 01 Jan 2020 00:00:00 GMT"}),
        ({"etag": '"a"', "content-type": "a/b"}, {"etag": '"a"', "content-type": "a/c"}),
        ({"etag": '"a"', "content-encoding": "gzip"}, {"etag": '"a"'}),
    ],
)
def test_parts_of_what_may_be_two_versions_are_never_joined(one: dict[str, str], other: dict[str, str]) -> None:
    app = Ranged()
    bench = Bench(app)

    async def story() -> None:
        app.said, app.whole = {"cache-control": "max-age=60", **one}, b"aaaaaaaaaa"
        await bench.get(0, ("range", "bytes=0-4"))
        app.said, app.whole = {"cache-control": "max-age=60", **other}, b"bbbbbbbbbb"
        await bench.get(0, ("range", "bytes=5-9"))
        assert (await bench.get(0, ("range", "bytes=6-7"))).hit
        whole = await bench.get()
        assert (whole.hit, whole.body) == (False, b"bbbbbbbbbb")

    run(story)


def test_an_etag_that_stays_while_the_bytes_change_joins_nothing() -> None:
    app = Ranged(whole=b"aaaaaaaaaa")
    bench = Bench(app)

    async def story() -> None:
        app.said = {"cache-control": "max-age=60", "etag": '"a"'}
        await bench.get(0, ("range", "bytes=0-5"))
        app.whole = b"bbbbbbbbbb"
        await bench.get(0, ("range", "bytes=5-9"))
        assert (await bench.get()).body == b"bbbbbbbbbb"

    run(story)


@pytest.mark.parametrize(
    "said",
    [
        {"cache-control": "no-store, max-age=60"},
        {"cache-control": "no-cache, max-age=60", "etag": '"a"'},
        {"cache-control": "max-age=0", "etag": '"a"'},
        {"cache-control": "max-age=60", "set-cookie": "a=b"},
        {"cache-control": "max-age=60", "vary": "*"},
        {"cache-control": "public", "last-modified": "Wed, 01 Jan 2020 00:00:00 GMT"},
        {"etag": '"a"'},
    ],
)
def test_a_part_is_not_kept_where_it_may_not_be_or_says_no_lifetime(said: dict[str, str]) -> None:
    app = Ranged(*said.items())
    asked(app, "bytes=2-5", "bytes=2-5")
    assert app.calls == 2


@pytest.mark.parametrize(
    "place",
    ["bytes 2-5/*", "bytes 5-2/10", "bytes 2-5/5", "bytes 2-4/10", "lines 2-5/10", "bytes 2-5", "bytes */10", "x",
     "bytes 2-5/10, bytes 2-5/10", "bytes 2-5/9999999999999999999"],
)  # fmt: skip
def test_a_part_whose_place_cannot_be_relied_on_is_not_kept(place: str) -> None:
    app = Ranged()
    app.place = place
    asked(app, "bytes=2-5", "bytes=2-5")
    assert app.calls == 2


def test_of_a_part_that_is_shorter_than_it_says_only_what_came_is_there() -> None:
    app = Ranged()
    app.place = "bytes 2-9/10"
    _, same, inside, end, *others = asked(
        app, "bytes=2-5", "bytes=2-5", "bytes=3-5", "bytes=4-", "bytes=5-6", "bytes=-1"
    )
    assert [each.hit for each in (same, inside, end, *others)] == [True, True, True, False, False]
    assert (same.body, inside.body) == (b"2345", b"345")
    # To an open end it is what the app said that it sent, as far as it came, and says so.
    assert (end.body, end.header("content-range")) == (b"45", "bytes 4-5/10")
    assert app.calls == 3


def test_an_open_end_is_given_no_less_than_the_whole_rest_where_the_app_said_no_more() -> None:
    app = Ranged()
    _, end = asked(app, "bytes=2-5", "bytes=4-")
    assert (end.hit, end.body) == (False, b"456789")


def test_a_part_that_may_have_been_cut_off_is_not_kept() -> None:
    class Cut(Ranged):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def unstated(message: Any) -> None:
                headers = [pair for pair in message.get("headers", ()) if pair[0] != b"content-length"]
                await send({**message, "headers": headers} if "headers" in message else message)

            await super().__call__(scope, receive, unstated)

    app = Cut()
    _, again = asked(app, "bytes=2-5", "bytes=2-5")
    assert again.hit
    app.place = "bytes 2-9/10"
    _, again = asked(app, "bytes=2-5", "bytes=2-5")
    assert not again.hit


def test_a_part_is_for_its_share_its_variant_and_its_time_and_a_write_clears_it() -> None:
    app = Ranged(("cache-control", "max-age=60"), ("etag", '"a"'), ("vary", "x"))
    bench = Bench(app)

    async def ask(later: float = 0.0, *more: tuple[str, str], **of: Any) -> bool:
        return (await bench.get(later, ("range", "bytes=2-5"), *more, **of)).hit

    async def story() -> None:
        assert [await ask(), await ask()] == [False, True]
        assert not await ask(user=User("acme", "bob"))
        assert not await ask(user=User("globex", "ann"))
        assert not await ask(0, ("x", "1"))
        assert await ask(0, ("x", "1"))
        await call(bench.layer, method="POST", user=ANN)
        assert not await ask(0, ("x", "1"))
        assert await ask(59, ("x", "1"))
        assert not await ask(2, ("x", "1"))

    run(story)


def test_a_part_is_bounded_as_a_whole_is() -> None:
    app = Ranged()
    _, one, _, joined = asked(app, "bytes=2-5", "bytes=2-5", "bytes=6-9", "bytes=3-7", max_body=5)
    assert (one.hit, joined.hit) == (True, False)
    app = Ranged()
    asked(app, "bytes=2-9", "bytes=2-9", max_body=5)
    assert app.calls == 2


def test_a_purge_while_the_app_answers_in_part_wins() -> None:
    async def story() -> None:
        inner = Ranged()
        purging = True

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if purging and scope["method"] == "GET":
                await call(bench.layer, method="DELETE", user=ANN)
            await inner(scope, receive, send)

        bench = Bench(app)
        await bench.get(0, ("range", "bytes=2-5"))
        purging = False
        assert not (await bench.get(0, ("range", "bytes=2-5"))).hit
        assert (await bench.get(0, ("range", "bytes=2-5"))).hit
        assert not (await bench.get(5, ("range", "bytes=2-5"), ("cache-control", "max-age=2"))).hit

    asyncio.run(story())


def test_fields_of_the_connection_are_not_kept_with_a_part() -> None:
    app = Ranged(("cache-control", "max-age=60"), ("connection", "x-hop"), ("x-hop", "1"), ("x", "2"))
    _, second = asked(app, "bytes=2-5", "bytes=2-5")
    assert second.hit
    assert (second.header("x-hop"), second.header("connection"), second.header("x")) == (None, None, "2")


def test_a_policys_ttl_makes_no_part_fresh() -> None:
    app = Ranged(("etag", '"a"'))
    bench = Bench(app, RoutePolicy(route="/", ttl=60, share="user"))

    async def story() -> None:
        for _ in range(2):
            await bench.get(0, ("range", "bytes=2-5"))

    run(story)
    assert app.calls == 2
