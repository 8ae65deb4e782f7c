"""The workers' files: no count is lost or doubled, whoever dies at whatever instant, and they do not pile up."""

import multiprocessing
import os
import shutil
import signal
import struct
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tidegate.middleware import cohort_files
from tidegate.middleware.cohort_files import WorkerFile, compact, read_all

LABEL = ("tidegate.cache", "10", "canary")
SLOTS = ("requests", "hits")


def total(folder: Path) -> tuple[float, float]:
    """Requests and hits in all files."""
    rows = [row for part in read_all(folder) for _, row in part.rows()]
    return sum(row[0] for row in rows), sum(row[1] for row in rows)


def worker(folder: Path, requests: float, label: tuple[str, str, str] = LABEL) -> WorkerFile:
    """A living worker that has counted."""
    file = WorkerFile.create(folder, [label], SLOTS)
    file.counts[0] = requests
    return file


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.cohorts"))


def test_dead_workers_become_one_file_and_living_ones_keep_theirs(tmp_path: Path) -> None:
    alive = worker(tmp_path, 1)
    for requests in (10, 20, 30):
        worker(tmp_path, requests).close()
    assert total(tmp_path) == (61, 0)
    compact(tmp_path, SLOTS)
    assert files(tmp_path) == sorted([alive.path.name, "dead.cohorts"])
    assert total(tmp_path) == (61, 0)
    alive.counts[0] += 1
    alive.counts[1] += 1
    assert total(tmp_path) == (62, 1)
    alive.close()
    compact(tmp_path, SLOTS)
    assert (files(tmp_path), total(tmp_path)) == (["dead.cohorts"], (62, 1))


def test_series_of_bands_and_flags_that_are_no_more_keep_their_counts(tmp_path: Path) -> None:
    old, new = ("tidegate.old", "20", "control"), LABEL
    worker(tmp_path, 5, old).close()
    compact(tmp_path, SLOTS)
    worker(tmp_path, 7, new).close()
    worker(tmp_path, 1, old).close()
    compact(tmp_path, SLOTS)
    (part,) = read_all(tmp_path)
    assert {label: list(row) for label, row in part.rows()} == {old: [6, 0], new: [7, 0]}


def test_a_file_of_another_versions_slots_is_read_and_left_alone(tmp_path: Path) -> None:
    other = WorkerFile.create(tmp_path, [LABEL], ("hits", "requests", "surprises"))
    other.counts[1] = 4
    other.close()
    worker(tmp_path, 5).close()
    compact(tmp_path, SLOTS)
    assert files(tmp_path) == sorted([other.path.name, "dead.cohorts"])
    parts = [(list(part.slots), [list(row) for _, row in part.rows()]) for part in read_all(tmp_path)]
    assert parts == [(["requests", "hits"], [[5, 0]]), (["hits", "requests", "surprises"], [[0, 4, 0]])]


class Killer:
    """Kills this process at the n-th line that the compaction executes."""

    FUNCTIONS = ("compact", "_compact", "_only_one", "_lock", "_of_the_dead", "_remove")

    def __init__(self, lines: int) -> None:
        self.lines = lines

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> Any:
        code = frame.f_code
        if code.co_filename != cohort_files.__file__ or code.co_name not in self.FUNCTIONS:
            return None
        if event == "line":
            self.lines -= 1
            if self.lines < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return self


def compact_and_die(folder: Path, lines: int) -> bool:
    """Compact in a child process that is killed after so many lines; whether it was."""
    child = os.fork()
    if child == 0:
        sys.settrace(Killer(lines))
        compact(folder, SLOTS)
        sys.settrace(None)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


def test_a_kill_at_any_line_of_the_compaction_loses_and_doubles_nothing(tmp_path: Path) -> None:
    template = tmp_path / "template"
    worker(template, 1).close()
    compact(template, SLOTS)
    for requests in (10, 100):
        worker(template, requests).close()
    killed, half_done = 0, set[tuple[int, bool]]()
    while True:
        folder = tmp_path / str(killed)
        shutil.copytree(template, folder)
        alive = worker(folder, 1000)
        survived = not compact_and_die(folder, killed)
        assert total(folder) == (1111, 0), f"after {killed} lines"
        held = frozenset[str]().union(*(part.holds for part in read_all(folder)))
        half_done.add((len(files(folder)), not held.isdisjoint(files(folder))))
        compact(folder, SLOTS)
        assert total(folder) == (1111, 0), f"after {killed} lines, and a compaction"
        assert len(files(folder)) == 2
        alive.close()
        if survived:
            break
        killed += 1
    print(f"killed at each of {killed} lines; {len(half_done)} different states were left")
    assert killed > 30
    assert half_done == {(4, False), (4, True), (3, True), (2, False)}, "files, and whether some are in the sum already"


def _come_and_go(directory: str, times: int) -> None:
    for _ in range(times):
        file = worker(Path(directory), 1)
        compact(Path(directory), SLOTS)
        file.close()


def test_a_reader_sees_counts_only_grow_while_workers_come_and_go(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_come_and_go, args=(str(tmp_path), 200)) for _ in range(2)]
    for one in workers:
        one.start()
    seen = [0.0]
    while any(one.is_alive() for one in workers):
        seen.append(total(tmp_path)[0])
    for one in workers:
        one.join(30)
    assert [one.exitcode for one in workers] == [0, 0]
    assert seen == sorted(seen), "no look shows less than one before"
    assert total(tmp_path) == (400, 0)
    print(f"{len(set(seen))} different sums in {len(seen)} looks")
    assert len(set(seen)) > 3, "it looked while they came and went"
    compact(tmp_path, SLOTS)
    assert files(tmp_path) == ["dead.cohorts"]


def test_drafts_of_workers_that_were_killed_over_them_are_removed_and_young_ones_stay(tmp_path: Path) -> None:
    old, young = tmp_path / "1-old.new", tmp_path / "2-young.new"
    for draft in (old, young):
        draft.write_bytes(b"half")
    os.utime(old, (time.time() - 120,) * 2)
    compact(tmp_path, SLOTS)
    assert [path.name for path in tmp_path.glob("*.new")] == ["2-young.new"]


def _header(told: bytes) -> bytes:
    return struct.pack("<8sI4x", b"TGCOHRT2", len(told)) + told


ONE = b'{"labels": [["f", "b", "c"]], "slots": ["requests"], "holds": []}'
FOREIGN = {
    "another format": b"not ours at all, but long enough",
    "too short": b"x",
    "an older format": b"TGCOHORT" + b"\0" * 40,
    "a length beyond its end": struct.pack("<8sI4x", b"TGCOHRT2", 1 << 31) + ONE,
    "no JSON": _header(b"{") + bytes(8),
    "deep JSON": _header(b"[" * 100_000) + bytes(8),
    "no labels": _header(b'{"slots": [], "holds": []}'),
    "labels of another shape": _header(ONE.replace(b'"b", ', b"")) + bytes(8),
    "a label twice": _header(ONE.replace(b'["f", "b", "c"]', b'["f", "b", "c"], ["f", "b", "c"]')) + bytes(16),
    "counts cut off": _header(ONE) + bytes(7),
    "NaN": _header(ONE) + struct.pack("=d", float("nan")),
    "less than nothing": _header(ONE) + struct.pack("=d", -1.0),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_a_whole_file_of_ours_is_passed_over_and_left_alone(tmp_path: Path, kind: str) -> None:
    odd = tmp_path / "odd.cohorts"
    odd.write_bytes(FOREIGN[kind])
    worker(tmp_path, 3).close()
    assert total(tmp_path) == (3, 0)
    compact(tmp_path, SLOTS)
    assert (total(tmp_path), files(tmp_path)) == ((3, 0), ["dead.cohorts", "odd.cohorts"])
    assert odd.read_bytes() == FOREIGN[kind]


def test_the_shape_that_the_foreign_ones_lack_is_read(tmp_path: Path) -> None:
    (tmp_path / "good.cohorts").write_bytes(_header(ONE + b" " * (-len(ONE) % 8)) + struct.pack("=d", 3.0))
    (part,) = read_all(tmp_path)
    assert [(label, list(row)) for label, row in part.rows()] == [(("f", "b", "c"), [3.0])]


def test_a_folder_or_a_pipe_of_that_name_keeps_nobody_waiting(tmp_path: Path) -> None:
    (tmp_path / "folder.cohorts").mkdir()
    os.mkfifo(tmp_path / "pipe.cohorts")
    (tmp_path / "nowhere.cohorts").symlink_to(tmp_path / "gone")
    worker(tmp_path, 3).close()
    compact(tmp_path, SLOTS)
    assert total(tmp_path) == (3, 0)


def test_a_sum_of_the_dead_that_is_not_ours_stops_the_compaction_and_no_counting(tmp_path: Path) -> None:
    (tmp_path / "dead.cohorts").write_bytes(b"somebody else's")
    worker(tmp_path, 3).close()
    compact(tmp_path, SLOTS)
    assert total(tmp_path) == (3, 0)
    assert (tmp_path / "dead.cohorts").read_bytes() == b"somebody else's"


def test_who_finds_another_at_the_compaction_leaves_it_to_them(tmp_path: Path) -> None:
    worker(tmp_path, 3).close()
    with (tmp_path / "dead.lock").open("a") as lock:
        assert cohort_files._lock(lock)
        compact(tmp_path, SLOTS)
        assert "dead.cohorts" not in files(tmp_path)
    compact(tmp_path, SLOTS)
    assert files(tmp_path) == ["dead.cohorts"]


def test_a_reader_that_never_gets_through_says_so_and_gives_no_wrong_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(range(1_000_000))
    monkeypatch.setattr(cohort_files, "_content", lambda file: b"%d" % next(looks))
    with pytest.raises(OSError, match=r"dead\.cohorts was replaced 100 times while it was read"):
        read_all(tmp_path)
