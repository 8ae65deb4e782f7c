"""The Unleash actuator against a real Unleash, and against every hazard that concerns it."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from tests.services.server import free_port
from tests.services.unleash import Unleash
from tidegate.errors import FlagError
from tidegate.rollout.actuator import FlagState, begin, open_to, shut
from tidegate.rollout.actuator_unleash import UnleashActuator

T = TypeVar("T")
DEVELOPMENT = "development"
DEFAULT = {"name": "default", "constraints": [], "parameters": {}, "segments": [], "variants": [], "disabled": False}


def moving(scenario: Callable[[UnleashActuator], Awaitable[T]], url: str, token: str, *, timeout: float = 2.0) -> T:
    async def whole() -> T:
        actuator = UnleashActuator(url, token, timeout=timeout)
        try:
            return await scenario(actuator)
        finally:
            await actuator.close()

    return asyncio.run(whole())


@pytest.fixture
def move(unleash: Unleash) -> Callable[[Callable[[UnleashActuator], Awaitable[Any]]], Any]:
    """Run a scenario with an actuator on the shared server."""
    return lambda scenario: moving(scenario, unleash.api_url, unleash.admin_token)


@pytest.fixture
def flag(unleash: Unleash) -> str:
    """A flag that is off, with one gradual rollout by tenant at 0 % in development and at 7 % in production."""
    name = unleash.admin.fresh_name()
    unleash.admin.create_context_field("tenantId")
    unleash.admin.create_flag(name)
    unleash.admin.add_strategy(name, 0)
    unleash.admin.add_strategy(name, 7, environment="production")
    return name


Move = Callable[[Callable[[UnleashActuator], Awaitable[Any]]], Any]


def test_a_flag_begins_moves_and_shuts_in_its_environment_only(unleash: Unleash, flag: str, move: Move) -> None:
    assert move(lambda a: a.check(flag, DEVELOPMENT, "tenant")) == FlagState(enabled=False, percentage=0)
    assert not move(lambda a: a.read(flag, DEVELOPMENT)).limited
    assert move(lambda a: begin(a, flag, DEVELOPMENT, 1)) == FlagState(enabled=True, percentage=1)
    assert move(lambda a: open_to(a, flag, DEVELOPMENT, 50)) == FlagState(enabled=True, percentage=50)
    assert unleash.admin.percentage(flag) == "50"
    assert move(lambda a: shut(a, flag, DEVELOPMENT)) == FlagState(enabled=False, percentage=0)
    assert not unleash.admin.enabled(flag)
    assert unleash.admin.percentage(flag) == "0"
    assert unleash.admin.percentage(flag, environment="production") == "7"
    assert not unleash.admin.enabled(flag, environment="production")


def test_shutting_turns_the_environment_off_before_it_touches_the_percentage(
    unleash: Unleash, flag: str, move: Move
) -> None:
    move(lambda a: begin(a, flag, DEVELOPMENT, 25))
    move(lambda a: shut(a, flag, DEVELOPMENT))
    types = [event["type"] for event in unleash.admin.events(flag)]
    assert types[:2] == ["feature-strategy-update", "feature-environment-disabled"]


def test_moving_keeps_constraints_stickiness_and_group(unleash: Unleash, move: Move) -> None:
    """Hazard 4: a PUT would reset them."""
    name = unleash.admin.fresh_name()
    unleash.admin.create_context_field("tenantId")
    unleash.admin.create_flag(name)
    constraint = {"contextName": "tenantId", "operator": "IN", "values": ["acme"], "inverted": False}
    unleash.admin.add_strategy(name, 0, constraints=(constraint,), group_id="group")
    (before,) = unleash.admin.strategies(name)
    move(lambda a: begin(a, name, DEVELOPMENT, 33))
    (after,) = unleash.admin.strategies(name)
    assert after["parameters"] == {**before["parameters"], "rollout": "33"}
    assert after["constraints"] == before["constraints"]
    assert move(lambda a: a.read(name, DEVELOPMENT)).limited
    assert after["id"] == before["id"]


@pytest.mark.parametrize("percentage", [101, -1, 12.5, "25", True, None])
def test_only_whole_percentages_are_ever_sent(unleash: Unleash, flag: str, move: Move, percentage: Any) -> None:
    """Hazard 1: Unleash would store every one of them, and the flag would be false for everybody."""
    with pytest.raises(FlagError, match="not a whole percentage"):
        move(lambda a: a.set_percentage(flag, DEVELOPMENT, percentage))
    assert unleash.admin.percentage(flag) == "0"


@pytest.mark.parametrize("stored", ["101", "-1", "abc", "12.5", "", "²"])
def test_a_percentage_that_unleash_should_have_refused_reads_as_unknown(
    unleash: Unleash, flag: str, move: Move, stored: str
) -> None:
    unleash.admin.set_percentage(flag, unleash.admin.strategies(flag)[0]["id"], stored)
    assert move(lambda a: a.read(flag, DEVELOPMENT)) == FlagState(enabled=False, percentage=None)


def test_a_flag_without_a_strategy_is_never_turned_on(unleash: Unleash, move: Move) -> None:
    """Hazard 2: Unleash would add a strategy that is open to everybody."""
    name = unleash.admin.fresh_name()
    unleash.admin.create_flag(name)
    with pytest.raises(FlagError, match=r"needs exactly one active strategy.*it has none"):
        move(lambda a: a.enable(name, DEVELOPMENT))
    assert not unleash.admin.enabled(name)
    assert unleash.admin.strategies(name) == []


def test_a_strategy_that_appears_by_turning_on_is_noticed_and_the_flag_is_off_again(
    unleash: Unleash, flag: str, move: Move
) -> None:
    """Hazard 2 in a race: somebody disables the strategy between the check and /on."""
    (strategy,) = unleash.admin.strategies(flag)
    path = f"/api/admin/projects/default/features/{flag}/environments/{DEVELOPMENT}/strategies/{strategy['id']}"

    async def scenario(actuator: UnleashActuator) -> None:
        request = actuator._request

        async def disabled_in_between(method: str, where: str, *rest: Any, **more: Any) -> Any:
            if where.endswith("/on"):
                patch = [{"op": "replace", "path": "/disabled", "value": True}]
                await asyncio.to_thread(unleash.admin.request, "PATCH", path, patch)
            return await request(method, where, *rest, **more)

        actuator._request = disabled_in_between  # type: ignore[method-assign]
        with pytest.raises(FlagError, match="changed its strategies; it was turned off again"):
            await actuator.enable(flag, DEVELOPMENT)

    move(scenario)
    assert len(unleash.admin.strategies(flag)) == 2, "Unleash no longer adds a strategy: the hazard is gone"
    assert not unleash.admin.enabled(flag)


def test_a_write_that_a_person_overtook_is_seen_by_reading_back(unleash: Unleash, flag: str, move: Move) -> None:
    """Hazard 3: Unleash lets the last writer win."""
    (strategy,) = unleash.admin.strategies(flag)

    async def scenario(actuator: UnleashActuator) -> None:
        await begin(actuator, flag, DEVELOPMENT, 1)
        write = actuator.set_percentage

        async def overtaken(*arguments: Any) -> None:
            await write(*arguments)
            await asyncio.to_thread(unleash.admin.set_percentage, flag, strategy["id"], 77)

        actuator.set_percentage = overtaken  # type: ignore[method-assign]
        with pytest.raises(FlagError, match="was set to on at 10 %, but reads back as on at 77 %"):
            await open_to(actuator, flag, DEVELOPMENT, 10)

    move(scenario)


def test_a_late_percentage_does_not_open_a_flag_that_was_shut(unleash: Unleash, flag: str, move: Move) -> None:
    move(lambda a: a.set_percentage(flag, DEVELOPMENT, 50))
    assert not unleash.admin.enabled(flag)


@pytest.mark.parametrize(
    ("stickiness", "strategies", "says"),
    [
        ("userId", 1, "sticky by 'userId', but the unit tenant needs 'tenantId'"),
        ("tenantId", 0, "needs exactly one active strategy, a flexibleRollout; it has none"),
        ("tenantId", 2, "it has flexibleRollout .*, flexibleRollout "),
    ],
)
def test_a_flag_that_cannot_be_moved_is_refused_with_the_reason(
    unleash: Unleash, move: Move, stickiness: str, strategies: int, says: str
) -> None:
    name = unleash.admin.fresh_name()
    unleash.admin.create_context_field("tenantId")
    unleash.admin.create_flag(name)
    for _ in range(strategies):
        unleash.admin.add_strategy(name, 0, stickiness=stickiness)
    with pytest.raises(FlagError, match=says):
        move(lambda a: a.check(name, DEVELOPMENT, "tenant"))


def test_a_strategy_beside_ours_that_is_open_to_everybody_is_refused(unleash: Unleash, flag: str, move: Move) -> None:
    path = f"/api/admin/projects/default/features/{flag}/environments/{DEVELOPMENT}/strategies"
    unleash.admin.request("POST", path, DEFAULT)
    with pytest.raises(FlagError, match="default "):
        move(lambda a: a.check(flag, DEVELOPMENT, "tenant"))


def test_an_unknown_flag_is_named_with_the_nearest(flag: str, move: Move) -> None:
    with pytest.raises(FlagError, match=f"has no flag '{flag}x'; did you mean"):
        move(lambda a: a.check(f"{flag}x", DEVELOPMENT, "tenant"))


def test_an_unknown_environment_is_named_with_the_known_ones(flag: str, move: Move) -> None:
    with pytest.raises(FlagError, match=r"no environment 'staging' in Unleash; it has .*development.*production"):
        move(lambda a: a.check(flag, "staging", "tenant"))


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("*:*.wrong", "answered 401 .*does not know the token"),
        (Unleash.development_token, "answered 403 .*must be an admin token"),
    ],
)
def test_a_token_that_may_not_is_told(unleash: Unleash, flag: str, token: str, says: str) -> None:
    """Hazard 6."""
    with pytest.raises(FlagError, match=says):
        moving(lambda a: a.read(flag, DEVELOPMENT), unleash.url, token)


def test_a_lone_404_is_not_taken_for_a_deletion(unleash: Unleash, move: Move) -> None:
    """Hazard 5."""
    with pytest.raises(FlagError, match="by itself that does not mean that the flag is gone"):
        move(lambda a: a.read("nowhere", DEVELOPMENT))


def test_who_edited_last_is_named(unleash: Unleash, flag: str, move: Move) -> None:
    token = unleash.admin.personal_token(unleash.admin.fresh_name("ann"))
    moving(lambda a: a.set_percentage(flag, DEVELOPMENT, 12), unleash.url, token)
    editor = move(lambda a: a.last_editor(flag, DEVELOPMENT))
    assert editor is not None
    assert editor.startswith("ann-")
    assert "@example.com at 20" in editor
    assert "admin" in str(move(lambda a: a.last_editor(flag, "production")))


def test_a_flag_with_odd_characters_is_addressed_rightly(unleash: Unleash, move: Move) -> None:
    with pytest.raises(FlagError, match=r"has no flag 'a/\.\./b c'"):
        move(lambda a: a.check("a/../b c", DEVELOPMENT, "tenant"))


def test_a_server_that_is_down_or_silent_is_named_in_time() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(FlagError, match=f"Unleash at {url} could not be asked"):
        moving(lambda a: a.read("f", DEVELOPMENT), url, "t")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        began = time.monotonic()
        with pytest.raises(FlagError, match=r"did not answer within 0\.3 s"):
            moving(lambda a: a.disable("f", DEVELOPMENT), url, "t", timeout=0.3)
        assert time.monotonic() - began < 2


def test_unleash_without_its_database_is_an_outage_and_not_an_answer(start_unleash: Callable[..., Unleash]) -> None:
    """Hazard 5: /health stays 200, reads answer 404 after a minute, /off hangs."""
    server = start_unleash(own_postgres=True)
    name = server.admin.fresh_name()
    server.admin.roll_out(name, 10)

    async def scenario(actuator: UnleashActuator) -> None:
        assert await actuator.read(name, DEVELOPMENT) == FlagState(enabled=True, percentage=10)
        await asyncio.to_thread(server.postgres.suspend)
        for attempt in (actuator.read, actuator.disable):
            with pytest.raises(FlagError, match=r"did not answer within 1 s"):
                await attempt(name, DEVELOPMENT)
        await asyncio.to_thread(server.postgres.resume)
        await shut(actuator, name, DEVELOPMENT)

    moving(scenario, server.api_url, server.admin_token, timeout=1.0)
    assert not server.admin.enabled(name)
