"""`tidegate flags status` on a real Unleash and a real file, against what is really decided."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.operations.running import Shell, until_clients_know
from tests.services.server import wait_until
from tests.services.unleash import Unleash
from tidegate.flags import FlagContext, LocalFlags, normalized
from tidegate.flags.stop_records import StopRecord
from tidegate.rollout.loading import load_spec
from tidegate.rollout.store import Journal
from tidegate.settings import Settings
from tidegate.stopping import stop_home
from tidegate.vocabulary import FLAGS

ACME = {"contextName": "tenantId", "operator": "IN", "values": ["acme"]}
NOT_ACME = {**ACME, "inverted": True}


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(tmp_path, capsys, monkeypatch)


@pytest.fixture
def flag(unleash: Unleash) -> str:
    return unleash.admin.fresh_name("seen")


@pytest.fixture(params=["backend token", "admin token"])
def by_either(request: pytest.FixtureRequest, shell: Shell, unleash: Unleash) -> Shell:
    """Settings with one of the two tokens: the answers must not differ."""
    if request.param == "backend token":
        shell.on(unleash, token="", flags=f'unleash_token = "{unleash.development_token}"')
    else:
        shell.on(unleash)
    return shell


def status_of(shell: Shell, *arguments: str) -> dict[str, Any]:
    code, out, err = shell.run("flags", "status", *arguments, "--json")
    assert code == 0, err
    (found,) = json.loads(out)["flags"]
    assert isinstance(found, dict)
    return found


def test_percentage_bands_reach_and_conditions_are_shown(unleash: Unleash, by_either: Shell, flag: str) -> None:
    unleash.admin.create_flag(flag)
    unleash.admin.add_strategy(flag, 10, constraints=(NOT_ACME,))
    unleash.admin.turn_on(flag)
    until_clients_know(unleash, flag)
    code, out, _ = by_either.run("flags", "status", flag)
    assert code == 0
    first, second, third = out.splitlines()
    assert first.startswith("development, read now from Unleash")
    assert second == f"{flag}: on, 10 % by tenantId where tenantId IN acme (inverted or no case); open for some"
    assert third == "  bands that are in: 1, 5, 10 (of those who meet the conditions)"


def test_a_flag_that_opens_in_shadow_mode_says_so(unleash: Unleash, by_either: Shell, flag: str) -> None:
    unleash.admin.create_flag(flag)
    unleash.admin.add_strategy(flag, 10, variant="shadow")
    unleash.admin.turn_on(flag)
    until_clients_know(unleash, flag)
    assert f"{flag}: on, 10 % by tenantId as shadow; open for some" in by_either.run("flags", "status", flag)[1]
    assert status_of(by_either, flag)["strategies"][0]["variant"] == "shadow"


def test_who_is_in_is_what_unleashs_own_engine_decides(unleash: Unleash, by_either: Shell, flag: str) -> None:
    unleash.admin.create_flag(flag)
    unleash.admin.add_strategy(flag, 40, constraints=(NOT_ACME,))
    unleash.admin.turn_on(flag)
    until_clients_know(unleash, flag)
    tenants = ["acme", *(f"tenant-{number}" for number in range(8))]
    wanted = {tenant: tenant != "acme" and normalized(flag, tenant) <= 40 for tenant in tenants}
    assert len(set(wanted.values())) == 2
    found = {tenant: status_of(by_either, flag, "--unit", tenant)["unit"] for tenant in tenants}
    assert {tenant: unit["in"] for tenant, unit in found.items()} == wanted
    assert {unit["place"] for unit in found.values()} == {normalized(flag, tenant) for tenant in tenants}


@pytest.mark.parametrize(
    ("percentage", "reach", "fault"),
    [("0", "nobody", None), ("100", "everybody", None), ("12.5", "nobody", "'12.5'"), ("101", "nobody", "'101'")],
)
def test_reach_and_faults_follow_what_unleash_does_with_the_percentage(
    unleash: Unleash, by_either: Shell, flag: str, percentage: str, reach: str, fault: str | None
) -> None:
    strategy = unleash.admin.roll_out(flag, 50)
    unleash.admin.set_percentage(flag, strategy, percentage)
    until_clients_know(unleash, flag)
    found = status_of(by_either, flag, "--unit", "acme")
    assert found["reach"] == reach
    assert found["unit"]["in"] is (reach == "everybody")
    assert [fault in one for one in found["faults"]] == ([True] if fault else [])


def test_a_flag_that_is_open_for_everybody_by_accident_is_called_so(
    unleash: Unleash, by_either: Shell, flag: str
) -> None:
    unleash.admin.create_flag(flag)
    unleash.admin.turn_on(flag)
    until_clients_know(unleash, flag)
    found = status_of(by_either, flag)
    assert (found["enabled"], found["reach"]) == (True, "everybody")
    assert any("sticky by 'default'" in fault for fault in found["faults"])


def test_a_flag_that_needs_another_says_so_and_is_not_called_open_for_everybody(
    unleash: Unleash, by_either: Shell, flag: str, request: pytest.FixtureRequest
) -> None:
    parent = unleash.admin.fresh_name("parent")
    unleash.admin.roll_out(parent, 0)
    unleash.admin.roll_out(flag, 100)
    unleash.admin.request("POST", f"/api/admin/projects/default/features/{flag}/dependencies", {"feature": parent})
    until_clients_know(unleash, flag)
    until_clients_know(unleash, parent)
    wait_until(lambda: parent in by_either.run("flags", "status", flag)[1], 20, "Unleash tells of the dependency")
    _, out, _ = by_either.run("flags", "status", flag)
    assert f"on, 100 % by tenantId, and only with {parent}; open for some" in out
    with_backend_token = "backend" in request.node.callspec.id
    assert status_of(by_either, flag, "--unit", "acme")["unit"]["in"] is (False if with_backend_token else None)


def test_a_flag_that_is_not_there_fails_if_it_was_named(unleash: Unleash, by_either: Shell) -> None:
    code, out, _ = by_either.run("flags", "status", "nowhere")
    assert (code, "nowhere: no such flag; open for nobody" in out, "tidegate flags init" in out) == (1, True, True)


def test_the_backend_token_is_named_when_it_will_not_do(unleash: Unleash, shell: Shell) -> None:
    shell.on(unleash, flags='unleash_token = "default:development.wrong"')
    code, _, err = shell.run("flags", "status")
    assert (code, "set TIDEGATE_FLAGS_UNLEASH_TOKEN" in err) == (1, True)
    shell.on(unleash, flags=f'unleash_token = "{unleash.admin_token}"')
    code, _, err = shell.run("flags", "status")
    assert (code, "tidegate flags init --token prints one" in err) == (1, True)


def test_another_environment_is_read_with_the_admin_token(unleash: Unleash, shell: Shell, flag: str) -> None:
    unleash.admin.create_flag(flag)
    unleash.admin.add_strategy(flag, 3, environment="production")
    until_clients_know(unleash, flag)
    shell.on(unleash, flags=f'unleash_token = "{unleash.development_token}"')
    assert status_of(shell, flag, "--environment", "production")["strategies"][0]["percentage"] == 3
    assert status_of(shell, flag)["strategies"] == []


def test_looking_leaves_no_trace_in_unleash(unleash: Unleash, by_either: Shell, flag: str) -> None:
    """No application is registered, no use is counted, no event is logged."""
    unleash.admin.roll_out(flag, 50)
    until_clients_know(unleash, flag)
    applications = unleash.admin.request("GET", "/api/admin/metrics/applications")
    events = len(unleash.admin.events(flag))
    by_either.run("flags", "status", flag, "--unit", "acme")
    assert len(unleash.admin.events(flag)) == events
    assert unleash.admin.request("GET", "/api/admin/metrics/applications") == applications


# --- the local file, stops, rollouts ------------------------------------------------------


@pytest.fixture
def on_file(shell: Shell) -> Shell:
    shell.settings('[flags]\nprovider = "local"\nbands = [1, 20, 100]\n')
    strategies = [{"percentage": 20, "constraints": [{"field": "tenantId", "operator": "NOT_IN", "values": ["acme"]}]}]
    flags = {"tidegate.cache": {"enabled": True, "strategies": strategies}}
    (shell.folder / "flags.json").write_text(json.dumps({"version": 1, "flags": flags}))
    return shell


def test_the_file_is_shown_alike_and_decides_as_its_provider_does(on_file: Shell) -> None:
    code, out, _ = on_file.run("flags", "status")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "development, read now from the file flags.json"
    assert "tidegate.cache: on, 20 % by tenantId where tenantId NOT_IN acme; open for some" in lines
    assert "  bands that are in: 1, 20 (of those who meet the conditions)" in lines
    assert [line for line in lines if "no such flag" in line] == [
        f"{name}: no such flag; open for nobody" for name in FLAGS.values() if name != "tidegate.cache"
    ]
    provider = LocalFlags(on_file.folder / "flags.json")
    provider._look()
    tenants = ["acme", *(f"tenant-{number}" for number in range(30))]
    found = {tenant: status_of(on_file, "tidegate.cache", "--unit", tenant)["unit"]["in"] for tenant in tenants}
    assert found == {
        tenant: provider.is_enabled("tidegate.cache", FlagContext(unit=tenant, properties={"tenantId": tenant}))
        for tenant in tenants
    }
    assert len(set(found.values())) == 2


def test_a_flag_at_100_is_not_called_open_for_requests_without_a_unit(on_file: Shell) -> None:
    whole = {"version": 1, "flags": {"tidegate.cache": {"enabled": True, "strategies": [{"percentage": 100}]}}}
    (on_file.folder / "flags.json").write_text(json.dumps(whole))
    told = "tidegate.cache: on, 100 % by tenantId; open for every tenant, but not for requests without one"
    assert told in on_file.run("flags", "status")[1].splitlines()
    assert f"ok    {told}" in on_file.run("doctor")[1].splitlines()
    assert status_of(on_file, "tidegate.cache")["reach"] == "everybody"


def test_a_stop_and_the_rollout_that_moves_a_flag_are_shown(on_file: Shell) -> None:
    spec = on_file.folder / "canary.yaml"
    spec.write_text(
        "name: canary\nflag: tidegate.cache\nsteps: [{percent: 1, dwell: 15s, min_requests: 1}]\n"
        "objectives: {errors: {max: 1%}}\n"
    )
    with Journal(on_file.folder / "tidegate-journal.sqlite3") as journal:
        journal.add(load_spec(spec), "development", 1.0)
    assert status_of(on_file, "tidegate.cache")["rollout"] == "canary (pending at 0 %)"

    stop = StopRecord(
        flag="tidegate.cache", environment="development", stopped=True, number=1, since=time.time(),
        reason="fire", by="ann@desk",
    )  # fmt: skip
    stop_home(Settings.load(), "development").write(stop)
    unit = next(name for name in map(str, range(1000)) if normalized("tidegate.cache", name) <= 20)
    found = status_of(on_file, "tidegate.cache", "--unit", unit)
    assert (found["reach"], found["unit"]["in"]) == ("nobody", False)
    assert found["stopped"].startswith("by ann@desk at ")
    assert found["stopped"].endswith("Z, until it is lifted: fire")


def test_a_missing_flag_is_told_with_the_command_that_makes_it_or_the_name_that_is_meant(on_file: Shell) -> None:
    _, out, _ = on_file.run("flags", "status", "tidegate.etag", "tidegate.cahce", "x")
    faults = [line for line in out.splitlines() if "!" in line]
    assert faults == [
        "  ! does not exist, so its layer is shut: tidegate flags init tidegate.etag",
        "  ! does not exist, and is the flag of no layer; did you mean tidegate.cache?",
        "  ! does not exist, so its layer is shut: tidegate flags init x",
    ]


def test_stop_records_that_cannot_be_read_count_as_stops(on_file: Shell) -> None:
    (on_file.folder / "tidegate-stops.json").write_text("rubbish")
    found = status_of(on_file, "tidegate.cache")
    assert (found["reach"], found["stopped"].startswith("unknown")) == ("nobody", True)


def test_without_a_source_of_flags_it_says_what_that_means(shell: Shell) -> None:
    code, _, err = shell.run("flags", "status")
    assert (code, "flags.provider: 'none' has no flags: every layer is open" in err) == (2, True)


def test_a_flag_file_that_is_not_there_is_told_with_what_makes_it(on_file: Shell) -> None:
    (on_file.folder / "flags.json").unlink()
    code, _, err = on_file.run("flags", "status")
    assert (code, "there is no flag file flags.json, so every layer is shut: tidegate flags init" in err) == (1, True)


def test_a_flag_file_that_is_wrong_is_told_in_full(on_file: Shell) -> None:
    (on_file.folder / "flags.json").write_text('{"version": 2, "flags": {"x": {"enabled": 1}}}')
    code, _, err = on_file.run("flags", "status")
    assert (code, 'flags["x"].strategies' in err, "version: 2" in err) == (2, True, True)
