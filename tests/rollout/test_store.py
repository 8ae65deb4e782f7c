"""The journal: what it promises about who may write, and what is left after `kill -9`."""

import json
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rollout.killed import NEVER
from tests.rollout.worlds import FLAG, START, make_spec
from tidegate.errors import RolloutError
from tidegate.rollout.machine import State
from tidegate.rollout.records import ConflictError, Intent, LostLeaseError
from tidegate.rollout.store import Journal

ROOT = Path(__file__).parents[2]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite3") as made:
        yield made


def test_what_is_recorded_is_read_back_by_another_process(journal: Journal) -> None:
    rollout = journal.add(make_spec(), "production", 5.0)
    intent = Intent(do="open", step=1, percent=10, at=7.0, reason="numbers hold")
    moved = replace(
        rollout, state=State.HOLDING, step=1, percent=10, opened=6.0, entered=7.0, reason="cold", cause="warm_up",
        intent=intent, memory={"e": [1.5]}, latest={"at": 7.0},
    )  # fmt: skip
    written = journal.record(moved, "opened", now=8.0, evidence={"errors": 3}, came_from=State.PENDING)
    with Journal(journal.path) as other:
        assert other.get("canary") == written == replace(moved, updated=8.0, version=2)
        start, opened = other.entries(rollout.id)
    assert (start.kind, start.went_to) == ("start", "pending")
    assert (opened.at, opened.kind, opened.came_from, opened.went_to) == (8.0, "opened", "pending", "holding")
    assert (opened.reason, opened.evidence) == ("cold", {"errors": 3})


@pytest.mark.parametrize("changes", [{"flag": "tidegate.etag"}, {"name": "other"}], ids=["same name", "same flag"])
def test_a_name_and_a_flag_have_one_active_rollout(journal: Journal, changes: dict[str, str]) -> None:
    journal.add(make_spec(), "production", 0)
    with pytest.raises(RolloutError, match=r"'canary'.* is pending.*abort canary"):
        journal.add(make_spec(**changes), "production", 0)


def test_the_same_flag_may_roll_out_in_another_environment(journal: Journal) -> None:
    journal.add(make_spec(), "production", 0)
    journal.add(make_spec(name="other"), "development", 0)
    assert len(journal.active()) == 2


def test_a_name_can_be_used_again_when_its_rollout_is_over(journal: Journal) -> None:
    first = journal.add(make_spec(), "production", 0)
    journal.record(replace(first, state=State.ABORTED), "stopped", now=1)
    second = journal.add(make_spec(), "production", 2)
    assert second.id != first.id
    assert journal.get("canary") == second
    assert [rollout.id for rollout in journal.all()] == [second.id]


def test_an_unknown_name_is_answered_with_the_known_ones(journal: Journal) -> None:
    journal.add(make_spec(), "production", 0)
    with pytest.raises(RolloutError, match=r"no rollout 'canry'; it knows canary"):
        journal.get("canry")


def test_of_two_writers_who_read_the_same_the_second_conflicts(journal: Journal) -> None:
    rollout = journal.add(make_spec(), "production", 0)
    journal.record(replace(rollout, reason="first"), "good", now=1)
    with pytest.raises(ConflictError):
        journal.record(replace(rollout, reason="second"), "bad", now=2)
    assert journal.get("canary").reason == "first"
    assert [entry.kind for entry in journal.entries(rollout.id)] == ["start", "good"]


def test_the_lease_has_one_holder_and_each_new_one_a_higher_token(journal: Journal) -> None:
    first = journal.acquire("one", 100, 5)
    assert first is not None
    assert journal.acquire("two", 104, 5) is None
    assert journal.acquire("one", 104, 5) == first
    second = journal.acquire("two", 110, 5)
    assert second is not None
    assert second.token > first.token
    assert journal.holder(112) == "two"
    assert journal.holder(116) is None


def test_who_lost_the_lease_can_write_no_more(journal: Journal) -> None:
    rollout = journal.add(make_spec(), "production", 0)
    lease = journal.acquire("one", 0, 5)
    journal.acquire("two", 10, 5)
    with pytest.raises(LostLeaseError, match="from one to two"):
        journal.record(replace(rollout, reason="late"), "good", now=11, lease=lease)
    assert journal.get("canary").reason == ""


def test_releasing_anothers_lease_does_nothing(journal: Journal) -> None:
    first = journal.acquire("one", 0, 5)
    assert first is not None
    journal.acquire("two", 10, 5)
    journal.release(first)
    assert journal.holder(11) == "two"


def test_a_command_waits_until_it_is_answered(journal: Journal) -> None:
    rollout = journal.add(make_spec(), "production", 0)
    number = journal.ask(rollout, "abort", "why", 1)
    assert [(one.kind, one.reason, one.rollout) for one in journal.asked()] == [("abort", "why", rollout.id)]
    assert journal.answered(number) is None
    journal.answer(number, "aborted")
    assert journal.answered(number) == "aborted"
    assert journal.asked() == []


def test_a_journal_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite3"
    Journal(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(RolloutError, match="format 99"):
        Journal(path)


def test_a_file_that_is_no_journal_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite3"
    path.write_text("not a database, but long enough to be read as one\n" * 50)
    with pytest.raises(RolloutError, match=r"journal.sqlite3 cannot be used: file is not a database"):
        Journal(path)


def test_a_journal_that_is_not_there_is_not_made_by_looking(tmp_path: Path) -> None:
    with pytest.raises(RolloutError, match="there is no journal"):
        Journal(tmp_path / "none.sqlite3", make=False)
    assert not (tmp_path / "none.sqlite3").exists()


def test_commits_are_flushed_to_disk(journal: Journal) -> None:
    settings = journal._db
    assert settings.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert settings.execute("PRAGMA synchronous").fetchone()[0] == 2


# --- kill -9 ------------------------------------------------------------------

SECONDS = 300


class Run:
    """A rollout in a folder, driven by processes that may be killed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        strategy = {"percentage": 0, "stickiness": "tenantId"}
        flags = {"version": 1, "flags": {FLAG: {"enabled": False, "strategies": [strategy]}}}
        (folder / "flags.json").write_text(json.dumps(flags), encoding="utf-8")
        self.folder = folder
        self.now = int(START)
        self.writes: list[int] = []
        self.things = 0

    def go_on(self, last: int = NEVER) -> bool:
        """Drive from where the last process stood, to the end or to the `last` thing. False: killed there."""
        arguments = [str(one) for one in (self.folder, self.now, int(START) + SECONDS, last)]
        done = subprocess.run(
            [sys.executable, "-m", "tests.rollout.killed", *arguments],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        for word, number in (line.split() for line in done.stdout.splitlines()):
            if word == "at":
                self.now = int(number)
            elif word == "write":
                self.writes.append(int(number))
            else:
                self.things = int(number)
        return done.returncode == 0

    def decisions(self) -> list[tuple[str, float, int]]:
        """What was decided and when; at last, where the rollout ended."""
        with Journal(self.folder / "journal.sqlite3") as journal:
            rollout = journal.get("canary")
            made = [entry for entry in journal.entries(rollout.id, 1000) if entry.kind in ("opened", "bake", "finish")]
            return [*((one.kind, one.at, 0) for one in made), (rollout.state, rollout.entered, rollout.percent)]

    def flag(self) -> dict[str, object]:
        found: dict[str, object] = json.loads((self.folder / "flags.json").read_text())["flags"][FLAG]
        return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nobody killed."""
    run = Run(tmp_path_factory.mktemp("runs") / "whole")
    assert run.go_on()
    assert [kind for kind, *_ in run.decisions()] == ["opened", "opened", "opened", "bake", "finish", "done"]
    assert len(run.writes) == 5
    return run


@pytest.mark.parametrize("before_or_after", [-6, -1, 0, 1, 2, 4, 7, 10])
def test_a_controller_killed_round_a_write_leads_to_the_same_decisions(
    tmp_path: Path, whole: Run, before_or_after: int
) -> None:
    """From the intent's transaction, over the write itself, to the result's transaction."""
    run = Run(tmp_path / "killed")
    assert not run.go_on(whole.writes[3] + before_or_after)
    assert run.go_on()
    assert run.decisions() == whole.decisions()
    assert run.flag() == whole.flag()


@pytest.mark.parametrize("seed", range(3))
def test_a_controller_killed_at_any_instant_leads_to_the_same_decisions(tmp_path: Path, whole: Run, seed: int) -> None:
    run = Run(tmp_path / "killed")
    assert not run.go_on(random.Random(seed).randrange(whole.writes[2], whole.things))
    assert run.go_on()
    assert run.decisions() == whole.decisions()
    assert run.flag() == whole.flag()


@pytest.mark.parametrize("before_or_after", [-1, 1])
@pytest.mark.parametrize("write", [0, 1, 2])
def test_a_controller_killed_while_it_begins_still_arrives(
    tmp_path: Path, whole: Run, write: int, before_or_after: int
) -> None:
    run = Run(tmp_path / "killed")
    assert not run.go_on(whole.writes[write] + before_or_after)
    assert run.go_on()
    assert [kind for kind, *_ in run.decisions()] == [kind for kind, *_ in whole.decisions()]
    assert run.flag() == whole.flag()


def test_a_controller_killed_over_and_over_still_arrives(tmp_path: Path, whole: Run) -> None:
    run = Run(tmp_path / "killed")
    kills = 0
    chosen = random.Random(11)
    while not run.go_on(chosen.randint(whole.things // 5, whole.things // 2)):
        kills += 1
    assert kills >= 2
    assert run.decisions() == whole.decisions()


@pytest.mark.parametrize(("column", "value"), [("state", "frozen"), ("intent", "{"), ("spec", "{}"), ("memory", "")])
def test_a_rollout_that_this_version_cannot_read_is_named(journal: Journal, column: str, value: str) -> None:
    journal.add(make_spec(), "production", 5.0)
    journal._db.execute(f"UPDATE rollouts SET {column} = ?", (value,))
    with pytest.raises(RolloutError, match=r"rollout 'canary' \(number 1\) in the journal cannot be read"):
        journal.active()
