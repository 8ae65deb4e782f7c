"""Measures `kill`: from its call to the last request that the cache layer touched, on any of four workers under load.

`python -m tests.promises.kills [ROUNDS]` (`make kill-figures`) prints a table, on a real Unleash with PostgreSQL and a
real Valkey. Four worlds: Unleash answers, or hangs (its PostgreSQL and itself stopped in turn, SIGSTOP); each with and
without a nudge. Without: the record is written by a Redis user who may not publish, so that workers find it when they
look by themselves.
"""

import asyncio
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import redis

from tests.e2e.stage import App
from tests.services import Server, Unleash, Valkey, wait_until
from tidegate.flags.stop_records import StopRecord
from tidegate.flags.stops_redis import RedisHome
from tidegate.killing import Order, kill
from tidegate.settings import Settings
from tidegate.vocabulary import LAYERS

__all__ = ["WORLDS", "Measurement", "Round", "World", "table"]

FLAG, ENVIRONMENT = "tidegate.cache", "production"
WORKERS = 4


class World(NamedTuple):
    """What is measured: whether Unleash hangs, and whether workers are nudged."""

    hangs: bool
    nudged: bool

    def __str__(self) -> str:
        return f"Unleash {'hung' if self.hangs else 'well'}, {'nudged' if self.nudged else 'not nudged'}"


WORLDS = tuple(World(hangs, nudged) for hangs in (False, True) for nudged in (True, False))


class Sample(NamedTuple):
    """One request as its sender saw it; times in seconds since the epoch."""

    sent: float
    received: float
    status: int
    touched: bool
    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One kill. last: seconds from the call to the last answer that the layer touched; 0: none came after the call.

    before: touched answers in the second before the call. returned: seconds that kill took. said: what it said.
    """

    last: float
    before: int
    returned: float
    said: str


class Load:
    """The requests, from a process of their own, so that nothing here slows them down."""

    def __init__(self, port: int, folder: Path) -> None:
        self._file = folder / "requests.txt"
        self._file.touch()
        self._reader = self._file.open(encoding="utf-8")
        self._rest = ""
        self.samples: list[Sample] = []
        command = [sys.executable, "-m", "tests.promises.kill_load", str(port), str(self._file)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=Path(__file__).parents[2])

    def close(self) -> None:
        """End it, and take in what it has noted."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self.read()
        self._reader.close()

    def read(self) -> list[Sample]:
        """All requests so far."""
        *lines, self._rest = (self._rest + self._reader.read()).split("\n")
        for line in lines:
            sent, received, status, touched, worker = line.split()
            self.samples.append(Sample(float(sent), float(received), int(status), touched == "1", worker))
        return self.samples

    def since(self, at: float) -> list[Sample]:
        """Those that were sent after this time."""
        return [sample for sample in self.read() if sample.sent >= at]


class Measurement:
    """One application, its load and its servers; a round kills and opens again."""

    def __init__(self, unleash: Unleash, valkey: Valkey, app: App, load: Load, *, poll_interval: float) -> None:
        self.load = load
        self._unleash = unleash
        self._app = app
        self._home = RedisHome(valkey.url, ENVIRONMENT)
        self._settings = settings(unleash, valkey, poll_interval)
        self._mute = valkey.url.replace("://", "://mute:secret@")
        self._hung = 0
        self._chance = random.Random(3)

    @classmethod
    @contextmanager
    def set_up(cls, unleash: Unleash, valkey: Valkey, *, poll_interval: float) -> Iterator["Measurement"]:
        """Flags open for everybody, four workers, load. `unleash` needs a PostgreSQL of its own."""
        with redis.Redis.from_url(valkey.url) as admin:
            admin.execute_command("ACL", "SETUSER", "mute", "on", ">secret", "~*", "+@all", "resetchannels")
        for layer in LAYERS:
            unleash.admin.roll_out(f"tidegate.{layer}", 100, environment=ENVIRONMENT, stickiness="userId")
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tidegate-kills-")))
            app = stack.enter_context(App(environment(unleash, valkey, folder, poll_interval), workers=WORKERS))
            load = Load(app.port, folder)
            stack.callback(load.close)
            made = cls(unleash, valkey, app, load, poll_interval=poll_interval)
            stack.callback(made._home.close)
            yield made

    def round(self, world: World) -> Round:
        """Kill once; then everything is as it was before, but for the flag, which is stopped."""
        self._open()
        # Opening nudged every worker: from there, wait for any part of its poll interval.
        at = time.time() + self._chance.uniform(0, self._settings.flags.poll_interval)
        wait_until(lambda: time.time() >= at, 60, "some time has passed")
        hung = self._hang() if world.hangs else None
        said: list[str] = []
        flags = self._settings.flags
        used = self._settings if world.nudged else replace(self._settings, flags=replace(flags, stops=self._mute))
        called = time.time()
        asyncio.run(kill(Order(flag=FLAG), used, said.append, said.append))
        returned = time.time() - called
        wait_until(lambda: self._shut_since(called), 20, f"{world}: every worker is shut")
        if hung is not None:
            hung.resume()
        seen = self.load.read()
        after = [one.received - called for one in seen if one.touched and one.received > called]
        before = sum(one.touched and called - 1 <= one.received <= called for one in seen)
        return Round(last=max(after, default=0.0), before=before, returned=returned, said="\n".join(said))

    def _open(self) -> None:
        """Lift, and turn the flag on again, until each worker's cache is in use.

        A request to turn the flag off that hung with Unleash may still be obeyed when Unleash goes on.
        """
        began = time.time()
        now = StopRecord(flag=FLAG, environment=ENVIRONMENT, stopped=False, number=1, since=began)
        self._home.write(now)
        admin, looked = self._unleash.admin, [0.0]

        def is_open() -> bool:
            if time.time() - looked[0] > 0.5:
                looked[0] = time.time()
                if not admin.enabled(FLAG, environment=ENVIRONMENT):
                    (strategy,) = admin.strategies(FLAG, environment=ENVIRONMENT)
                    admin.set_percentage(FLAG, strategy["id"], 100, environment=ENVIRONMENT)
                    admin.turn_on(FLAG, environment=ENVIRONMENT)
            # The newest answers: a worker may have been open for an instant, and shut by what hung.
            newest = {one.worker: one.touched for one in self.load.since(began)}
            recent = self.load.since(time.time() - 0.5)
            return sum(newest.values()) == WORKERS and bool(recent) and all(one.touched for one in recent)

        wait_until(is_open, 60, "every worker's cache is in use")

    def _hang(self) -> Server:
        """Stop PostgreSQL and Unleash itself in turn."""
        self._hung += 1
        server: Server = self._unleash.postgres if self._hung % 2 else self._unleash
        server.suspend()
        return server

    def _shut_since(self, called: float) -> bool:
        newest: dict[str, bool] = {}
        untouched = Counter[str]()
        for one in self.load.since(called):
            newest[one.worker] = one.touched
            untouched[one.worker] = 0 if one.touched else untouched[one.worker] + 1
        return len(newest) >= WORKERS and min(untouched.values()) >= 3


def settings(unleash: Unleash, valkey: Valkey, poll_interval: float) -> Settings:
    """What `kill` is called with."""
    return Settings.of(
        {
            "flags": {
                "provider": "unleash",
                "unleash_url": unleash.api_url,
                "environment": ENVIRONMENT,
                "poll_interval": poll_interval,
            },
            "store": {"url": valkey.url},
            "rollout": {"admin_token": unleash.admin_token, "journal": "/nowhere/journal.sqlite3"},
        }
    )


def environment(unleash: Unleash, valkey: Valkey, folder: Path, poll_interval: float) -> dict[str, str]:
    """What the application is started with."""
    metrics = folder / "metrics"
    metrics.mkdir()
    return {
        "TIDEGATE_FLAGS_PROVIDER": "unleash",
        "TIDEGATE_FLAGS_UNLEASH_URL": unleash.api_url,
        "TIDEGATE_FLAGS_UNLEASH_TOKEN": unleash.production_token,
        "TIDEGATE_FLAGS_ENVIRONMENT": ENVIRONMENT,
        "TIDEGATE_FLAGS_UNIT": "user",
        "TIDEGATE_FLAGS_POLL_INTERVAL": str(poll_interval),
        "TIDEGATE_STORE_URL": valkey.url,
        "TIDEGATE_STORE_BUDGET": "2",
        "TIDEGATE_TELEMETRY_METRICS_DIR": str(metrics),
    }


def table(rounds: dict[World, list[Round]]) -> str:
    """The figures: median and worst time to the last touched request, in milliseconds."""
    lines = ["world                          rounds  median ms  worst ms  kill took ms  touched in the second before"]
    for world, made in rounds.items():
        lasts = [one.last * 1000 for one in made]
        took = statistics.median(one.returned * 1000 for one in made)
        least = min(one.before for one in made)
        lines.append(
            f"{world!s:30} {len(made):6} {statistics.median(lasts):10.0f} {max(lasts):9.0f} {took:13.0f} "
            f" at least {least}"
        )
    return "\n".join(lines)


def measure(measurement: Measurement, rounds: int, told: Callable[[str], None] = print) -> dict[World, list[Round]]:
    """So many rounds in each world, one world after the other in turn."""
    made: dict[World, list[Round]] = {world: [] for world in WORLDS}
    for number in range(rounds):
        for world in WORLDS:
            made[world].append(one := measurement.round(world))
            told(f"round {number + 1}: {world}: {one.last * 1000:.0f} ms")
    return made


def main(arguments: Sequence[str]) -> None:
    """Measure with the default poll interval and print the table."""
    rounds = int(arguments[0]) if arguments else 20
    with (
        Valkey() as valkey,
        Unleash() as unleash,
        Measurement.set_up(unleash, valkey, poll_interval=2.0) as measurement,
    ):
        made = measure(measurement, rounds)
        samples = measurement.load.read()
    print(table(made))
    print(f"{len(samples)} requests, by status: {dict(Counter(one.status for one in samples))}; promised: 3000 ms")


if __name__ == "__main__":
    main(sys.argv[1:])
