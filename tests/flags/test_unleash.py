"""Flags from a real Unleash server."""

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.flags.following import ACME, Errors, run, threads_of, until
from tests.services import Unleash, wait_until
from tidegate.flags import FlagContext, Gates, normalized
from tidegate.flags.unleash import UnleashFlags
from tidegate.vocabulary import FLAGS

pytestmark = pytest.mark.timeout(90)

POLL = 0.5
SERVER_REFRESH = 1.0
"""Unleash looks for changes in its own database once a second."""
MARGIN = 1.5
"""For a machine that is busy with other tests."""


def connect(server: Unleash, errors: Errors | None = None, **settings: Any) -> UnleashFlags:
    settings = {"token": server.development_token, "poll_interval": POLL, "on_error": errors} | settings
    return UnleashFlags(server.url, **settings)


def test_a_change_by_a_person_is_in_force_within_the_poll_interval_and_a_second(unleash: Unleash) -> None:
    flag = unleash.admin.fresh_name()
    strategy = unleash.admin.roll_out(flag, 0)
    flags = connect(unleash)
    gates = Gates(flags, flags={"cache": flag})

    async def check() -> None:
        await until(lambda: flags.health().ready, 10, "the first answer")
        assert gates.decide(ACME).open == frozenset()
        changes: list[tuple[Callable[[], None], bool]] = [
            (lambda: unleash.admin.set_percentage(flag, strategy, 100), True),
            (lambda: unleash.admin.turn_off(flag), False),
            (lambda: unleash.admin.turn_on(flag), True),
            (lambda: unleash.admin.set_percentage(flag, strategy, 0), False),
        ]
        for change, is_open in changes:
            await asyncio.to_thread(change)
            expected = {"cache"} if is_open else frozenset()
            await until(lambda: gates.decide(ACME).open == expected, POLL + SERVER_REFRESH + MARGIN, "the change")  # noqa: B023

    run(flags, check)


def test_told_of_a_change_it_asks_at_once(unleash: Unleash) -> None:
    flag = unleash.admin.fresh_name()
    unleash.admin.roll_out(flag, 100)
    flags = connect(unleash, poll_interval=3600.0)

    def is_open() -> bool:
        flags.poll_now()  # again and again: the server itself takes a second to notice
        return flags.is_enabled(flag, ACME)

    async def check() -> None:
        await until(is_open, 20, "the flag is open")
        await asyncio.to_thread(unleash.admin.turn_off, flag)
        await until(lambda: not is_open(), 20, "the flag is shut")

    flags.poll_now()  # nothing to ask with yet
    run(flags, check)


def test_a_percentage_admits_the_same_units_as_the_local_hash(unleash: Unleash) -> None:
    flag = unleash.admin.fresh_name()
    unleash.admin.roll_out(flag, 37)
    flags = connect(unleash)
    contexts = [FlagContext(unit=f"t{i}", properties={"tenantId": f"t{i}"}) for i in range(300)]

    async def check() -> None:
        await until(lambda: flags.reach(flag) == "some", 10, "an answer with the flag")
        admitted = {one.unit for one in contexts if flags.is_enabled(flag, one)}
        assert admitted == {one.unit for one in contexts if one.unit and normalized(flag, one.unit) <= 37}

    run(flags, check)


def test_of_a_flag_with_one_gradual_rollout_it_says_how_far_it_is_open(unleash: Unleash) -> None:
    flag = unleash.admin.fresh_name()
    strategy = unleash.admin.roll_out(flag, 37)
    flags = connect(unleash)
    gates = Gates(flags, flags={"cache": flag})
    outside = next(name for name in map(str, range(1000)) if normalized(flag, name) > 38)

    async def check() -> None:
        await until(lambda: gates.reach("cache") == "some", 10, "an answer with the flag")
        place = normalized(flag, outside)
        expected = f"{flag} is open to 37 % by tenantId, and this unit's place is {place} of 100"
        assert gates.decide_for(outside).why(flag) == expected
        await asyncio.to_thread(unleash.admin.set_percentage, flag, strategy, 38)
        await until(lambda: "open to 38 %" in gates.decide_for(outside).why(flag), 10, "the new percentage")
        await asyncio.to_thread(unleash.admin.add_strategy, flag, 2)
        told = f"{flag} is open for some, and its percentage or conditions do not let this unit in"
        await until(lambda: gates.decide_for(outside).why(flag) == told, 10, "the second strategy")
        await asyncio.to_thread(unleash.admin.turn_off, flag)
        await until(lambda: "shut for everybody" in gates.decide_for(outside).why(flag), 10, "the shutting")

    run(flags, check)


def test_a_variant_named_shadow_puts_those_in_shadow_whom_its_strategy_admits(unleash: Unleash) -> None:
    flag = unleash.admin.fresh_name()
    unleash.admin.create_context_field("tenantId")
    unleash.admin.create_flag(flag)
    served = {"contextName": "tenantId", "operator": "IN", "values": ["served"]}
    unleash.admin.add_strategy(flag, 100, constraints=(served,))
    strategy = unleash.admin.add_strategy(flag, 50, variant="Shadow")
    unleash.admin.turn_on(flag)
    flags = connect(unleash)
    gates = Gates(flags, flags={"cache": flag})
    names = ["served", *(f"t{i}" for i in range(100))]

    def decided() -> dict[str, str]:
        decisions = {name: gates.decide_for(name) for name in names}
        return {name: "shadow" if decision.shadow else "open" for name, decision in decisions.items() if decision.open}

    def expected(percentage: int) -> dict[str, str]:
        inside = {name: "shadow" for name in names if normalized(flag, name) <= percentage}
        return {**inside, "served": "open"}

    async def check() -> None:
        await until(lambda: decided() == expected(50), 10, "the variant")
        with pytest.raises(UnicodeEncodeError):
            flags.open_as(flag, FlagContext(unit=None, properties={"tenantId": "\ud800"}))
        await asyncio.to_thread(unleash.admin.set_percentage, flag, strategy, 100)
        await until(lambda: decided() == expected(100), 10, "everybody in shadow")
        await asyncio.to_thread(unleash.admin.turn_off, flag)
        await until(lambda: decided() == {}, 10, "the shutting")

    run(flags, check)


def test_users_sessions_and_other_properties_reach_the_engine(unleash: Unleash) -> None:
    flag = unleash.admin.fresh_name()
    unleash.admin.create_flag(flag)
    for field in ("tenantId", "userId", "sessionId", "region"):
        constraint = {"contextName": field, "operator": "IN", "values": [f"a {field}"]}
        unleash.admin.create_context_field(field) if field in ("tenantId", "region") else None
        unleash.admin.add_strategy(flag, 100, stickiness=field, constraints=(constraint,))
    unleash.admin.turn_on(flag)
    flags = connect(unleash)

    async def check() -> None:
        await until(lambda: flags.reach(flag) == "some", 10, "an answer with the flag")
        for field in ("tenantId", "userId", "sessionId", "region"):
            assert flags.is_enabled(flag, FlagContext(unit=None, properties={field: f"a {field}"}))
            assert not flags.is_enabled(flag, FlagContext(unit=None, properties={field: "another"}))
        with pytest.raises(UnicodeEncodeError):
            flags.is_enabled(flag, FlagContext(unit=None, properties={"tenantId": "\ud800"}))

    run(flags, check)


def test_unleash_s_default_stickiness_follows_the_user_and_then_the_session(unleash: Unleash) -> None:
    flag = unleash.admin.fresh_name()
    unleash.admin.create_flag(flag)
    unleash.admin.add_strategy(flag, 50, stickiness="default")
    unleash.admin.turn_on(flag)
    flags = connect(unleash)
    names = [f"n{i}" for i in range(100)]
    inside = {name for name in names if normalized(flag, name) <= 50}

    async def check() -> None:
        await until(lambda: flags.reach(flag) == "some", 10, "an answer with the flag")
        for known in ({"userId": "", "sessionId": "other"}, {"sessionId": ""}):
            field = next(iter(known))
            contexts = {name: FlagContext(unit=None, properties={**known, field: name}) for name in names}
            assert {name for name in names if flags.is_enabled(flag, contexts[name])} == inside

    run(flags, check)


def test_environments_under_one_app_name_never_mix(unleash: Unleash) -> None:
    flag = unleash.admin.fresh_name()
    unleash.admin.roll_out(flag, 100)
    development = connect(unleash, poll_interval=0.05)
    production = connect(unleash, poll_interval=0.05, token=unleash.production_token)

    async def main() -> None:
        await development.start()
        await production.start()
        await until(lambda: development.is_enabled(flag, ACME) and production.version, 10, "both know the flag")
        deadline = time.monotonic() + 2
        answers = []
        while time.monotonic() < deadline:
            answers.append((development.is_enabled(flag, ACME), production.is_enabled(flag, ACME)))
            await asyncio.sleep(0)
        assert set(answers) == {(True, False)}
        assert len(answers) > 1000
        await asyncio.gather(development.aclose(), production.aclose())

    asyncio.run(main())


def test_the_last_state_outlives_the_server_and_the_next_change_is_seen_when_it_is_back(
    start_unleash: Callable[..., Unleash], caplog: pytest.LogCaptureFixture
) -> None:
    server = start_unleash()
    flag = server.admin.fresh_name()
    server.admin.roll_out(flag, 100)
    errors = Errors()
    flags = connect(server, errors, poll_interval=0.2)
    gates = Gates(flags, flags={"cache": flag})

    async def check() -> None:
        await until(lambda: gates.decide(ACME).open, 10, "the flag opens")
        await until(lambda: flags.health().staleness < 0.15, 5, "a fresh answer, most of them 304")
        version = flags.version
        await asyncio.to_thread(server.kill)
        await until(lambda: flags.health().staleness > 1.5, 10, "the state ages")
        assert gates.decide(ACME).open == {"cache"}
        assert flags.version == version
        health = flags.health()
        assert health.ready
        assert "refused" in health.detail
        assert len(errors.seen) >= 3
        assert all(error.startswith(f"{server.api_url}: ") for error in errors.seen)
        await asyncio.to_thread(server.start)
        await until(lambda: flags.health().staleness < 0.2, 10, "an answer from the server that is back")
        assert flags.health().detail == ""
        await asyncio.to_thread(server.admin.turn_off, flag)
        await until(lambda: not gates.decide(ACME).open, 0.2 + SERVER_REFRESH + MARGIN, "the change")

    run(flags, check)
    assert [record for record in caplog.records if record.name in ("UnleashClient", "urllib3.connectionpool")] == []


def test_a_server_that_hangs_after_a_good_answer_leaves_the_state_in_force_and_ageing(
    start_unleash: Callable[..., Unleash],
) -> None:
    server = start_unleash()
    flag = server.admin.fresh_name()
    server.admin.roll_out(flag, 50)
    errors = Errors()
    flags = connect(server, errors, poll_interval=0.1, request_timeout=0.3)
    inside = next(f"t{i}" for i in range(100) if normalized(flag, f"t{i}") <= 50)
    gates = Gates(flags, flags={"cache": flag}, max_staleness=1.5)

    async def check() -> None:
        await until(lambda: gates.decide_for(inside).open, 10, "the flag opens")
        server.suspend()
        try:
            await until(lambda: flags.health().staleness > 1.0, 10, "the state ages")
            assert gates.decide_for(inside).open == {"cache"}
            await until(lambda: not gates.decide_for(inside).open, 5, "a partly open flag shuts")
            assert flags.is_enabled(flag, FlagContext(unit=inside, properties={"tenantId": inside}))
            assert any("timed out" in error for error in errors.seen)
        finally:
            server.resume()
        await until(lambda: gates.decide_for(inside).open, 10, "fresh news open it again")

    run(flags, check)


def test_a_token_that_the_server_refuses_leaves_all_shut_and_says_why(unleash: Unleash) -> None:
    errors = Errors()
    flags = connect(unleash, errors, token="default:development.wrong", poll_interval=0.1)

    async def check() -> None:
        await until(lambda: len(errors.seen) >= 4, 10, "four failures")
        assert not flags.health().ready
        assert "unexpected HTTP status code: 401: it does not know the token" in flags.health().detail
        assert not any("default:development.wrong" in error for error in errors.seen)

    run(flags, check)


def test_closing_ends_the_threads_keeps_the_state_and_reports_what_was_asked(
    start_unleash: Callable[..., Unleash],
) -> None:
    # A server of its own: for ten seconds Unleash drops reports of a flag that is newer than its list of flags.
    unleash = start_unleash()
    flag = unleash.admin.fresh_name()
    unleash.admin.roll_out(flag, 100)
    other = unleash.admin.fresh_name()  # made last, so that who knows it knows the flag too
    unleash.admin.roll_out(other, 100)
    app_name = unleash.admin.fresh_name("app")
    flags = connect(unleash, app_name=app_name)
    gates = Gates(flags, flags={"cache": flag})

    async def main() -> None:
        await flags.start()
        await flags.start()
        await until(lambda: flags.is_enabled(other, ACME), 10, "an answer with the flags")
        for _ in range(7):
            assert gates.decide(ACME).open == {"cache"}
        await flags.aclose()
        await flags.aclose()

    asyncio.run(main())
    assert threads_of(flags) == []
    assert flags.is_enabled(flag, ACME)
    assert logging.getLogger("UnleashClient").filters == []

    def counted() -> bool:
        usage = unleash.admin.request("GET", f"/api/admin/client-metrics/features/{flag}/raw")
        return [(one["appName"], one["yes"]) for one in usage["data"] if one["yes"] or one["no"]] == [(app_name, 7)]

    wait_until(counted, 30, "Unleash counts the seven questions")


def test_it_can_be_started_again_and_begins_with_the_last_state(unleash: Unleash) -> None:
    flag = unleash.admin.fresh_name()
    unleash.admin.roll_out(flag, 100)
    flags = connect(unleash)
    gates = Gates(flags, flags={"cache": flag})

    async def first() -> None:
        await flags.start()
        await until(lambda: gates.decide(ACME).open, 10, "the flag opens")
        await flags.aclose()

    async def second() -> None:
        await flags.start()
        answers = set[frozenset[str]]()
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            answers.add(Gates(flags, flags={"cache": flag}).decide(ACME).open)
            await asyncio.sleep(0.001)
        assert answers == {frozenset({"cache"})}
        await asyncio.to_thread(unleash.admin.turn_off, flag)
        await until(lambda: not gates.decide(ACME).open, POLL + SERVER_REFRESH + MARGIN, "the change")
        await flags.aclose()

    asyncio.run(first())
    asyncio.run(second())
    assert threads_of(flags) == []


FORKING = """
import asyncio, os, sys, time
from tidegate.flags import FlagContext
from tidegate.flags.unleash import UnleashFlags

url, token, flag = sys.argv[1:]
acme = FlagContext(unit="acme", properties={"tenantId": "acme"})
flags = UnleashFlags(url, token=token, poll_interval=0.2)

def wait(is_open):
    deadline = time.monotonic() + 20
    while flags.is_enabled(flag, acme) is not is_open:
        if time.monotonic() > deadline:
            os._exit(1)
        time.sleep(0.01)

asyncio.run(flags.start())
wait(True)
child = os.fork()
if child:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
asyncio.run(flags.start())
assert flags.is_enabled(flag, acme)
print("forked", flush=True)
wait(False)
os._exit(0)
"""


def test_a_forked_child_that_starts_it_again_follows_the_server(unleash: Unleash) -> None:
    flag = unleash.admin.fresh_name()
    unleash.admin.roll_out(flag, 100)
    arguments = [unleash.url, unleash.development_token, flag]
    with subprocess.Popen([sys.executable, "-c", FORKING, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"forked\n"
        unleash.admin.turn_off(flag)
        assert process.wait(30) == 0


def test_the_layers_of_tidegate_are_shut_on_a_server_that_does_not_know_their_flags(unleash: Unleash) -> None:
    flags = connect(unleash)
    gates = Gates(flags)

    async def check() -> None:
        await until(lambda: flags.health().ready, 10, "the first answer")
        assert gates.decide_for("acme").open == frozenset()
        assert [flag for flag, _, _ in gates.decide_for("acme").cohorts] == list(FLAGS.values())

    run(flags, check)
