"""Puts one of the five apps on, bare or with the layers, and plays the story that all tests of this folder compare."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import CollectorRegistry

from tests.frameworks.django_site import DJANGO
from tests.frameworks.driving import Exchange, Server, serving
from tests.frameworks.fastapi_site import FASTAPI
from tests.frameworks.litestar_site import LITESTAR
from tests.frameworks.quart_site import QUART
from tests.frameworks.starlette_site import STARLETTE
from tests.frameworks.surface import EVENTS, FORM, FORM_TYPE, POLICIES, SUB_POLICIES, Framework, How, World
from tests.provider import FixedFlags
from tidegate import Tidegate

__all__ = ["FRAMEWORKS", "HOWS", "STORY", "Stage", "Step", "for_the_client", "seen", "staged", "told"]

FRAMEWORKS: Final = (STARLETTE, FASTAPI, LITESTAR, QUART, DJANGO)
HOWS: Final[tuple[How, ...]] = ("around", "inside", "sub")


@dataclass(frozen=True, slots=True)
class Step:
    """One request of the story. `who` is a token of PEOPLE; `body` its pieces."""

    path: str
    who: str | None = None
    method: str = "GET"
    body: tuple[bytes, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()


READS: Final = tuple(
    Step(path, who)
    for who in ("ann-token", "ben-token", "eve-token", None)
    for path in ("/me", "/page", "/clients/7", "/report", "/old", "/cookies", "/sub/page", "/sub/me")
)
STORY: Final = (
    *READS,
    *READS,
    Step("/clients/nobody", "ann-token"),
    Step("/refused", "ann-token"),
    Step("/refused", "ann-token"),
    Step("/crash", "ann-token"),
    Step("/crash", "ann-token"),
    Step("/missing", "ann-token"),
    Step("/page", method="HEAD"),
    Step("/page", method="DELETE"),
    Step("/page", headers=(("range", "bytes=0-3"),)),
    Step("/events", "ann-token"),
    Step("/upload", "ann-token", "POST", (FORM,), (FORM_TYPE,)),
    Step("/stream", "ann-token", "POST", (b"one", b"three", b"seventeen")),
    Step("/title", "ann-token", "PUT", (b"ebb",)),
    Step("/clients/7/name", "eve-token", "PUT", (b"siete",)),
    Step("/clients/7/name", "ann-token", "PUT", (b"seven again",)),
    *READS,
    *READS,
)


@dataclass
class Stage:
    """One app being served, with its world."""

    framework: Framework
    world: World
    server: Server
    tide: Tidegate | None

    async def do(self, step: Step) -> Exchange:
        """One step of the story."""
        who = self.framework.headers(step.who) if step.who is not None else ()
        length = [("content-length", str(len(b"".join(step.body))))] if step.body else []
        return await self.server.ask(step.path, *step.body, method=step.method, headers=[*who, *length, *step.headers])

    async def get(self, path: str, who: str | None = "ann-token", *headers: tuple[str, str]) -> Exchange:
        """A GET."""
        return await self.do(Step(path, who, headers=headers))

    async def put(self, path: str, body: bytes, who: str | None = "ann-token") -> Exchange:
        """A PUT that works."""
        answer = await self.do(Step(path, who, "PUT", (body,)))
        assert answer.status == 204
        return answer


def layers(framework: Framework, how: How, *, is_open: bool = True) -> Tidegate:
    return Tidegate(
        identify=framework.identify(how),
        policies=SUB_POLICIES if how == "sub" and framework is not DJANGO else POLICIES,
        # Without flags every layer is open, for who has no unit too.
        provider=None if is_open else FixedFlags(is_open=False),
        registry=CollectorRegistry(),
    )


@asynccontextmanager
async def staged(framework: Framework, how: How | None, *, is_open: bool = True) -> AsyncIterator[Stage]:
    """The app bare (`how` is None), or with the layers."""
    world = World()
    tide = layers(framework, how, is_open=is_open) if how is not None else None
    world.purge = tide.purge if tide is not None and how == "sub" else None
    async with serving(framework.build(world, tide, how or "around")) as server:
        try:
            yield Stage(framework, world, server, tide)
        finally:
            world.release.set()
            if tide is not None:
                await tide.aclose()


async def told(framework: Framework, how: How | None, *, is_open: bool = True) -> list[Exchange]:
    """The whole story's answers."""
    async with staged(framework, how, is_open=is_open) as stage:
        stage.world.release.set()
        for _ in range(EVENTS * STORY.count(Step("/events", "ann-token"))):
            stage.world.allow()
        return [await stage.do(step) for step in STORY]


def seen(exchange: Exchange) -> tuple[Any, ...]:
    """All that reached the server."""
    return exchange.messages, type(exchange.error), str(exchange.error)


def for_the_client(exchange: Exchange, bare: Exchange) -> tuple[Any, ...]:
    """What a client has of it, but for the fields that the layers add."""
    added = {b"cache-status", b"age"}
    for ours in (b"etag", b"cache-control", b"content-length"):
        if ours not in {name.lower() for name, _ in bare.headers}:
            added.add(ours)
    # Django writes names as a browser shows them, and ASGI in lower case.
    headers = [(name.lower(), value) for name, value in exchange.headers if name.lower() not in added]
    assert exchange.header("content-length") in (None, str(len(exchange.body)), bare.header("content-length"))
    events = [message["type"] for message in exchange.messages if message.get("body") != b""]
    return exchange.status, headers, exchange.body, exchange.complete, events, repr(exchange.error)
