"""What is particular to one framework: mounts, and where its teams find out who asks."""

import asyncio
import json
from typing import Any

from litestar import Litestar, asgi, get
from litestar.middleware import DefineMiddleware
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.driver import Origin, call
from tests.frameworks.driving import Exchange, serving
from tests.frameworks.fastapi_site import dependency_site
from tests.frameworks.surface import SUB_POLICIES, World, bearer, identity_of
from tidegate import RoutePolicy, Tidegate, TidegateMiddleware


def test_two_mounts_of_one_tidegate_have_policies_relative_to_each_and_keys_of_their_own() -> None:
    async def run() -> list[Any]:
        tide = Tidegate(policies=SUB_POLICIES, registry=CollectorRegistry())
        apps = {name: Origin(name.encode()) for name in ("one", "two")}
        root = Starlette(routes=[Mount(f"/{name}", app=tide(app)) for name, app in apps.items()])
        answers = [await call(root, f"/{name}/page") for name in ("one", "two", "one", "two")]
        await tide.aclose()
        return answers

    answers = asyncio.run(run())
    assert [answer.body for answer in answers] == [b"one", b"two"] * 2
    assert [answer.hit for answer in answers] == [False, False, True, True]


def test_litestars_middleware_leaves_what_is_mounted_alone_for_it_would_meet_other_routes_policies() -> None:
    mounted = Origin(b"of one user")

    @asgi("/sub", is_mount=True, copy_scope=True)
    async def sub(scope: Any, receive: Any, send: Any) -> None:
        await mounted(scope, receive, send)

    @get("/page")
    async def page() -> str:
        return "for everybody"

    async def run() -> list[Any]:
        tide = Tidegate(policies=[RoutePolicy(route="/page", ttl=60, share="public")], registry=CollectorRegistry())
        app = Litestar([page, sub], middleware=[DefineMiddleware(TidegateMiddleware, tide=tide)], openapi_config=None)
        answers = [await call(app, path) for path in ("/page", "/page", "/sub/page", "/sub/page")]
        await tide.aclose()
        return answers

    answers = asyncio.run(run())
    assert [answer.hit for answer in answers] == [False, True, False, False]
    assert mounted.calls == 2


def test_who_is_known_only_to_a_fastapi_dependency_is_nobody_to_the_layers_and_nothing_of_theirs_is_stored() -> None:
    async def ask(**arguments: Any) -> list[Exchange]:
        tide = Tidegate(policies=SUB_POLICIES, registry=CollectorRegistry(), **arguments)
        async with serving(tide(dependency_site(World()))) as server:
            return [
                await server.ask("/me", headers=bearer(who)) for who in ("ann-token", "eve-token") for _ in range(2)
            ]

    unknown = asyncio.run(ask())
    assert {answer.header("cache-status") for answer in unknown} == {"Tidegate; fwd=bypass; detail=credential"}
    known = asyncio.run(ask(identify=identity_of))  # the function that the dependency calls too
    assert [answer.hit for answer in known] == [False, True, False, True]
    for answers in (unknown, known):
        assert [json.loads(answer.body)["user"] for answer in answers] == ["ann", "ann", "eve", "eve"]
