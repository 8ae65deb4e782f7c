"""What is too old when the app answers with it: not stored, and nobody is told so (RFC 9111 4.2.3, RFC 9211)."""

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.driver import Origin, call
from tidegate import MemoryStore, RoutePolicy, Tidegate
from tidegate.middleware.metrics import Metrics
from tidegate.vocabulary import LAYERS, Layer

OLD: list[tuple[list[tuple[str, str]], bool]] = [
    ([("cache-control", "max-age=60, must-revalidate"), ("age", "61")], False),
    ([("cache-control", "max-age=60, must-revalidate"), ("date", "Sun, 06 Nov 1994 08:49:37 GMT")], False),
    ([("cache-control", "max-age=60"), ("age", "121")], False),
    ([("age", "121")], False),
    ([("date", "Sun, 06 Nov 1994 08:49:37 GMT")], False),
    ([("cache-control", "max-age=60"), ("age", "61")], True),  # it stands in for a 502 for some seconds
    ([("cache-control", "max-age=60, must-revalidate"), ("age", "61"), ("etag", '"1"')], True),  # it can be asked about
    ([("cache-control", "max-age=60, must-revalidate"), ("age", "59")], True),
]


@pytest.mark.parametrize("layers", [("cache",), ("cache", "etag"), LAYERS], ids=len)
@pytest.mark.parametrize(("fields", "stored"), OLD)
def test_of_what_comes_too_old_to_be_of_use_nobody_is_told_that_it_is_stored(
    fields: list[tuple[str, str]], stored: bool, layers: tuple[Layer, ...]
) -> None:
    told: list[bool | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await Origin(headers=fields)(scope, receive, send)
        told.append(scope["tidegate"].explain().stored)

    async def body() -> None:
        store = MemoryStore(metrics=Metrics(CollectorRegistry()))
        policy = RoutePolicy(route="/", ttl=60, share="public")
        mounted = Tidegate(policies=[policy], layers=layers, store=store, registry=CollectorRegistry())(app)
        for path in ("/", "/?a", "/?b"):  # the second has a plan, see `straight`, the third one with its fields
            answer = await call(mounted, "/", query=path[2:])
            said = answer.header("cache-status") or ""
            assert (said == "Tidegate; fwd=miss; stored") is stored
            assert stored or said.startswith('Tidegate; fwd=miss; detail="not fresh (')
        assert (store.stats().entries, told) == (3 * stored, [stored] * 3)

    asyncio.run(body())
