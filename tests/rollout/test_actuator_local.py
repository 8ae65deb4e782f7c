"""Moving a flag in the file: whole or not at all, and nothing else in it changes."""

import asyncio
import fcntl
import json
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from tidegate.errors import FlagError
from tidegate.rollout import flag_file as flag_file_module
from tidegate.rollout.actuator import FlagState, begin, open_to, shut
from tidegate.rollout.actuator_local import LocalActuator

FLAG = "tidegate.cache"
OURS = {"enabled": False, "strategies": [{"percentage": 0, "stickiness": "tenantId", "group": "é"}]}
OTHER = {"enabled": True, "strategies": [{"percentage": 7}, {"percentage": 9, "constraints": []}]}


def flag_file(tmp_path: Path, ours: Any = OURS) -> Path:
    path = tmp_path / "flags.json"
    path.write_text(json.dumps({"version": 1, "flags": {"other": OTHER, FLAG: ours}}), encoding="utf-8")
    return path


def flag(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))["flags"][FLAG]


def actuator(path: Path) -> LocalActuator:
    return LocalActuator(path, "production")


def test_a_flag_begins_moves_and_shuts_and_nothing_else_changes(tmp_path: Path) -> None:
    path = flag_file(tmp_path)
    path.chmod(0o640)
    ours = actuator(path)
    assert asyncio.run(ours.check(FLAG, "production", "tenant")) == FlagState(enabled=False, percentage=0)
    assert asyncio.run(begin(ours, FLAG, "production", 1)) == FlagState(enabled=True, percentage=1)
    assert asyncio.run(open_to(ours, FLAG, "production", 50)) == FlagState(enabled=True, percentage=50)
    assert flag(path) == {"enabled": True, "strategies": [{**OURS["strategies"][0], "percentage": 50}]}  # type: ignore[index]
    assert asyncio.run(shut(ours, FLAG, "production")) == FlagState(enabled=False, percentage=0)
    assert flag(path) == OURS
    assert json.loads(path.read_text(encoding="utf-8"))["flags"]["other"] == OTHER
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(one.name for one in tmp_path.iterdir()) == ["flags.json", "flags.json.lock"]


def test_a_late_percentage_does_not_open_a_flag_that_was_shut(tmp_path: Path) -> None:
    path = flag_file(tmp_path)
    asyncio.run(actuator(path).set_percentage(FLAG, "production", 50))
    assert flag(path)["enabled"] is False
    with pytest.raises(FlagError, match="was set to on at 60 %, but reads back as off at 60 %"):
        asyncio.run(open_to(actuator(path), FLAG, "production", 60))


def test_a_link_to_the_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    path = flag_file(tmp_path / "real")
    link = tmp_path / "flags.json"
    link.symlink_to(path)
    asyncio.run(actuator(link).enable(FLAG, "production"))
    assert link.is_symlink()
    assert flag(path)["enabled"] is True


@pytest.mark.parametrize(
    ("ours", "unit", "says"),
    [
        ({"enabled": True, "strategies": []}, "tenant", "no strategy; give it one"),
        ({"enabled": True, "strategies": [{"percentage": 1}] * 2}, "tenant", "2 strategies"),
        ({"enabled": True, "strategies": [{"percentage": 1}]}, "user", "sticky by 'tenantId', but .* needs 'userId'"),
        ({"enabled": "yes", "strategies": [{"percentage": 1}]}, "tenant", '"enabled": true or false'),
        (7, "tenant", '"enabled": true or false'),
    ],
)
def test_a_flag_that_cannot_be_moved_is_refused_with_the_reason(
    tmp_path: Path, ours: Any, unit: Any, says: str
) -> None:
    with pytest.raises(FlagError, match=says):
        asyncio.run(actuator(flag_file(tmp_path, ours)).check(FLAG, "production", unit))


def test_an_unknown_flag_is_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(FlagError, match=r"no flag 'tidegate.cahce'; it has other, tidegate.cache"):
        asyncio.run(actuator(flag_file(tmp_path)).check("tidegate.cahce", "production", "tenant"))


def test_another_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlagError, match="holds the environment 'production', not 'staging'"):
        asyncio.run(actuator(flag_file(tmp_path)).check(FLAG, "staging", "tenant"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not a flag file"),
        ("[]", 'does not say "version": 1'),
        ('{"version": 2, "flags": {}}', 'does not say "version": 1'),
        ('{"version": 1, "version": 1}', "'version' stands there twice"),
        ('{"version": 1, "flags": []}', "there is no flag"),
    ],
)
def test_a_file_that_is_no_flag_file_is_refused_and_left_alone(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "flags.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FlagError, match=says):
        asyncio.run(actuator(path).set_percentage(FLAG, "production", 5))
    assert path.read_text(encoding="utf-8") == text


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FlagError, match=r"flags.json could not be read: No such file"):
        asyncio.run(actuator(tmp_path / "flags.json").read(FLAG, "production"))


@pytest.mark.parametrize("percentage", [-1, 101])
def test_only_percentages_are_written(tmp_path: Path, percentage: int) -> None:
    path = flag_file(tmp_path)
    with pytest.raises(FlagError, match="not a whole percentage"):
        asyncio.run(actuator(path).set_percentage(FLAG, "production", percentage))
    assert flag(path) == OURS


@pytest.mark.parametrize("raw", ["10", 10.0, True, 101, None])
def test_a_percentage_that_is_none_reads_as_unknown(tmp_path: Path, raw: object) -> None:
    path = flag_file(tmp_path, {"enabled": True, "strategies": [{"percentage": raw}]})
    assert asyncio.run(actuator(path).read(FLAG, "production")).percentage is None


def test_a_lock_that_is_held_is_waited_for_and_then_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = flag_file(tmp_path)
    monkeypatch.setattr(flag_file_module, "_LOCK_WAIT", 0.1)
    with (tmp_path / "flags.json.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(FlagError, match="could not be written"):
            asyncio.run(actuator(path).enable(FLAG, "production"))
    asyncio.run(actuator(path).enable(FLAG, "production"))
    assert flag(path)["enabled"] is True


def _move(path: Path, name: str, together: Any) -> None:
    """A flag that only this process moves must be where it was moved to."""
    ours = LocalActuator(path, "production")
    together.wait(30)
    for percentage in range(100):
        asyncio.run(ours.set_percentage(name, "production", percentage))
        assert asyncio.run(ours.read(name, "production")).percentage == percentage


def test_writers_in_two_processes_lose_nothing_and_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    strategies = [{"percentage": 0}]
    flags = {name: {"enabled": False, "strategies": strategies} for name in ("one", "two")}
    path.write_text(json.dumps({"version": 1, "flags": flags}), encoding="utf-8")
    broken: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                broken.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(2)
    writers = [spawn.Process(target=_move, args=(path, name, together)) for name in ("one", "two")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    done.set()
    reader.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert broken == []
    found = json.loads(path.read_text(encoding="utf-8"))["flags"]
    assert [found[name]["strategies"][0]["percentage"] for name in ("one", "two")] == [99, 99]


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = flag_file(tmp_path)

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FlagError, match="No space left"):
        asyncio.run(actuator(path).enable(FLAG, "production"))
    assert flag(path) == OURS
    assert sorted(one.name for one in tmp_path.iterdir()) == ["flags.json", "flags.json.lock"]
