"""What a write clears: all that is stored of the resource that it names, by whichever of its names (RFC 9111 4.4)."""

import asyncio
from typing import Any

import pytest

from tests.driver import call, scope_of
from tidegate import MemoryStore
from tidegate.middleware.layers.cache import CacheLayer

READ: dict[str, Any] = {"path": "/users/a@b", "raw_path": b"/users/a@b"}


def scope(method: str, host: str = "example.test", **of: Any) -> dict[str, Any]:
    made = scope_of(method=method, **READ | of)
    return made | {"headers": [(b"host", host.encode())]}


def is_cleared(read: dict[str, Any], written: dict[str, Any], location: bytes | None = None) -> bool:
    """Whether a write by one name clears what is stored under the other."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"cache-control", b"max-age=60")]
        if location is not None and scope["method"] != "GET":
            headers.append((b"location", location))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x"})

    async def body() -> bool:
        layer = CacheLayer(app, store=MemoryStore(), share="public")
        await call(layer, scope=scope("GET", **read))
        assert (await call(layer, scope=scope("GET", **read))).hit
        await call(layer, scope=scope("PUT", **written))
        return not (await call(layer, scope=scope("GET", **read))).hit

    return asyncio.run(body())


NAMES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"raw_path": b"/users/a%40b"}),
    ({"raw_path": b"/users/a%40b"}, {}),
    ({"raw_path": b"/%75sers/a@b"}, {"raw_path": b"/users/a%40b"}),
    ({"path": "/é", "raw_path": b"/%C3%A9"}, {"path": "/é", "raw_path": b"/%c3%a9"}),
    ({"query": "to=a@b"}, {"query": "to=a%40b"}),
    ({}, {"host": "example.test:80"}),
    ({"host": "example.test:443", "scheme": "https"}, {"host": "Example.test", "scheme": "https"}),
    (
        {"path": "/" + "@" * 300, "raw_path": b"/" + b"@" * 300},
        {"path": "/" + "@" * 300, "raw_path": b"/" + b"%40" * 300},
    ),
]


@pytest.mark.parametrize(("read", "written"), NAMES)
def test_a_write_by_another_name_of_a_resource_clears_what_is_stored(read: Any, written: Any) -> None:
    assert is_cleared(read, written)


def test_a_location_by_another_name_clears_what_is_stored() -> None:
    assert is_cleared({}, {"path": "/users", "raw_path": b"/users"}, b"/users/a%40b")


@pytest.mark.parametrize(
    "written",
    [
        {"path": "/users/a@c", "raw_path": b"/users/a%40c"},
        {"query": "a%40b"},
        {"scheme": "https"},
        {"host": "example.test:8080"},
        {"host": "example.test:443"},
        {"path": "/users/a%40b", "raw_path": b"/users/a%2540b"},
    ],
)
def test_a_write_to_another_resource_clears_nothing(written: Any) -> None:
    assert not is_cleared({}, written)
