"""`tidegate flags init | open | shut` on a real Unleash and a real file: what is made, and what is never touched."""

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.operations.running import Shell
from tests.services.unleash import Unleash
from tidegate.errors import FlagError
from tidegate.flags.stop_records import StopRecord
from tidegate.operations.desk_local import LocalDesk
from tidegate.operations.desk_unleash import TOKEN_NAME, UnleashDesk
from tidegate.rollout.loading import load_spec
from tidegate.rollout.store import Journal
from tidegate.settings import Settings
from tidegate.stopping import stop_home
from tidegate.vocabulary import FLAGS

ACME = {"contextName": "tenantId", "operator": "IN", "values": ["acme"]}


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(tmp_path, capsys, monkeypatch)


@pytest.fixture
def on_unleash(shell: Shell, unleash: Unleash) -> Shell:
    shell.on(unleash)
    return shell


@pytest.fixture
def flag(unleash: Unleash) -> str:
    """A name that no flag has yet."""
    return unleash.admin.fresh_name("made")


def ours(strategy: dict[str, Any]) -> tuple[Any, ...]:
    """What matters of a strategy."""
    given = strategy["parameters"]
    return strategy["name"], given["rollout"], given["stickiness"], given["groupId"], strategy["constraints"]


def last_event(unleash: Unleash) -> int:
    return int(unleash.admin.request("GET", "/api/admin/search/events?limit=1")["events"][0]["id"])


# --- init on Unleash ------------------------------------------------------------------


def test_init_makes_field_flags_and_strategies_and_opens_nothing(
    start_unleash: Callable[..., Unleash], shell: Shell
) -> None:
    """On a fresh server: first the plan, which leaves no trace, then all of it, then nothing any more."""
    unleash = start_unleash()
    shell.on(unleash)
    before = last_event(unleash)
    code, out, _ = shell.run("flags", "init", "--dry-run")
    assert (code, out.count("would make")) == (0, 6)
    assert last_event(unleash) == before

    code, out, err = shell.run("flags", "init")
    assert (code, out.count("made "), err) == (0, 6, "")
    fields = {one["name"]: one["stickiness"] for one in unleash.admin.request("GET", "/api/admin/context")}
    assert fields["tenantId"] is True
    for name in FLAGS.values():
        state = unleash.admin.environment(name)
        assert not state["enabled"]
        assert [ours(one) for one in state["strategies"]] == [("flexibleRollout", "0", "tenantId", name, [])]
        assert unleash.admin.strategies(name, environment="production") == []

    before = last_event(unleash)
    code, out, _ = shell.run("flags", "init")
    assert (code, "nothing to make" in out) == (0, True)
    assert "tidegate.cache is left as it is: off, 0 % by tenantId" in out
    assert last_event(unleash) == before


def test_init_follows_unit_environment_and_selection(unleash: Unleash, shell: Shell, flag: str) -> None:
    shell.on(unleash, flags='unit = "user"\nenvironment = "production"')
    assert shell.run("flags", "init", flag)[0] == 0
    (strategy,) = unleash.admin.strategies(flag, environment="production")
    assert ours(strategy) == ("flexibleRollout", "0", "userId", flag, [])
    assert unleash.admin.strategies(flag) == []
    assert shell.run("flags", "init", flag, "--environment", "development")[0] == 0
    assert len(unleash.admin.strategies(flag)) == 1


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize(
    ("percentage", "says"),
    [
        (37, "37 % by tenantId"),
        ("101", "has the percentage '101', which is open for nobody: write a whole number"),
        ("", "has the percentage ''"),
    ],
)
def test_what_exists_is_described_and_left_as_it_is(
    unleash: Unleash, on_unleash: Shell, flag: str, percentage: Any, says: str, on: bool
) -> None:
    """Hazard 1: what Unleash should have refused is named, not mended; on stays on, off stays off."""
    strategy = unleash.admin.roll_out(flag, 1)
    unleash.admin.set_percentage(flag, strategy, percentage)
    if not on:
        unleash.admin.turn_off(flag)
    before = unleash.admin.environment(flag)
    code, out, _ = on_unleash.run("flags", "init", flag)
    assert (code, says in out, "nothing to make" in out) == (0, True, True)
    assert unleash.admin.environment(flag) == before
    assert before["enabled"] is on


def test_other_strategies_and_conditions_are_left_and_named(unleash: Unleash, on_unleash: Shell, flag: str) -> None:
    unleash.admin.create_flag(flag)
    unleash.admin.add_strategy(flag, 5, constraints=(ACME,), group_id="other", stickiness="userId")
    unleash.admin.add_strategy(flag, 7)
    before = unleash.admin.environment(flag)
    code, out, _ = on_unleash.run("flags", "init", flag)
    assert code == 0
    for told in ("5 % by userId where tenantId IN acme; or 7 %", "sticky by 'userId'", "group 'other'", "2 strategies"):
        assert told in out
    assert unleash.admin.environment(flag) == before


def test_a_flag_that_is_open_for_everybody_is_named_and_not_narrowed(
    unleash: Unleash, on_unleash: Shell, flag: str
) -> None:
    """Hazard 2: turned on without a strategy, Unleash has given it one for everybody."""
    unleash.admin.create_flag(flag)
    unleash.admin.turn_on(flag)
    before = unleash.admin.environment(flag)
    code, out, _ = on_unleash.run("flags", "init", flag)
    assert (code, f"{flag} is left as it is: on, 100 % by default" in out) == (0, True)
    assert unleash.admin.environment(flag) == before


def test_a_flag_without_a_strategy_gets_one_at_0_and_stays_off(unleash: Unleash, on_unleash: Shell, flag: str) -> None:
    unleash.admin.create_flag(flag)
    unleash.admin.create_context_field("tenantId")
    code, out, _ = on_unleash.run("flags", "init", flag)
    assert (code, "which is off and has no strategy, one at 0 %" in out) == (0, True)
    assert not unleash.admin.enabled(flag)
    assert unleash.admin.percentage(flag) == "0"
    unleash.admin.turn_on(flag)  # as a person may, right afterwards: Unleash adds nothing, and nobody is in
    assert unleash.admin.percentage(flag) == "0"


def test_of_a_flag_with_a_disabled_strategy_only_init_says_what_to_do(
    unleash: Unleash, on_unleash: Shell, flag: str
) -> None:
    """Nothing is made: it would stand beside the one that somebody set aside."""
    unleash.admin.create_flag(flag)
    strategy = unleash.admin.add_strategy(flag, 25)
    path = f"/api/admin/projects/default/features/{flag}/environments/development/strategies/{strategy}"
    unleash.admin.request("PATCH", path, [{"op": "replace", "path": "/disabled", "value": True}])
    before = unleash.admin.environment(flag)
    code, out, _ = on_unleash.run("flags", "init", flag)
    assert (code, "nothing to make" in out, "enable or delete them" in out) == (0, True, True)
    assert "tidegate flags init" not in out, "that is what was just done"
    assert unleash.admin.environment(flag) == before


def test_ten_at_once_make_one_flag_with_one_strategy(unleash: Unleash, flag: str) -> None:
    desks = [UnleashDesk(unleash.api_url, unleash.admin_token, "development", timeout=20) for _ in range(10)]

    async def all_at_once() -> list[BaseException | None]:
        try:
            makes = [desk.make_flag(flag, "tenantId") for desk in desks]
            fields = [desk.make_field("tenantId") for desk in desks]
            return await asyncio.gather(*makes, *fields, return_exceptions=True)
        finally:
            for desk in desks:
                await desk.close()

    assert asyncio.run(all_at_once()) == [None] * 20
    assert [ours(one)[1] for one in unleash.admin.strategies(flag)] == ["0"]
    assert not unleash.admin.enabled(flag)


def test_of_strategies_given_at_once_one_stays(unleash: Unleash, flag: str) -> None:
    unleash.admin.create_flag(flag)

    async def all_at_once() -> None:
        desk = UnleashDesk(unleash.api_url, unleash.admin_token, "development", timeout=20)
        try:
            await asyncio.gather(*(desk.make_strategy(flag, "tenantId") for _ in range(5)))
        finally:
            await desk.close()

    asyncio.run(all_at_once())
    assert unleash.admin.percentage(flag) == "0"


def test_the_name_of_an_archived_flag_is_told(unleash: Unleash, on_unleash: Shell, flag: str) -> None:
    unleash.admin.create_flag(flag)
    unleash.admin.archive(flag)
    code, _, err = on_unleash.run("flags", "init", flag)
    assert code == 1
    assert "An archived flag with that name already exists. Delete or revive it in Unleash" in err


def test_a_typo_in_the_name_of_a_layers_flag_makes_no_flag(unleash: Unleash, on_unleash: Shell) -> None:
    code, _, err = on_unleash.run("flags", "init", "tidegate.cahce")
    assert (code, "is the flag of no layer; use tidegate.cache" in err) == (2, True)
    listed = unleash.admin.request("GET", "/api/admin/projects/default/features")["features"]
    assert "tidegate.cahce" not in [one["name"] for one in listed]


def test_a_name_that_unleash_refuses_is_told_with_its_reason(on_unleash: Shell) -> None:
    code, _, err = on_unleash.run("flags", "init", "bad name/x")
    assert (code, "answered 400" in err, '"name" must be URL friendly' in err) == (1, True, True)


def test_an_unknown_environment_is_named_with_the_known_ones(unleash: Unleash, on_unleash: Shell, flag: str) -> None:
    unleash.admin.create_flag(flag)
    code, _, err = on_unleash.run("flags", "init", flag, "--environment", "moon")
    assert (code, "has no environment 'moon'; it has development, production" in err) == (1, True)


@pytest.mark.parametrize(
    ("token", "says"),
    [("*:*.wrong", "it does not know the token; set TIDEGATE_ROLLOUT_ADMIN_TOKEN"), ("backend", "must be an admin")],
)
def test_a_token_that_will_not_do_is_told_with_its_fix(
    unleash: Unleash, shell: Shell, flag: str, token: str, says: str
) -> None:
    shell.on(unleash, token=unleash.development_token if token == "backend" else token)
    code, out, err = shell.run("flags", "init", flag)
    assert (code, out, says in err) == (1, "", True)


def test_without_a_token_the_setting_is_named(unleash: Unleash, shell: Shell) -> None:
    shell.on(unleash, token="")
    code, _, err = shell.run("flags", "init")
    assert (code, "rollout.admin_token" in err) == (2, True)


# --- the backend token -------------------------------------------------------------------


def test_the_token_is_printed_alone_reads_this_environment_and_is_made_once(
    unleash: Unleash, on_unleash: Shell, flag: str
) -> None:
    code, out, err = on_unleash.run("flags", "init", flag, "--token")
    (token,) = out.splitlines()
    assert (code, token.startswith("default:development."), f"made the flag {flag}" in err) == (0, True, True)
    assert on_unleash.run("flags", "init", flag, "--token")[1].strip() == token
    assert on_unleash.run("flags", "init", flag, "--token", "--dry-run")[1] == ""
    other = on_unleash.run("flags", "init", flag, "--token", "--environment", "production")[1]
    assert other.startswith("default:production.")
    on_unleash.on(unleash, token=token)
    assert "must be an admin token" in on_unleash.run("flags", "init", flag)[2], "an app's token must not write"


def test_an_editor_who_may_not_make_tokens_is_told(unleash: Unleash, shell: Shell, flag: str) -> None:
    shell.on(unleash, token=unleash.admin.personal_token("tokenless"), flags='environment = "production"')
    for one in unleash.admin.request("GET", f"/api/admin/api-tokens/{TOKEN_NAME}")["tokens"]:
        unleash.admin.request("DELETE", f"/api/admin/api-tokens/{one['secret']}")
    code, out, err = shell.run("flags", "init", flag, "--token")
    assert (code, out) == (1, "")
    assert "An Editor may not make tokens" in err
    assert unleash.admin.percentage(flag, environment="production") == "0", "but flags"


# --- open and shut on Unleash ---------------------------------------------------------------


@pytest.fixture
def made(on_unleash: Shell, flag: str) -> str:
    assert on_unleash.run("flags", "init", flag)[0] == 0
    return flag


def test_a_flag_is_opened_for_the_named_alone_then_for_others_then_shut(
    unleash: Unleash, on_unleash: Shell, made: str
) -> None:
    code, out, _ = on_unleash.run("flags", "open", made, "--only", "tenantId=acme")
    assert (code, out) == (0, f"{made} in development is open for tenantId acme only\n")
    (strategy,) = unleash.admin.strategies(made)
    assert unleash.admin.enabled(made)
    assert strategy["parameters"]["rollout"] == "100"
    assert [(c["contextName"], c["operator"], c["values"]) for c in strategy["constraints"]] == [
        ("tenantId", "IN", ["acme"])
    ]
    types = [event["type"] for event in unleash.admin.events(made)]
    assert types[:2] == ["feature-environment-enabled", "feature-strategy-update"], "the condition came first"

    assert on_unleash.run("flags", "open", made, "--only", "tenantId=globex", "--only", "tenantId=acme")[0] == 0
    assert unleash.admin.strategies(made)[0]["constraints"][0]["values"] == ["acme", "globex"]

    code, out, _ = on_unleash.run("flags", "shut", made)
    assert (code, out) == (0, f"{made} in development is off, 0 % by tenantId\n")
    (strategy,) = unleash.admin.strategies(made)
    assert (ours(strategy)[1], strategy["constraints"], unleash.admin.enabled(made)) == ("0", [], False)


def test_a_flag_that_is_open_already_is_not_touched(unleash: Unleash, on_unleash: Shell, flag: str) -> None:
    unleash.admin.roll_out(flag, 10)
    before = unleash.admin.environment(flag)
    code, _, err = on_unleash.run("flags", "open", flag, "--only", "tenantId=acme")
    assert (code, f"is open already (on, 10 % by tenantId): tidegate flags shut {flag}" in err) == (1, True)
    assert unleash.admin.environment(flag) == before


@pytest.mark.parametrize("state", ["two strategies", "inverted", "no flag"])
def test_a_flag_that_is_not_ours_alone_is_not_opened(
    unleash: Unleash, on_unleash: Shell, flag: str, state: str
) -> None:
    if state != "no flag":
        unleash.admin.create_flag(flag)
        unleash.admin.add_strategy(flag, 0, constraints=({**ACME, "inverted": True},) if state == "inverted" else ())
    if state == "two strategies":
        unleash.admin.add_strategy(flag, 100)
    code, _, err = on_unleash.run("flags", "open", flag, "--only", "tenantId=acme")
    assert code == 1
    told = {"two strategies": "2 strategies", "inverted": "conditions, of somebody else", "no flag": "there is no flag"}
    assert told[state] in err
    if state != "no flag":
        assert not unleash.admin.enabled(flag)


def test_what_a_person_changes_in_between_turns_it_off_again(
    unleash: Unleash, on_unleash: Shell, made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hazard 3: no concurrency control. Somebody takes the condition away while the flag is being turned on."""
    (strategy,) = unleash.admin.strategies(made)
    path = f"/api/admin/projects/default/features/{made}/environments/development/strategies/{strategy['id']}"
    turn = UnleashDesk.turn

    async def meddled(desk: UnleashDesk, name: str, *, on: bool) -> None:
        if on:
            patch = [{"op": "replace", "path": "/constraints", "value": []}]
            await asyncio.to_thread(unleash.admin.request, "PATCH", path, patch)
        await turn(desk, name, on=on)

    monkeypatch.setattr(UnleashDesk, "turn", meddled)
    code, _, err = on_unleash.run("flags", "open", made, "--only", "tenantId=acme")
    assert (code, "it was turned off" in err) == (1, True)
    assert not unleash.admin.enabled(made)


def test_shutting_leaves_the_conditions_of_others(unleash: Unleash, on_unleash: Shell, flag: str) -> None:
    unleash.admin.create_flag(flag)
    unleash.admin.add_strategy(flag, 50, constraints=(ACME, {**ACME, "contextName": "region"}))
    unleash.admin.turn_on(flag)
    code, out, _ = on_unleash.run("flags", "shut", flag)
    assert (code, "its conditions stay, since they may be somebody else's" in out) == (0, True)
    assert not unleash.admin.enabled(flag)
    assert unleash.admin.percentage(flag) == "50"

    code, out, _ = on_unleash.run("flags", "shut", flag, "--clear")
    assert (code, out) == (0, f"{flag} in development is off, 0 % by tenantId\n")
    (strategy,) = unleash.admin.strategies(flag)
    assert (strategy["parameters"]["rollout"], strategy["constraints"]) == ("0", [])


def test_a_condition_at_less_than_100_is_somebody_elses(on_file: Shell) -> None:
    """A rollout in one region: taken away, the next one would go to all."""
    eu = {"field": "region", "operator": "IN", "values": ["eu"]}
    flag = {"enabled": False, "strategies": [{"percentage": 25, "constraints": [eu]}]}
    text = json.dumps({"version": 1, "flags": {"tidegate.cache": flag}})
    (on_file.folder / "flags.json").write_text(text)
    code, out, _ = on_file.run("flags", "shut", "tidegate.cache")
    assert (code, "its conditions stay, since they may be somebody else's" in out) == (0, True)
    code, _, err = on_file.run("flags", "open", "tidegate.cache", "--only", "tenantId=acme")
    assert (code, "has conditions, of somebody else or" in err) == (1, True)
    assert held(on_file) == {"tidegate.cache": flag}


def test_what_a_rollout_moves_is_neither_opened_nor_shut_by_hand(
    unleash: Unleash, on_unleash: Shell, made: str
) -> None:
    spec = on_unleash.folder / "canary.yaml"
    spec.write_text(
        f"name: canary\nflag: {made}\nsteps: [{{percent: 1, dwell: 15s, min_requests: 1}}]\n"
        "objectives: {errors: {max: 1%}}\n"
    )
    with Journal(on_unleash.folder / "tidegate-journal.sqlite3") as journal:
        journal.add(load_spec(spec), "development", 1.0)
    before = unleash.admin.environment(made)
    for arguments in (("open", made, "--only", "tenantId=acme"), ("shut", made)):
        code, _, err = on_unleash.run("flags", *arguments)
        assert (code, "is moved by the rollout canary (pending): tidegate rollout abort canary" in err) == (1, True)
    assert unleash.admin.environment(made) == before


def test_a_stopped_flag_is_not_opened(unleash: Unleash, on_unleash: Shell, made: str) -> None:
    home = stop_home(Settings.load(), "development")
    home.write(
        StopRecord(
            flag=made, environment="development", stopped=True, number=1, since=1.0, reason="fire", by="ann@desk"
        )
    )
    code, _, err = on_unleash.run("flags", "open", made, "--only", "tenantId=acme")
    assert (code, f"was stopped by ann@desk (fire): tidegate lift {made}" in err) == (1, True)
    assert not unleash.admin.enabled(made)


def test_several_values_in_one_are_refused_with_the_way_to_write_them(on_file: Shell) -> None:
    assert on_file.run("flags", "init", "tidegate.cache")[0] == 0
    code, _, err = on_file.run("flags", "open", "tidegate.cache", "--only", "tenantId=acme,globex")
    assert (code, "write --only tenantId=acme --only tenantId=globex" in err) == (2, True)
    assert held(on_file)["tidegate.cache"]["enabled"] is False


@pytest.mark.parametrize("only", ["acme", "tenantId=", "=acme"])
def test_whom_to_open_for_must_be_said_well(on_unleash: Shell, only: str) -> None:
    code, _, err = on_unleash.run("flags", "open", "any", "--only", only)
    assert (code, "write tenantId=acme" in err) == (2, True)


@pytest.mark.parametrize(
    ("only", "meant"),
    [("tenant=acme", "tenantId=acme"), ("tenantID=acme", "tenantId=acme"), ("user_id=ann", "userId=ann")],
)
def test_a_field_that_no_request_has_is_refused_with_the_one_that_is_meant(shell: Shell, only: str, meant: str) -> None:
    shell.settings('[flags]\nprovider = "local"\n')
    code, _, err = shell.run("flags", "open", "any", "--only", only)
    assert (code, err.splitlines()[1:]) == (
        2,
        [f"  - --only: '{only}' names a field that no request has, so it would let nobody in; write {meant}"],
    )


# --- the local file ---------------------------------------------------------------------------


@pytest.fixture
def on_file(shell: Shell) -> Shell:
    shell.settings('[flags]\nprovider = "local"\n')
    return shell


def held(shell: Shell) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shell.folder / "flags.json").read_text(encoding="utf-8"))["flags"]
    return found


def test_a_file_is_made_with_every_flag_off_at_0(on_file: Shell) -> None:
    assert on_file.run("flags", "init", "--dry-run")[1].count("would make") == 5
    assert list(on_file.folder.glob("flags*")) == []
    assert on_file.run("flags", "init")[0] == 0
    off = {"enabled": False, "strategies": [{"percentage": 0, "stickiness": "tenantId"}]}
    assert held(on_file) == dict.fromkeys(FLAGS.values(), off)
    before = (on_file.folder / "flags.json").stat()
    code, out, _ = on_file.run("flags", "init")
    assert (code, "nothing to make" in out) == (0, True)
    assert (on_file.folder / "flags.json").stat().st_ino == before.st_ino, "it was not written again"


def test_what_the_file_has_is_never_touched(on_file: Shell) -> None:
    open_for_all = {"enabled": True, "strategies": [{"percentage": 100}, {"percentage": 3, "stickiness": "userId"}]}
    bare = {"enabled": False, "strategies": []}
    text = json.dumps({"version": 1, "flags": {"tidegate.cache": open_for_all, "mine": bare, "tidegate.etag": bare}})
    (on_file.folder / "flags.json").write_text(text)
    code, out, _ = on_file.run("flags", "init")
    assert (code, "tidegate.cache has 2 strategies" in out) == (0, True)
    found = held(on_file)
    assert (found["tidegate.cache"], found["mine"]) == (open_for_all, bare)
    assert found["tidegate.etag"] == {"enabled": False, "strategies": [{"percentage": 0, "stickiness": "tenantId"}]}
    assert len(found) == 6


def test_a_flag_that_another_has_just_made_and_opened_is_left(on_file: Shell) -> None:
    """The plan was made before; the other was quicker."""
    opened = {"enabled": True, "strategies": [{"percentage": 30}]}
    (on_file.folder / "flags.json").write_text(json.dumps({"version": 1, "flags": {"mine": opened}}))
    desk = LocalDesk(on_file.folder / "flags.json", "development")
    asyncio.run(desk.make_flag("mine", "tenantId"))
    asyncio.run(desk.make_strategy("mine", "tenantId"))
    assert held(on_file)["mine"] == opened


def test_a_file_that_cannot_be_used_is_not_replaced(on_file: Shell) -> None:
    (on_file.folder / "flags.json").write_text('{"version": 1, "flags": {"x": {"enabled": 1}}}')
    code, _, err = on_file.run("flags", "init")
    assert code == 2
    assert 'flags["x"].enabled' in err
    assert list(on_file.folder.glob("flags.json")) == [on_file.folder / "flags.json"]
    assert (on_file.folder / "flags.json").read_text() == '{"version": 1, "flags": {"x": {"enabled": 1}}}'


def test_the_file_opens_for_the_named_alone_and_shuts(on_file: Shell) -> None:
    on_file.run("flags", "init", "tidegate.cache")
    assert on_file.run("flags", "open", "tidegate.cache", "--only", "tenantId=acme")[0] == 0
    acme = {"field": "tenantId", "operator": "IN", "values": ["acme"]}
    opened = {"percentage": 100, "stickiness": "tenantId", "constraints": [acme]}
    assert held(on_file)["tidegate.cache"] == {"enabled": True, "strategies": [opened]}
    assert on_file.run("flags", "shut", "tidegate.cache")[0] == 0
    shut = {"percentage": 0, "stickiness": "tenantId", "constraints": []}
    assert held(on_file)["tidegate.cache"] == {"enabled": False, "strategies": [shut]}


def test_who_opens_a_flag_in_shadow_mode_is_told(on_file: Shell) -> None:
    off = {"enabled": False, "strategies": [{"percentage": 0, "variant": "shadow"}]}
    (on_file.folder / "flags.json").write_text(json.dumps({"version": 1, "flags": {"tidegate.cache": off}}))
    code, out, _ = on_file.run("flags", "open", "tidegate.cache", "--only", "tenantId=acme")
    assert (code, "is open for tenantId acme only, as shadow" in out) == (0, True)
    assert "100 % by tenantId where tenantId IN acme as shadow" in on_file.run("flags", "status", "tidegate.cache")[1]


def test_what_kill_leaves_of_an_opened_flag_can_be_taken_away_by_what_open_shut_and_lift_name(on_file: Shell) -> None:
    on_file.run("flags", "init", "tidegate.cache")
    assert on_file.run("flags", "open", "tidegate.cache", "--only", "tenantId=acme")[0] == 0
    assert on_file.run("kill", "tidegate.cache")[0] == 0
    clearing = "tidegate flags shut tidegate.cache --clear"
    code, out, _ = on_file.run("lift", "tidegate.cache")
    assert (code, clearing in out) == (0, True)
    code, out, _ = on_file.run("flags", "shut", "tidegate.cache")
    assert (code, clearing in out) == (0, True)
    code, _, err = on_file.run("flags", "open", "tidegate.cache", "--only", "tenantId=globex")
    assert (code, clearing in err) == (1, True)

    code, out, _ = on_file.run(*clearing.split()[1:])
    assert (code, out) == (0, "tidegate.cache in development is off, 0 % by tenantId\n")
    assert on_file.run("flags", "open", "tidegate.cache", "--only", "tenantId=globex")[0] == 0
    assert on_file.run("flags", "shut", "tidegate.cache")[0] == 0
    assert held(on_file)["tidegate.cache"]["strategies"][0]["constraints"] == []


def test_what_kill_leaves_can_be_opened_for_the_same_again_at_once(on_file: Shell) -> None:
    on_file.run("flags", "init", "tidegate.cache")
    assert on_file.run("flags", "open", "tidegate.cache", "--only", "tenantId=acme")[0] == 0
    assert on_file.run("kill", "tidegate.cache")[0] == on_file.run("lift", "tidegate.cache")[0] == 0
    assert on_file.run("flags", "open", "tidegate.cache", "--only", "tenantId=acme")[0] == 0


def test_clearing_turns_off_first_and_says_what_it_cannot_take_away(on_file: Shell) -> None:
    two = {"enabled": True, "strategies": [{"percentage": 30}, {"percentage": 3, "stickiness": "userId"}]}
    (on_file.folder / "flags.json").write_text(json.dumps({"version": 1, "flags": {"tidegate.cache": two}}))
    code, _, err = on_file.run("flags", "shut", "tidegate.cache", "--clear")
    assert (code, "is off, but only the conditions of one strategy" in err) == (1, True)
    assert held(on_file)["tidegate.cache"] == {**two, "enabled": False}


def test_many_who_write_the_file_at_once_lose_nothing(on_file: Shell) -> None:
    names = [f"flag-{number}" for number in range(12)]
    failed: list[FlagError] = []

    def make(name: str) -> None:
        try:
            asyncio.run(LocalDesk(on_file.folder / "flags.json", "development").make_flag(name, "tenantId"))
        except FlagError as error:
            failed.append(error)

    threads = [threading.Thread(target=make, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert sorted(held(on_file)) == sorted(names)


def test_without_flags_there_is_nothing_to_make(shell: Shell) -> None:
    code, _, err = shell.run("flags", "init")
    assert (code, "flags.provider: 'none' has no flag to move; use local or unleash" in err) == (2, True)
