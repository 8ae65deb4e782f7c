"""Only a whole response is stored, and of it only what belongs to it: never to a connection, never another response."""

import asyncio
from typing import Any

import pytest

from tests.driver import Answer, User, call
from tests.middleware.layers.coalescing import Client, settle
from tests.promises.attacks.faults import narrowing
from tests.promises.attacks.planting import Plant, attack
from tests.promises.attacks.stage import ANN, Echo, asked, hits, stack, tide
from tidegate import RoutePolicy

Fields = list[tuple[bytes, bytes]]


def no_length(original: Any) -> Any:
    return lambda _stated, body: original(None, body)


LENGTH_UNSEEN = Plant(name="nobody compares the length", target="middleware.layers.tee:is_whole", by=no_length)


def last_at_once(original: Any) -> Any:
    """Takes every body message for the last one."""
    return lambda self, chunk, more: original(self, chunk, False)


PART_IS_WHOLE = Plant(name="a part is taken for the whole", target="middleware.layers.tee:Copy.take", by=last_at_once)


class Broken:
    """Breaks off its first answer; the next are whole. How: what it does after the first half."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.calls = 0
        self.half = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        stated = {"long": b"9", "short": b"11"}.get(self.how) if self.calls == 1 else None
        length = [(b"content-length", stated or b"10")] if stated or self.calls > 1 else []
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        if self.calls == 1 and self.how not in ("long", "short"):
            self.half.set()
            if self.how == "raises":
                raise OSError("the database went away")
            if self.how == "returns":
                return
            await receive()
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        await send({"type": "http.response.body", "body": b"other", "more_body": False})


def whole_afterwards(app: Broken, first: Any) -> None:
    async def all_of_them() -> list[Answer]:
        layers = stack(app)
        await first(layers)
        return [await call(layers) for _ in range(3)]

    answers = asyncio.run(all_of_them())
    assert [answer.body for answer in answers] == [b"firstother"] * 3
    assert hits(answers) == [False, True, True]


@attack("18", without=[LENGTH_UNSEEN], cases=["long", "short"])
def test_a_response_that_is_not_as_long_as_it_says_is_never_stored(case: str) -> None:
    whole_afterwards(Broken(case), call)


@attack("18", without=[PART_IS_WHOLE], cases=["raises", "returns"])
def test_a_response_that_the_app_breaks_off_is_never_stored(case: str) -> None:
    async def first(layers: Any) -> None:
        if case == "raises":
            with pytest.raises(OSError, match="database"):
                await call(layers)
        else:
            await call(layers)

    whole_afterwards(Broken(case), first)


@attack("18", without=[PART_IS_WHOLE], cases=["leaves", "cancelled"])
def test_a_response_whose_client_leaves_in_the_middle_is_never_stored(case: str) -> None:
    app = Broken("waits")

    async def first(layers: Any) -> None:
        client = Client(layers)
        async with asyncio.timeout(20):
            await app.half.wait()
        await settle()
        if case == "leaves":
            client.left.set()
            await asyncio.wait([client.task], timeout=20)
        else:
            client.task.cancel()
            await asyncio.wait([client.task], timeout=20)
            assert client.task.cancelled()
        assert client.task.done()

    whole_afterwards(app, first)


HOPS: Fields = [
    (b"connection", b"X-Named, close"),
    (b"Connection", b"x-other"),
    (b"x-named", b"n"),
    (b"X-Other", b"o"),
    (b"keep-alive", b"timeout=5"),
    (b"proxy-authenticate", b"Basic"),
    (b"proxy-authentication-info", b"p"),
    (b"proxy-connection", b"close"),
    (b"te", b"trailers"),
    (b"trailer", b"x-sum"),
    (b"transfer-encoding", b"chunked"),
    (b"upgrade", b"h2c"),
]
NAMES = {name.lower() for name, _ in HOPS}


def every_field(_original: Any) -> Any:
    return lambda pairs: tuple((name.lower(), value) for name, value in pairs)


ALL_STORED = Plant(name="all fields are stored", target="middleware.core.message:storable_headers", by=every_field)


def stored_of(answer: Answer) -> set[bytes]:
    assert answer.hit
    return NAMES & {name for name, _ in answer.headers}


@attack("18", "23", without=[ALL_STORED], cases=[200, 301, 404, 410, 501])
def test_fields_of_the_connection_are_never_stored(case: int) -> None:
    app = stack(Echo((b"cache-control", b"max-age=60"), *HOPS, status=case, length=False))
    first, again = asked(app, {}, {})
    assert {name for name, _ in first.headers} >= NAMES
    assert (stored_of(again), again.status) == (set(), case)


class Renewing:
    """Says at once that its answer is old; answers whoever asks about it with `status`, and with more fields."""

    def __init__(self, status: int) -> None:
        self.status = status

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        asked_about = any(name == b"if-none-match" for name, _ in scope["headers"]) or scope["method"] == "HEAD"
        fields = [(b"etag", b'"v"')]
        if asked_about:
            fields += [(b"cache-control", b"max-age=60"), (b"x-news", b"1"), *HOPS]
        else:
            fields += [(b"cache-control", b"max-age=0"), (b"content-length", b"4")]
        status = self.status if asked_about else 200
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": b"" if asked_about else b"page"})


@attack("18", "23", without=[ALL_STORED], cases=[(304, "GET"), (200, "HEAD")])
def test_fields_of_the_connection_are_never_stored_out_of_an_update(case: tuple[int, str]) -> None:
    status, method = case
    again = asked(stack(Renewing(status), ttl=None), {}, {"method": method}, {})[2]
    assert (again.body, again.header("x-news")) == (b"page", "1")
    assert stored_of(again) == set()


SPLIT = [b"a\r\nset-cookie: s=evil", b"a\nb", b"a\rb", b"a\x00b"]
ANY_FIELDS = narrowing(
    "fields are stored whatever they hold",
    "middleware.core.storing:judge_response",
    headers=lambda pairs: [(name, b"x") for name, _ in dict(pairs).items()],
)


@attack("22", without=[ANY_FIELDS], cases=SPLIT)
def test_a_field_that_would_split_a_response_is_never_stored(case: bytes) -> None:
    app = stack(Echo((b"x-name", case)))
    assert hits(asked(app, {}, {}, {})) == [False] * 3
    assert hits(asked(stack(Echo((b"x-name", b"a\tb\xff"))), {}, {})) == [False, True]


@attack("22", without=[Plant(name="names are stamped as they are", target="middleware.core.keys:_text",
                             by=lambda _original: lambda name: name.partition("\r")[0].encode())])  # fmt: skip
def test_line_breaks_in_names_and_tags_are_letters_like_others() -> None:
    policy = RoutePolicy(route="/{rest:path}", ttl=60, share="tenant", tags=("c:{rest}",))
    app = tide(policy)(Echo())
    users = [User("a\r\nb", "u"), User("a", "u"), User("a\r\nc", "u")]
    answers = asked(app, *({"user": user, "path": "/x\ry"} for user in users * 2))
    assert hits(answers) == [False] * 3 + [True] * 3
    assert not any(b"\n" in value for answer in answers for _, value in answer.headers)


@attack("23", without=[ANY_FIELDS], cases=[(b"10", b"500"), (b"10", b"10"), (b"500", b"10")])
def test_a_response_with_two_lengths_is_never_stored(case: tuple[bytes, bytes]) -> None:
    app = stack(Echo(*[(b"content-length", line) for line in case], length=False))
    assert hits(asked(app, {"user": ANN}, {"user": ANN}, {"user": ANN})) == [False] * 3
    assert hits(asked(stack(Echo()), {"user": ANN}, {"user": ANN})) == [False, True]
