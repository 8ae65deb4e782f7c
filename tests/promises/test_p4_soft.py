"""Soft purges and purges of tags together, through the layers, as a client sees them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.driver import call
from tests.middleware.stores.support import eventually
from tidegate import RoutePolicy, Settings, Tidegate
from tidegate.middleware.layers.asgi import Receive, Scope, Send

STRICT = ("cache-control", "max-age=600, must-revalidate")
LOOSE = ("cache-control", "max-age=600")

Get = Callable[[str], Awaitable[tuple[str, str]]]


class Site:
    """Answers with how often it was asked; tags a page `page` and by its name."""

    def __init__(self) -> None:
        self.runs = 0
        self.opened = asyncio.Event()
        self.opened.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        self.runs += 1
        body = b"%d" % self.runs
        await self.opened.wait()
        scope["tidegate"].tag("page", f"page:{scope['path'][1:]}")
        name, value = STRICT if scope["path"] == "/strict" else LOOSE
        headers = [(name.encode(), value.encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture(params=["memory", "valkey", "redis 7"])
def url(request: pytest.FixtureRequest) -> str | None:
    fixture = {"valkey": "valkey", "redis 7": "redis_server"}.get(request.param)
    return request.getfixturevalue(fixture).url if fixture else None


def visit(url: str | None, body: Callable[[Tidegate, Site, Get], Awaitable[None]]) -> None:
    async def run() -> None:
        store = {} if url is None else {"url": url, "budget": 5.0}
        settings = Settings.of({"store": store, "flags": {"provider": "none"}})
        tide = Tidegate(settings, policies=[RoutePolicy(route="/{page}", share="public")], registry=CollectorRegistry())
        site = Site()
        app: Any = tide(site)

        async def get(path: str) -> tuple[str, str]:
            answer = await call(app, path)
            return answer.body.decode(), answer.header("cache-status") or ""

        await tide.start()
        try:
            await body(tide, site, get)
        finally:
            await tide.aclose()

    asyncio.run(run())


async def kept(get: Get, path: str) -> str:
    """Ask until it is a hit: what is kept in Redis is written in the background; and what was made last comes last."""
    last = ""

    async def hit() -> bool:
        nonlocal last
        body, status = await get(path)
        settled = "Tidegate; hit; ttl=" in status and "detail" not in status and last in ("", body)
        if settled or "hit" not in status:
            last = body
        return settled

    await eventually(hit, f"{path} is a hit", 30.0)
    return last


def test_what_was_purged_softly_is_served_once_more_while_the_app_is_asked(url: str | None) -> None:
    async def body(tide: Tidegate, site: Site, get: Get) -> None:
        old = await kept(get, "/loose")
        strict = await kept(get, "/strict")
        runs = site.runs
        site.opened.clear()
        purge = await tide.purge("page", soft=True)
        assert purge.state == "done"
        for _ in range(3):
            served, status = await get("/loose")
            assert (served, site.runs <= runs + 1) == (old, True), "one refresh, for which nobody waits"
            assert "detail=stale-while-revalidate" in status

        async def asked() -> bool:
            return site.runs == runs + 1

        await eventually(asked, "the app is asked", 30.0)
        site.opened.set()
        renewed = await get("/strict")
        assert renewed[0] != strict, "not to be served stale"

        async def new() -> bool:
            served, status = await get("/loose")
            return served != old and "hit" in status

        await eventually(new, "the new one is served", 30.0)
        assert site.runs == runs + 2

    visit(url, body)


def test_a_hard_purge_ends_what_a_soft_one_left(url: str | None) -> None:
    async def body(tide: Tidegate, site: Site, get: Get) -> None:
        old = await kept(get, "/loose")
        assert (await tide.purge("page:loose", soft=True)).state == "done"
        assert (await tide.purge("page:loose")).state == "done"
        served, status = await get("/loose")
        assert served != old
        assert "hit" not in status

    visit(url, body)


def test_what_carries_all_of_the_tags_is_purged_and_nothing_else(url: str | None) -> None:
    async def body(tide: Tidegate, site: Site, get: Get) -> None:
        a, b = await kept(get, "/a"), await kept(get, "/b")
        assert (await tide.purge(all_of=("page:a", "page"))).state == "done"
        assert (await get("/b"))[0] == b
        assert (await get("/a"))[0] != a
        with pytest.raises(ValueError, match="nothing is named to purge"):
            await tide.purge()
        with pytest.raises(ValueError, match="1 to 16 tags"):
            await tide.purge(all_of=[str(number) for number in range(17)])

    visit(url, body)
