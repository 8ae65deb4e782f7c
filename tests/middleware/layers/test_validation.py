"""What is stale is asked about, renewed and served: RFC 9111 4.3, RFC 9110 13 and 14, in the cache layer."""

import asyncio
from typing import Any

import pytest

from tests.driver import Answer, Origin, User, call
from tidegate.middleware.core.policy import Policies, RoutePolicy
from tidegate.middleware.layers.asgi import ContextResolver
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.layers.coalesce import CoalesceLayer
from tidegate.middleware.layers.filling import MAX_VARIANTS
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.memory import MemoryStore

ANN = User("acme", "ann")
LM = "Wed, 01 Jan 2020 00:00:00 GMT"


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class Conditional:
    """An app that answers its own validators with 304, and says what it was asked."""

    def __init__(self, *headers: tuple[str, str], body: bytes = b"one", **news: str) -> None:
        self.headers = dict(headers)
        self.news = news
        self.body = body
        self.status = 200
        self.asked: list[dict[bytes, bytes]] = []
        self.methods: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        asked = dict(scope["headers"])
        self.asked.append(asked)
        self.methods.append(scope["method"])
        etag, modified = self.headers.get("etag"), self.headers.get("last-modified")
        known = etag is not None and asked.get(b"if-none-match") == etag.encode()
        known = known or (modified is not None and asked.get(b"if-modified-since") == modified.encode())
        if known and self.status == 200:
            headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in self.news.items()]
            await send({"type": "http.response.start", "status": 304, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        headers = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        headers.append((b"content-length", b"%d" % len(self.body)))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else self.body})


class Bench:
    def __init__(self, app: Any, *policies: RoutePolicy, **options: Any) -> None:
        self.clock = Clock()
        self.metrics = Metrics.of()
        self.store = MemoryStore(clock=self.clock)
        resolver = ContextResolver(policies=Policies(policies))
        self.layer = CacheLayer(app, store=self.store, resolver=resolver, clock=self.clock, **options)

    async def get(self, later: float = 0.0, *headers: tuple[str, str], **of: Any) -> Answer:
        self.clock.now += later
        return await call(self.layer, headers=headers, **{"user": ANN, **of})


def run(story: Any) -> Any:
    return asyncio.run(story())


@pytest.mark.parametrize(
    ("validator", "field"), [(("etag", '"a"'), b"if-none-match"), (("last-modified", LM), b"if-modified-since")]
)
def test_what_is_stale_is_asked_about_with_its_own_validators_and_renewed(
    validator: tuple[str, str], field: bytes
) -> None:
    app = Conditional(validator, ("cache-control", "max-age=60"), ("x", "old"), x="new")
    bench = Bench(app)

    async def story() -> list[Answer]:
        return [await bench.get(), await bench.get(61, ("if-none-match", '"other"')), await bench.get(59)]

    first, renewed, hit = run(story)
    assert (first.status, first.header("x")) == (200, "old")
    assert app.asked[1][field] == validator[1].encode()
    assert (renewed.status, renewed.body, renewed.header("x")) == (200, b"one", "new")
    assert renewed.header("cache-status") == "Tidegate; fwd=stale; fwd-status=304; stored"
    assert (hit.hit, hit.body, hit.header("x"), hit.header("age")) == (True, b"one", "new", "59")
    assert len(app.asked) == 2


def test_a_client_that_has_the_renewed_response_gets_304() -> None:
    app = Conditional(("etag", '"a"'), ("cache-control", "max-age=60"))
    bench = Bench(app)

    async def story() -> list[Answer]:
        return [await bench.get(), await bench.get(61, ("if-none-match", '"a", "b"'))]

    _, again = run(story)
    assert (again.status, again.body, again.header("etag")) == (304, b"", '"a"')
    assert again.header("content-length") is None


def test_what_says_no_cache_is_asked_about_each_time() -> None:
    app = Conditional(("etag", '"a"'), ("cache-control", "no-cache"))
    bench = Bench(app)

    async def story() -> list[Answer]:
        return [await bench.get(), await bench.get(), await bench.get()]

    answers = run(story)
    assert [answer.body for answer in answers] == [b"one"] * 3
    assert [asked.get(b"if-none-match") for asked in app.asked] == [None, b'"a"', b'"a"']
    assert not any(answer.hit for answer in answers)


def test_a_new_response_takes_the_place_of_the_old_one() -> None:
    app = Conditional(("etag", '"a"'), ("cache-control", "max-age=60"))
    bench = Bench(app)

    async def story() -> list[Answer]:
        await bench.get()
        app.headers["etag"], app.body = '"b"', b"two"
        return [await bench.get(61), await bench.get()]

    new, hit = run(story)
    assert (new.body, hit.body, hit.hit) == (b"two", b"two", True)


def test_a_304_about_another_response_is_not_believed_and_the_app_is_asked_again() -> None:
    app = Conditional(("etag", '"a"'), ("cache-control", "max-age=60"), etag='"b"')
    bench = Bench(app)

    async def story() -> Answer:
        await bench.get()
        return await bench.get(61)

    answer = run(story)
    assert (answer.status, answer.body) == (200, b"one")
    assert [b"if-none-match" in asked for asked in app.asked] == [False, True, False]


@pytest.mark.parametrize("forbidding", [{"cache_control": "no-store"}, {"set_cookie": "a=b"}])
def test_a_304_that_forbids_to_store_is_passed_on_once_and_what_was_stored_goes(forbidding: dict[str, str]) -> None:
    app = Conditional(("etag", '"a"'), ("cache-control", "max-age=60"), **forbidding)
    bench = Bench(app)

    async def story() -> list[Answer]:
        return [await bench.get(), await bench.get(61), await bench.get()]

    _, renewed, after = run(story)
    assert (renewed.status, renewed.body) == (200, b"one")
    assert renewed.header("set-cookie") == forbidding.get("set_cookie")
    assert "stored" not in (renewed.header("cache-status") or "")
    assert b"if-none-match" not in app.asked[2]
    assert not after.hit


def test_a_purge_between_the_look_up_and_the_304_wins() -> None:
    app = Conditional(("etag", '"a"'), ("cache-control", "max-age=60"))
    bench = Bench(purged := _purging(app, lambda: bench.store), RoutePolicy(route="/", tags=("thing",)))

    async def story() -> list[Answer]:
        await bench.get()
        purged.armed = True
        return [await bench.get(61), await bench.get(), await bench.get()]

    renewed, after, hit = run(story)
    assert renewed.status == 200
    assert (after.hit, hit.hit) == (False, True)
    assert b"if-none-match" not in app.asked[2]


class _purging:
    def __init__(self, app: Any, store: Any) -> None:
        self.app, self.store, self.armed = app, store, False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.armed:
            self.armed = False
            await self.store().purge({"tenant:acme": ["thing"]})
        await self.app(scope, receive, send)


def test_a_renewed_entry_keeps_its_tags() -> None:
    app = Conditional(("etag", '"a"'), ("cache-control", "max-age=60"))
    tagged = 0

    async def tagging(scope: Any, receive: Any, send: Any) -> None:
        nonlocal tagged
        tagged += 1
        if tagged == 1:
            scope["tidegate"].tag("from-the-handler")
        await app(scope, receive, send)

    bench = Bench(tagging)

    async def story() -> list[bool]:
        await bench.get()
        await bench.get(61)
        before = (await bench.get()).hit
        await bench.store.purge({"tenant:acme": ["from-the-handler"]})
        return [before, (await bench.get()).hit]

    assert run(story) == [True, False]


def test_a_policys_freshness_is_given_anew_after_a_304() -> None:
    app = Conditional(("etag", '"a"'))
    bench = Bench(app, RoutePolicy(route="/", ttl=60, share="tenant"))

    async def story() -> list[Answer]:
        return [await bench.get(), await bench.get(61), await bench.get(59)]

    _, renewed, hit = run(story)
    assert renewed.header("cache-control") == "private, no-cache"
    assert (hit.hit, hit.header("cache-control")) == (True, "private, no-cache")
    assert len(app.asked) == 2


def test_a_head_renews_what_is_stored_or_shows_that_it_is_another_one() -> None:
    app = Conditional(("cache-control", "max-age=60"), ("x", "old"))
    bench = Bench(app)

    async def story() -> list[Any]:
        await bench.get()
        app.headers["x"] = "new"
        await bench.get(61, method="HEAD")
        renewed = await bench.get(30)
        app.body = b"longer"
        await bench.get(31, method="HEAD")
        return [renewed, await bench.get()]

    renewed, other = run(story)
    assert (renewed.hit, renewed.body, renewed.header("x")) == (True, b"one", "new")
    assert (other.hit, other.body) == (False, b"longer")
    assert app.methods == ["GET", "HEAD", "HEAD", "GET"]


@pytest.mark.parametrize(
    ("status", "later", "control", "detail"),
    [
        (502, 90, "max-age=60", "disconnected"),
        (504, 90, "max-age=60", "disconnected"),
        (503, 90, "max-age=60", None),
        (500, 90, "max-age=60", None),
        (502, 130, "max-age=60", None),
        (502, 90, "max-age=60, must-revalidate", None),
        (502, 90, "s-maxage=60", None),
        (502, 90, "max-age=60, proxy-revalidate", None),
        (503, 130, "max-age=60, stale-if-error=100", "stale-if-error"),
        (503, 130, "max-age=60, stale-if-error=100, must-revalidate", None),
    ],
)
def test_what_is_stale_stands_in_where_it_may(status: int, later: float, control: str, detail: str | None) -> None:
    app = Conditional(("cache-control", control))
    bench = Bench(app)

    async def story() -> Answer:
        await bench.get()
        app.status = status
        return await bench.get(later)

    answer = run(story)
    assert answer.status == (status if detail is None else 200)
    assert (f"detail={detail}" in (answer.header("cache-status") or "")) == (detail is not None)


@pytest.mark.parametrize(
    ("asked", "status", "body"),
    [
        ([("range", "bytes=1-2")], 206, b"12"),
        ([("range", "bytes=-3")], 206, b"789"),
        ([("range", "bytes=20-")], 416, b""),
        ([("range", "lines=1-2")], 200, b"0123456789"),
        ([("range", "bytes=1-2"), ("if-range", '"a"')], 206, b"12"),
        ([("range", "bytes=1-2"), ("if-range", '"b"')], 200, b"0123456789"),
        ([("range", "bytes=1-2"), ("if-range", 'W/"a"')], 200, b"0123456789"),
        ([("range", "bytes=1-2"), ("if-range", LM)], 206, b"12"),
        ([("range", "bytes=1-2"), ("if-range", "Thu, 02 Jan 2020 00:00:00 GMT")], 200, b"0123456789"),
        ([("range", "bytes=1-2"), ("if-none-match", '"a"')], 304, b""),
        ([("range", "bytes=1-2"), ("if-none-match", '"b"')], 206, b"12"),
    ],
)
def test_a_range_is_answered_from_the_stored_whole(asked: list[tuple[str, str]], status: int, body: bytes) -> None:
    app = Conditional(("etag", '"a"'), ("last-modified", LM), ("cache-control", "max-age=60"), body=b"0123456789")
    bench = Bench(app)

    async def story() -> list[Answer]:
        await bench.get()
        return [await bench.get(0, *asked), await bench.get(0, *asked, method="HEAD")]

    answer, head = run(story)
    assert (answer.hit, answer.status, answer.body) == (True, status, body)
    assert head.status == (304 if status == 304 else 200)  # Range is of GET alone (RFC 9110 14.2)
    assert len(app.asked) == 1


def test_a_range_with_a_condition_that_no_stored_part_meets_is_the_apps_to_give() -> None:
    seen: list[list[tuple[bytes, bytes]]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["headers"])
        origin = Origin(b"12", status=206, headers=[("cache-control", "max-age=60"), ("content-range", "bytes 1-2/9")])
        await origin(scope, receive, send)

    bench = Bench(app)
    asked = [("range", "bytes=1-2"), ("if-range", '"a"')]

    async def story() -> list[Answer]:
        return [await bench.get(0, *asked), await bench.get(0, *asked)]

    answers = run(story)
    assert [(answer.hit, answer.status) for answer in answers] == [(False, 206), (False, 206)]
    assert len(seen) == 2
    assert (b"range", b"bytes=1-2") in seen[1]
    assert (b"if-range", b'"a"') in seen[1]


def test_fields_that_private_and_no_cache_name_are_not_stored() -> None:
    app = Conditional(("cache-control", 'max-age=60, private="x", no-cache="y"'), ("x", "1"), ("y", "1"), ("z", "1"))
    bench = Bench(app, share="tenant")

    async def story() -> list[Answer]:
        return [await bench.get(), await bench.get()]

    first, hit = run(story)
    assert [first.header(name) for name in "xyz"] == ["1", "1", "1"]
    assert (hit.hit, [hit.header(name) for name in "xyz"]) == (True, [None, None, "1"])


def test_the_variants_of_a_url_are_bounded_and_the_oldest_goes_first() -> None:
    origin = Origin(headers=[("cache-control", "max-age=60"), ("vary", "x-kind")])
    bench = Bench(origin)
    limit = bench.metrics.limits.labels("variants")
    before = limit._value.get()

    async def story() -> list[bool]:
        for kind in range(MAX_VARIANTS):
            await bench.get(0, ("x-kind", str(kind)))
        kept = [(await bench.get(0, ("x-kind", str(kind)))).hit for kind in (0, 1)]
        await bench.get(0, ("x-kind", "one more"))
        return [*kept, *[(await bench.get(0, ("x-kind", kind))).hit for kind in ("1", "one more")],
                (await bench.get(0, ("x-kind", "0"))).hit]  # fmt: skip

    assert run(story) == [True, True, True, True, False]
    assert limit._value.get() - before == 2


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"accept-language": "en, de"}, {"accept-language": "DE ,  en"}, True),
        ({"accept-language": "en, de"}, {"accept-language": "de;q=0.5, en"}, False),
        ({"x": "1,2"}, {"x": "1, 2"}, True),
        ({"x": "1,2"}, {"x": "2,1"}, False),
        ({"x-api-key": "1,2"}, {"x-api-key": "1, 2"}, False),
    ],
)
def test_variants_are_told_apart_by_what_can_mean_something(
    one: dict[str, str], other: dict[str, str], same: bool
) -> None:
    origin = Origin(headers=[("cache-control", "max-age=60"), ("vary", ", ".join(one))])
    bench = Bench(origin)

    async def story() -> bool:
        await bench.get(0, *one.items())
        return (await bench.get(0, *other.items())).hit

    assert run(story) == same


@pytest.mark.parametrize(
    ("authorization", "control", "hits"),
    [
        ("strict", "public, max-age=60", [False, False, False]),
        ("rfc9111", "public, max-age=60", [False, True, True]),
        ("rfc9111", "s-maxage=60", [False, True, True]),
        ("rfc9111", "max-age=60, must-revalidate", [False, True, True]),
        ("rfc9111", "max-age=60", [False, False, False]),
    ],
)
def test_authorized_answers_are_stored_as_the_setting_says(authorization: Any, control: str, hits: list[bool]) -> None:
    origin = Origin(headers=[("cache-control", control)])
    bench = Bench(origin, share="public", authorization=authorization)
    bearer = ("authorization", "Bearer x")

    async def story() -> list[bool]:
        return [
            (await bench.get(0, bearer, user=None)).hit,
            (await bench.get(0, bearer, user=None)).hit,
            (await bench.get(0, user=None)).hit,
        ]

    assert run(story) == hits


def test_with_rfc9111_a_policy_does_not_speak_for_a_response_to_somebody_unknown() -> None:
    bench = Bench(Origin(), RoutePolicy(route="/", ttl=60, share="public"), authorization="rfc9111")
    bearer = ("authorization", "Bearer x")

    async def story() -> list[bool]:
        return [(await bench.get(0, bearer, user=None)).hit for _ in range(2)]

    assert run(story) == [False, False]


@pytest.mark.parametrize("vary", ["", "accept"])
def test_requests_with_unlike_credentials_never_share_a_run(vary: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)
        asked = dict(scope["headers"])
        await Origin(asked.get(b"authorization", b"nobody"), headers=[("vary", vary)] if vary else [])(
            scope, receive, send
        )

    policy = RoutePolicy(route="/", ttl=60, share="public")
    bench = Bench(CoalesceLayer(app), policy, authorization="rfc9111")

    async def story() -> list[Answer]:
        await bench.get(user=None)
        bench.clock.now += 1000
        asked = [("authorization", who) for who in ("A", "B", "C")]
        return await asyncio.gather(*(bench.get(0, pair, user=None) for pair in asked))

    assert [answer.body for answer in run(story)] == [b"A", b"B", b"C"]


def test_a_write_clears_the_urls_of_its_own_origin_that_its_answer_names_and_the_groups() -> None:
    paths = ("/made", "/other", "/grouped", "/else")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [("cache-control", "max-age=60")]
        if scope["path"] == "/grouped":
            headers.append(("cache-groups", '"news", "sport"'))
        if scope["method"] == "POST":
            headers = [
                ("location", "/made"),
                ("content-location", "http://example.test/other"),
                ("location", "https://example.test/else"),
                ("location", "http://elsewhere.test/else"),
                ("cache-group-invalidation", '"sport"'),
            ]
        await Origin(headers=headers)(scope, receive, send)

    bench = Bench(app)

    async def story() -> list[list[bool]]:
        for path in paths:
            await bench.get(path=path)
        before = [(await bench.get(path=path)).hit for path in paths]
        await bench.get(path="/write", method="POST")
        return [before, [(await bench.get(path=path)).hit for path in paths]]

    assert run(story) == [[True] * 4, [False, False, False, True]]


@pytest.mark.parametrize("client_ttl", [None, 30])
@pytest.mark.parametrize("share", ["public", "tenant", "user"])
def test_what_says_no_cache_is_asked_about_each_time_though_the_confirmations_say_nothing(
    share: Any, client_ttl: float | None
) -> None:
    """A policy tells the client something else than the app does: what the app said is not forgotten for that."""
    app = Conditional(("etag", '"1"'), ("cache-control", "no-cache"))
    bench = Bench(app, RoutePolicy(route="/", ttl=60, share=share, client_ttl=client_ttl))

    async def story() -> list[Answer]:
        return [await bench.get(1) for _ in range(4)]

    said = [answer.header("cache-control") or "" for answer in run(story)]
    assert len(app.asked) == 4
    assert all("no-cache" in each and "max-age" not in each for each in said), said


@pytest.mark.parametrize("client_ttl", [None, 30])
def test_what_says_must_revalidate_never_stands_in_stale_though_a_confirmation_says_nothing(
    client_ttl: float | None,
) -> None:
    app = Conditional(("etag", '"1"'), ("cache-control", "must-revalidate"))
    policy = RoutePolicy(route="/", ttl=60, client_ttl=client_ttl, stale_if_error=600, stale_while_revalidate=600)
    bench = Bench(app, policy)

    async def story() -> list[Answer]:
        answers = [await bench.get(), await bench.get(61), await bench.get()]
        app.status = 502
        return [*answers, await bench.get(61)]

    _, renewed, hit, failed = run(story)
    assert "fwd-status=304" in (renewed.header("cache-status") or "")
    assert hit.hit
    assert (failed.status, failed.hit) == (502, False)


def test_a_client_that_may_reuse_a_response_is_told_that_it_must_revalidate() -> None:
    app = Conditional(("etag", '"1"'), ("cache-control", "must-revalidate"))
    bench = Bench(app, RoutePolicy(route="/", ttl=60, share="public", client_ttl=30))

    async def story() -> list[Answer]:
        return [await bench.get(), await bench.get(), await bench.get(61)]

    assert {answer.header("cache-control") for answer in run(story)} == {"public, max-age=30, must-revalidate"}
