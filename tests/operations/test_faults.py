"""What the commands about flags say while Unleash hangs, or its database does: soon, and nothing that is not so."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.operations.running import Shell
from tests.services.unleash import Unleash
from tidegate.operations import desk

FLAG = "tidegate.cache"
COMMANDS = (("init", FLAG), ("open", FLAG, "--only", "tenantId=acme"), ("shut", FLAG))


def test_while_unleash_or_its_database_hangs_nothing_is_done_and_nothing_wrong_is_said(
    start_unleash: Callable[..., Unleash],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hazard 5: without its database Unleash answers in the end that there is no such flag."""
    monkeypatch.setattr(desk, "ANSWER_SECONDS", 1.0)
    shell = Shell(tmp_path, capsys, monkeypatch)
    unleash = start_unleash(own_postgres=True)
    shell.on(unleash, flags=f'unleash_token = "{unleash.development_token}"')
    unleash.admin.roll_out(FLAG, 10)
    before = unleash.admin.environment(FLAG)
    for hang, go_on in (
        (unleash.postgres.suspend, unleash.postgres.resume),
        (unleash.suspend, unleash.resume),
    ):
        hang()
        for command in COMMANDS:
            code, out, err = shell.run("flags", *command)
            assert (code, out) == (1, "")
            assert "did not answer within 1 s" in err
        doctor = json.loads(shell.run("doctor", "--json")[1])
        go_on()
        levels = {one["about"]: one["level"] for one in doctor}
        assert (levels["admin token"], levels["stops"]) == ("FAIL", "ok")
    assert {levels["flags"], levels["clock"]} == {"FAIL"}
    assert shell.run("flags", "status", FLAG)[0] == 0
    after = unleash.admin.environment(FLAG)
    assert after["strategies"] == before["strategies"]
    assert not after["enabled"], "shutting was asked for, and done late: that harms nobody"
