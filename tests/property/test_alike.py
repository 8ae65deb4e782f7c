"""Responses that are alike are stored in pieces by the straight way, and are what the general way stores.

Two stacks live through the same generated lives, as in `test_straight`, but of a few routes whose responses are alike,
each at many URIs: so most are kept by a mould of an earlier one (`stores.moulds`). Both have been given the same to
keep, in the same order and for as long, and hold it the same.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.property.test_fused import Step, metrics_of
from tests.property.test_straight import Life, Stack, header, messages
from tidegate.middleware.layers.keeping import _MOULDS, Keeping

PATHS = (
    *("/user",) * 6,
    *("/plain",) * 6,
    "/strict",
    "/told-client",
    "/public",
    "/dated",
    "/vary",
    "/tags/",
)
QUERIES = (
    *(f"n={number}" for number in range(40)),
    *(f"at=/{number}/x" for number in range(4)),
    "é=1",
    "n" * 230,
    "n" * 300,
)
ASKS = st.tuples(
    st.builds(
        Step,
        after=st.sampled_from([0.0, 0.0, 0.0, 0.0, 0.5]),
        path=st.sampled_from(PATHS),
        query=st.sampled_from(QUERIES),
        user=st.sampled_from([0, 0, 0, 0, 0, 1, 2]),
        more=st.integers(0, 9).map(lambda n: {} if n else {"scheme": "https"}),
        shut=st.integers(0, 29).map(lambda n: frozenset[str]() if n else frozenset({"etag"})),
    ),
    st.just(200),
    st.sampled_from([*["whole"] * 24, "tags", "waits", "waits before the body", "coded", "explains", "a buffer"]),
)
HAPPENS = st.tuples(
    st.one_of(
        st.builds(Step, purge=st.sampled_from(["public", "tenant:acme"])),
        st.builds(Step, after=st.just(31.0), path=st.just("/off")),
        st.builds(Step, after=st.just(-2.5), path=st.just("/off")),  # as clocks are put right
    ),
    st.just(200),
    st.just("whole"),
)
LIVES = st.lists(st.tuples(st.lists(ASKS, min_size=20, max_size=40), HAPPENS), min_size=1, max_size=3)


def run(life: Coroutine[Any, Any, None]) -> None:
    async def whole() -> None:
        await life
        await asyncio.sleep(0)  # the task of a run that did not wait ends in the next turn, see `layers.eager`

    asyncio.run(whole())


def held(stack: Stack) -> dict[bytes, object]:
    return {key: stack.memory.peek(key) for key, _, _ in stack.memory.kept}


def test_what_is_stored_in_pieces_is_what_the_general_way_stores() -> None:
    alike: list[int] = []
    kept: list[int] = []

    async def live(steps: Life) -> None:
        straight, general = (Stack(straight=each, alone=False) for each in (True, False))
        for step in steps:
            seen, wanted = await straight.live(*step), await general.live(*step)
            assert messages(seen) == messages(wanted), step
            assert straight.memory.kept == general.memory.kept, step
        assert held(straight) == held(general)
        assert straight.cohorts.totals() == general.cohorts.totals()
        assert metrics_of(straight) == metrics_of(general)
        alike.append(straight.memory.in_pieces)
        kept.append(len(general.memory.kept))
        assert general.memory.in_pieces == 0

    @settings(
        max_examples=50,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(LIVES)
    def compare(lives: list[tuple[Life, tuple[Step, int, str]]]) -> None:
        run(live([step for steps, then in lives for step in (*steps, then)]))

    compare()
    assert sum(alike) > sum(kept) / 4, (sum(alike), sum(kept))


def fresh(number: int, path: str = "/user") -> tuple[Step, int, str]:
    return Step(path=path, query=f"n={number}"), 200, "whole"


def test_the_fifth_response_of_a_kind_is_stored_in_pieces_and_one_that_a_handler_tagged_is_not() -> None:
    async def body() -> None:
        stack = Stack(straight=True, alone=False)
        for number in range(8):
            await stack.live(*fresh(number))
        before = stack.memory.in_pieces
        assert before >= 4
        tagged = (*fresh(8)[:2], "tags")
        await stack.live(*tagged)
        assert stack.memory.in_pieces == before
        assert "list" in repr(stack.memory.kept[-1])
        await stack.live(*fresh(9))
        assert stack.memory.in_pieces == before + 1
        # After a purge, in whatever scope, the first is an entry again.
        await stack.store.purge({"tenant:evil": ("other",)})
        for number in (10, 11):
            await stack.live(*fresh(number))
        assert stack.memory.in_pieces == before + 2
        # And so are those that another route's plan, or another tenant, has made.
        await stack.live(replace(fresh(12)[0], user=2), 200, "whole")
        assert stack.memory.in_pieces == before + 2

    run(body())


class Held(Stack):
    """An app that waits until it may go on, where the request says so; time passes meanwhile."""

    def __init__(self, *, straight: bool) -> None:
        super().__init__(straight=straight, alone=False)
        self.came, self.on = asyncio.Event(), asyncio.Event()
        self.passes = 0.0

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["state"]["manner"] == "held":
            self.came.set()
            await self.on.wait()
        self.now += self.passes
        await super().app(scope, receive, send)


def test_what_was_asked_for_before_a_purge_is_not_stored_by_the_mould_of_what_came_after_it() -> None:
    async def body() -> None:
        stack = Held(straight=True)
        for number in range(6):
            await stack.live(*fresh(number))
        raced = asyncio.create_task(stack.live(fresh(6)[0], 200, "held"))
        await stack.came.wait()
        await stack.store.purge({"tenant:acme": ("",)})
        for number in (7, 8):
            await stack.live(*fresh(number))
        last, before = stack.memory.kept[-1][0], stack.memory.in_pieces
        assert before > 1
        stack.on.set()
        await raced
        key = stack.memory.kept[-1][0]
        assert key != last
        assert stack.memory.in_pieces == before
        assert stack.memory.peek(last) is not None
        assert stack.memory.peek(key) is None

    run(body())


@pytest.mark.parametrize("passes", [0.5, -0.25])
def test_the_time_that_the_app_takes_counts_whichever_way_the_clock_goes(passes: float) -> None:
    async def body() -> None:
        stacks = Held(straight=True), Held(straight=False)
        for stack in stacks:
            stack.passes = passes
            for number in range(8):
                await stack.live(*fresh(number))
        straight, general = stacks
        assert straight.memory.kept == general.memory.kept
        assert (straight.memory.in_pieces >= 4) is (passes > 0)

    run(body())


def test_uris_of_which_each_has_a_folder_of_its_own_are_alike_too() -> None:
    async def body() -> None:
        stack = Stack(straight=True, alone=False)
        for number in range(8):
            await stack.live(Step(path="/user", query=f"at=/{number}/x"), 200, "whole")
        assert stack.memory.in_pieces >= 4

    run(body())


@pytest.mark.parametrize(
    "other",
    [Step(path="/user", query="n" * 230), Step(path="/user", query="n=9", more={"scheme": "https"})],
    ids=["a URI too long to stand in its tag", "another origin"],
)
def test_a_uri_whose_tag_begins_otherwise_has_its_own(other: Step) -> None:
    async def body() -> None:
        stacks = Stack(straight=True, alone=False), Stack(straight=False, alone=False)
        for stack in stacks:
            for number in range(6):
                await stack.live(*fresh(number))
            await stack.live(other, 200, "whole")
        straight, general = stacks
        assert straight.memory.in_pieces > 0
        assert straight.memory.kept == general.memory.kept

    run(body())


def test_who_asks_in_one_folder_and_then_in_another_has_either_stored_under_its_own_name() -> None:
    async def body() -> None:
        stacks = Stack(straight=True, alone=False), Stack(straight=False, alone=False)
        for stack in stacks:
            for query in ("at=/folder/{}", "n={}", "at=/folder/1{}", "n=1{}", "at=/else/{}"):
                for number in range(5):
                    await stack.live(Step(path="/user", query=query.format(number)), 200, "whole")
        straight, general = stacks
        assert straight.memory.in_pieces >= 15
        assert straight.memory.kept == general.memory.kept
        assert held(straight) == held(general)

    run(body())


class Kinds(Stack):
    """An app that answers with the type and as many bytes as the request's manner asks; of more than 2000 it waits."""

    def __init__(self) -> None:
        super().__init__(straight=True, alone=False)
        self.memory._max_entry_bytes = 2500
        self.came, self.on = asyncio.Event(), asyncio.Event()

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        kind, size = scope["state"]["manner"].split()
        if int(size) > 2000:
            self.came.set()
            await self.on.wait()
        headers = [
            (b"content-length", size.encode()),
            (b"content-type", kind.encode()),
            (b"cache-control", b"max-age=60"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * int(size)})

    async def ask(self, number: int, manner: str, browser: str = "one") -> Any:
        step = Step(path="/plain", query=f"n={number}", fields=(("user-agent", browser),))
        return await self.live(step, 200, manner)


def test_what_the_store_refused_leaves_no_mould_of_what_another_request_has_put_there() -> None:
    async def body() -> None:
        stack = Kinds()
        for number in range(6):
            await stack.ask(number, "text/a 10" if number < 3 else "text/b 10")
        await stack.store.purge({"tenant:evil": ("other",)})
        raced = asyncio.create_task(stack.ask(6, "text/b 3000", "another"))  # told apart, so that no run is shared
        await stack.came.wait()
        await stack.ask(6, "text/a 10")
        stack.on.set()
        await raced
        assert stack.memory.stats().rejected == 1
        for number in range(7, 10):
            await stack.ask(number, "text/b 10")
            hit = await stack.ask(number, "text/b 10")
            assert "hit" in (header(hit) or "")
            assert (b"content-type", b"text/b") in hit.messages[0]["headers"]
        assert stack.memory.in_pieces > 0

    run(body())


def test_moulds_that_are_remembered_are_bounded() -> None:
    async def body() -> None:
        stack = Stack(straight=True, alone=False)
        assert stack.cache.misses is not None
        keeping = stack.cache.misses.keep.__self__
        assert isinstance(keeping, Keeping)
        for number in range(6):
            await stack.live(*fresh(number))
        ((key, mould),) = keeping._moulds.items()
        for number in range(_MOULDS):
            keeping._moulds[key[0], key[1], f"{number}"] = mould
        await stack.store.purge({"tenant:evil": ("other",)})
        await stack.live(*fresh(7))
        assert len(keeping._moulds) == 1
        await stack.live(*fresh(8))
        assert stack.memory.in_pieces > 1

    run(body())


def test_a_store_that_fails_to_keep_one_in_pieces_is_counted_and_the_client_has_its_answer() -> None:
    async def body() -> None:
        stack = Stack(straight=True, alone=False)
        for number in range(6):
            await stack.live(*fresh(number))

        def fails(*_: object) -> None:
            raise ValueError

        stack.memory._row_for = fails  # type: ignore[method-assign]
        answer = await stack.live(*fresh(6))
        assert "stored" in (header(answer) or "")  # type: ignore[arg-type]
        assert stack.cache._config.metrics.errors.labels("store")._value.get() == 1

    run(body())
