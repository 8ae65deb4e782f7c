"""Runs that are begun at once: those that do not wait are over at once, those that do are tasks like any other."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import anyio
import anyio.to_thread
import pytest

from tests.driver import Answer, scope_of
from tests.middleware.layers.coalescing import Bench, Client, run, settle
from tidegate.middleware.layers import eager
from tidegate.middleware.layers.eager import begin

variable: ContextVar[str] = ContextVar("variable", default="outside")


async def finished(work: Any) -> None:
    task = begin(work)
    if task is not None:
        async with asyncio.timeout(5):
            await task


def test_a_run_that_does_not_wait_needs_no_turn_of_the_loop_and_leaves_no_task() -> None:
    answer = Answer()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    async def send(message: Any) -> None:
        answer.messages.append(message)

    async def receive() -> Any:
        raise AssertionError

    async def body() -> None:
        bench = Bench(app)
        for _ in range(3):
            with pytest.raises(StopIteration):
                bench.layer(scope_of(), receive, send).send(None)
        assert len(answer.messages) == 6
        assert bench.roles() == (3, 0, 0)
        await settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(body)


def test_a_run_has_one_task_and_one_context_from_its_first_line_to_its_last() -> None:
    tasks: list[Any] = []

    async def work() -> None:
        tasks.append(asyncio.current_task())
        token = variable.set("inside")
        await asyncio.sleep(0)
        tasks.append(asyncio.current_task())
        assert variable.get() == "inside"
        variable.reset(token)
        child = asyncio.create_task(asyncio.sleep(0))
        await child
        tasks.append(asyncio.current_task())

    async def body() -> None:
        caller = asyncio.current_task()
        task = begin(work())
        assert asyncio.current_task() is caller
        assert task is not None
        assert ".work() " in repr(task), "people see what runs in it"
        await task
        assert tasks == [task] * 3
        assert caller is not task
        assert variable.get() == "outside"

    run(body)


async def does_not_wait() -> None: ...


async def times_out() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()


async def is_overdue_before_its_first_wait() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.Event().wait()


async def groups() -> None:
    async def fails() -> None:
        raise ValueError

    async def group_of_two() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup):
        await group_of_two()


async def is_cancelled_by_a_scope() -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await anyio.sleep(60)
    assert scope.cancelled_caught


async def moves_on() -> None:
    with anyio.move_on_after(0.01) as scope:
        await anyio.Event().wait()
    assert scope.cancelled_caught


async def asks_a_thread() -> None:
    assert await anyio.to_thread.run_sync(lambda: threading.current_thread().name) != threading.current_thread().name


@pytest.mark.parametrize(
    "work", [times_out, is_overdue_before_its_first_wait, groups, is_cancelled_by_a_scope, moves_on, asks_a_thread]
)
def test_time_outs_groups_scopes_and_threads_work_across_the_first_wait(work: Callable[[], Awaitable[None]]) -> None:
    async def body() -> None:
        await finished(work())

    run(body)


def test_a_cancellation_before_the_tasks_own_first_step_reaches_what_the_run_waits_for() -> None:
    seen: list[str] = []

    async def body() -> None:
        waited = asyncio.get_running_loop().create_future()

        async def work() -> None:
            try:
                await waited
            except asyncio.CancelledError:
                seen.append("cancelled")
                await asyncio.sleep(0)
                seen.append("cleaned up")
                raise

        task = begin(work())
        assert task is not None
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == ["cancelled", "cleaned up"]
        assert waited.cancelled()

    run(body)


def test_a_run_that_cancels_itself_and_does_not_wait_ends_cancelled_and_the_next_does_not() -> None:
    async def cancels() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async def fine() -> None:
        await asyncio.sleep(0)

    async def body() -> None:
        with pytest.raises(asyncio.CancelledError):
            begin(cancels())
        await finished(fine())
        assert all(not task.cancelling() for task in asyncio.all_tasks())

    run(body)


def test_an_error_comes_out_at_once_or_out_of_the_task_and_the_next_run_is_untouched() -> None:
    async def fails(waits: bool) -> None:
        if waits:
            await asyncio.sleep(0)
        raise ValueError("its own")

    async def body() -> None:
        for waits in (False, True, False, True):
            with pytest.raises(ValueError, match="its own"):
                await finished(fails(waits))

    run(body)


def keeps_it(task: Any, kept: list[Any]) -> None:
    kept.append(task)


def keeps_a_weak_reference(task: Any, kept: list[Any]) -> None:
    kept.append(WeakKeyDictionary({task: "of this request"}))


def keeps_it_in_a_closure(task: Any, kept: list[Any]) -> None:
    kept.append(lambda: task)


def wants_to_hear_of_its_end(task: Any, kept: list[Any]) -> None:
    task.add_done_callback(kept.append)


def leaves_an_attribute(task: Any, kept: list[Any]) -> None:
    task.user = "ann"


def names_it(task: Any, kept: list[Any]) -> None:
    task.set_name("request of ann")


def cancels_and_thinks_better_of_it(task: Any, kept: list[Any]) -> None:
    task.cancel()
    task.uncancel()


def leaves_a_time_out_running(task: Any, kept: list[Any]) -> None:
    kept.append(asyncio.get_running_loop().call_later(60, task.cancel))


LEAVINGS = [
    keeps_it, keeps_a_weak_reference, keeps_it_in_a_closure, wants_to_hear_of_its_end, leaves_an_attribute, names_it,
    cancels_and_thinks_better_of_it, leaves_a_time_out_running,
]  # fmt: skip


@pytest.mark.parametrize("leave", LEAVINGS)
def test_a_task_on_which_something_is_left_serves_no_other_run(leave: Callable[[Any, list[Any]], None]) -> None:
    kept: list[Any] = []
    seen: list[tuple[int, object, str]] = []

    async def leaves() -> None:
        task: Any = asyncio.current_task()
        seen.append((id(task), getattr(task, "user", None), task.get_name()))
        leave(task, kept)

    async def looks() -> None:
        task: Any = asyncio.current_task()
        seen.append((id(task), getattr(task, "user", None), task.get_name()))
        assert not task.cancelling()
        assert not [of for of in kept if isinstance(of, WeakKeyDictionary) and task in of]

    async def body() -> None:
        for work in (looks, leaves, looks, leaves, looks):
            assert begin(work()) is None
        own, *others = seen
        assert own[0] == others[0][0], "what nothing was left on is used again"
        assert others[0][0] != others[1][0] == others[2][0] != others[3][0]
        assert {each[1:] for each in seen} == {own[1:]}
        for timer in kept:
            if isinstance(timer, asyncio.TimerHandle):
                timer.cancel()
        await settle()

    run(body)


def test_a_task_serves_the_runs_of_one_turn_and_only_one_at_a_time() -> None:
    seen: list[asyncio.Task[Any] | None] = []
    numbers: list[int] = []

    async def notes() -> None:
        numbers.append(id(asyncio.current_task()))

    async def begins_another() -> None:
        await notes()
        assert begin(notes()) is None
        assert id(asyncio.current_task()) == numbers[-2]

    async def waits() -> None:
        seen.append(asyncio.current_task())
        await asyncio.sleep(0)
        seen.append(asyncio.current_task())

    async def body() -> None:
        assert begin(notes()) is None
        assert begin(begins_another()) is None
        assert numbers[0] == numbers[1] != numbers[2]
        waiting = begin(waits())
        assert waiting is not None
        assert begin(notes()) is None
        assert numbers[-1] != id(waiting)
        await waiting
        assert seen == [waiting, waiting]
        await settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert eager._here.thread.own is None  # pyright: ignore[reportPrivateUsage]

    run(body)


def test_a_loop_that_stopped_in_the_middle_of_its_turn_lends_no_task_to_another() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def notes() -> None:
        task = asyncio.current_task()
        assert task is not None
        loops.append(task.get_loop())

    async def body() -> None:
        assert begin(notes()) is None

    first = asyncio.new_event_loop()
    first.call_soon(lambda: begin(notes()))
    first.call_soon(first.stop)
    first.run_forever()
    run(body)
    first.run_until_complete(settle())
    first.close()
    assert len(set(loops)) == 2


def test_no_task_outlives_its_loop_and_none_is_missed_at_its_end() -> None:
    async def over() -> None: ...

    async def body() -> None:
        for _ in range(3):
            assert begin(over()) is None

    for _ in range(2):
        with asyncio.Runner() as runner:
            runner.run(body())
            runner.run(body())
        assert eager._here.thread.own is None  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    "later", [times_out, groups, is_cancelled_by_a_scope, moves_on, is_overdue_before_its_first_wait]
)
def test_time_outs_and_scopes_that_did_not_wait_leave_nothing_to_the_next_run(
    later: Callable[[], Awaitable[None]],
) -> None:
    async def within_bounds() -> None:
        async with asyncio.timeout(60):
            with anyio.CancelScope(), anyio.fail_after(60):
                await does_not_wait()
        async with asyncio.TaskGroup():
            pass

    async def fails() -> None:
        async with asyncio.timeout(60):
            await does_not_wait()
            raise ValueError("its own")

    async def body() -> None:
        for _ in range(2):
            await finished(within_bounds())
            with pytest.raises(ValueError, match="its own"):
                await finished(fails())
            await finished(later())

    run(body)


def test_each_event_loop_gets_tasks_of_its_own_whatever_its_task_factory() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def work() -> None:
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())

    async def over() -> None: ...

    async def body() -> None:
        assert begin(over()) is None
        assert begin(over()) is None
        if hasattr(asyncio, "eager_task_factory"):
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        await finished(work())

    async def beside() -> None:
        assert begin(over()) is None
        other = threading.Thread(target=run, args=[body])
        other.start()
        other.join()

    run(body)
    run(beside)
    assert len(loops) == 2
    assert loops[0] is not loops[1]


def test_who_comes_after_the_start_and_before_the_body_shares_the_answer_as_it_was_said() -> None:
    more = asyncio.Event()
    runs = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal runs
        runs += 1
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
        await more.wait()
        await send({"type": "http.response.body", "body": b"x"})

    async def body() -> None:
        bench = Bench(app)

        async def changing(scope: Any, receive: Any, send: Any) -> None:
            async def changed(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"].append((b"x-leader", b"1"))
                await send(message)

            await bench.layer(scope, receive, changed)

        leader = Client(changing)
        await settle()
        follower = Client(bench.layer)
        await settle()
        more.set()
        assert (await leader.done()).body == (await follower.done()).body == b"x"
        assert leader.answer.header("x-leader") == "1"
        assert follower.answer.header("x-leader") is None
        assert runs == 1

    run(body)


async def at_once(scope: Any, receive: Any, send: Any) -> None:
    """Answers without waiting for anything."""
    state = scope["state"]
    state["runs"].append(1)
    await send({"type": "http.response.start", "status": state.get("status", 200), "headers": state["headers"]})
    await send({"type": "http.response.body", "body": b"%d" % len(state["runs"])})


def shared_state(*headers: tuple[bytes, bytes], **more: Any) -> dict[str, Any]:
    return {"runs": [], "headers": [(b"content-length", b"1"), *headers], **more}


def test_an_app_that_computes_long_without_waiting_runs_once_for_those_who_come_together() -> None:
    async def body(max_busy: float) -> tuple[int, tuple[float, float, float]]:
        bench, state = Bench(at_once, max_busy=max_busy), shared_state()
        first = Client(bench.layer, state=state)
        await first.done()
        clients = [Client(bench.layer, state=state) for _ in range(5)]
        answers = [(await client.done()).body for client in clients]
        assert len(set(answers)) == len(state["runs"]) - 1
        return len(state["runs"]), bench.roles()

    assert asyncio.run(body(0.0)) == (2, (2, 4, 0)), "the second run is known to be long"
    assert asyncio.run(body(60.0)) == (6, (6, 0, 0)), "short ones are not worth a task"


def test_what_was_not_for_sharing_is_remembered_of_runs_too_that_nobody_could_join() -> None:
    async def roles(state: dict[str, Any]) -> tuple[float, float, float]:
        bench = Bench(at_once, max_busy=60.0)
        for _ in range(2):
            await Client(bench.layer, state=state).done()
        return bench.roles()

    assert asyncio.run(roles(shared_state((b"cache-control", b"no-store")))) == (1, 0, 1)
    assert asyncio.run(roles(shared_state((b"set-cookie", b"a=1")))) == (1, 0, 1)
    assert asyncio.run(roles(shared_state(status=503))) == (2, 0, 0), "the next run may do better"
    assert asyncio.run(roles(shared_state())) == (2, 0, 0)


def test_a_run_that_sent_its_start_and_waits_in_its_first_body_is_joined_by_nobody() -> None:
    gate = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["runs"].append(1)
        await send({"type": "http.response.start", "status": 200, "headers": scope["state"]["headers"]})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await gate.wait()
        await send({"type": "http.response.body", "body": b""})

    async def body() -> None:
        bench, state = Bench(app), shared_state()
        clients = [Client(bench.layer, state=state) for _ in range(2)]
        await settle()
        assert len(state["runs"]) == 2
        gate.set()
        assert [(await client.done()).body for client in clients] == [b"x", b"x"]
        assert bench.roles() == (2, 0, 0)

    run(body)
