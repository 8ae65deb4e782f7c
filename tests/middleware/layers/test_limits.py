"""P6: what a response may bring into the store is bounded, and each bound says when it bites."""

import asyncio

import pytest

from tests.driver import Answer, Origin, User, call
from tests.middleware.stores.support import new_metrics
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.layers.filling import MAX_HEADER_BYTES, MAX_TAGS, MAX_VARIANTS
from tidegate.middleware.stores.memory import MemoryStore

ANN = User("acme", "ann")
FRESH = ("cache-control", "max-age=600")
LIMITS = ("body", "headers", "tags", "variants")


class Bench:
    """A cache layer over an app, and what its limits counted."""

    def __init__(self, app: Origin, max_body: int = 1000) -> None:
        self.app = app
        self.metrics = new_metrics()
        self.store = MemoryStore(metrics=self.metrics)
        self.layer = CacheLayer(app, store=self.store, max_body=max_body, metrics=self.metrics)

    def ask(self, *headers: tuple[str, str]) -> Answer:
        return asyncio.run(call(self.layer, "/", headers=headers, user=ANN))

    def bitten(self) -> dict[str, float]:
        counts = {name: self.metrics.limits.labels(name)._value.get() for name in LIMITS}
        return {name: count for name, count in counts.items() if count}


def of_headers(total: int) -> Origin:
    """Answers with as many bytes of header fields in all as this."""
    used = sum(map(len, (*FRESH, "content-length", "5", "x-long")))
    return Origin(headers=[FRESH, ("x-long", "v" * (total - used))])


@pytest.mark.parametrize(
    ("within", "beyond", "limit"),
    [
        (Origin(b"v" * 1000, headers=[FRESH]), Origin(b"v" * 1001, headers=[FRESH]), "body"),
        (of_headers(MAX_HEADER_BYTES), of_headers(MAX_HEADER_BYTES + 1), "headers"),
    ],
    ids=["body", "headers"],
)
def test_a_response_at_the_limit_is_stored_and_one_beyond_it_passes_through_whole(
    within: Origin, beyond: Origin, limit: str
) -> None:
    for app, hit in ((within, True), (beyond, False)):
        bench = Bench(app)
        first, second = bench.ask(), bench.ask()
        assert second.hit is hit
        assert first.body == second.body == app.body
        assert bench.bitten() == ({} if hit else {limit: 2})


@pytest.mark.parametrize("vary", [[], [("vary", "x-kind")]], ids=["plain", "with variants"])
def test_an_entry_with_more_tags_than_may_be_is_not_stored(vary: list[tuple[str, str]]) -> None:
    class Tagging(Origin):
        def __init__(self, count: int) -> None:
            super().__init__(headers=[FRESH, *vary])
            self.count = count

        async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
            for number in range(self.count):
                scope["tidegate"].tag(f"t:{number}")
            await super().__call__(scope, receive, send)

    within, beyond = Bench(Tagging(MAX_TAGS - 1)), Bench(Tagging(MAX_TAGS))  # the URI is one
    assert [bench.ask().hit or bench.ask().hit for bench in (within, beyond)] == [True, False]
    assert (within.bitten(), beyond.bitten()) == ({}, {"tags": 2})


def test_a_url_has_no_more_variants_than_may_be_and_the_first_stored_goes() -> None:
    bench = Bench(Origin(headers=[FRESH, ("vary", "x-kind")]))
    for number in range(MAX_VARIANTS + 1):
        bench.ask(("x-kind", str(number)))
    assert bench.bitten() == {"variants": 1}
    assert bench.store.stats().entries == MAX_VARIANTS + 1  # and the list of them
    assert [bench.ask(("x-kind", str(number))).hit for number in (MAX_VARIANTS, 1, 0)] == [True, True, False]
