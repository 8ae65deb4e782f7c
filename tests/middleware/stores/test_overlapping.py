"""Attempts that begin beside those that hang: the first to succeed counts, and nothing is left of the others."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from tests.middleware.stores.support import eventually
from tidegate.middleware.stores.overlapping import first_of

SHORT = 0.005


class Attempts:
    """What each attempt in turn does; the last for all further ones."""

    def __init__(self, *ways: Callable[[], Awaitable[str]]) -> None:
        self.ways = ways
        self.begun = 0
        self.at_once = 0
        self.most = 0
        self.failures: list[str] = []
        self.spared: list[str] = []

    async def begin(self) -> str:
        way = self.ways[min(self.begun, len(self.ways) - 1)]
        self.begun += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            return await way()
        finally:
            self.at_once -= 1

    async def spare(self, result: str) -> None:
        self.spared.append(result)

    def first(self, *, within: float = 60.0) -> Coroutine[Any, Any, str]:
        return first_of(
            self.begin,
            every=SHORT,
            within=within,
            failed=lambda error: self.failures.append(type(error).__name__),
            spare=self.spare,
        )


async def hangs() -> str:
    await asyncio.Event().wait()
    return "never"


async def fails() -> str:
    raise OSError("refused")


async def succeeds() -> str:
    return "won"


def test_another_attempt_begins_beside_one_that_hangs_and_nothing_is_left_of_that() -> None:
    async def story() -> None:
        attempts = Attempts(hangs, hangs, succeeds)
        assert await attempts.first() == "won"
        assert (attempts.begun, attempts.at_once, attempts.spared) == (3, 0, [])
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(story())


def test_one_that_is_merely_slow_succeeds_though_younger_ones_hang() -> None:
    async def story() -> None:
        enough = asyncio.Event()

        async def slow() -> str:
            await enough.wait()
            return "slow"

        attempts = Attempts(slow, hangs)
        asked = asyncio.create_task(attempts.first())

        async def three() -> bool:
            return attempts.begun >= 3

        await eventually(three, "three are under way", 20.0)
        enough.set()
        assert await asked == "slow"
        assert attempts.at_once == 0

    asyncio.run(story())


def test_a_result_that_is_too_many_is_let_go() -> None:
    async def story() -> None:
        enough = asyncio.Event()

        async def together() -> str:
            await enough.wait()
            return "one"

        async def stubborn() -> str:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return "came as it was cancelled"
            return "never"

        attempts = Attempts(together, together, stubborn, hangs)
        asked = asyncio.create_task(attempts.first())

        async def all_begun() -> bool:
            return attempts.begun >= 4

        await eventually(all_begun, "all are under way", 20.0)
        enough.set()
        assert await asked == "one"
        assert sorted(attempts.spared) == ["came as it was cancelled", "one"]

    asyncio.run(story())


def test_nothing_is_left_of_one_that_is_cancelled_while_it_ends_the_others() -> None:
    async def story() -> None:
        leaving, may_leave = asyncio.Event(), asyncio.Event()

        async def polite() -> str:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                leaving.set()
                await may_leave.wait()
                raise
            return "never"

        attempts = Attempts(polite, succeeds)
        asked = asyncio.create_task(attempts.first())
        await leaving.wait()
        for _ in range(2):
            asked.cancel()
            await asyncio.sleep(0)
        may_leave.set()
        await asyncio.wait([asked])
        assert asked.cancelled()
        assert (attempts.at_once, attempts.spared) == (0, ["won"]), "nobody has what was won"
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(story())


def test_a_failure_ends_it_only_when_none_is_under_way_any_more() -> None:
    async def story() -> None:
        alone = Attempts(fails)
        with pytest.raises(OSError, match="refused"):
            await alone.first()
        assert (alone.begun, alone.failures) == (1, [])

        beside = Attempts(hangs, fails, fails, succeeds)
        assert await beside.first() == "won"
        assert beside.failures == ["OSError", "OSError"]

    asyncio.run(story())


def test_each_has_its_time_and_so_few_are_under_way_at_once() -> None:
    async def story() -> None:
        attempts = Attempts(hangs)
        asked = asyncio.create_task(attempts.first(within=4 * SHORT))

        async def many() -> bool:
            return attempts.begun >= 12 or asked.done()

        await eventually(many, "a dozen have begun", 20.0)
        asked.cancel()
        ended = await asyncio.gather(asked, return_exceptions=True)
        # On a busy machine all those that are under way may end before another begins: that ends it.
        assert isinstance(ended[0], asyncio.CancelledError | TimeoutError)
        assert attempts.at_once == 0
        assert attempts.most <= 4 / 0.8 + 3
        assert set(attempts.failures) <= {"TimeoutError"}

    asyncio.run(story())


def test_whoever_is_cancelled_leaves_none_under_way() -> None:
    async def story() -> None:
        attempts = Attempts(hangs)
        asked = asyncio.create_task(attempts.first())

        async def two() -> bool:
            return attempts.begun >= 2

        await eventually(two, "two are under way", 20.0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert attempts.at_once == 0

    asyncio.run(story())
