"""What a real Unleash says about the use of flags is what the gates decided, request by request."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.flags.following import Errors, until
from tests.services import Unleash, wait_until
from tests.services.postgres import Postgres
from tidegate.flags import FlagContext, Gates
from tidegate.flags.unleash import UnleashFlags

pytestmark = pytest.mark.timeout(110)

Pair = tuple[str, str]


@pytest.fixture(scope="module")
def server(postgres: Postgres) -> Iterator[Unleash]:
    """A server of our own: for ten seconds Unleash drops reports of a flag that is newer than its list of flags, so
    every flag is made before anything is reported."""
    with Unleash(postgres) as server:
        yield server


@pytest.fixture(scope="module")
def pairs(server: Unleash) -> Iterator[Pair]:
    """Two flags for each test, one at 100 % and one at 0 %."""
    admin = server.admin
    made = [(admin.fresh_name("open"), admin.fresh_name("shut")) for _ in range(2)]
    for is_open, is_shut in made:
        admin.roll_out(is_open, 100)
        admin.roll_out(is_shut, 0)
    return iter(made)


def usage_of(server: Unleash, flag: str, app_name: str) -> tuple[int, int]:
    """How often Unleash says that an application found a flag open, and shut."""
    found = server.admin.request("GET", f"/api/admin/client-metrics/features/{flag}/raw")
    ours = [one for one in found["data"] if one["appName"] == app_name]
    return sum(one["yes"] for one in ours), sum(one["no"] for one in ours)


def tenant(number: int) -> FlagContext:
    return FlagContext(unit=f"t{number}", properties={"tenantId": f"t{number}"})


def test_unleash_counts_every_request(server: Unleash, pairs: Iterator[Pair]) -> None:
    """Through a change of flags, evicted decisions, a failed report and a restart of the server."""
    cache, etag = next(pairs)
    errors, app_name = Errors(), server.admin.fresh_name("app")
    flags = UnleashFlags(
        server.url,
        token=server.development_token,
        app_name=app_name,
        poll_interval=0.2,
        metrics_interval=0.3,
        on_error=errors,
    )
    gates = Gates(flags, flags={"cache": cache, "etag": etag}, max_units=3)
    (strategy,) = server.admin.strategies(cache)

    def counted(yes: int, no: int) -> None:
        seen: list[object] = []

        def equal() -> bool:
            seen[:] = [usage_of(server, cache, app_name), usage_of(server, etag, app_name)]
            return seen == [(yes, no), (0, yes + no)]

        try:
            wait_until(equal, 30, f"Unleash counts {yes} and {no}")
        finally:
            print(f"{cache}: {seen[0]}, {etag}: {seen[1]}")

    async def main() -> None:
        await flags.start()
        await until(lambda: gates.reach("cache") == "everybody", 20, "the flag opens")
        for number in range(10):  # ten tenants, with room for three decisions
            assert gates.decide(tenant(number)).open == {"cache"}
        for _ in range(10):
            assert gates.decide_for("acme", "ann").open == {"cache"}
        await asyncio.to_thread(server.admin.set_percentage, cache, str(strategy["id"]), 0)
        await until(lambda: gates.reach("cache") == "nobody", 20, "the flag shuts")
        for _ in range(5):
            assert gates.decide_for("acme", "ann").open == frozenset()
        assert gates.decide_for(None) is gates.nobody
        await asyncio.to_thread(server.admin.set_percentage, cache, str(strategy["id"]), 100)
        await until(lambda: gates.reach("cache") == "everybody", 20, "the flag opens again")
        await asyncio.to_thread(counted, 20, 6)

        await asyncio.to_thread(server.kill)
        for _ in range(13):
            gates.decide_for("acme", "ann")
        await until(lambda: any("usage was not reported" in error for error in errors.seen), 20, "a report fails")
        for _ in range(2):
            assert gates.decide_for(None, "ann") is gates.nobody
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(counted, 33, 8)

        gates.decide(FlagContext(unit=None))
        await flags.aclose()

    asyncio.run(main())
    counted(33, 9)


FORKING = """
import asyncio, os, sys, time
from tidegate.flags import Gates
from tidegate.flags.unleash import UnleashFlags

url, token, app_name, cache, etag = sys.argv[1:]
flags = UnleashFlags(url, token=token, app_name=app_name, poll_interval=0.1)
gates = Gates(flags, flags={"cache": cache, "etag": etag})

async def serve(requests):
    await flags.start()
    deadline = time.monotonic() + 30
    while gates.reach("cache") != "everybody":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    for _ in range(requests):
        gates.decide_for("acme")
    await flags.aclose()

asyncio.run(flags.start())
asyncio.run(serve(0))
for _ in range(5):
    gates.decide_for("acme")
if os.fork() == 0:
    asyncio.run(serve(3))
    os._exit(0)
assert os.wait()[1] == 0
asyncio.run(serve(4))
"""


def test_a_forked_worker_and_its_parent_report_what_each_of_them_decided(
    server: Unleash, pairs: Iterator[Pair]
) -> None:
    cache, etag = next(pairs)
    app_name = server.admin.fresh_name("app")
    arguments = [server.url, server.development_token, app_name, cache, etag]
    subprocess.run([sys.executable, "-c", FORKING, *arguments], timeout=60, check=True)
    wait_until(lambda: usage_of(server, cache, app_name) == (12, 0), 30, "5 before the fork, 3 and 4 after it")
    assert usage_of(server, etag, app_name) == (0, 12)
