"""`scripts/environment`, on machines that lack something."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("bash", "cat", "dirname", "id", "sed", "awk", "sha256sum", "rm", "mkdir", "env")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A copy of the house with a PATH of its own, `bin`, that holds the usual tools but no Python and no apt-get."""
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/environment", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    programs = tmp_path / "bin"
    programs.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, f"{tool} is not on PATH"
        (programs / tool).symlink_to(found)
    return tmp_path


def script(machine: Path, name: str, body: str) -> None:
    program = machine / "bin" / name
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)


def run(machine: Path) -> tuple[int, str]:
    done = subprocess.run(
        [machine / "scripts" / "environment", "dev"],
        env={"PATH": str(machine / "bin")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


# A Python whose installation lacks the module that makes environments, as Debian splits it off.
WITHOUT_VENV = f'case "$*" in *ensurepip*) exit 1;; esac; exec {sys.executable} "$@"'
PACKAGE = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"


def test_without_a_python_one_line_says_which_is_wanted(machine: Path) -> None:
    script(machine, "python3", "exit 1")
    assert run(machine) == (
        1,
        "environment: MISSING Python 3.11 or newer: none on PATH (or name one: make PYTHON=/path/to/python ...)\n",
    )


def test_a_python_without_venv_and_no_way_to_install_it_is_one_line(machine: Path) -> None:
    script(machine, "python3", WITHOUT_VENV)
    script(machine, "id", "echo 1000")
    status, output = run(machine)
    assert status == 1
    assert output.splitlines() == [
        f"environment: MISSING {PACKAGE}: {machine}/bin/python3 cannot make environments; install that package"
    ]


def test_root_tries_apt_get_renews_its_lists_and_then_says_what_failed(machine: Path) -> None:
    script(machine, "python3", WITHOUT_VENV)
    script(machine, "id", "echo 0")
    script(machine, "apt-get", f'echo "$*" >> {machine}/calls; [ "$1" = update ]')
    status, output = run(machine)
    assert status == 1
    assert output.splitlines()[-1] == (
        f"environment: MISSING {PACKAGE}: apt-get could not install it, "
        f"and {machine}/bin/python3 cannot make environments without"
    )
    assert (machine / "calls").read_text().splitlines() == [
        f"install -qy {PACKAGE}",
        "update -q",
        f"install -qy {PACKAGE}",
    ]


def test_a_python_that_can_make_environments_is_preferred_to_one_that_cannot(machine: Path) -> None:
    script(machine, "python3.11", WITHOUT_VENV)
    script(machine, "python3", f'echo "$*" >> {machine}/calls; case "$*" in "-m venv"*) exit 7;; esac; exit 0')
    status, output = run(machine)
    assert (status, output) == (7, f"environment: making .venv with {machine}/bin/python3\n")


def test_nothing_happens_while_the_stamp_is_that_of_the_same_pyproject_and_constraints(machine: Path) -> None:
    stamp = machine / ".venv" / "dev.stamp"
    stamp.parent.mkdir()
    both = (machine / "pyproject.toml").read_bytes() + (machine / "constraints.txt").read_bytes()
    stamp.write_bytes(subprocess.run(["sha256sum"], input=both, capture_output=True, check=True, timeout=10).stdout)
    assert run(machine) == (0, "")
    with (machine / "constraints.txt").open("a") as constraints:
        constraints.write("# changed\n")
    assert run(machine)[0] == 1, "it would install again, and finds no Python here"
