"""Valkey and Redis as the suite starts them."""

from collections.abc import Callable

import pytest

from tests.services import Redis, RedisServer, ServiceError, Valkey, wait_until

Start = Callable[..., RedisServer]


@pytest.fixture(params=["valkey", "redis"])
def start(request: pytest.FixtureRequest) -> Start:
    starter: Start = request.getfixturevalue(f"start_{request.param}")
    return starter


def test_the_shared_valkey_is_valkey_9_and_empty_at_the_start_of_a_test(valkey: Valkey) -> None:
    assert valkey.version().startswith("9.")
    assert valkey.command_reply("DBSIZE") == b"0"
    assert valkey.command_reply("SET", "left", "behind") == b"OK"


def test_a_key_of_another_test_is_gone(valkey: Valkey, valkey_server: Valkey) -> None:
    assert valkey is valkey_server
    assert valkey.command_reply("SET", "left", "behind", "NX") == b"OK"


def test_the_shared_redis_is_redis_7(redis_server: Redis) -> None:
    assert redis_server.version().startswith("7.")
    assert redis_server.command_reply("DBSIZE") == b"0"


def test_a_private_server_comes_back_on_the_same_port_after_stop_and_after_kill(start: Start) -> None:
    server = start()
    url, first = server.url, server.pid
    server.stop()
    assert not server.running
    with pytest.raises(OSError, match=r"refused|No such file"):
        server.command_reply("PING")
    server.start()
    server.kill()
    assert not server.running
    server.start()
    assert server.answers()
    assert server.url == url
    assert server.pid != first


def test_a_suspended_server_accepts_and_stays_silent_until_resumed(start: Start) -> None:
    server = start()
    server.suspend()
    assert server.running
    with pytest.raises(TimeoutError):
        server.command_reply("PING")
    server.resume()
    wait_until(server.answers, 5, "the resumed server answers")


def test_options_reach_the_server(start: Start) -> None:
    server = start(options={"maxmemory": "8mb"})
    assert b"maxmemory:8388608" in server.command_reply("INFO", "memory")


def test_a_server_that_cannot_start_says_so_with_its_log() -> None:
    with pytest.raises(ServiceError, match=r"(?s)valkey ended while it started; its log ends with.*no-such-option"):
        Valkey(options={"no-such-option": "1"}).start()
