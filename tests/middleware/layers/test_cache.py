"""The cache layer alone, on a small app, message by message."""

import asyncio
from typing import Any

import pytest

from tests.driver import Answer, Origin, User, call
from tidegate.errors import ConfigError
from tidegate.middleware.core.identity import Identity
from tidegate.middleware.core.policy import Policies, RoutePolicy
from tidegate.middleware.layers.asgi import ContextResolver, RequestContext
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.stores.memory import MemoryStore


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def layer_on(app: Any, *policies: RoutePolicy, clock: Clock | None = None, **options: Any) -> CacheLayer:
    clock = clock or Clock()
    return CacheLayer(
        app,
        store=MemoryStore(clock=clock),
        resolver=ContextResolver(policies=Policies(policies)),
        clock=clock,
        **options,
    )


def ask(app: Any, *requests: dict[str, Any]) -> list[Answer]:
    async def run() -> list[Answer]:
        return [await call(app, **request) for request in requests]

    return asyncio.run(run())


ANN = User("acme", "ann")
BEN = User("acme", "ben")
EVE = User("evil", "ann")


def test_a_second_request_of_the_same_user_is_answered_from_the_store() -> None:
    origin = Origin(b"mine", headers=[("cache-control", "max-age=60")])
    first, second = ask(layer_on(origin), {"user": ANN}, {"user": ANN})
    assert origin.calls == 1
    assert (first.body, second.body) == (b"mine", b"mine")
    assert first.header("cache-status") == "Tidegate; fwd=miss; stored"
    assert second.header("cache-status") == "Tidegate; hit; ttl=60"
    assert second.header("age") == "0"


@pytest.mark.parametrize(
    ("share", "expected"), [("user", [1, 2, 3, 1, 2, 3]), ("tenant", [1, 1, 2, 1, 1, 2]), ("public", [1] * 6)]
)
def test_a_stored_response_is_served_within_its_share_only(share: Any, expected: list[int]) -> None:
    origin = Origin(lambda _scope: b"%d" % origin.calls)
    app = layer_on(origin, RoutePolicy(route="/", ttl=60, share=share))
    answers = ask(app, *({"user": user} for user in (ANN, BEN, EVE, ANN, BEN, EVE)))
    assert [int(answer.body) for answer in answers] == expected
    assert sum(answer.hit for answer in answers) >= 3


def test_other_grants_of_the_same_user_do_not_meet() -> None:
    origin = Origin(lambda _scope: b"%d" % origin.calls)
    app = layer_on(origin, RoutePolicy(route="/", ttl=60, share="tenant"))
    admin, reader = User("acme", "ann", "admin"), User("acme", "ann", "reader")
    answers = ask(app, {"user": admin}, {"user": reader}, {"user": admin}, {"user": reader})
    assert [answer.body for answer in answers] == [b"1", b"2", b"1", b"2"]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({}, "no-identity"),
        ({"headers": [("authorization", "Bearer x")]}, "credential"),
        ({"headers": [("cookie", "session=1")]}, "credential"),
        ({"query": "a=1&api_key=s"}, "credential"),
        ({"user": ANN, "headers": [("if-match", '"a"')]}, "conditional"),
        ({"user": ANN, "headers": [("content-length", "3")]}, "body"),
        ({"user": ANN, "headers": [("cache-control", "no-store")]}, "no-store"),
    ],
)
def test_a_request_that_may_not_use_the_cache_bypasses_it_and_says_why(request_: Any, reason: str) -> None:
    origin = Origin(headers=[("cache-control", "max-age=60, public")])
    answers = ask(layer_on(origin), request_, request_)
    assert origin.calls == 2
    assert {answer.header("cache-status") for answer in answers} == {f"Tidegate; fwd=bypass; detail={reason}"}


def test_a_public_mount_serves_requests_without_identity() -> None:
    origin = Origin(headers=[("cache-control", "max-age=60")])
    key = {"headers": [("x-api-key", "a")]}
    answers = ask(layer_on(origin, share="public"), {}, {}, key)
    assert [answer.hit for answer in answers] == [False, True, False]


def test_what_everybody_may_see_is_served_to_a_request_with_a_cookie_and_never_stored_from_one() -> None:
    origin = Origin(headers=[("cache-control", "max-age=60")])
    cookie = {"headers": [("cookie", "a=1")]}
    answers = ask(layer_on(origin, share="public"), cookie, cookie, {}, cookie)
    assert [answer.hit for answer in answers] == [False, False, False, True]
    assert answers[0].header("cache-status") == 'Tidegate; fwd=miss; detail="credential"'


@pytest.mark.parametrize(
    "headers",
    [
        [("cache-control", "no-store")],
        [("cache-control", "Private, NO-STORE")],
        [("cache-control", "max-age=60, no-cache")],
        [("cache-control", "max-age=60"), ("set-cookie", "a=1")],
        [("cache-control", "max-age=60"), ("vary", "accept, *")],
        [("cache-control", "max-age=60"), ("vary", "accept"), ("vary", "*")],
        [("cache-control", "max-age=0")],
        [],
    ],
)
def test_a_response_that_may_not_be_stored_is_not(headers: list[tuple[str, str]]) -> None:
    origin = Origin(headers=headers)
    answers = ask(layer_on(origin), {"user": ANN}, {"user": ANN})
    assert origin.calls == 2
    assert not any(answer.hit for answer in answers)
    assert 'detail="' in (answers[0].header("cache-status") or "")


@pytest.mark.parametrize("forbidding", ["no-store", "private", "no-cache"])
def test_a_policy_never_overrules_what_a_response_forbids(forbidding: str) -> None:
    origin = Origin(headers=[("cache-control", forbidding)])
    ask(layer_on(origin, RoutePolicy(route="/", ttl=60, share="tenant")), {"user": ANN}, {"user": ANN})
    assert origin.calls == 2


def test_private_is_storable_for_its_own_user_only() -> None:
    origin = Origin(headers=[("cache-control", "private, max-age=60")])
    answers = ask(layer_on(origin), {"user": ANN}, {"user": ANN}, {"user": BEN})
    assert [answer.hit for answer in answers] == [False, True, False]


def test_an_entry_ages_and_expires() -> None:
    clock = Clock()
    origin = Origin(headers=[("cache-control", "max-age=60")])
    app = layer_on(origin, clock=clock)

    async def run() -> list[Answer]:
        answers = [await call(app, user=ANN)]
        for later in (30, 29, 2):
            clock.now += later
            answers.append(await call(app, user=ANN))
        return answers

    _, young, old, expired = asyncio.run(run())
    assert (young.header("age"), old.header("age")) == ("30", "59")
    assert not expired.hit
    assert origin.calls == 2


def test_age_and_date_of_the_response_count() -> None:
    clock = Clock()
    origin = Origin(headers=[("cache-control", "max-age=60"), ("age", "50")])
    answers = ask(layer_on(origin, clock=clock), {"user": ANN}, {"user": ANN})
    assert answers[1].header("age") == "50"
    assert answers[1].header("cache-status") == "Tidegate; hit; ttl=10"


def test_variants_are_kept_apart_by_the_fields_that_vary_names() -> None:
    origin = Origin(
        lambda scope: dict(scope["headers"]).get(b"accept-language", b"none"),
        headers=[("cache-control", "max-age=60"), ("vary", "Accept-Language")],
    )
    requests: list[dict[str, Any]] = [
        {"user": ANN, "headers": [("accept-language", "de")]},
        {"user": ANN, "headers": [("accept-language", "en")]},
        {"user": ANN},
        {"user": ANN, "headers": [("accept-language", "")]},
    ]
    answers = ask(layer_on(origin), *requests, *requests)
    assert [answer.body for answer in answers] == [b"de", b"en", b"none", b""] * 2
    assert [answer.hit for answer in answers] == [False] * 4 + [True] * 4


@pytest.mark.parametrize(
    ("control", "hit"),
    [("max-age=10", False), ("max-age=40", True), ("min-fresh=40", False), ("min-fresh=20", True), ("no-cache", False)],
)
def test_request_directives_are_obeyed(control: str, hit: bool) -> None:
    clock = Clock()
    app = layer_on(Origin(headers=[("cache-control", "max-age=60")]), clock=clock)

    async def run() -> Answer:
        await call(app, user=ANN)
        clock.now += 30
        return await call(app, user=ANN, headers=[("cache-control", control)])

    assert asyncio.run(run()).hit is hit


def test_only_if_cached_without_an_entry_is_a_504_and_the_app_is_not_asked() -> None:
    origin = Origin(headers=[("cache-control", "max-age=60")])
    (answer,) = ask(layer_on(origin), {"user": ANN, "headers": [("cache-control", "only-if-cached")]})
    assert (answer.status, origin.calls) == (504, 0)


def test_head_is_answered_from_a_stored_get_without_its_body() -> None:
    origin = Origin(b"12345", headers=[("cache-control", "max-age=60")])
    _, head = ask(layer_on(origin), {"user": ANN}, {"user": ANN, "method": "HEAD"})
    assert (head.status, head.body, head.header("content-length"), head.hit) == (200, b"", "5", True)


def test_the_answer_to_head_is_not_stored() -> None:
    origin = Origin(b"12345", headers=[("cache-control", "max-age=60")])
    _, get = ask(layer_on(origin), {"user": ANN, "method": "HEAD"}, {"user": ANN})
    assert (get.body, get.hit) == (b"12345", False)


def test_a_clients_condition_is_withheld_from_the_app_and_answered_from_the_entry() -> None:
    origin = Origin(b"12345", headers=[("cache-control", "max-age=60"), ("etag", '"v1"')])
    condition = [("if-none-match", 'W/"v1"')]
    app = layer_on(origin)
    miss, hit, other = ask(
        app,
        {"user": ANN, "headers": condition},
        {"user": ANN, "headers": condition},
        {"user": ANN, "headers": [("if-none-match", '"v2"')]},
    )
    assert origin.calls == 1
    assert not any(name == b"if-none-match" for name, _ in origin.seen[0]["headers"])
    assert (miss.status, miss.body, miss.header("content-length")) == (304, b"", None)
    assert (hit.status, hit.header("etag"), hit.hit) == (304, '"v1"', True)
    assert (other.status, other.body, other.hit) == (200, b"12345", True)


def test_another_users_etag_is_no_oracle() -> None:
    origin = Origin(lambda scope: scope["user"].username.encode(), headers=[("cache-control", "max-age=60")])
    app = layer_on(origin)
    origin.headers.append((b"etag", b'"ann"'))
    ask(app, {"user": ANN})
    origin.headers[-1] = (b"etag", b'"ben"')
    (answer,) = ask(app, {"user": BEN, "headers": [("if-none-match", '"ann"')]})
    assert (answer.status, answer.body) == (200, b"ben")


def test_a_policys_freshness_is_ours_and_not_the_browsers() -> None:
    tenant = RoutePolicy(route="/t", ttl=60, share="tenant")
    longer = RoutePolicy(route="/l", ttl=60, client_ttl=5, share="tenant")
    public = RoutePolicy(route="/p", ttl=60, client_ttl=7, share="public")
    app = layer_on(Origin(), tenant, longer, public)
    answers = ask(app, *({"path": path, "user": ANN} for path in ("/t", "/t", "/l", "/p")))
    assert [answer.header("cache-control") for answer in answers] == [
        "private, no-cache",
        "private, no-cache",
        "private, max-age=5",
        "public, max-age=7",
    ]


def test_request_fields_that_count_by_the_policy_are_named_to_the_client() -> None:
    policy = RoutePolicy(route="/v", ttl=60, client_ttl=5, share="tenant", vary=("X-Plan", "Accept-Language"))
    app = layer_on(Origin(headers=[("vary", "accept-language, origin")]), policy)
    first = {"path": "/v", "user": ANN, "headers": [("x-plan", "gold")]}
    missed, hit, other, asked = ask(
        app, first, first, {"path": "/v", "user": ANN, "headers": [("x-plan", "free")]}, {"method": "HEAD", **first}
    )
    assert [answer.hit for answer in (missed, hit, other, asked)] == [False, True, False, True]
    assert {answer.header("vary") for answer in (missed, hit, other, asked)} == {"accept-language, origin, x-plan"}


def test_a_policys_request_fields_are_named_once_though_the_response_is_renewed() -> None:
    policy = RoutePolicy(route="/v", ttl=60, share="tenant", vary=("X-Plan",))
    clock = Clock()
    origin = Origin(headers=[("etag", '"a"')])
    app = layer_on(origin, policy, clock=clock)
    ask(app, {"path": "/v", "user": ANN})
    clock.now += 61
    origin.status, origin.body = 304, b""
    renewed, hit = ask(app, {"path": "/v", "user": ANN}, {"path": "/v", "user": ANN})
    assert (renewed.status, hit.status, hit.hit) == (200, 200, True)
    assert (renewed.header("vary"), hit.header("vary")) == ("x-plan", "x-plan")


def test_two_set_cookie_lines_pass_and_forbid_to_store() -> None:
    origin = Origin(headers=[("cache-control", "max-age=60"), ("set-cookie", "a=1"), ("set-cookie", "b=2")])
    answers = ask(layer_on(origin), {"user": ANN}, {"user": ANN})
    assert [answer.header("set-cookie") for answer in answers] == ["a=1, b=2"] * 2
    assert origin.calls == 2


def test_hop_by_hop_fields_and_those_that_connection_names_are_not_stored() -> None:
    origin = Origin(headers=[("cache-control", "max-age=60"), ("connection", "x-hop"), ("x-hop", "1"), ("x-end", "2")])
    first, second = ask(layer_on(origin), {"user": ANN}, {"user": ANN})
    assert first.header("x-hop") == "1"
    assert (second.hit, second.header("x-hop"), second.header("connection"), second.header("x-end")) == (
        True,
        None,
        None,
        "2",
    )


@pytest.mark.parametrize("fault", ["short", "long", "raises", "trailers", "too large"])
def test_a_response_that_is_not_whole_is_not_stored(fault: str) -> None:
    calls = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal calls
        calls += 1
        length = {"short": b"9", "long": b"1"}.get(fault, b"6")
        headers = [(b"cache-control", b"max-age=60"), (b"content-length", length)]
        if fault == "too large":
            headers.pop()
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        await send(start | ({"trailers": True} if fault == "trailers" else {}))
        await send({"type": "http.response.body", "body": b"123", "more_body": True})
        if fault == "raises":
            raise RuntimeError("broken")
        await send({"type": "http.response.body", "body": b"456" * (100 if fault == "too large" else 1)})

    layer = layer_on(app, max_body=100)
    for _ in range(2):
        if fault == "raises":
            with pytest.raises(RuntimeError):
                ask(layer, {"user": ANN})
        else:
            ask(layer, {"user": ANN})
    assert calls == 2


def test_a_streamed_response_is_stored_whole_and_served_with_its_length() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=60")]})
        for part in (b"a", b"", b"bc"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    _, second = ask(layer_on(app), {"user": ANN}, {"user": ANN})
    assert (second.hit, second.body, second.header("content-length")) == (True, b"abc", "3")


def test_a_successful_write_clears_every_shares_copy_before_its_response_starts() -> None:
    order: list[str] = []

    class Watching(MemoryStore):
        async def purge(self, tags: Any) -> Any:
            order.append("purged")
            return await super().purge(tags)

    origin = Origin(lambda _scope: b"%d" % origin.calls)
    layer = CacheLayer(
        origin,
        store=Watching(),
        resolver=ContextResolver(policies=Policies([RoutePolicy(route="/", ttl=60, share="user")])),
    )

    async def run() -> list[Answer]:
        answers = [await call(layer, user=ANN), await call(layer, user=BEN), await call(layer, user=ANN)]

        async def send(message: Any) -> None:
            order.append(message["type"])

        await layer({**origin.seen[0], "method": "POST", "tidegate": RequestContext(None, MATCH, None)}, None, send)  # type: ignore[arg-type]
        return [*answers, await call(layer, user=ANN), await call(layer, user=BEN)]

    MATCH = ContextResolver().policies.match("/")
    answers = asyncio.run(run())
    assert [answer.hit for answer in answers] == [False, False, True, False, False]
    assert order[:2] == ["purged", "http.response.start"]


def test_a_failed_write_clears_nothing() -> None:
    origin = Origin(headers=[("cache-control", "max-age=60")])
    layer = layer_on(origin)

    async def run() -> Answer:
        await call(layer, user=ANN)
        origin.status = 422
        await call(layer, user=ANN, method="POST")
        return await call(layer, user=ANN)

    assert asyncio.run(run()).hit


def test_a_policys_tags_are_purged_by_the_routes_that_invalidate_them() -> None:
    policies = (
        RoutePolicy(route="/clients/{id}", ttl=60, share="tenant", tags=("client:{id}",)),
        RoutePolicy(route="/edit/{id}", invalidates=("client:{id}",)),
    )
    app = layer_on(Origin(), *policies)

    async def run() -> list[bool]:
        for path in ("/clients/1", "/clients/2"):
            await call(app, path, user=ANN)
        # Another tenant's write to the same number is another tenant's client.
        await call(app, "/edit/1", method="PUT", user=EVE)
        before = (await call(app, "/clients/1", user=ANN)).hit
        await call(app, "/edit/1", method="PUT", user=BEN)
        return [before, *[(await call(app, path, user=ANN)).hit for path in ("/clients/1", "/clients/2")]]

    assert asyncio.run(run()) == [True, False, True]


def test_invalidation_works_for_a_writer_whose_gate_is_shut() -> None:
    origin = Origin(headers=[("cache-control", "max-age=60")])
    layer = layer_on(origin, gate=lambda context: context.identity == Identity("acme", "ann"))

    async def run() -> list[bool]:
        await call(layer, user=ANN)
        hit = (await call(layer, user=ANN)).hit
        await call(layer, method="DELETE", user=BEN)
        return [hit, (await call(layer, user=ANN)).hit]

    assert asyncio.run(run()) == [True, False]


def test_a_purge_during_the_fill_wins() -> None:
    store = MemoryStore()
    calls = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal calls
        calls += 1
        scope["tidegate"].tag("thing")
        if calls == 1:
            await store.purge({"tenant:acme": ["thing"]})
        await Origin(headers=[("cache-control", "max-age=60")])(scope, receive, send)

    layer = CacheLayer(app, store=store)
    answers = ask(layer, {"user": ANN}, {"user": ANN}, {"user": ANN})
    assert [answer.hit for answer in answers] == [False, False, True]


@pytest.mark.parametrize("fault", ["500", "503", "raises"])
def test_a_stale_response_stands_in_for_a_failing_app(fault: str) -> None:
    clock = Clock()
    origin = Origin(b"good", headers=[("cache-control", "max-age=60, stale-if-error=600")])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if broken and fault == "raises":
            raise RuntimeError("broken")
        await origin(scope, receive, send)

    layer, broken = layer_on(app, clock=clock), False

    async def run() -> list[Answer]:
        nonlocal broken
        await call(layer, user=ANN)
        clock.now += 100
        broken = True
        if fault != "raises":
            origin.status = int(fault)
        answers: list[Answer] = []
        for later in (0, 600):
            clock.now += later
            answer = Answer()

            async def send(message: Any, answer: Answer = answer) -> None:
                answer.messages.append(message)

            try:
                await layer({**origin.seen[0], "tidegate": None}, None, send)  # type: ignore[arg-type]
            except RuntimeError:
                assert fault == "raises"
            answers.append(answer)
        return answers

    stale, too_old = asyncio.run(run())
    assert (stale.status, stale.body) == (200, b"good")
    assert "stale-if-error" in (stale.header("cache-status") or "")
    if fault == "raises":
        assert too_old.messages == []
    else:
        assert too_old.status == int(fault)


def test_a_shut_gate_forwards_the_same_objects_and_stores_nothing() -> None:
    origin = Origin(headers=[("cache-control", "max-age=60")])
    got: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        got[:] = [scope, receive, send]
        await origin(scope, receive, send)

    layer = layer_on(app, gate=lambda _context: False)

    async def run() -> None:
        async def receive() -> Any: ...
        async def send(_message: Any) -> None: ...

        scope = {**{"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}, "user": ANN}
        for _ in range(2):
            await layer(scope, receive, send)
            assert [id(one) for one in got] == [id(scope), id(receive), id(send)]

    asyncio.run(run())
    assert origin.calls == 2


def test_a_stored_404_does_not_turn_into_a_304() -> None:
    origin = Origin(b"gone", status=404, headers=[("cache-control", "max-age=60"), ("etag", '"x"')])
    condition = [("if-none-match", '"x"')]
    answers = ask(layer_on(origin), {"user": ANN, "headers": condition}, {"user": ANN, "headers": condition})
    assert [(answer.status, answer.body, answer.hit) for answer in answers] == [
        (404, b"gone", False),
        (404, b"gone", True),
    ]


@pytest.mark.parametrize(
    ("control", "stored"),
    [
        ("max-age=60", False),
        ("max-age=60, public", True),
        ("s-maxage=60", True),
        ("max-age=60, must-revalidate", True),
    ],
)
def test_a_public_mount_stores_authorized_answers_only_by_their_leave(control: str, stored: bool) -> None:
    app = layer_on(Origin(headers=[("cache-control", control)]), share="public")
    request: dict[str, Any] = {"user": ANN, "headers": [("authorization", "Bearer x")]}
    assert [answer.hit for answer in ask(app, request, request)] == [False, stored]


def test_a_share_a_store_or_an_authorization_that_is_none_is_refused_at_once() -> None:
    wrong: Any = {"store": "redis://u:secret@host", "share": "everybody", "authorization": "lax"}
    with pytest.raises(ConfigError) as raised:
        CacheLayer(Origin(), **wrong)
    assert [problem.path for problem in raised.value.problems] == ["store", "share", "authorization"]
    assert "secret" not in str(raised.value)
