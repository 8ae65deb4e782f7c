"""Who speaks in the log of an application that configures no logging, and that all others say it themselves."""

import subprocess
import sys
from pathlib import Path

import pytest

SPEAK = "import logging; logging.getLogger('tidegate.flags').warning('it is %s', 'so')"


def stderr_of(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == ""
    return done.stderr


def test_without_any_logging_a_line_has_time_level_and_the_name_of_tidegate(tmp_path: Path) -> None:
    (line,) = stderr_of(f"import tidegate, tidegate.cli; {SPEAK}", tmp_path).splitlines()
    date, _, told = line.partition(" ")
    assert date.count("-") == 2
    assert told.partition(" ")[2] == "WARNING tidegate.flags: it is so"


def test_under_uvicorn_as_it_comes_it_has_too_and_uvicorns_own_stay(tmp_path: Path) -> None:
    code = f"import uvicorn, tidegate; uvicorn.Config('a:b'); {SPEAK}; logging.getLogger('uvicorn.error').info('hi')"
    ours, theirs = stderr_of(code, tmp_path).splitlines()
    assert ours.endswith("WARNING tidegate.flags: it is so")
    assert theirs.endswith("hi")


def test_below_a_warning_nothing_is_printed(tmp_path: Path) -> None:
    code = (
        "import logging, tidegate; logging.getLogger('tidegate').setLevel(10); logging.getLogger('tidegate').info('x')"
    )
    assert stderr_of(code, tmp_path) == ""


@pytest.mark.parametrize(
    "configured",
    [
        "logging.basicConfig(format='own: %(message)s')",
        "h = logging.StreamHandler(); h.setFormatter(logging.Formatter('own: %(message)s')); "
        "logging.getLogger('tidegate').addHandler(h)",
        "h = logging.StreamHandler(); h.setFormatter(logging.Formatter('own: %(message)s')); "
        "logging.getLogger('tidegate.flags').addHandler(h)",
    ],
    ids=["root", "tidegate", "tidegate.flags"],
)
@pytest.mark.parametrize("first", ["tidegate", "logging"])
def test_what_the_application_configures_alone_counts(configured: str, first: str, tmp_path: Path) -> None:
    lines = ["import tidegate", f"import logging; {configured}"]
    code = "\n".join([*(lines if first == "tidegate" else reversed(lines)), SPEAK])
    assert stderr_of(code, tmp_path) == "own: it is so\n"


def test_an_application_that_silences_tidegate_hears_nothing(tmp_path: Path) -> None:
    code = f"import logging, tidegate; logging.getLogger('tidegate').addHandler(logging.NullHandler()); {SPEAK}"
    assert stderr_of(code, tmp_path) == ""
