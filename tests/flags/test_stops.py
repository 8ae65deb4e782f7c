"""Following stop records in a file and in a real Redis: what is in force, when, and through which faults."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.flags.following import until
from tests.services import Redis, Valkey, free_port
from tidegate.flags import FileHome, FlagContext, Gates, ProviderHealth, Reach
from tidegate.flags.stop_records import StopRecord
from tidegate.flags.stops_polled import NudgeSource, PolledStops, StopHome, WritableHome
from tidegate.flags.stops_redis import RedisHome, RedisNudges

CACHE, ETAG = "tidegate.cache", "tidegate.etag"
PRODUCTION = "production"
SLOW = 30.0
"""A poll interval that no test waits for: what happens sooner was nudged, or was read at the start."""


def record(
    *, stopped: bool = True, flag: str = CACHE, environment: str = PRODUCTION, lasts: float | None = None
) -> Any:
    now = time.time()
    end = None if lasts is None else now + lasts
    return StopRecord(flag=flag, environment=environment, stopped=stopped, number=1, since=now, until=end)


class Errors:
    """An on_error that remembers."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, component: str, error: Exception) -> None:
        assert component == "flags.stops"
        self.seen.append(str(error))


def follow(home: StopHome, **options: Any) -> PolledStops:
    return PolledStops(home, **({"flags": [CACHE, ETAG], "environment": PRODUCTION, "poll_interval": 0.1} | options))


def run(stops: PolledStops, check: Callable[[], Any]) -> None:
    async def main() -> None:
        await stops.start()
        try:
            await check()
        finally:
            await stops.aclose()

    asyncio.run(main())


# --- both homes --------------------------------------------------------------------


@pytest.fixture(params=["file", "valkey", "redis over unix"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[WritableHome, None, None]:
    if request.param == "file":
        yield FileHome(tmp_path / "stops.json", PRODUCTION)
    else:
        valkey = request.param == "valkey"
        url = request.getfixturevalue("valkey").url if valkey else request.getfixturevalue("redis_server").unix_url
        made = RedisHome(url, PRODUCTION)
        yield made
        made.close()


def test_a_stop_is_in_force_soon_and_gone_when_lifted_and_version_and_log_tell(
    home: WritableHome, caplog: pytest.LogCaptureFixture
) -> None:
    stops = follow(home)

    async def check() -> None:
        assert (stops.known, stops.stopped(CACHE), stops.version) == (True, False, 1)
        home.write(record())
        await until(lambda: stops.stopped(CACHE), 5, "stopped")
        assert (stops.version, stops.stopped(ETAG), stops.stopped("another")) == (2, False, True)
        home.write(record(stopped=False))
        await until(lambda: not stops.stopped(CACHE), 5, "lifted")
        assert stops.version == 3

    run(stops, check)
    assert caplog.messages == [f"{CACHE} is stopped", f"{CACHE} is not stopped any more"]


def test_a_stop_ends_by_itself_in_between_two_looks(home: WritableHome) -> None:
    home.write(record(lasts=0.5))
    stops = follow(home, poll_interval=SLOW)

    async def check() -> None:
        assert stops.stopped(CACHE)
        await until(lambda: not stops.stopped(CACHE), 5, "it ended by itself")
        assert stops.version == 2

    run(stops, check)


def test_environments_do_not_stop_each_other(home: WritableHome) -> None:
    place = home.path if isinstance(home, FileHome) else None
    other = FileHome(place, "staging") if place else RedisHome(home._url, "staging")  # type: ignore[attr-defined]
    other.write(record(environment="staging"))
    assert other.read((CACHE,))
    assert home.read((CACHE,)) == {}
    home.write(record())
    home.write(record(stopped=False))
    assert json.loads(other.read((CACHE,))[CACHE])["stopped"] is True
    other.close()


def test_a_record_is_newer_than_the_one_before_though_the_clock_went_back(home: WritableHome) -> None:
    def number() -> int:
        return int(json.loads(home.read((CACHE,))[CACHE])["number"])

    ahead = record()
    home.write(StopRecord(flag=CACHE, environment=PRODUCTION, stopped=True, number=1, since=ahead.since + 3600))
    first = number()
    home.write(record(stopped=False))
    assert number() > first


def test_many_writers_lose_no_record_of_another_flag(home: WritableHome) -> None:
    flags = [f"flag-{number}" for number in range(12)]
    threads = [threading.Thread(target=home.write, args=(record(flag=flag),)) for flag in flags]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert home.read(tuple(flags)).keys() == set(flags)


FORKING = """
import asyncio, os, sys, time
from tidegate.flags import PolledStops
from tests.flags.test_stops import CACHE, PRODUCTION, home_at

def wait(stopped):
    deadline = time.monotonic() + 20
    while stops.stopped(CACHE) is not stopped:
        assert time.monotonic() < deadline
        time.sleep(0.01)

stops = PolledStops(home_at(sys.argv[1]), flags=[CACHE], environment=PRODUCTION, poll_interval=0.1)
asyncio.run(stops.start())
child = os.fork()
if child:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
asyncio.run(stops.start())
wait(False)
print("forked", flush=True)
wait(True)
os._exit(0)
"""


def test_a_forked_worker_that_starts_it_again_follows(home: WritableHome) -> None:
    place = str(home.path) if isinstance(home, FileHome) else home._url  # type: ignore[attr-defined]
    with subprocess.Popen([sys.executable, "-c", FORKING, place], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"forked\n"
        home.write(record())
        assert process.wait(30) == 0


def home_at(place: str) -> WritableHome:
    return RedisHome(place, PRODUCTION) if "://" in place else FileHome(place, PRODUCTION)


# --- the gates ---------------------------------------------------------------------


class Everything:
    """A provider for whom every flag is open for everybody."""

    version = 1

    def is_enabled(self, flag: str, context: FlagContext) -> bool:
        return True

    def reach(self, flag: str) -> Reach:
        return "everybody"

    def health(self) -> ProviderHealth:
        return ProviderHealth(ready=True, staleness=0.0, detail="")

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...


def test_a_stop_shuts_the_layer_whatever_the_provider_says(home: WritableHome) -> None:
    stops = follow(home)
    gates = Gates(Everything(), stops=stops)

    async def check() -> None:
        assert {"cache", "etag"} <= gates.decide_for("acme").open
        home.write(record())
        await until(lambda: "cache" not in gates.decide_for("acme").open, 5, "the cache is shut")
        assert "etag" in gates.decide_for("acme").open
        home.write(record(stopped=False))
        await until(lambda: "cache" in gates.decide_for("acme").open, 5, "the cache is open again")

    assert gates.decide_for("acme").open == frozenset(), "nobody can say yet that none is stopped"
    run(stops, check)


# --- the file ----------------------------------------------------------------------


def test_a_file_that_cannot_be_used_at_the_start_keeps_everything_shut_and_is_reported_once(tmp_path: Path) -> None:
    path, errors = tmp_path / "stops.json", Errors()
    path.write_text("{")
    stops = follow(FileHome(path, PRODUCTION), on_error=errors)
    looks = stops.look

    async def check() -> None:
        looks(), looks(), looks()
        assert (stops.known, len(errors.seen)) == (False, 1)
        assert "is not JSON" in errors.seen[0]
        path.unlink()
        await until(lambda: stops.known, 5, "known without a file")
        assert not stops.stopped(CACHE)

    run(stops, check)


@pytest.mark.parametrize("fault", ["deleted", "garbage", "a folder", "too large", "another format"])
def test_a_stop_stands_whatever_becomes_of_the_file(tmp_path: Path, fault: str) -> None:
    path, errors = tmp_path / "stops.json", Errors()
    home = FileHome(path, PRODUCTION)
    home.write(record())
    stops = follow(home, on_error=errors)

    async def check() -> None:
        path.unlink()
        if fault == "a folder":
            path.mkdir()
        elif fault != "deleted":
            content = {"garbage": "\0", "too large": " " * (1 << 20) + "{}", "another format": '{"version": 2}'}
            path.write_text(content[fault])
        await until(lambda: errors.seen, 5, "it is reported")
        assert (stops.known, stops.stopped(CACHE)) == (True, True)
        if fault == "a folder":
            path.rmdir()
        home.write(record(stopped=False))
        await until(lambda: not stops.stopped(CACHE), 5, "lifted")

    run(stops, check)


def test_a_kill_replaces_a_file_that_cannot_be_used_and_keeps_it_beside(tmp_path: Path) -> None:
    path = tmp_path / "stops.json"
    path.write_text("what is this")
    home = FileHome(path, PRODUCTION)
    home.write(record())
    assert home.read((CACHE,))
    assert (tmp_path / "stops.json.unusable").read_text() == "what is this"


def test_nobody_reads_half_a_file_while_it_is_written(tmp_path: Path) -> None:
    home = FileHome(tmp_path / "stops.json", PRODUCTION)
    home.write(record())

    def write() -> None:
        for number in range(100):
            home.write(record(stopped=number % 2 == 0))

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while writer.is_alive():
        assert home.read((CACHE,)).keys() == {CACHE}
        reads += 1
    writer.join()
    assert reads > 50


# --- Redis -------------------------------------------------------------------------


def nudged(server: Redis, **options: Any) -> PolledStops:
    """A reader that looks by itself twice a minute only."""
    nudges: NudgeSource = RedisNudges(server.url, PRODUCTION)
    made: dict[str, Any] = {"nudges": nudges, "poll_interval": SLOW} | options
    return follow(RedisHome(server.url, PRODUCTION), **made)


def test_a_nudge_makes_a_reader_look_at_once_and_tells_others(valkey: Valkey) -> None:
    told: list[float] = []
    stops = nudged(valkey, on_nudge=lambda: told.append(time.monotonic()))
    home = RedisHome(valkey.url, PRODUCTION)

    async def check() -> None:
        await until(lambda: told, 5, "it listens")
        before = len(told)
        assert await asyncio.to_thread(home.write, record()) == 1
        await until(lambda: stops.stopped(CACHE), 5, "stopped")
        assert len(told) > before

    run(stops, check)
    home.close()


@pytest.mark.parametrize("behind", ["sentinels", "redis_cluster"])
def test_records_lie_under_sentinels_and_in_a_cluster_too(behind: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(behind).url
    told: list[bool] = []
    nudges = RedisNudges(url, PRODUCTION)
    stops = follow(
        RedisHome(url, PRODUCTION),
        nudges=nudges,
        poll_interval=SLOW,
        on_nudge=lambda: told.append(stops.stopped(CACHE)),
    )
    home = RedisHome(url, PRODUCTION)

    async def check() -> None:
        await until(lambda: told, 20, "it listens")
        before = len(told)
        await asyncio.to_thread(home.write, record())
        await until(lambda: len(told) > before and stops.stopped(CACHE), 20, "it is told, and looks before its time")

    run(stops, check)
    home.close()


def test_who_may_not_publish_can_stop_all_the_same(valkey: Valkey) -> None:
    with redis.Redis.from_url(valkey.url) as admin:
        admin.execute_command("ACL", "SETUSER", "mute", "on", ">secret", "~*", "+@all", "resetchannels")
    home = RedisHome(valkey.url.replace("://", "://mute:secret@"), PRODUCTION)
    assert home.write(record()) is None
    assert "secret" not in str(home)
    assert home.read((CACHE,))
    home.close()


def test_garbage_in_the_hash_stops_its_flag_alone_is_reported_and_can_be_lifted(valkey: Valkey) -> None:
    errors = Errors()
    stops = follow(RedisHome(valkey.url, PRODUCTION), on_error=errors)
    with redis.Redis.from_url(valkey.url) as client:
        client.hset(f"tidegate:stops:{PRODUCTION}", CACHE, b"\xff{")

    async def check() -> None:
        assert (stops.known, stops.stopped(CACHE), stops.stopped(ETAG)) == (True, True, False)
        assert "counts as stopped" in errors.seen[0]
        home = RedisHome(valkey.url, PRODUCTION)
        await asyncio.to_thread(home.write, record(stopped=False))
        await until(lambda: not stops.stopped(CACHE), 5, "lifted")
        home.close()

    run(stops, check)


def test_a_flushed_redis_lifts_nothing(valkey: Valkey) -> None:
    errors = Errors()
    home = RedisHome(valkey.url, PRODUCTION)
    home.write(record())
    stops = follow(RedisHome(valkey.url, PRODUCTION), on_error=errors)

    async def check() -> None:
        with redis.Redis.from_url(valkey.url) as client:
            await asyncio.to_thread(client.flushall)
        await until(lambda: errors.seen, 5, "it is reported")
        assert stops.stopped(CACHE)
        await asyncio.to_thread(home.write, record(stopped=False))
        await until(lambda: not stops.stopped(CACHE), 5, "lifted")

    run(stops, check)
    home.close()


def test_a_lost_nudge_connection_is_made_anew_and_costs_no_stop(valkey: Valkey) -> None:
    stops = nudged(valkey, poll_interval=0.3)
    home = RedisHome(valkey.url, PRODUCTION)

    async def check() -> None:
        with redis.Redis.from_url(valkey.url) as client:
            for stopped in (True, False, True):
                await until(lambda: client.pubsub_numsub(f"tidegate:stops:{PRODUCTION}")[0][1], 5, "it listens")
                assert await asyncio.to_thread(client.execute_command, "CLIENT", "KILL", "TYPE", "pubsub")
                await asyncio.to_thread(home.write, record(stopped=stopped))
                await until(lambda wanted=stopped: stops.stopped(CACHE) is wanted, 5, f"stopped: {stopped}")

    run(stops, check)
    home.close()


def test_a_redis_that_dies_leaves_what_was_known_and_is_followed_when_it_is_back(
    start_valkey: Callable[..., Valkey],
) -> None:
    server, errors = start_valkey(), Errors()
    home = RedisHome(server.url, PRODUCTION)
    home.write(record())
    stops = nudged(server, poll_interval=0.2, on_error=errors)

    async def check() -> None:
        assert (stops.known, stops.stopped(CACHE)) == (True, True)
        await asyncio.to_thread(server.kill)
        await until(lambda: errors.seen, 5, "it is reported")
        assert (stops.known, stops.stopped(CACHE)) == (True, True)
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(home.write, record(stopped=False))
        await until(lambda: not stops.stopped(CACHE), 5, "lifted")
        assert len(errors.seen) < 10, "each fault is told once, not at each look"

    run(stops, check)
    home.close()


@contextmanager
def black_hole() -> Generator[str, None, None]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"redis://user:s3cret@127.0.0.1:{listener.getsockname()[1]}/0"


@pytest.mark.parametrize("fault", ["refused", "black hole"])
def test_a_redis_that_is_away_at_the_start_keeps_everything_shut_and_delays_neither_start_nor_end(fault: str) -> None:
    errors = Errors()
    with black_hole() as hole:
        url = hole if fault == "black hole" else f"redis://user:s3cret@127.0.0.1:{free_port()}/0"
        home = RedisHome(url, PRODUCTION, timeout=0.3)
        nudges = RedisNudges(url, PRODUCTION, timeout=0.3)
        stops = follow(home, nudges=nudges, on_error=errors, first_wait=0.1)
        gates = Gates(Everything(), stops=stops)

        async def check() -> None:
            assert (stops.known, gates.decide_for("acme").open) == (False, frozenset())
            await until(lambda: len(errors.seen) >= 2, 5, "both connections are reported")

        run(stops, check)
    assert not stops.known
    assert "s3cret" not in " ".join(errors.seen)


def test_a_suspended_redis_keeps_what_was_known(start_valkey: Callable[..., Valkey]) -> None:
    server, errors = start_valkey(), Errors()
    reader = RedisHome(server.url, PRODUCTION, timeout=0.3)
    home = RedisHome(server.url, PRODUCTION)
    home.write(record())
    stops = follow(reader, on_error=errors)

    async def check() -> None:
        server.suspend()
        await until(lambda: errors.seen, 10, "it is reported")
        assert (stops.known, stops.stopped(CACHE)) == (True, True)
        server.resume()
        await asyncio.to_thread(home.write, record(stopped=False))
        await until(lambda: not stops.stopped(CACHE), 10, "lifted")

    run(stops, check)
    home.close()
