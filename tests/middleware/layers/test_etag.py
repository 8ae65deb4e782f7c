"""The ETag layer alone."""

import asyncio
from typing import Any

import pytest

from tests.driver import Answer, Origin, call, scope_of
from tidegate.middleware.layers.etag import ETagLayer


def ask(app: Any, **request: Any) -> Answer:
    return asyncio.run(call(app, **request))


def test_a_whole_body_gets_a_strong_etag_and_the_client_that_has_it_a_304() -> None:
    app = ETagLayer(Origin(b"body", headers=[("cache-control", "no-cache"), ("content-type", "text/plain")]))
    first = ask(app)
    etag = first.header("etag")
    assert etag is not None
    assert etag.startswith('"')
    again = ask(app, headers=[("if-none-match", f'"other", {etag}')])
    assert (again.status, again.body) == (304, b"")
    assert (again.header("etag"), again.header("cache-control")) == (etag, "no-cache")
    assert (again.header("content-length"), again.header("content-type")) == (None, None)


def test_other_bytes_get_another_etag() -> None:
    assert ask(ETagLayer(Origin(b"a"))).header("etag") != ask(ETagLayer(Origin(b"b"))).header("etag")


def test_a_body_in_a_content_coding_gets_a_weak_etag() -> None:
    etag = ask(ETagLayer(Origin(b"zip", headers=[("content-encoding", "gzip")]))).header("etag")
    assert etag is not None
    assert etag.startswith('W/"')


def test_the_apps_own_etag_is_kept_and_answers() -> None:
    app = ETagLayer(Origin(headers=[("etag", '"own"')]))
    assert ask(app).header("etag") == '"own"'
    assert ask(app, headers=[("if-none-match", 'W/"own"')]).status == 304


def test_if_modified_since_counts_only_without_if_none_match() -> None:
    date, later = "Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:38 GMT"
    app = ETagLayer(Origin(headers=[("last-modified", date), ("etag", '"own"')]))
    assert ask(app, headers=[("if-modified-since", later)]).status == 304
    assert ask(app, headers=[("if-modified-since", "Sun, 06 Nov 1994 08:49:36 GMT")]).status == 200
    assert ask(app, headers=[("if-modified-since", later), ("if-none-match", '"else"')]).status == 200


def start(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": list(headers)}


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


def says(*messages: dict[str, Any]) -> Any:
    """An app that sends these messages."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    return app


@pytest.mark.parametrize(
    "rest",
    [
        [part(b"a", more=True), part(b"b")],
        [{"type": "http.response.debug", "info": {}}, part(b"ab")],
        [{"type": "http.response.pathsend", "path": "/tmp/ab"}],
        [],
    ],
    ids=["in parts", "with something else first", "by path", "not at all"],
)
def test_what_states_its_length_and_does_not_come_as_one_body_passes_whole(rest: list[dict[str, Any]]) -> None:
    messages = [start((b"content-length", b"2")), *rest]
    assert ask(ETagLayer(says(*messages))).messages == messages


def test_a_body_that_is_whole_in_its_first_message_is_labelled_before_the_app_says_that_it_was_the_last() -> None:
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start((b"content-length", b"2")))
        assert sent == []
        await send(part(b"ab", more=True))
        assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
        await send(part(b"", more=False))

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def run() -> None:
        await ETagLayer(app)(scope_of(), None, send)  # type: ignore[arg-type]
        etag = dict(sent[0]["headers"])[b"etag"]
        assert sent[1:] == [part(b"ab", more=True), part(b"", more=False)]
        assert (
            etag == dict((await call(ETagLayer(says(start((b"content-length", b"2")), part(b"ab"))))).headers)[b"etag"]
        )
        sent.clear()
        app_without_looks = says(start((b"content-length", b"2")), part(b"ab", more=True), part(b"", more=False))
        kept = await call(ETagLayer(app_without_looks), headers=[("if-none-match", etag.decode())])
        assert (kept.status, kept.body, len(kept.messages)) == (304, b"", 2)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("headers", "labelled"),
    [
        ([(b"Content-Length", b"2")], True),
        ([(b"content-length", b" 2\t")], True),
        ([(b"content-length", b"2"), (b"content-length", b"2")], False),
        ([(b"content-length", b"3")], False),
        ([(b"content-length", b"2"), (b"ETag", b'"own"')], False),
    ],
)
def test_a_body_is_labelled_where_one_length_is_stated_and_is_its_own(
    headers: list[tuple[bytes, bytes]], labelled: bool
) -> None:
    sent = ask(ETagLayer(says(start(*headers), part(b"ab")))).headers
    assert sent[: len(headers)] == headers
    assert [name for name, _ in sent[len(headers) :]] == ([b"etag"] if labelled else [])


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_unsafe_methods_are_not_labelled(method: str) -> None:
    assert ask(ETagLayer(Origin()), method=method).header("etag") is None


@pytest.mark.parametrize("status", [201, 404, 500])
def test_only_a_200_is_labelled(status: int) -> None:
    assert ask(ETagLayer(Origin(status=status))).header("etag") is None


def test_a_stream_passes_as_it_comes_and_gets_no_etag() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert seen == ["http.response.start"]
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        assert seen[-1] == "http.response.body"
        await send({"type": "http.response.body", "body": b"b"})

    async def send(message: Any) -> None:
        seen.append(message["type"])

    async def receive() -> Any: ...

    asyncio.run(
        ETagLayer(app)(
            {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}, receive, send
        )
    )
    assert len(seen) == 3


def test_a_head_answer_without_its_body_is_not_labelled_with_the_empty_bodys_tag() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else b"body"})

    assert ask(ETagLayer(app), method="HEAD").header("etag") is None
    assert ask(ETagLayer(app)).header("etag") is not None


def test_a_shut_gate_adds_and_matches_nothing() -> None:
    app = ETagLayer(Origin(headers=[("etag", '"own"')]), gate=lambda _context: False)
    assert ask(app, headers=[("if-none-match", '"own"')]).status == 200


@pytest.mark.parametrize("parts", [(b"a", b"b", b"c"), (b"abc", b"", b""), (b"abc", b"late")])
@pytest.mark.parametrize("turns", [0, 1, 3])
def test_what_tasks_of_the_app_send_at_once_keeps_its_order_though_the_start_was_kept(
    parts: tuple[bytes, ...], turns: int
) -> None:
    """On a server that takes a start only when the client does."""
    sent: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start((b"content-length", b"3")))
        bodies = [part(each, more=number < len(parts) - 1) for number, each in enumerate(parts)]
        await asyncio.gather(*[asyncio.create_task(send(each)) for each in bodies])

    async def send(message: dict[str, Any]) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        sent.append(message.get("body", b"start"))

    asyncio.run(ETagLayer(app)(scope_of(), None, send))  # type: ignore[arg-type]
    assert sent == [b"start", *parts]


@pytest.mark.parametrize("fails", [False, True])
def test_a_task_that_was_cancelled_before_it_sent_anything_holds_up_no_other(fails: bool) -> None:
    """Nor does one whose start the server could not send."""
    sent: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start((b"content-length", b"3")))
        tasks = [asyncio.create_task(send(part(b"abc", more=more))) for more in (True, False)]
        if not fails:
            tasks[0].cancel()
        async with asyncio.timeout(20):
            await asyncio.gather(*tasks, return_exceptions=True)

    async def send(message: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        sent.append(message["type"].rpartition(".")[2])
        if fails:
            raise OSError

    asyncio.run(ETagLayer(app)(scope_of(), None, send))  # type: ignore[arg-type]
    assert sent == ["start", "body"]


def test_a_body_that_is_none_holds_up_nothing_that_the_app_says_then() -> None:
    sent: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start((b"content-length", b"3")))
        with pytest.raises(TypeError):
            await send({"type": "http.response.body", "body": None})
        async with asyncio.timeout(20):
            await send(start() | {"status": 500})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("status", 0))

    asyncio.run(ETagLayer(app)(scope_of(), None, send))  # type: ignore[arg-type]
    assert sent == [500]


def test_what_tasks_send_of_a_body_that_the_client_has_is_not_sent() -> None:
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start((b"content-length", b"3")))
        await asyncio.gather(*[asyncio.create_task(send(part(each, more=bool(each)))) for each in (b"abc", b"")])

    async def send(message: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        sent.append(message.get("status", message.get("body")))

    scope = scope_of(headers=[("if-none-match", "*")])
    asyncio.run(ETagLayer(app)(scope, None, send))  # type: ignore[arg-type]
    assert sent == [304, b""]
