"""`tidegate kill` and `tidegate lift` as a person runs them: each way alone, both away, a closed pipe, Ctrl-C."""

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.services import Unleash, Valkey, free_port, wait_until
from tidegate.cli import main
from tidegate.commands.kill import _write, run_to_the_end, until_of
from tidegate.errors import ConfigError
from tidegate.flags.stops_redis import RedisHome
from tidegate.rollout.machine import State
from tidegate.rollout.spec import RolloutSpec
from tidegate.rollout.store import Journal

FLAG = "tidegate.cache"
SPEC: dict[str, Any] = {
    "name": "canary",
    "flag": FLAG,
    "steps": [{"percent": 1, "dwell": "1s", "min_requests": 10}],
    "window": "5s",
    "interval": "100ms",
    "objectives": {"errors": {"max": "1%"}},
}


class Desk:
    """A folder with an open flag in a flag file, and the command run in it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys
        flag = {"enabled": True, "strategies": [{"percentage": 20}]}
        (folder / "flags.json").write_text(json.dumps({"version": 1, "flags": {FLAG: flag}}))
        self.settings('[flags]\nprovider = "local"')

    def settings(self, text: str) -> None:
        (self.folder / "tidegate.toml").write_text(text)

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        code = main(arguments)
        out, err = self._capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """The command as a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "tidegate.cli", *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ.get("PATH", os.defpath)},
        )

    @property
    def flag(self) -> tuple[bool, int]:
        found = json.loads((self.folder / "flags.json").read_text())["flags"][FLAG]
        return found["enabled"], found["strategies"][0]["percentage"]

    def stop(self, environment: str = "development", flag: str = FLAG) -> dict[str, Any]:
        """The flag's record in the file; empty if there is none."""
        path = self.folder / "tidegate-stops.json"
        held = json.loads(path.read_text())["stops"] if path.exists() else {}
        found: dict[str, Any] = held.get(environment, {}).get(flag, {})
        return found


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Desk:
    for name in os.environ:
        if name.startswith(("TIDEGATE_", "REDIS_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return Desk(tmp_path, capsys)


@pytest.fixture
def hole() -> Generator[int, None, None]:
    """The port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_kill_writes_a_record_and_turns_the_flag_off_and_lift_takes_back_the_record_alone(desk: Desk) -> None:
    code, out, err = desk.run("kill", FLAG, "--reason", "fire")
    assert (code, err) == (0, "")
    assert desk.flag == (False, 0)
    assert f"{FLAG} in development is stopped until it is lifted: record in {desk.folder}/tidegate-stops.json" in out
    assert f"opens again only after: tidegate lift {FLAG}" in out
    stop = desk.stop()
    assert (stop["stopped"], stop["reason"], stop["until"]) == (True, "fire", None)
    assert "@" in stop["by"]
    code, out, err = desk.run("lift", FLAG)
    assert (code, err) == (0, "")
    assert "is not stopped any more (was stopped since" in out
    assert "fire)" in out
    assert "the flag is off at 0 %: its layer stays shut" in out
    assert (desk.stop()["stopped"], desk.flag) == (False, (False, 0))


def test_lift_says_that_an_open_flag_opens_again_and_that_there_was_no_stop(desk: Desk) -> None:
    code, out, _ = desk.run("lift", FLAG)
    assert code == 0
    assert f"{FLAG} in development was not stopped; a worker that remembers a stop" in out
    assert "not stopped any more" not in out
    assert "the flag is on at 20 %: its layer opens again" in out


def test_kill_of_a_misspelt_flag_of_a_layer_does_nothing_and_names_the_one_that_is_meant(desk: Desk) -> None:
    code, out, err = desk.run("kill", "tidegate.cahce")
    assert (code, out) == (2, "")
    assert "'tidegate.cahce' is the flag of no layer, so nothing was shut" in err
    assert "did you mean tidegate.cache?" in err
    assert desk.stop(flag="tidegate.cahce") == {}
    assert desk.flag == (True, 20)


def test_kill_of_another_flag_that_nobody_knows_shuts_nothing_and_says_so(desk: Desk) -> None:
    code, out, err = desk.run("kill", "cahce")
    assert code == 1
    assert "there is no flag 'cahce'" in err
    assert "nothing is known to be shut: no flag 'cahce' in development; did you mean tidegate.cache?" in err
    assert "tidegate lift cahce" in err
    _, _, told = desk.run("kill", FLAG, "--env", "prodution")
    assert told.strip().endswith(f"tidegate lift {FLAG} --environment prodution")
    assert "shut in every worker" not in out
    assert desk.flag == (True, 20)


def test_an_environment_that_the_flag_file_does_not_stand_for_is_not_touched(desk: Desk) -> None:
    code, _, err = desk.run("kill", FLAG, "--env", "staging")
    assert code == 1
    assert "holds the environment 'development', not 'staging'" in err
    assert desk.flag == (True, 20)
    assert (desk.stop("staging")["stopped"], desk.stop()) == (True, {})


# --- until -------------------------------------------------------------------------


def test_kill_until_a_duration_has_passed(desk: Desk) -> None:
    code, out, _ = desk.run("kill", FLAG, "--until", "2h")
    assert code == 0
    stop = desk.stop()
    assert 7190 < stop["until"] - stop["since"] < 7210
    assert "is stopped until 20" in out


def test_until_is_a_duration_or_a_time_with_its_zone() -> None:
    assert until_of(None, 100.0) is None
    assert until_of("90s", 100.0) == 190.0
    assert until_of("1970-01-01T01:00:00+00:00", 100.0) == 3600.0
    assert until_of("1970-01-01T02:00Z", 100.0) == 7200.0
    assert until_of("1970-01-01 02:00+01:00", 100.0) == 3600.0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tomorrow", "neither a duration nor a time"),
        ("", "neither a duration nor a time"),
        ("-2h", "neither a duration nor a time"),
        ("2026-11-28", "names no time zone"),
        ("2126-11-28T22:00", "names no time zone"),
        ("2001-01-01T00:00Z", "is past"),
        ("0s", "is past"),
        ("1e400s", "neither a duration nor a time"),
    ],
)
def test_an_until_that_cannot_be_meant_is_refused_before_anything_is_done(desk: Desk, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match="--until"):
        until_of(text, time.time())
    code, out, err = desk.run("kill", FLAG, f"--until={text}")
    assert (code, out) == (2, "")
    assert problem in err
    assert (desk.flag, desk.stop()) == ((True, 20), {})


# --- one way alone, and none -------------------------------------------------------


def unleash_at(port: int, stops: str = "") -> str:
    """Settings for an Unleash server on this port."""
    named = f'stops = "{stops}"\n' if stops else ""
    unleash = f'[flags]\nprovider = "unleash"\nunleash_url = "http://127.0.0.1:{port}/api"\n'
    return f'{unleash}{named}[rollout]\nadmin_token = "t"\n'


def test_while_unleash_hangs_the_record_alone_shuts_and_that_is_said(desk: Desk, hole: int) -> None:
    desk.settings(unleash_at(hole, stops="stops.json"))
    began = time.monotonic()
    code, out, err = desk.run("kill", FLAG)
    assert code == 0
    assert time.monotonic() - began < 10
    assert "did not answer within 2 s" in err
    assert "turn it off before you lift" in err
    assert "shut in every worker within 3 s" in out
    assert json.loads((desk.folder / "stops.json").read_text())["stops"]["development"][FLAG]["stopped"] is True


def test_a_file_that_nobody_named_is_not_sure_to_be_read_by_the_apps_of_an_unleash_server(desk: Desk) -> None:
    desk.settings(unleash_at(free_port()))
    code, out, err = desk.run("kill", FLAG)
    assert code == 1
    assert "only for processes that read it" in err
    assert "NOT known to be shut: the flag was not turned off, and its stop record is not sure to reach" in err
    assert desk.stop()["stopped"] is True
    assert "shut in every worker" not in out


@pytest.mark.parametrize("fault", ["refused", "black hole"])
def test_while_redis_is_away_the_flag_alone_is_turned_off_and_that_is_said(desk: Desk, hole: int, fault: str) -> None:
    port = hole if fault == "black hole" else free_port()
    desk.settings(f'[flags]\nprovider = "local"\n[store]\nurl = "redis://user:s3cret@127.0.0.1:{port}/0"')
    code, out, err = desk.run("kill", FLAG)
    assert (code, desk.flag) == (0, (False, 0))
    assert "no stop record was written" in err
    assert "as long as its source answers; there is no stop record" in out
    assert "s3cret" not in out + err
    code, _, err = desk.run("lift", FLAG)
    assert code == 1
    assert "could not be written" in err


def test_with_both_away_it_fails_and_names_both(desk: Desk, hole: int) -> None:
    desk.settings(unleash_at(hole, stops=f"redis://127.0.0.1:{free_port()}/0"))
    code, out, err = desk.run("kill", FLAG)
    assert (code, out) == (1, "")
    assert "no stop record was written" in err
    assert "was not turned off" in err
    assert "NOT known to be shut" in err


def test_sections_that_cannot_be_read_take_away_what_needs_them_and_no_more(desk: Desk) -> None:
    desk.settings('[flags]\nprovider = "local"\n[store]\nurl = "http://x"\n[rollout]\njournal = 7\n[cache]\nttl = 1')
    code, out, err = desk.run("kill", FLAG)
    assert (code, desk.flag, desk.stop()) == (0, (False, 0), {})
    assert "store.url" in err
    assert "rollout.journal" in err
    assert "there is no stop record" in out
    assert desk.run("lift", FLAG)[0] == 2


def test_without_a_source_of_flags_there_is_nothing_to_kill(desk: Desk) -> None:
    desk.settings("")
    code, _, err = desk.run("kill", FLAG)
    assert code == 2
    assert "flags.provider: 'none' has no flag to move" in err
    assert "no settings file was read" not in err
    assert desk.run("lift", FLAG)[0] == 2
    (desk.folder / "tidegate.toml").unlink()
    assert f"there is no tidegate.toml in {desk.folder}; go where it lies" in desk.run("kill", FLAG)[2]
    assert not (desk.folder / "tidegate-stops.json").exists()


def test_an_app_with_a_provider_of_its_own_is_stopped_by_the_record_alone(desk: Desk) -> None:
    desk.settings('[flags]\nstops = "stops.json"')
    code, out, err = desk.run("kill", FLAG)
    assert code == 0
    assert f"it opens again only after: tidegate lift {FLAG}" in out
    assert "the stop record alone shuts the flag" in err
    assert json.loads((desk.folder / "stops.json").read_text())["stops"]["development"][FLAG]["stopped"] is True
    assert desk.run("kill", "cahce")[0] == 1
    code, out, _ = desk.run("lift", FLAG)
    assert (code, "is not stopped any more" in out) == (0, True)


def test_lifting_a_misspelt_flag_of_unleash_says_that_there_is_none(desk: Desk, unleash: Unleash) -> None:
    flag = unleash.admin.fresh_name("lifted")
    unleash.admin.create_flag(flag)
    desk.settings(unleash_at(unleash.port).replace('"t"', f'"{unleash.admin_token}"'))
    code, _, err = desk.run("lift", f"{flag}x")
    assert (code, f"has no flag '{flag}x'; did you mean '{flag}'?" in err) == (0, True)
    code, _, err = desk.run("lift", flag, "--env", "prodution")
    assert "has no environment 'prodution' in Unleash; it has development, production" in err
    code, out, _ = desk.run("kill", flag)
    assert (code, f"the record stands for those who read that file, too: tidegate lift {flag}" in out) == (0, True)


def test_the_record_goes_to_the_stores_redis_unless_settings_say_otherwise(desk: Desk, valkey: Valkey) -> None:
    desk.settings(
        '[flags]\nprovider = "local"\nenvironment = "production"\nstops_namespace = "shop"\n'
        f'[store]\nurl = "{valkey.url}"'
    )
    code, out, _ = desk.run("kill", FLAG)
    assert code == 0
    assert "told 0 listening processes at once" in out
    home = RedisHome(valkey.url, "production", namespace="shop")
    assert json.loads(home.read((FLAG,))[FLAG])["stopped"] is True
    home.close()
    assert not (desk.folder / "tidegate-stops.json").exists()


def test_a_record_for_another_environment_counts_only_if_somebody_follows_it(desk: Desk, valkey: Valkey) -> None:
    desk.settings(unleash_at(free_port(), stops=valkey.url))
    code, _, err = desk.run("kill", FLAG, "--environment", "staging")
    assert code == 1
    assert "nobody was heard to follow the stops of staging" in err
    with redis.Redis.from_url(valkey.url) as client, client.pubsub() as worker:
        worker.subscribe("tidegate:stops:staging")
        wait_until(lambda: client.pubsub_numsub("tidegate:stops:staging")[0][1], 5, "it listens")
        code, out, _ = desk.run("kill", FLAG, "--environment", "staging")
    assert code == 0
    assert "told 1 listening process at once" in out


# --- pipes and keys ----------------------------------------------------------------


def test_nobody_listening_does_not_keep_it_from_shutting(desk: Desk) -> None:
    process = desk.begin("kill", FLAG)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    assert process.wait(30) == 0
    assert (desk.flag, desk.stop()["stopped"]) == ((False, 0), True)


def test_ctrl_c_does_not_halve_it_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []

    async def pressed(times: int) -> None:
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.05)  # the loop hears of it in its next round; a press that ends the work ends this
        done.append(f"after {times}")

    assert run_to_the_end(pressed(1)) == 0
    assert "finishing what was begun" in capsys.readouterr().err
    assert run_to_the_end(pressed(2)) == 130
    assert "only what is said above was done" in capsys.readouterr().err
    assert done == ["after 1"]


# --- the journal -------------------------------------------------------------------


def test_a_stopped_flag_is_not_rolled_out_before_it_is_lifted(desk: Desk) -> None:
    (desk.folder / "canary.yaml").write_text(json.dumps(SPEC))
    assert desk.run("kill", FLAG, "--reason", "fire")[0] == 0
    code, _, err = desk.run("rollout", "start", "canary.yaml")
    assert code == 1
    assert f"is stopped since {time.gmtime().tm_year}" in err
    assert f"fire; lift it first: tidegate lift {FLAG}" in err
    assert desk.run("lift", FLAG)[0] == 0
    assert desk.run("rollout", "start", "canary.yaml")[0] == 0


def test_while_unleash_hangs_a_running_controller_keeps_the_rollout_until_the_flag_is_off(desk: Desk) -> None:
    desk.settings(unleash_at(free_port(), stops="stops.json"))
    with Journal(desk.folder / "tidegate-journal.sqlite3") as journal:
        journal.add(RolloutSpec.parse(SPEC, "spec"), "development", time.time())
        lease = journal.acquire("somebody", time.time(), 60)
        assert lease is not None
        code, out, _ = desk.run("kill", FLAG)
        assert (code, journal.get("canary").state) == (0, State.PENDING)
        assert "rollout canary is left to the controller" in out
        journal.release(lease)
        code, out, _ = desk.run("kill", FLAG)
        assert (code, journal.get("canary").state) == (0, State.ABORTED)


def test_the_controller_ends_a_rollout_whose_flag_was_stopped_elsewhere(desk: Desk) -> None:
    desk.settings('[flags]\nprovider = "local"\n[rollout]\nmetrics_urls = ["http://127.0.0.1:9/metrics"]')
    flag = {"enabled": False, "strategies": [{"percentage": 0}]}
    (desk.folder / "flags.json").write_text(json.dumps({"version": 1, "flags": {FLAG: flag}}))
    (desk.folder / "canary.yaml").write_text(json.dumps(SPEC))
    assert desk.run("rollout", "start", "canary.yaml")[0] == 0
    assert desk.run("controller", "--once")[0] == 0
    assert desk.flag == (True, 1)
    assert desk.run("kill", FLAG, "--journal", "another.sqlite3", "--reason", "fire")[0] == 0
    with Journal(desk.folder / "tidegate-journal.sqlite3") as journal:

        def ended() -> bool:
            desk.run("controller", "--once")
            return journal.get("canary").state is State.ABORTED

        wait_until(ended, 20, "the rollout is aborted")
        assert f"{FLAG} is stopped since" in journal.get("canary").reason
        assert "fire" in journal.get("canary").reason
    assert desk.flag == (False, 0)


def test_what_a_terminal_cannot_show_is_spelt_out_and_what_follows_is_shown_too() -> None:
    shown = io.BytesIO()
    terminal = io.TextIOWrapper(shown, encoding="ascii")
    for line in ("record in /srv/caf\u00e9/\udcff.json", "shut in every worker"):
        _write(terminal, line)
    assert shown.getvalue() == b"record in /srv/caf\\xe9/\\udcff.json\nshut in every worker\n"
