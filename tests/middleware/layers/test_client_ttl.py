"""What a policy's `client_ttl` lets a client keep: as long from each answer on, stored or not."""

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.driver import Answer, Origin, User, call
from tidegate import CacheLayer, MemoryStore, RoutePolicy
from tidegate.middleware.core.policy import Policies
from tidegate.middleware.layers.asgi import ContextResolver
from tidegate.middleware.metrics import Metrics

ANN = User("acme", "ann")


class Remote:
    """What has to be waited for: nothing is at hand."""

    local = False

    def __init__(self, **of: Any) -> None:
        near = MemoryStore(**of)
        self.get, self.put, self.delete, self.purge, self.stats = (
            near.get,
            near.put,
            near.delete,
            near.purge,
            near.stats,
        )
        self.start, self.aclose = near.start, near.aclose

    def peek(self, key: bytes) -> Any:
        return None


async def answers(policy: RoutePolicy, store: Any, *fields: tuple[str, str], **of: Any) -> list[Answer]:
    """To a miss, to a hit 30 s later, and to one 30 s after that."""
    now = 1_790_000_000.0
    metrics = Metrics(CollectorRegistry())
    layer = CacheLayer(
        Origin(headers=[("etag", '"1"'), *fields]),
        store=store(metrics=metrics, clock=lambda: now),
        resolver=ContextResolver(policies=Policies([policy])),
        metrics=metrics,
        clock=lambda: now,
    )
    found = [await call(layer, "/page", user=ANN)]
    for _ in range(2):
        now += 30
        found.append(await call(layer, "/page", user=ANN, **of))
    return found


def control(found: list[Answer]) -> list[str | None]:
    return [answer.header("cache-control") for answer in found]


ASKED: list[dict[str, Any]] = [
    {},
    {"method": "HEAD"},
    {"headers": [("if-none-match", '"1"')]},
    {"headers": [("range", "bytes=0-1")]},
    {"headers": [("cache-control", "max-age=90")]},  # the general way, as the one before
]


@pytest.mark.parametrize("store", [MemoryStore, Remote])
@pytest.mark.parametrize("of", ASKED)
@pytest.mark.parametrize(("share", "scope"), [("tenant", "private"), ("public", "public")])
def test_a_hit_gives_the_client_its_seconds_from_now_on(share: Any, scope: str, of: Any, store: Any) -> None:
    policy = RoutePolicy(route="/page", ttl=100, client_ttl=5, share=share)
    found = asyncio.run(answers(policy, store, **of))
    assert control(found) == [f"{scope}, max-age=5", f"{scope}, max-age=35", f"{scope}, max-age=65"]
    assert [answer.header("age") for answer in found] == [None, "30", "60"]


@pytest.mark.parametrize("store", [MemoryStore, Remote])
def test_what_must_be_revalidated_must_be_so_then(store: Any) -> None:
    policy = RoutePolicy(route="/page", ttl=100, client_ttl=5, share="tenant")
    (_, hit, _) = asyncio.run(answers(policy, store, ("cache-control", "must-revalidate")))
    assert hit.header("cache-control") == "private, max-age=35, must-revalidate"


@pytest.mark.parametrize("store", [MemoryStore, Remote])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ([("cache-control", "private, max-age=70")], "private, max-age=70"),
        ([("cache-control", "private, max-age=5"), ("cdn-cache-control", "max-age=100")], "private, max-age=5"),
    ],
)
def test_the_apps_own_word_goes_on_as_it_is(fields: Any, said: str, store: Any) -> None:
    policy = RoutePolicy(route="/page", ttl=100, client_ttl=5, share="user")
    found = asyncio.run(answers(policy, store, *fields))
    assert (control(found), found[2].hit) == ([said] * 3, True)


@pytest.mark.parametrize("store", [MemoryStore, Remote])
def test_what_is_stale_is_not_to_be_kept(store: Any) -> None:
    policy = RoutePolicy(route="/page", ttl=40, client_ttl=5, share="user", stale_while_revalidate=100)
    found = asyncio.run(answers(policy, store))
    assert control(found) == ["private, max-age=5", "private, max-age=35", "private, max-age=5"]
    assert (found[2].hit, found[2].header("age")) == (True, "60")
