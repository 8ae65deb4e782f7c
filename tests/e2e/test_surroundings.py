"""Bad surroundings (P5): whatever cannot be reached, the application answers, soon, and says so once a second."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from tests.e2e.crowd import Crowd, batch, hit_ratio
from tests.e2e.stage import ENVIRONMENT, App, metric, open_by_hand, shut_by_hand
from tests.services import Unleash, Valkey, free_port, wait_until
from tidegate.keyfile import fresh_items

REFUSED, BLACK_HOLE = "refused", "black hole"
LISTENING_SECONDS = 2.0
OURS = re.compile(r"^\S+ \S+ (WARNING|ERROR) tidegate\S*: ")
"""How a line of ours begins where an application configures no logging."""


@pytest.fixture
def start_app() -> Iterator[Callable[..., App]]:
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(App(settings))


@pytest.mark.parametrize("how", [REFUSED, BLACK_HOLE])
def test_without_flags_and_store_every_request_is_answered_and_each_layer_works_when_its_server_comes(
    how: str, gates: Unleash, start_app: Callable[..., App], start_valkey: Callable[..., Valkey], tmp_path: Path
) -> None:
    port = free_port()
    open_by_hand(gates, 100)
    with ExitStack() as no_store:
        if how == BLACK_HOLE:
            no_store.enter_context(black_hole(port))
        with unreachable(gates, how):
            app = start_app(
                TIDEGATE_FLAGS_PROVIDER="unleash",
                TIDEGATE_FLAGS_UNLEASH_URL=gates.api_url,
                TIDEGATE_FLAGS_UNLEASH_TOKEN=gates.production_token,
                TIDEGATE_FLAGS_ENVIRONMENT=ENVIRONMENT,
                TIDEGATE_FLAGS_UNIT="user",
                TIDEGATE_FLAGS_POLL_INTERVAL="0.5",
                TIDEGATE_STORE_URL=f"redis://127.0.0.1:{port}/0",
                TIDEGATE_STORE_KEYS=",".join(fresh_items()),  # without keys there is one more line
                # In the store's Redis they would keep every layer shut until it comes.
                TIDEGATE_FLAGS_STOPS=str(tmp_path / "stops.json"),
            )
            assert_answers_soon(app)
            assert not any(one.gated for one in batch(app.port, 50)), "who knows no flags opens no layer"
            assert_says_so_once_a_second(app, {"flags.unleash", "redis-check", "tracking"})
        wait_until(lambda: all(one.gated for one in batch(app.port, 20)), 20, "the flags are known, the layers open")
        assert_answers_soon(app)
        assert_says_so_once_a_second(app, {"store", "redis-check", "tracking"})
        assert not any(one.hit for one in batch(app.port, 50)), "there is nothing to have hits from"
    with Crowd(app.port) as crowd:
        start_valkey(port=port)
        came = time.time()
        wait_until(lambda: sum(one.hit for one in crowd.samples) > 50, 15, "hits appear")
        first = next(one for one in crowd.samples if one.hit)
        print(f"{how}: first hit {first.began - came:.1f} s after the store came up")
        assert hit_ratio(crowd.next(200)) > 0.5
    assert {one.status for one in crowd.samples} == {200}
    shut_by_hand(gates)


@contextmanager
def unreachable(server: Unleash, how: str) -> Iterator[None]:
    """Dead, or alive and silent, while the block lasts."""
    if how == BLACK_HOLE:
        server.suspend()
    else:
        server.kill()
    try:
        yield
    finally:
        if how == BLACK_HOLE:
            server.resume()
        else:
            server.start()


def black_hole(port: int) -> "closing[socket.socket]":
    """Connections are made, and nobody answers."""
    return closing(socket.create_server(("127.0.0.1", port), backlog=200))


def assert_answers_soon(app: App) -> None:
    began = time.monotonic()
    samples = batch(app.port, 50, at_once=50)
    seconds = time.monotonic() - began
    longest = max(one.ended - one.began for one in samples)
    print(f"50 concurrent requests: {seconds:.2f} s in all, the longest {longest * 1000:.0f} ms")
    assert {one.status for one in samples} == {200}
    assert seconds < 2


def assert_says_so_once_a_second(app: App, components: set[str]) -> None:
    """Requests go on until each component has been named, and for some seconds: at most one line a second names it.

    What waits for an answer that does not come names itself when its own deadline is over, after 5 s.
    """

    def named(component: str) -> int:
        return sum(line.startswith(f"{component} failed") for line in failures(app))

    before, began = {component: named(component) for component in components}, time.monotonic()
    with Crowd(app.port, rate=60) as crowd:
        wait_until(lambda: all(map(named, components)), 20, f"{components} are named")
        wait_until(lambda: time.monotonic() - began >= LISTENING_SECONDS, 5, "we listened")
    seconds = time.monotonic() - began
    lines = failures(app)
    print(f"{len(lines)} lines so far; {len(crowd.samples)} requests in {seconds:.1f} s; first: {lines[0]}")
    assert {one.status for one in crowd.samples} == {200}
    assert len(crowd.samples) > 100
    for component in components:
        assert named(component) - before[component] <= seconds + 1, f"{component}: at most one line a second"
        assert metric(app.metrics(), "tidegate_errors_total", component=component) > 0
    others = {line.partition(" failed")[0] for line in lines} - {"store", "redis-check", "flags.unleash", "tracking"}
    assert not others, "nothing else fails"
    assert not [line for line in lines if line.rstrip().endswith(":")], "each line says what is wrong"


def failures(app: App) -> list[str]:
    """Lines of the application's log that are not uvicorn's own, without the time and who speaks."""
    return [OURS.sub("", line) for line in app.log_lines() if not re.match(r"INFO: ", line)]
