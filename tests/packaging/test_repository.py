"""What the repository holds, and what it must not."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Folders of one machine. Written in pieces, so that this file does not name them either.
MACHINE_PATHS = re.compile("|".join(("/" + "work/", "/" + "root/", "/" + "home/[a-z]", "/" + "Users/[A-Za-z]")))
LONGEST_MODULE = 400


def tracked() -> list[Path]:
    """Text files under version control, or, in an unpacked sdist, all of it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    ).stdout
    names = [name for name in listed.split("\0") if name] or [
        str(path.relative_to(ROOT))
        for folder in ("src", "middleware", "flags", "rollout", "tests", "examples")
        for path in (ROOT / folder).rglob("*.*")
        if "__pycache__" not in path.parts
    ]
    return [ROOT / name for name in names if (ROOT / name).is_file() and not (ROOT / name).is_symlink()]


def test_no_file_names_a_path_of_one_machine() -> None:
    files = tracked()
    assert ROOT / "pyproject.toml" in files or ROOT / "middleware" / "__init__.py" in files
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if MACHINE_PATHS.search(line)
    ]
    assert found == []


def test_no_module_of_the_package_outgrows_one_decision() -> None:
    modules = [
        path
        for folder in ("src", "middleware", "flags", "rollout")
        for path in (ROOT / folder).rglob("*.py")
        if not path.is_symlink()
    ]
    assert len(modules) > 20
    long = {str(path.relative_to(ROOT)): lines for path in modules if (lines := _lines(path)) > LONGEST_MODULE}
    assert long == {}


def test_the_lock_of_the_unleash_server_names_no_place_to_download_from() -> None:
    lock = json.loads((ROOT / "tests" / "services" / "unleash" / "package-lock.json").read_text())
    assert len(lock["packages"]) > 400
    assert [name for name, package in lock["packages"].items() if "resolved" in package] == []
    assert all("integrity" in package for name, package in lock["packages"].items() if name)


def test_the_constraints_are_plain_pins_that_cover_what_the_project_asks_for() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []
    pinned = {_normal(line.partition("==")[0]) for line in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    asked = [
        *project["project"]["dependencies"],
        *(wanted for name, group in extras.items() if name != "all" for wanted in group),
        *(wanted for group in project["dependency-groups"].values() for wanted in group if isinstance(wanted, str)),
    ]
    assert [name for one in asked if (name := _normal(re.match(r"[\w.-]+", one)[0])) not in pinned] == []


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
