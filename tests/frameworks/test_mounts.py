"""P1 and P2 on five frameworks behind a prefix: policies match, hits happen, and two mounts share nothing."""

import asyncio
import json
from dataclasses import replace
from typing import Any, Literal

import pytest
from channels.auth import AuthMiddlewareStack
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.driver import App
from tests.frameworks.django_site import DJANGO, prepare
from tests.frameworks.driving import Exchange, Server
from tests.frameworks.quart_site import QUART
from tests.frameworks.stage import FRAMEWORKS
from tests.frameworks.surface import POLICIES, Framework, World, identity_of
from tidegate import Tidegate

Where = Literal["outside", "inside", "server"]
"""The layers stand round the mounts, in each of them; or the prefix is the server's (`uvicorn --root-path /api`)."""

PATHS = ("/page", "/me", "/clients/7")

every_framework = pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.name)


@pytest.fixture(scope="module", autouse=True)
def django_database() -> None:
    prepare()


def layers(framework: Framework, where: Where) -> Tidegate:
    identify: Any = framework.identify("around")
    if where == "outside":  # of the frameworks' authentication too, but for Django's
        policies = [replace(policy, route=f"{prefix}{policy.route}") for policy in POLICIES for prefix in PREFIXES]
        identify = identify if framework in (QUART, DJANGO) else identity_of
    else:
        policies = list(POLICIES)
    return Tidegate(identify=identify, policies=policies, registry=CollectorRegistry())


PREFIXES = ("/api", "/v2")


def site(framework: Framework, where: Where, tide: Tidegate | None) -> App:
    """The framework's app at each prefix, in a world of its own."""
    apps = [framework.build(World(), tide if where != "outside" else None, "around") for _ in PREFIXES]
    if where == "server":
        return apps[0]
    root = Starlette(routes=[Mount(prefix, app=app) for prefix, app in zip(PREFIXES, apps, strict=True)])
    if where == "inside" or tide is None:
        return root
    return AuthMiddlewareStack(tide(root)) if framework is DJANGO else tide(root)


async def told(framework: Framework, where: Where, *, with_layers: bool) -> dict[str, list[Exchange]]:
    """The answers to each path, asked twice at each prefix; renamed at the second in between."""
    tide = layers(framework, where) if with_layers else None
    server = Server(site(framework, where, tide))
    headers = framework.headers("ann-token")
    answers: dict[str, list[Exchange]] = {}
    prefixes = PREFIXES[:1] if where == "server" else PREFIXES
    root = {"root_path": PREFIXES[0]} if where == "server" else {}
    for prefix in prefixes:
        if prefix == PREFIXES[1]:
            for path in ("/title", "/clients/7/name"):
                body = prefix.encode()
                length = ("content-length", str(len(body)))
                wrote = await server.ask(prefix + path, body, method="PUT", headers=[*headers, length])
                assert wrote.status == 204
        for path in PATHS:
            answers[prefix + path] = [await server.ask(prefix + path, headers=headers, **root) for _ in range(2)]
    if tide is not None:
        await tide.aclose()
    return answers


@every_framework
@pytest.mark.parametrize("where", ["outside", "inside", "server"])
def test_behind_a_prefix_policies_match_and_each_mount_has_its_own(framework: Framework, where: Where) -> None:
    bare = asyncio.run(told(framework, where, with_layers=False))
    answers = asyncio.run(told(framework, where, with_layers=True))
    for path, (first, second) in answers.items():
        assert first.status == 200, path
        assert first.header("cache-status") == "Tidegate; fwd=miss; stored", path
        assert second.hit, path
        assert [first.body, second.body] == [each.body for each in bare[path]], path
    if where != "server":
        assert answers["/api/page"][1].body != answers["/v2/page"][1].body
        assert json.loads(answers["/v2/clients/7"][1].body)["name"] == "/v2"
