"""Deadlines of calls: who is late, who was only held up, and who was cancelled by somebody else."""

import asyncio
import gc
import time
import weakref
from collections.abc import Coroutine
from typing import Any

import pytest

from tests.middleware.stores.support import eventually
from tidegate.middleware.stores.stepping import Answers, Deadlines

SHORT, LONG = 0.02, 60.0


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


async def waits(told: list[str], released: asyncio.Future[str]) -> str:
    try:
        return await released
    except asyncio.CancelledError:
        told.append("cancelled")
        raise


def test_a_call_that_is_late_is_cancelled_and_its_caller_is_not() -> None:
    async def main() -> None:
        deadlines, told = Deadlines(), list[str]()
        loop = asyncio.get_running_loop()
        assert await deadlines.within(SHORT, asyncio.sleep(0, "at once")) == "at once"
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await deadlines.within(SHORT, waits(told, loop.create_future()))
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert told == ["cancelled"] * 3

    run(main())


def test_who_came_first_is_due_first_and_who_is_done_holds_up_nobody() -> None:
    async def main() -> None:
        deadlines, told, loop = Deadlines(), list[str](), asyncio.get_running_loop()
        slow, quick = loop.create_future(), loop.create_future()
        calls = [deadlines.within(SHORT, waits(told, each)) for each in (slow, quick, loop.create_future())]
        tasks = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0)
        quick.set_result("quick")
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in ended] == [TimeoutError, str, TimeoutError]
        with pytest.raises(TimeoutError):  # the timer is armed again after the line was empty
            await deadlines.within(SHORT, waits(told, loop.create_future()))

    run(main())


def test_a_caller_that_is_cancelled_is_cancelled_even_as_its_time_runs_out() -> None:
    async def main() -> None:
        deadlines, loop = Deadlines(), asyncio.get_running_loop()
        never: asyncio.Future[str] = loop.create_future()
        never.add_done_callback(lambda _: task.cancel())  # in the very moment that the deadline cancels what it awaits
        task = asyncio.ensure_future(deadlines.within(SHORT, waits([], never)))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert never.cancelled()

        other = asyncio.ensure_future(deadlines.within(LONG, waits([], loop.create_future())))
        await asyncio.sleep(0)
        other.cancel()
        with pytest.raises(asyncio.CancelledError):
            await other

    run(main())


def test_a_call_that_goes_on_after_its_time_waits_for_nothing_more() -> None:
    async def main() -> None:
        deadlines, loop, told = Deadlines(), asyncio.get_running_loop(), list[str]()

        async def stubborn() -> str:
            for _ in range(3):
                try:
                    await loop.create_future()
                except asyncio.CancelledError:
                    told.append("refused")
            return "at last"

        assert await deadlines.within(SHORT, stubborn()) == "at last"
        assert told == ["refused"] * 3

    run(main())


def test_each_event_loop_has_its_own_line() -> None:
    deadlines = Deadlines()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await deadlines.within(SHORT, waits([], asyncio.get_running_loop().create_future()))

    run(main())
    run(main())


def test_times_that_nobody_waits_for_any_more_are_forgotten() -> None:
    async def main() -> None:
        deadlines, loop = Deadlines(), asyncio.get_running_loop()
        for number in range(100):
            soon = loop.create_future()
            loop.call_soon(soon.set_result, "quick")
            await deadlines.within(SHORT * (1 + number / 1000), waits([], soon))

        async def forgotten() -> bool:
            return not deadlines._lines

        await eventually(forgotten, "none is left", 20.0)

    run(main())


def test_a_future_that_is_late_fails_and_one_that_is_over_with_is_left_alone() -> None:
    async def main() -> None:
        answers, loop = Answers(SHORT), asyncio.get_running_loop()
        for _ in range(3):  # the timer is armed again after the line was empty
            late, answered, given_up, later = (loop.create_future() for _ in range(4))
            answers.begin(answered)
            answered.set_result("in time")
            answers.begin(given_up).clear()
            answers.begin(late)
            answers.begin(later)
            for each in (late, later):
                with pytest.raises(TimeoutError):
                    await each
            assert answered.result() == "in time"
            assert not given_up.done()

    run(main())


def test_a_future_of_another_event_loop_has_its_deadline_too() -> None:
    answers = Answers(SHORT)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        late = loop.create_future()
        answers.begin(late)
        with pytest.raises(TimeoutError):
            await late

    async def left() -> None:
        answers.begin(asyncio.get_running_loop().create_future())  # its timer will not be called

    run(left())
    run(main())


def test_an_answer_that_is_cleared_is_held_by_nobody() -> None:
    class Large:
        pass

    async def main() -> None:
        answers, loop = Answers(LONG), asyncio.get_running_loop()
        answer, large = loop.create_future(), Large()
        told = weakref.ref(large)
        waits = answers.begin(answer)
        answer.set_result(large)
        waits.clear()
        del answer, large
        gc.collect()
        assert told() is None

    run(main())


def test_the_deadline_of_a_future_does_not_count_the_time_for_which_the_loop_was_held_up() -> None:
    async def main() -> None:
        answers, loop = Answers(SHORT), asyncio.get_running_loop()
        answer = loop.create_future()
        answers.begin(answer)
        time.sleep(3 * SHORT)  # noqa: ASYNC251 - some other code of the application, that blocks
        loop.call_soon(answer.set_result, "it had come meanwhile")
        assert await answer == "it had come meanwhile"

    run(main())
