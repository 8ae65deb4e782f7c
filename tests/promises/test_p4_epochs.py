"""P4: each opening of the cache's gate after it was shut to 0 begins an epoch; what is older is never served."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.promises.epoch_stage import FlagFile, Process, Stage
from tests.services import Valkey, wait_until
from tidegate import MemoryStore
from tidegate.flags.stop_records import StopRecord
from tidegate.stopping import stop_home, write_stop
from tidegate.vocabulary import FLAGS

PAGES = [f"/page-{number}" for number in range(5)]


@pytest.fixture(params=["memory", "valkey"])
def url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "memory" else request.getfixturevalue("valkey").url


@pytest.fixture
def flags(tmp_path: Path) -> FlagFile:
    return FlagFile(tmp_path / "flags.json")


async def until(condition: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, 20, what)


async def all_hit(stage: Stage) -> None:
    """Ask until every page is a hit: each must be of the present generation."""
    async with asyncio.timeout(20):
        while True:
            answers = await stage.ask(*PAGES)
            assert {int(answer.body) for answer in answers} == {stage.generation}
            if all(answer.hit for answer in answers):
                return
            # A server has its turn between requests. What comes from memory does not wait, and would never give it one.
            await asyncio.sleep(0)


def playing(play: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(play())  # type: ignore[arg-type]


SHUT: dict[str, dict[str, Any]] = {
    "off": {"percentage": 100, "enabled": False},
    "at 0": {"percentage": 0},
    "gone": {"percentage": 100, "named": False},
}


@pytest.mark.parametrize("how", SHUT)
def test_what_was_stored_before_the_gate_was_shut_is_not_served_after_it_opens(
    how: str, url: str | None, flags: FlagFile
) -> None:
    """Requests come all the time, and the page changes while the gate is shut."""

    async def play() -> None:
        stage = Stage(flags, url)
        stale: list[tuple[int, int]] = []
        hits, shut_in, ended = 0, 0, False

        async def crowd() -> None:
            nonlocal hits
            while not ended:
                wanted = shut_in  # what is older than the last shutting seen before the request began must not come
                for answer in await stage.ask(*PAGES):
                    hits += answer.hit
                    if int(answer.body) < wanted:
                        stale.append((wanted, int(answer.body)))
                await asyncio.sleep(0.001)  # memory answers without giving up the loop

        await all_hit(stage)
        asking = [asyncio.create_task(crowd()) for _ in range(3)]
        for percentage in (100, 50, 100):
            before = hits
            flags.set(**SHUT[how])
            await until(lambda: stage.reach == "nobody", "the gate is seen shut")
            stage.generation += 1
            shut_in = stage.generation
            flags.set(percentage)
            await until(lambda: stage.reach != "nobody", "the gate is seen open")
            if percentage == 100:
                await until(lambda before=before: hits > before + 20, "pages are hits again")  # type: ignore[misc]
        ended = True
        await asyncio.gather(*asking)
        await all_hit(stage)
        await stage.tide.aclose()
        assert not stale
        assert hits > 60

    playing(play)


@pytest.mark.blocks_the_loop("so that no look at the flags comes before the request")
def test_the_first_request_that_finds_the_gate_open_is_not_served_what_is_older(flags: FlagFile) -> None:
    """It sees itself that the flags have changed, and from there to the store gives nobody else a turn."""

    async def play() -> None:
        store = MemoryStore()
        stage, other = [
            Stage(file, None, store=store) for file in (flags, FlagFile(flags.path.with_name("other.json")))
        ]
        await all_hit(stage)
        flags.set(0)
        await until(lambda: stage.reach == "nobody", "the gate is seen shut")
        await until(lambda: not stage.tide.store.stats().extra["purges_pending"], "the shutting was purged")
        await all_hit(other)  # which has not seen it shut, and stores on
        stage.generation = 2
        flags.set(100)
        provider = stage.tide.provider
        assert provider is not None
        seen = provider.version
        wait_until(lambda: provider.version > seen, 20, "the file was read")
        assert [int(answer.body) for answer in await stage.ask(*PAGES)] == [2] * len(PAGES)
        await all_hit(stage)
        await stage.tide.aclose()
        await other.tide.aclose()

    playing(play)


def test_a_stop_that_is_lifted_begins_an_epoch_though_the_flag_stood_open(url: str | None, flags: FlagFile) -> None:
    """As `tidegate kill` and `tidegate lift` write it where the source of flags does not answer."""

    async def play() -> None:
        stage = Stage(flags, url)
        settings = stage.tide.settings
        await all_hit(stage)

        async def write(stopped: bool) -> None:
            environment = settings.flags.environment
            now = time.time()
            record = StopRecord(
                flag=FLAGS["cache"], environment=environment, stopped=stopped, number=int(now * 1e6), since=now
            )
            await write_stop(stop_home(settings, environment), record)

        for generation in (2, 3):
            await write(stopped=True)
            await until(lambda: stage.reach == "nobody", "the gate is seen shut")
            assert not any(answer.hit for answer in await stage.ask(*PAGES))
            stage.generation = generation
            await write(stopped=False)
            await until(lambda: stage.reach == "everybody", "the gate is seen open")
            await all_hit(stage)
        await stage.tide.aclose()

    playing(play)


def test_a_fill_that_began_in_the_old_epoch_does_not_appear_in_the_new_one(url: str | None, flags: FlagFile) -> None:
    async def play() -> None:
        stage = Stage(flags, url)
        await all_hit(stage)
        stage.go.clear()
        stage.begun.clear()
        slow = asyncio.create_task(stage.ask("/slow"))
        await stage.begun.wait()
        flags.set(0)
        await until(lambda: stage.reach == "nobody", "the gate is seen shut")
        stage.generation = 2
        flags.set(100)
        await until(lambda: stage.reach != "nobody", "the gate is seen open")
        stage.go.set()
        assert [answer.body for answer in await slow] == [b"1"]
        assert {int(answer.body) for answer in await stage.ask("/slow", "/slow")} == {2}
        await all_hit(stage)
        await stage.tide.aclose()

    playing(play)


def test_neither_a_smaller_percentage_nor_another_layers_gate_begins_an_epoch(url: str | None, flags: FlagFile) -> None:
    async def play() -> None:
        stage = Stage(flags, url)
        provider = stage.tide.provider
        assert provider is not None
        await all_hit(stage)
        stage.generation = 2
        for step in ({"percentage": 99}, {"percentage": 100, "etag": 0}, {"percentage": 100}):
            seen = provider.version
            flags.set(**step)
            await until(lambda seen=seen: provider.version > seen, "the flags were read")  # type: ignore[misc]
            assert [(answer.hit, answer.body) for answer in await stage.ask(*PAGES)] == [(True, b"1")] * len(PAGES)
        await stage.tide.aclose()

    playing(play)


def test_a_worker_that_starts_while_the_gate_is_open_finds_what_others_stored(valkey: Valkey, flags: FlagFile) -> None:
    async def play() -> None:
        old = Stage(flags, valkey.url)
        await all_hit(old)
        new = Stage(flags, valkey.url)
        new.generation = 2
        await new.begin()
        assert [(answer.hit, answer.body) for answer in await new.ask(*PAGES)] == [(True, b"1")] * len(PAGES)
        assert all(answer.hit for answer in await old.ask(*PAGES))
        await old.tide.aclose()
        await new.tide.aclose()

    playing(play)


def test_a_worker_that_learns_late_that_the_gate_is_open_begins_no_epoch(valkey: Valkey, flags: FlagFile) -> None:
    """Before the first state of its flags every gate is shut; that is no shutting."""

    async def play() -> None:
        old = Stage(flags, valkey.url)
        await all_hit(old)
        aside = flags.path.rename(flags.path.with_name("aside.json"))
        new = Stage(flags, valkey.url)
        new.generation = 2
        assert [(answer.hit, answer.body) for answer in await new.ask(*PAGES)] == [(False, b"2")] * len(PAGES)
        aside.rename(flags.path)
        await until(lambda: new.reach != "nobody", "the gate is seen open")
        assert [(answer.hit, answer.body) for answer in await new.ask(*PAGES)] == [(True, b"1")] * len(PAGES)
        await old.tide.aclose()
        await new.tide.aclose()

    playing(play)


def test_a_worker_that_starts_while_the_gate_is_shut_begins_an_epoch(valkey: Valkey, flags: FlagFile) -> None:
    """All that ran before have died, as in a deployment, and never saw the gate shut."""

    async def play() -> None:
        old = Stage(flags, valkey.url)
        await all_hit(old)
        await old.tide.aclose()
        flags.set(0)
        new = Stage(flags, valkey.url)
        new.generation = 2
        await new.begin()
        flags.set(100)
        await until(lambda: new.reach != "nobody", "the gate is seen open")
        assert {int(answer.body) for answer in await new.ask(*PAGES)} == {2}
        await all_hit(new)
        await new.tide.aclose()

    playing(play)


@pytest.mark.parametrize("fault", ["silent", "read-only"])
def test_while_redis_cannot_be_told_of_the_epoch_nothing_older_is_served(
    fault: str, start_valkey: Callable[..., Valkey], flags: FlagFile
) -> None:
    """Silent it answers nothing; read-only it gives what is older to whoever asks."""
    valkey = start_valkey()

    def fail() -> None:
        if fault == "silent":
            valkey.suspend()
        else:
            valkey.command_reply("REPLICAOF", "127.0.0.1", "1")

    def recover() -> None:
        if fault == "silent":
            valkey.resume()
        else:
            valkey.command_reply("REPLICAOF", "NO", "ONE")

    async def play() -> None:
        stage = Stage(flags, valkey.url, budget=0.5)
        await all_hit(stage)
        flags.set(0)
        await until(lambda: stage.reach == "nobody", "the gate is seen shut")
        await until(lambda: not stage.tide.store.stats().extra["purges_pending"], "the shutting was purged")
        # Somebody who has not seen it shut stores on.
        other_flags = FlagFile(flags.path.with_name("other.json"))
        other = Stage(other_flags, valkey.url)
        await all_hit(other)
        await other.tide.aclose()

        await asyncio.to_thread(fail)
        stage.generation = 2
        flags.set(100)
        await until(lambda: stage.reach != "nobody", "the gate is seen open")
        for _ in range(3):
            assert {int(answer.body) for answer in await stage.ask(*PAGES)} == {2}
        assert stage.tide.store.stats().extra["purges_pending"]
        await asyncio.to_thread(recover)
        await all_hit(stage)
        assert not stage.tide.store.stats().extra["purges_pending"]
        await stage.tide.aclose()

    playing(play)


def test_two_processes_of_which_one_sees_the_change_later(valkey: Valkey, tmp_path: Path) -> None:
    early, late = FlagFile(tmp_path / "early.json"), FlagFile(tmp_path / "late.json")
    hits = 0

    def settled(one: Process, generation: int, *, since: int) -> None:
        """Every page becomes a hit of this generation; until then none is older than `since`."""
        nonlocal hits

        def all_there() -> bool:
            answers = one.ask(generation, *PAGES)
            assert all(since <= body <= generation for _, body in answers)
            return set(answers) == {(True, generation)}

        wait_until(all_there, 20, f"pages of generation {generation} are hits")
        hits += len(PAGES)

    with Process(early, valkey.url) as one, Process(late, valkey.url) as other:
        settled(one, 1, since=1)
        assert other.ask(2, *PAGES) == [(True, 1)] * len(PAGES)

        early.set(0)
        wait_until(lambda: one.reach == "nobody", 20, "one sees the gate shut")
        settled(other, 2, since=1)  # the other has not, and goes on storing
        early.set(100)
        wait_until(lambda: one.reach != "nobody", 20, "one sees the gate open")
        settled(one, 3, since=3)
        assert other.ask(4, *PAGES) == [(True, 3)] * len(PAGES)

        late.set(0)
        wait_until(lambda: other.reach == "nobody", 20, "the other sees the gate shut")
        settled(one, 5, since=3)
        late.set(100)
        wait_until(lambda: other.reach != "nobody", 20, "the other sees the gate open")
        settled(other, 6, since=6)
        settled(one, 6, since=6)
    assert hits == 6 * len(PAGES)
