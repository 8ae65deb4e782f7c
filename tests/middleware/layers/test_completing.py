"""Who asks for the whole of what is stored in part gets it from that and the rest (RFC 9111 3.4, RFC 9110 15.3.7.3)."""

import asyncio
from typing import Any

import pytest

from tests.driver import Answer, User, call, scope_of
from tests.middleware.layers.test_parts import WHOLE, Ranged
from tests.middleware.layers.test_validation import ANN, LM, Bench, run
from tidegate.middleware.core.policy import RoutePolicy
from tidegate.middleware.layers.coalesce import CoalesceLayer
from tidegate.middleware.layers.parted import MAX_IN_PART

BIG = {b"range": b"bytes=4-", b"if-range": b'"a"'}


def wants(asked: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """The Range and the condition that the app was asked with."""
    return {name: value for name, value in asked.items() if name in (b"range", b"if-range")}


def after(app: Any, part: str, *headers: tuple[str, str], later: float = 0.0, **of: Any) -> list[Answer]:
    """The answers to a GET of the whole and to the next one, after a part was asked for."""
    bench = Bench(app)

    async def story() -> list[Answer]:
        await bench.get(0, ("range", part))
        return [await bench.get(later, *headers, **of), await bench.get()]

    return run(story)


@pytest.mark.parametrize(("part", "rest"), [("bytes=0-3", b"bytes=4-"), ("bytes=4-9", b"bytes=0-3")])
def test_only_what_is_lacking_is_asked_for_and_the_client_gets_the_whole(part: str, rest: bytes) -> None:
    app = Ranged()
    whole, hit = after(app, part)
    assert wants(app.asked[1]) == {b"range": rest, b"if-range": b'"a"'}
    assert (whole.status, whole.body, whole.complete) == (200, WHOLE, True)
    assert (whole.header("content-length"), whole.header("content-range"), whole.header("etag")) == ("10", None, '"a"')
    assert whole.header("cache-status") == "Tidegate; fwd=partial; fwd-status=206; stored"
    assert (hit.hit, hit.body, app.calls) == (True, WHOLE, 2)


def test_what_is_stored_leaves_when_the_apps_answer_begins_and_the_rest_as_it_comes() -> None:
    async def story() -> None:
        go = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if wants(dict(scope["headers"])).get(b"if-range") is None:
                await Ranged()(scope, receive, send)
                return
            headers = [(b"etag", b'"a"'), (b"content-range", b"bytes 4-9/10"), (b"content-length", b"6")]
            await send({"type": "http.response.start", "status": 206, "headers": headers})
            await send({"type": "http.response.body", "body": b"45", "more_body": True})
            await go.wait()
            await send({"type": "http.response.body", "body": b"6789"})

        bench = Bench(app)
        await bench.get(0, ("range", "bytes=0-3"))
        got: list[bytes] = []
        came = asyncio.Event()

        async def send(message: Any) -> None:
            got.append(message.get("body", b""))
            if got[-1] == b"45":
                came.set()

        task = asyncio.create_task(bench.layer(scope_of(user=ANN), None, send))
        await came.wait()
        assert got == [b"", b"0123", b"45"]
        go.set()
        await task
        assert got == [b"", b"0123", b"45", b"6789"]

    asyncio.run(story())


def test_another_version_passes_as_it_is_and_takes_the_place() -> None:
    app = Ranged()
    bench = Bench(app)

    async def story() -> list[Answer]:
        await bench.get(0, ("range", "bytes=0-3"))
        app.said["etag"], app.whole = '"b"', b"abcdefghij"
        return [await bench.get(), await bench.get(), await bench.get(0, ("range", "bytes=0-3"))]

    new, hit, part = run(story)
    assert wants(app.asked[1]) == BIG
    assert (new.status, new.body, new.header("etag")) == (200, b"abcdefghij", '"b"')
    assert [(answer.hit, answer.body) for answer in (hit, part)] == [(True, b"abcdefghij"), (True, b"abcd")]


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"etag": 'W/"a"'},
        {"last-modified": LM},
        {"etag": '"a"', "cache-control": "max-age=0"},
        {"etag": '"a"', "vary": "x-range, range"},
    ],
)
def test_without_a_strong_etag_that_holds_the_whole_is_asked_for(said: dict[str, str]) -> None:
    app = Ranged(*({"cache-control": "max-age=60"} | said).items())
    whole, _ = after(app, "bytes=0-3")
    assert (whole.status, whole.body, wants(app.asked[1])) == (200, WHOLE, {})


@pytest.mark.parametrize("part", ["bytes=2-5", "bytes=0-9"])
def test_of_a_part_in_the_middle_or_of_all_nothing_is_asked_for_in_part(part: str) -> None:
    app = Ranged()
    whole, _ = after(app, part)
    assert whole.body == WHOLE
    assert not any(wants(asked).get(b"if-range") for asked in app.asked)


@pytest.mark.parametrize(
    "asked", [("cache-control", "no-cache"), ("cache-control", "max-age=5"), ("pragma", "no-cache")]
)
def test_a_client_that_wants_nothing_so_old_gets_nothing_of_it(asked: tuple[str, str]) -> None:
    app = Ranged()
    whole, _ = after(app, "bytes=0-3", asked, later=6)
    assert (whole.body, wants(app.asked[1])) == (WHOLE, {})


@pytest.mark.parametrize("of", [{"user": User("acme", "bob")}, {"user": User("globex", "ann")}, {"method": "HEAD"}])
def test_for_others_and_for_head_nothing_is_completed(of: dict[str, Any]) -> None:
    app = Ranged()
    after(app, "bytes=0-3", **of)
    assert wants(app.asked[1]) == {}


def test_another_variant_is_not_completed_with_this_one() -> None:
    app = Ranged(("cache-control", "max-age=60"), ("etag", '"a"'), ("vary", "x"))
    bench = Bench(app)

    async def story() -> None:
        await bench.get(0, ("range", "bytes=0-3"), ("x", "1"))
        await bench.get(0, ("x", "2"))
        await bench.get(0, ("x", "1"))

    run(story)
    assert [wants(asked) for asked in app.asked[1:]] == [{}, BIG]


def test_a_stale_part_is_not_completed_and_only_if_cached_waits_for_nobody() -> None:
    app = Ranged()
    after(app, "bytes=0-3", later=61)
    assert wants(app.asked[1]) == {}
    app = Ranged()
    none, _ = after(app, "bytes=0-3", ("cache-control", "only-if-cached"))
    assert none.status == 504


def test_a_client_that_has_it_gets_304_and_the_whole_is_stored() -> None:
    app = Ranged()
    unmodified, hit = after(app, "bytes=0-3", ("if-none-match", '"a"'))
    assert (unmodified.status, unmodified.body, wants(app.asked[1])) == (304, b"", BIG)
    assert (hit.hit, hit.status, hit.body) == (True, 200, WHOLE)


class Odd(Ranged):
    """Answers the second request, for the rest, with this instead."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes = b"xxxxxx") -> None:
        super().__init__(("cache-control", "max-age=60"), ("etag", '"a"'))
        self.odd = status, headers, body

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not wants(dict(scope["headers"])).get(b"if-range"):
            await super().__call__(scope, receive, send)
            return
        self.asked.append(dict(scope["headers"]))
        self.extensions = scope["extensions"]
        status, headers, body = self.odd
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": body})


RIGHT = {"etag": '"a"', "content-range": "bytes 4-9/10", "content-length": "6"}


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (206, RIGHT | {"etag": '"b"'}),
        (206, RIGHT | {"etag": 'W/"a"'}),
        (206, {name: value for name, value in RIGHT.items() if name != "etag"}),
        (206, RIGHT | {"content-range": "bytes 4-8/10", "content-length": "5"}),
        (206, RIGHT | {"content-range": "bytes 5-9/10", "content-length": "5"}),
        (206, RIGHT | {"content-range": "bytes 4-9/11"}),
        (206, RIGHT | {"content-range": "bytes 4-9/*"}),
        (206, RIGHT | {"content-length": "5"}),
        (206, {name: value for name, value in RIGHT.items() if name != "content-length"}),
        (206, RIGHT | {"content-encoding": "gzip"}),
        (206, RIGHT | {"content-type": "multipart/byteranges; boundary=x"}),
        (416, {"content-range": "bytes */4", "cache-control": "max-age=60"}),
    ],
)
def test_an_answer_that_does_not_fit_is_given_to_nobody_and_the_whole_is_asked_for(
    status: int, headers: dict[str, str]
) -> None:
    app = Odd(status, headers)
    whole, hit = after(app, "bytes=0-3")
    assert [wants(asked) for asked in app.asked[1:]] == [BIG, {}]
    assert (whole.status, whole.body, whole.header("content-length")) == (200, WHOLE, "10")
    assert (hit.hit, hit.body) == (True, WHOLE)


def test_what_once_did_not_fit_is_not_asked_for_again() -> None:
    app = Odd(206, RIGHT | {"etag": '"b"'})
    bench = Bench(app, max_body=6)

    async def story() -> list[Answer]:
        await bench.get(0, ("range", "bytes=0-3"))
        return [await bench.get() for _ in range(3)]

    assert [answer.body for answer in run(story)] == [WHOLE] * 3
    assert [wants(asked) for asked in app.asked[1:]] == [BIG, {}, {}, {}]


def test_a_follower_whose_leaders_answer_did_not_fit_stores_its_own() -> None:
    class Followed(Odd):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            scope["tidegate"].collapsed = (
                bool(wants(dict(scope["headers"])).get(b"if-range")) or scope["tidegate"].collapsed
            )
            await super().__call__(scope, receive, send)

    whole, hit = after(Followed(416, {}), "bytes=0-3")
    assert [(answer.hit, answer.body) for answer in (whole, hit)] == [(False, WHOLE), (True, WHOLE)]


@pytest.mark.parametrize("status", [500, 404, 302])
def test_what_else_the_app_says_passes(status: int) -> None:
    answer, _ = after(Odd(status, {"content-length": "6"}), "bytes=0-3")
    assert (answer.status, answer.body) == (status, b"xxxxxx")


@pytest.mark.parametrize("body", [b"45", b"456789x"])
def test_a_rest_that_is_not_as_long_as_it_says_is_the_apps_fault_and_stored_by_nobody(body: bytes) -> None:
    app = Odd(206, RIGHT, body)
    bench = Bench(app)

    async def story() -> list[Answer]:
        await bench.get(0, ("range", "bytes=0-3"))
        return [await bench.get(), await bench.get()]

    first, second = run(story)
    assert first.body == b"0123" + body
    assert not second.hit


def test_an_app_that_fails_half_way_fails_so_and_nothing_is_stored() -> None:
    class Failing(Ranged):
        broken = True

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if self.broken and wants(dict(scope["headers"])).get(b"if-range"):
                headers = [(name.encode(), value.encode()) for name, value in RIGHT.items()]
                await send({"type": "http.response.start", "status": 206, "headers": headers})
                await send({"type": "http.response.body", "body": b"4", "more_body": True})
                raise RuntimeError("half way")
            await super().__call__(scope, receive, send)

    app = Failing()
    bench = Bench(app)

    async def story() -> Answer:
        await bench.get(0, ("range", "bytes=0-3"))
        with pytest.raises(RuntimeError, match="half way"):
            await bench.get()
        app.broken = False
        return await bench.get()

    again = run(story)
    assert (again.hit, again.body, again.header("cache-status")) == (
        False, WHOLE, "Tidegate; fwd=partial; fwd-status=206; stored",
    )  # fmt: skip


def test_the_app_is_not_told_of_what_cannot_be_joined() -> None:
    app = Odd(206, RIGHT, b"456789")
    bench = Bench(app)
    offered = {"http.response.pathsend": {}, "http.response.trailers": {}, "http.response.debug": {}}

    async def story() -> Answer:
        await bench.get(0, ("range", "bytes=0-3"))
        return await bench.get(0, extensions=offered)

    assert run(story).body == WHOLE
    assert app.extensions == {"http.response.debug": {}}


def test_the_whole_depends_on_what_the_part_did_and_a_purge_meanwhile_wins() -> None:
    app = Ranged()

    async def tagging(scope: Any, receive: Any, send: Any) -> None:
        if wants(dict(scope["headers"])).get(b"if-range"):
            await bench.store.purge(purges)
        else:
            scope["tidegate"].tag("client:1")
        await app(scope, receive, send)

    async def story() -> list[bool]:
        await bench.get(0, ("range", "bytes=0-3"))
        await bench.get()
        hits = [(await bench.get()).hit]
        await bench.store.purge({"tenant:acme": ["client:1"]})
        return [*hits, (await bench.get()).hit]

    purges: dict[str, list[str]] = {}
    bench = Bench(tagging)
    assert run(story) == [True, False]
    purges = {"tenant:acme": ["client:1"]}
    bench = Bench(tagging)
    assert run(story)[0] is False


def test_a_whole_that_is_too_long_to_store_is_completed_all_the_same() -> None:
    app = Ranged()
    bench = Bench(app, max_body=6)

    async def story() -> list[Answer]:
        await bench.get(0, ("range", "bytes=0-3"))
        return [await bench.get(), await bench.get()]

    answers = run(story)
    assert [(answer.hit, answer.body) for answer in answers] == [(False, WHOLE)] * 2
    assert [wants(asked) for asked in app.asked[1:]] == [BIG, BIG]


def test_two_who_ask_at_once_share_one_run_for_the_rest() -> None:
    class Slow(Ranged):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            for _ in range(20):
                await asyncio.sleep(0)
            await super().__call__(scope, receive, send)

    app = Slow()
    bench = Bench(app, RoutePolicy(route="/", share="tenant"))
    bench.layer.app = CoalesceLayer(app, resolver=bench.layer._resolver)

    async def story() -> list[Answer]:
        await bench.get(0, ("range", "bytes=0-3"))
        both = await asyncio.gather(bench.get(), bench.get(0, user=User("acme", "bob")))
        return [*both, await bench.get()]

    one, other, hit = run(story)
    assert [answer.body for answer in (one, other, hit)] == [WHOLE] * 3
    assert [wants(asked) for asked in app.asked[1:]] == [BIG]
    statuses = {answer.header("cache-status") for answer in (one, other)}
    assert statuses == {f"Tidegate; fwd=partial; fwd-status=206; {how}" for how in ("stored", "collapsed")}
    assert hit.hit


def test_it_is_remembered_of_a_bounded_number_that_they_are_stored_in_part() -> None:
    app = Ranged()
    bench = Bench(app)

    async def story() -> None:
        for number in range(MAX_IN_PART + 5):
            await call(bench.layer, f"/{number}", headers=[("range", "bytes=0-3")], user=ANN)

    run(story)
    assert len(bench.layer._config.in_part) == MAX_IN_PART
