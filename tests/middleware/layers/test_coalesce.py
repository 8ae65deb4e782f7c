"""Which requests share a run, and which answers."""

import asyncio
import contextvars
from typing import Any

import pytest

from tests.driver import User, call, scope_of
from tests.middleware.layers.coalescing import App, Bench, Call, Client, run, settle, two
from tidegate.middleware.core.policy import Policies, RoutePolicy
from tidegate.middleware.layers.asgi import ContextResolver, RequestContext


def test_two_hundred_identical_requests_are_one_run() -> None:
    runs = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.1)
        await Call(scope, receive, send).answer(b"the answer", (b"x-run", b"%d" % runs))

    async def body() -> None:
        bench = Bench(app)
        answers = await asyncio.gather(*[call(bench.layer) for _ in range(200)])
        assert runs == 1
        assert {answer.body for answer in answers} == {b"the answer"}
        assert {answer.header("x-run") for answer in answers} == {"1"}
        assert bench.roles() == (1, 199, 0)
        assert (await call(bench.layer)).header("x-run") == "2", "nothing is kept"

    run(body)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"user": User("acme", "ann")}, {"user": User("acme", "ben")}),
        ({"user": User("acme", "ann")}, {"user": User("evil", "ann")}),
        ({"user": User("acme", "ann")}, {}),
        ({"user": User("acme", "ann", "reader")}, {"user": User("acme", "ann", "admin")}),
        ({"headers": [("authorization", "Bearer a")]}, {"headers": [("authorization", "Bearer b")]}),
        ({"headers": [("authorization", "Bearer a")]}, {}),
        ({"headers": [("cookie", "session=1")]}, {"headers": [("cookie", "session=2")]}),
        ({"headers": [("accept", "text/html")]}, {"headers": [("accept", "application/json")]}),
        ({"headers": [("a", "1"), ("a", "2")]}, {"headers": [("a", "2"), ("a", "1")]}),
        ({"headers": [("a", "1"), ("b", "")]}, {"headers": [("a", "1")]}),
        ({"headers": [("range", "bytes=0-1")]}, {"headers": [("range", "bytes=2-3")]}),
        ({"headers": [("if-none-match", '"a"')]}, {}),
        ({"client": ("10.0.0.1", 1)}, {"client": ("10.0.0.2", 1)}),
        ({"path": "/a"}, {"path": "/b"}),
        ({"path": "/a/b"}, {"path": "/a/b", "raw_path": b"/a%2Fb"}),
        ({"query": "a=1"}, {"query": "a=2"}),
        ({"scheme": "https"}, {}),
        ({"root_path": "/mounted"}, {}),
        ({"method": "HEAD"}, {}),
    ],
)
def test_requests_that_differ_in_anything_never_share(one: dict[str, Any], other: dict[str, Any]) -> None:
    async def body() -> None:
        app = App()
        bench = Bench(app)
        tasks = [asyncio.create_task(call(bench.layer, **of)) for of in (one, other, one, other)]
        await settle()
        app.gate.set()
        bodies = [(await task).body for task in tasks]
        assert app.runs == 2
        assert bodies[0] == bodies[2] != bodies[1] == bodies[3]

    run(body)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"headers": [("a", "1"), ("b", "2")]}, {"headers": [("b", "2"), ("a", "1")]}),
        ({"headers": [("traceparent", "00-1")]}, {"headers": [("traceparent", "00-2")]}),
        ({"client": ("10.0.0.1", 1)}, {"client": ("10.0.0.1", 2)}),
    ],
)
def test_requests_that_mean_the_same_share(one: dict[str, Any], other: dict[str, Any]) -> None:
    async def body() -> None:
        app = App()
        bench = Bench(app)
        tasks = [asyncio.create_task(call(bench.layer, **of)) for of in (one, other)]
        await settle()
        app.gate.set()
        assert [(await task).body for task in tasks] == [b"run 1"] * 2

    run(body)


PUBLIC = ContextResolver(policies=Policies([RoutePolicy(route="/", share="public")]))


def test_where_the_cache_says_what_counts_the_rest_of_the_head_does_not() -> None:
    def scope(key: bytes, *headers: tuple[str, str], method: str = "GET") -> dict[str, Any]:
        made = scope_of(headers=headers, method=method)
        made["tidegate"] = context = PUBLIC.of(made)
        context.coalesce_key = key
        return made

    async def body() -> None:
        app = App()
        bench = Bench(app)
        scopes = [
            scope(b"one", ("user-agent", "a")),
            scope(b"one", ("user-agent", "b")),
            scope(b"two", ("user-agent", "a")),
            scope(b"one", method="HEAD"),
            scope(b"one", ("range", "bytes=0-1")),
            scope(b"one", ("if-none-match", '"x"')),
        ]
        tasks = [asyncio.create_task(call(bench.layer, scope=each)) for each in scopes]
        await settle()
        app.gate.set()
        assert [(await task).body for task in tasks] == [b"run 1"] * 2 + [b"run %d" % n for n in range(2, 6)]

    run(body)


@pytest.mark.parametrize(
    "of",
    [
        {"method": "POST"},
        {"method": "OPTIONS"},
        {"headers": [("content-length", "3")]},
        {"headers": [("transfer-encoding", "chunked")]},
    ],
)
def test_only_get_and_head_without_a_body_are_shared(of: dict[str, Any]) -> None:
    async def body() -> None:
        app = App()
        bench = Bench(app)
        tasks = [asyncio.create_task(call(bench.layer, **of)) for _ in range(2)]
        await settle()
        assert app.runs == 2
        app.gate.set()
        await asyncio.gather(*tasks)
        assert bench.roles() == (0, 0, 0)

    run(body)


def test_a_client_certificate_keeps_a_request_alone() -> None:
    async def body() -> None:
        app = App()
        bench = Bench(app)
        extensions = {"tls": {"client_cert_chain": ["pem"]}}
        tasks = [asyncio.create_task(call(bench.layer, extensions=extensions)) for _ in range(2)]
        await settle()
        assert app.runs == 2
        app.gate.set()
        await asyncio.gather(*tasks)

    run(body)


UNSHARED: list[tuple[str, list[tuple[bytes, bytes]], int]] = [
    ("set-cookie", [(b"set-cookie", b"session=secret")], 200),
    ("no-store", [(b"cache-control", b"max-age=60, No-Store")], 200),
    ("private", [(b"cache-control", b"private")], 200),
    ("fields", [(b"cache-control", b'max-age=60, no-cache="x-balance"')], 200),
    ("targeted-private", [(b"cache-control", b"max-age=60"), (b"CDN-Cache-Control", b"private")], 200),
    ("targeted-no-store", [(b"cache-control", b"max-age=60"), (b"tidegate-cache-control", b"no-store")], 200),
    ("no-store-but-here", [(b"cache-control", b"no-store"), (b"cdn-cache-control", b"max-age=60")], 200),
    ("vary-star", [(b"vary", b"*")], 200),
    ("event-stream", [(b"content-type", b"text/event-stream; charset=utf-8")], 200),
    ("error", [], 500),
    ("unavailable", [], 503),
]


@pytest.mark.parametrize(("headers", "status"), [case[1:] for case in UNSHARED], ids=[case[0] for case in UNSHARED])
def test_an_answer_that_is_for_the_leader_alone_reaches_nobody_else(headers: Any, status: int) -> None:
    number = 0

    async def step(call: Call) -> None:
        nonlocal number
        number += 1
        await call.answer(b"answer %d" % number, *headers, status=status)

    async def body() -> None:
        async with two(step) as (app, bench, leader, follower):
            app.gate.set()
            assert ((await leader.done()).body, (await follower.done()).body) == (b"answer 1", b"answer 2")
            assert bench.roles() == (1, 0, 1)

    run(body)


def test_private_answers_are_shared_by_one_users_own_requests() -> None:
    async def step(call: Call) -> None:
        await call.answer(b"mine", (b"cache-control", b"private"))

    async def body() -> None:
        app = App(step)
        bench = Bench(app)
        tasks = [asyncio.create_task(call(bench.layer, user=User("acme", "ann"))) for _ in range(5)]
        await settle()
        app.gate.set()
        await asyncio.gather(*tasks)
        assert app.runs == 1

    run(body)


def test_a_response_that_varies_on_what_differs_is_not_shared() -> None:
    async def step(call: Call) -> None:
        language = dict(call.scope["headers"]).get(b"accept-language", b"none")
        await call.answer(language, (b"vary", b"Accept-Encoding, Accept-Language"))

    def scope(language: str) -> dict[str, Any]:
        made = scope_of(headers=[("accept-language", language)])
        made["tidegate"] = context = PUBLIC.of(made)
        context.coalesce_key = b"same"
        return made

    async def body() -> None:
        app = App(step)
        bench = Bench(app)
        tasks = [asyncio.create_task(call(bench.layer, scope=scope(language))) for language in ("de", "en", "de")]
        await settle()
        app.gate.set()
        assert [(await task).body for task in tasks] == [b"de", b"en", b"de"]
        assert app.runs == 2

    run(body)


def test_a_write_ends_the_runs_of_its_tenant_for_newcomers_and_nobody_elses() -> None:
    reads = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal runs
        if scope["method"] == "GET":
            runs += 1
            await reads.wait()
        await Call(scope, receive, send).answer(b"x")

    runs = 0

    async def body() -> None:
        bench = Bench(app)
        acme, other = User("acme", "ann"), User("other", "eve")
        clients = [Client(bench.layer, user=user) for user in (acme, other)]
        await settle()
        await call(bench.layer, method="DELETE", user=User("acme", "ben"))
        clients += [Client(bench.layer, user=user) for user in (acme, other)]
        await settle()
        reads.set()
        for client in clients:
            assert (await client.done()).body == b"x"
        assert runs == 3
        assert bench.roles() == (3, 1, 0)

    run(body)


def test_a_request_that_saw_a_purge_does_not_join_a_run_that_began_before_it() -> None:
    def scope(position: int) -> dict[str, Any]:
        made = scope_of()
        made["tidegate"] = context = PUBLIC.of(made)
        context.coalesce_key = b"same"
        context.positions = {"public": position}
        return made

    async def body() -> None:
        app = App()
        bench = Bench(app)
        tasks = [asyncio.create_task(call(bench.layer, scope=scope(position))) for position in (1, 1, 2, 2)]
        await settle()
        app.gate.set()
        assert [(await task).body for task in tasks] == [b"run 1", b"run 1", b"run 2", b"run 2"]

    run(body)


def test_a_followers_context_says_so_and_carries_what_the_handler_said() -> None:
    async def step(call: Call) -> None:
        context: RequestContext = call.scope["tidegate"]
        context.tag("client:42")
        context.own_etag = True
        await call.answer(b"x")

    async def body() -> None:
        app = App(step)
        bench = Bench(app)
        scopes = [scope_of(), scope_of()]
        tasks = [asyncio.create_task(call(bench.layer, scope=scope)) for scope in scopes]
        await settle()
        app.gate.set()
        await asyncio.gather(*tasks)
        leading, following = (scope["tidegate"] for scope in scopes)
        assert (leading.collapsed, following.collapsed) == (False, True)
        assert following.tags == ["client:42"]
        assert following.own_etag is True

    run(body)


def test_a_follower_gets_its_own_header_list() -> None:
    async def body() -> None:
        async with two() as (app, _bench, leader, follower):
            app.gate.set()
            one, other = await leader.done(), await follower.done()
            assert one.messages[0]["headers"] == other.messages[0]["headers"]
            assert one.messages[0]["headers"] is not other.messages[0]["headers"]

    run(body)


def test_the_leaders_context_variables_reach_the_app() -> None:
    variable = contextvars.ContextVar[str]("variable")
    seen: list[str] = []

    async def step(call: Call) -> None:
        seen.append(variable.get())
        await call.answer(b"x")

    async def body() -> None:
        app = App(step)
        app.gate.set()
        variable.set("set outside")
        await call(Bench(app).layer)
        assert seen == ["set outside"]

    run(body)


def test_the_gates_of_the_layers_inside_tell_requests_apart() -> None:
    class Decided:
        cohorts: tuple[tuple[str, str, str], ...] = ()
        shadow: frozenset[str] = frozenset()

        def __init__(self, *layers: str) -> None:
            self.open = frozenset(layers)

    async def body() -> None:
        app = App()
        decisions = iter([Decided("coalesce", "etag"), Decided("coalesce"), Decided("coalesce", "etag")])
        bench = Bench(app, resolver=ContextResolver(decide=lambda identity, scope: next(decisions)))
        tasks = [asyncio.create_task(call(bench.layer)) for _ in range(3)]
        await settle()
        app.gate.set()
        assert [(await task).body for task in tasks] == [b"run 1", b"run 2", b"run 1"]

    run(body)


def test_a_policys_share_says_whether_private_is_one_users() -> None:
    async def step(call: Call) -> None:
        await call.answer(b"x", (b"cache-control", b"private"))

    async def body() -> None:
        for share, runs in (("user", 1), ("tenant", 3)):
            app = App(step)
            policy = RoutePolicy(route="/", share=share)  # type: ignore[arg-type]
            resolver = ContextResolver(policies=Policies([policy]))
            bench = Bench(app, resolver=resolver)
            scopes = [scope_of(user=User("acme", "ann")) for _ in range(3)]
            for scope in scopes:
                resolver.of(scope).coalesce_key = b"key"
            tasks = [asyncio.create_task(call(bench.layer, scope=scope)) for scope in scopes]
            await settle()
            app.gate.set()
            await asyncio.gather(*tasks)
            assert app.runs == runs, share

    run(body)


@pytest.mark.parametrize("kind", ["websocket", "lifespan", "shut"])
def test_shut_or_for_another_protocol_the_app_gets_the_very_objects(kind: str) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend((scope, receive, send))

    async def receive() -> Any: ...
    async def send(message: Any) -> None: ...

    scope = scope_of() if kind == "shut" else {"type": kind}
    run(lambda: Bench(app, gate=lambda context: kind != "shut").layer(scope, receive, send))
    assert [id(each) for each in seen] == [id(scope), id(receive), id(send)]
