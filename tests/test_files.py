"""Small shared files: what is no plain file is refused at once, and what cannot be written leaves the old one whole."""

import os
from pathlib import Path

import pytest

from tidegate import files
from tidegate.errors import FlagError
from tidegate.files import locked, read_whole, replace_whole
from tidegate.flags.stops_file import FileHome
from tidegate.rollout.flag_file import FlagFile


def test_a_pipe_is_refused_at_once_by_all_who_read_small_files(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        read_whole(path, 10)
    with pytest.raises(FlagError, match="could not be read: not a regular file"):
        FlagFile(path).load()
    with pytest.raises(FlagError, match="cannot be read: not a regular file"):
        FileHome(path, "production").read(("tidegate.cache",))


def test_one_byte_more_than_the_limit_shows_that_a_file_is_larger(tmp_path: Path) -> None:
    path = tmp_path / "some"
    path.write_bytes(b"x" * 30)
    assert (len(read_whole(path, 30)), len(read_whole(path, 29)), len(read_whole(path, 9))) == (30, 30, 10)


def test_a_replacement_that_fails_leaves_the_old_file_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "some"
    path.write_text("old")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_whole(path, "new", 0o600)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("some", "old")]


def test_a_link_stays_a_link_and_the_mode_is_the_one_asked_for(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    replace_whole(tmp_path / "link", "new", 0o640)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640


def test_a_lock_that_is_held_ends_the_wait_with_an_error(tmp_path: Path) -> None:
    path = tmp_path / "some"
    with locked(path, 0.0), pytest.raises(BlockingIOError), locked(path, 0.05):
        pytest.fail("two hold it")
    with locked(path, 0.0):
        pass
