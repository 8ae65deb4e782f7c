"""What an attacker, an odd framework or an odd value may send: nothing leaks, nothing fails because of Tidegate."""

import asyncio
import tracemalloc
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tests.driver import App, Origin, User, call, scope_of
from tidegate import Identity, RoutePolicy, Tidegate
from tidegate.errors import ConfigError
from tidegate.middleware.core.policy import Policies
from tidegate.middleware.layers.asgi import ContextResolver
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.memory import MemoryStore
from tidegate.vocabulary import LAYERS

ANN, BOB = User("acme", "ann"), User("acme", "bob")


def tidegate(*policies: RoutePolicy, **options: Any) -> Tidegate:
    return Tidegate(policies=policies, registry=CollectorRegistry(), **options)


def answering(*fields: tuple[bytes, bytes], body: bytes = b"hello", headers: Any = list) -> App:
    """An app whose headers go out exactly as given, as Django's and raw ASGI apps' do."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200, "headers": headers(fields)})
        await send({"type": "http.response.body", "body": body})

    return app


@pytest.mark.parametrize(
    "field",
    [(b"Cache-Control", b"no-store"), (b"Cache-Control", b"private"), (b"Set-Cookie", b"s=1"), (b"Vary", b"*")],
)
def test_what_forbids_to_store_is_seen_in_whatever_case_the_app_writes_it(field: tuple[bytes, bytes]) -> None:
    app = tidegate(RoutePolicy(route="/", ttl=60, share="tenant"))(answering((b"Content-Length", b"5"), field))

    async def both() -> None:
        for user in (ANN, BOB):
            answer = await call(app, user=user)
            assert not answer.hit
            assert "stored" not in (answer.header("cache-status") or "")

    asyncio.run(both())


def test_a_session_cookie_is_not_shared_with_followers_in_whatever_case_the_app_writes_it() -> None:
    calls = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal calls
        calls += 1
        number = calls
        await asyncio.sleep(0.01)
        fields = [(b"Content-Length", b"1"), (b"Set-Cookie", b"session=%d" % number)]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": b"%d" % number})

    mounted = tidegate(RoutePolicy(route="/", ttl=60, share="tenant"))(app)

    async def both() -> None:
        answers = await asyncio.gather(call(mounted, user=ANN), call(mounted, user=BOB))
        assert answers[0].header("set-cookie") != answers[1].header("set-cookie")

    asyncio.run(both())


def test_an_etag_of_the_app_is_seen_in_whatever_case_it_is_written() -> None:
    app = tidegate(layers=("etag",))(answering((b"Content-Length", b"5"), (b"ETag", b'"mine"')))
    answer = asyncio.run(call(app))
    assert [value for name, value in answer.headers if name.lower() == b"etag"] == [b'"mine"']
    again = asyncio.run(call(app, headers=[("if-none-match", '"mine"')]))
    assert again.status == 304


@pytest.mark.parametrize("layers", [*[(layer,) for layer in LAYERS], LAYERS])
def test_headers_that_can_be_read_once_reach_the_client(layers: Any) -> None:
    origin = answering((b"content-length", b"5"), (b"x-a", b"b"), headers=iter)
    fields = dict(asyncio.run(call(tidegate(layers=layers)(origin))).headers)
    assert (fields.get(b"x-a"), fields.get(b"content-length")) == (b"b", b"5")


def test_a_buffer_that_the_app_fills_anew_is_stored_as_it_was_sent() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        buffer = bytearray(2)
        for part, more in ((b"ab", True), (b"cd", False)):
            buffer[:] = part
            await send({"type": "http.response.body", "body": buffer, "more_body": more})

    mounted = tidegate(RoutePolicy(route="/", ttl=60, share="public"), layers=("cache",))(app)
    asyncio.run(call(mounted))
    again = asyncio.run(call(mounted))
    assert (again.hit, again.body) == (True, b"abcd")


def test_what_comes_after_a_second_start_is_not_stored() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"oops"})

    mounted = tidegate(RoutePolicy(route="/", ttl=60, share="public"), layers=("cache",))(app)
    asyncio.run(call(mounted))
    again = asyncio.run(call(mounted))
    assert b"half" in again.messages[1]["body"]
    assert len(again.messages) == 4


@pytest.mark.parametrize("query", ["%70age=2", "p%61ge=2&x=1", "%70%61%67%65=2"])
def test_a_parameter_whose_name_is_disguised_does_not_poison_the_plain_url(query: str) -> None:
    app = tidegate(RoutePolicy(route="/", ttl=60, share="public", query=("page",)))(Origin())
    asyncio.run(call(app, query=query))
    assert not asyncio.run(call(app)).hit


def test_a_credential_whose_name_is_disguised_keeps_the_answer_out_of_the_public_share() -> None:
    app = tidegate(RoutePolicy(route="/", ttl=60, share="public", query=()))(Origin())
    answer = asyncio.run(call(app, query="access%5Ftoken=secret"))
    assert answer.header("cache-status") == "Tidegate; fwd=bypass; detail=credential"
    assert not asyncio.run(call(app)).hit


class Model:
    """An ORM's object: what its text says is its address."""


@pytest.mark.parametrize("attribute", ["tenant", "username", "grants"])
def test_a_user_whose_names_are_objects_is_nobody_because_an_address_is_used_again(attribute: str) -> None:
    app = tidegate(RoutePolicy(route="/", ttl=60, share="user"))(Origin())
    user = User("acme", "ann")
    setattr(user, attribute, Model())
    answer = asyncio.run(call(app, user=user))
    assert (answer.status, answer.header("cache-status")) == (200, "Tidegate; fwd=bypass; detail=no-identity")


def test_grants_may_be_a_collection_in_any_order_and_are_told_apart() -> None:
    origin = Origin()
    app = tidegate(RoutePolicy(route="/", ttl=60, share="user"))(origin)

    def hit(grants: Any) -> bool:
        return asyncio.run(call(app, user=User("acme", "ann", grants))).hit

    assert [hit({"a", "b"}), hit(["b", "a"]), hit(["ab"]), hit(["a"]), hit("")] == [False, True, False, False, False]


@pytest.mark.parametrize("names", [(42, "u", ""), ("t", 42, ""), ("t", "u", None)])
def test_an_identity_that_is_no_text_is_nobody(names: Any) -> None:
    app = tidegate(RoutePolicy(route="/", ttl=60), identify=lambda _scope: Identity(*names))(Origin())
    answer = asyncio.run(call(app))
    assert (answer.status, answer.header("cache-status")) == (200, "Tidegate; fwd=bypass; detail=no-identity")


def test_a_lone_surrogate_in_a_name_is_a_name_like_another() -> None:
    app = tidegate(RoutePolicy(route="/", ttl=60))(Origin())
    assert [asyncio.run(call(app, user=User(t, "u"))).hit for t in ("\ud800", "\ud801", "\ud800")] == [0, 0, 1]


def test_a_scope_whose_extensions_are_none_is_answered() -> None:
    assert asyncio.run(call(tidegate()(Origin()), scope=scope_of() | {"extensions": None})).status == 200


@pytest.mark.parametrize(
    "tag", ["c:{id:int}", "c:{id.__class__}", "c:{", "c:}", "c:{}", "c:{0}", "c:{id!r}", "c:{{id}}"]
)
def test_a_tag_that_could_not_be_filled_in_is_refused_before_a_write_fails_by_it(tag: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RoutePolicy(route="/c/{id:int}", tags=("ok:{id}", tag), invalidates=(tag,))
    assert {problem.path for problem in caught.value.problems} == {"tags[1]", "invalidates[0]"}


@pytest.mark.parametrize("path", ["/me\n", "/item/5b2f8c1e0d3a4b5c8d7e6f5a4b3c2d1e"])
def test_a_path_that_starlette_takes_for_the_route_has_the_policy_of_the_route(path: str) -> None:
    app = Starlette(routes=[Route("/me", PlainTextResponse("me")), Route("/item/{id:uuid}", PlainTextResponse("it"))])
    policies = Policies([RoutePolicy(route="/me", mode="off"), RoutePolicy(route="/item/{id:uuid}", mode="off")])
    assert asyncio.run(call(app, path)).status == 200
    assert policies.match(path).policy is not None


@pytest.mark.parametrize(
    ("converter", "read", "written"),
    [
        ("int", "7", "007"),
        ("uuid", "5b2f8c1e-0d3a-4b5c-8d7e-6f5a4b3c2d1e", "5B2F8C1E0D3A4B5C8D7E6F5A4B3C2D1E"),
    ],
)
def test_a_write_in_another_spelling_of_the_same_value_purges(converter: str, read: str, written: str) -> None:
    policy = RoutePolicy(
        route=f"/c/{{id:{converter}}}", ttl=60, share="tenant", tags=("c:{id}",), invalidates=("c:{id}",)
    )
    app = tidegate(policy)(Origin())
    assert not asyncio.run(call(app, f"/c/{read}", user=ANN)).hit
    assert asyncio.run(call(app, f"/c/{read}", user=ANN)).hit
    asyncio.run(call(app, f"/c/{written}", method="POST", user=BOB))
    assert not asyncio.run(call(app, f"/c/{read}", user=ANN)).hit


def test_long_addresses_are_not_remembered() -> None:
    app = tidegate()(answering())

    async def flood() -> int:
        tracemalloc.start()
        for number in range(200):
            await call(app, f"/{number}/" + "x" * 50_000, method="POST")
        return tracemalloc.get_traced_memory()[0]

    try:
        assert asyncio.run(flood()) < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_lifetime_that_no_number_can_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match="ttl: 1000"):
        RoutePolicy(route="/", ttl=10**400)


@pytest.mark.parametrize("tag", [42, None, ["client:1"]])
def test_a_tag_that_is_no_text_costs_a_stored_response_and_no_answer(tag: Any) -> None:
    registry = CollectorRegistry()
    metrics = Metrics.of(registry)
    after = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["tidegate"].tag(tag)
        await Origin()(scope, receive, send)
        after.append("the background task")

    resolver = ContextResolver(policies=Policies([RoutePolicy(route="/", ttl=60, share="public")]))
    layer = CacheLayer(app, store=MemoryStore(metrics=metrics), resolver=resolver, metrics=metrics)
    assert asyncio.run(call(layer)).body == b"hello"
    assert not asyncio.run(call(layer)).hit
    assert len(after) == 2
    assert registry.get_sample_value("tidegate_errors_total", {"component": "store"}) == 2


def test_a_path_that_leaves_a_tag_empty_does_not_purge_everybodys() -> None:
    read = RoutePolicy(route="/page", ttl=60, share="tenant")
    write = RoutePolicy(route="/files/{rest:path}", invalidates=("{rest}",))
    app = tidegate(read, write)(Origin())
    asyncio.run(call(app, "/page", user=ANN))
    assert asyncio.run(call(app, "/files/", method="POST", user=User("bolt", "bea"))).status == 200
    assert asyncio.run(call(app, "/page", user=ANN)).hit
