"""Keys and policies where something outside of the layers, or the app itself, has cut or rewritten the path."""

import asyncio
from typing import Any

import pytest

from tests.driver import Answer, Origin, call, scope_of
from tidegate.middleware.core.keys import path_part
from tidegate.middleware.core.policy import Policies, RoutePolicy
from tidegate.middleware.layers.asgi import ContextResolver, route_path
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.stores.memory import MemoryStore

PUBLIC = RoutePolicy(route="/{rest:path}", ttl=60, share="public")


def layer_on(app: Any, *policies: RoutePolicy) -> CacheLayer:
    return CacheLayer(app, store=MemoryStore(), resolver=ContextResolver(policies=Policies(policies or [PUBLIC])))


def ask(app: Any, *scopes: dict[str, Any]) -> list[Answer]:
    async def run() -> list[Answer]:
        return [await call(app, scope=scope) for scope in scopes]

    return asyncio.run(run())


def where(scope: dict[str, Any]) -> bytes:
    return f"{scope['root_path']} {scope['path']}".encode()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"path": "/x"}, {"path": "/beta/y"}),
        ({"path": "/x", "root_path": "/a"}, {"path": "/x", "root_path": "/b"}),
    ],
    ids=["rewritten", "mounts that cut path and raw_path"],
)
def test_what_was_sent_alike_and_is_another_resource_by_now_has_another_key(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    origin = Origin(where)
    scopes = [scope_of("/x") | one, scope_of("/x") | other] * 2
    answers = ask(layer_on(origin), *(dict(scope) for scope in scopes))
    assert [answer.body for answer in answers] == [where(scope) for scope in scopes]
    assert [answer.hit for answer in answers] == [False, False, True, True]


@pytest.mark.parametrize(
    ("path", "raw_path", "root_path"),
    [
        ("/a b", b"/a%20b", ""),
        ("/api/a", b"/api/a", "/api"),
        ("/api/a", b"/a", "/api"),
        ("/a", b"/api/a", "/api"),
        ("/a/", b"/sub/a", ""),
        ("/", b"/sub", ""),
        ("/a", b"/a?x=1", ""),
        ("/caf\N{LATIN SMALL LETTER E WITH ACUTE}", b"/caf%C3%A9", ""),
    ],
)
def test_a_mount_that_cuts_its_prefix_leaves_the_key_to_what_was_sent(
    path: str, raw_path: bytes, root_path: str
) -> None:
    assert path_part(path, raw_path, root_path) == raw_path.partition(b"?")[0]


@pytest.mark.parametrize(
    ("first", "then", "route"),
    [
        (scope_of("/api/a"), scope_of("/api/a", root_path="/api"), "/a"),
        (scope_of("/a/"), scope_of("/a/", raw_path=b"/sub/a"), "/a"),
        (scope_of(""), scope_of(""), "other"),
    ],
    ids=["below a prefix", "with a slash that a mount has put there", "no path at all"],
)
def test_a_path_that_was_seen_before_has_the_policy_of_where_it_stands_now(
    first: dict[str, Any], then: dict[str, Any], route: str
) -> None:
    resolver = ContextResolver(policies=Policies([RoutePolicy(route=route) for route in ("/a", "/a/", "/api/a")]))
    for scope in (first, then, dict(first)):
        before = dict(scope)
        context = resolver.of(scope)
        assert context.match == resolver.policies.match(route_path(before))
    assert resolver.of(then).match.route == route


def test_without_a_raw_path_the_path_counts() -> None:
    assert path_part("/caf\N{LATIN SMALL LETTER E WITH ACUTE}", None, "") == b"/caf\xc3\xa9"


@pytest.mark.parametrize(
    ("path", "raw_path", "root_path", "route"),
    [
        ("/me/", b"/sub/me", "", "/me"),
        ("/me/", b"/sub/me/", "", "/me/"),
        ("/me/", b"/sub/me%2F", "", "/me/"),
        ("/me/", None, "", "/me/"),
        ("/", b"/sub", "", "/"),
        ("/sub/me/", b"/sub/me?to=/", "/sub", "/me"),
    ],
)
def test_a_slash_that_a_mount_has_put_behind_the_path_hides_no_policy(
    path: str, raw_path: bytes | None, root_path: str, route: str
) -> None:
    assert route_path({"path": path, "raw_path": raw_path, "root_path": root_path}) == route


def test_an_app_that_cuts_the_path_in_the_scope_does_not_change_what_its_write_purges() -> None:
    origin = Origin(b"body")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["path"] = "/"
        await origin(scope, receive, send)

    def scope(method: str) -> dict[str, Any]:
        made = scope_of("/sub/me", method=method)
        del made["raw_path"]  # ASGI does not ask for it
        return made

    answers = ask(layer_on(app), scope("GET"), scope("GET"), scope("PUT"), scope("GET"))
    assert [answer.hit for answer in answers] == [False, True, False, False]
    assert origin.calls == 3
