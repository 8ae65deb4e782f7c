"""What is built and shipped: a wheel and an sdist that hold every module, and nothing by accident."""

import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REAL_FOLDERS = {
    "tidegate": ROOT / "src" / "tidegate",
    "tidegate/middleware": ROOT / "middleware",
    "tidegate/flags": ROOT / "flags",
    "tidegate/rollout": ROOT / "rollout",
}


def source_files() -> dict[str, Path]:
    """Every file of the package in the tree, by the name that it has when installed."""
    return {
        f"{package}/{file.relative_to(folder).as_posix()}": file
        for package, folder in REAL_FOLDERS.items()
        for file in folder.rglob("*")
        # rglob does not enter the links below src/tidegate, and each stands for a folder of its own here.
        if file.is_file() and "__pycache__" not in file.parts
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # The wheel is built from the unpacked sdist, as everybody who installs from source does.
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("tidegate-*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_module_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    with wheel:
        shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = set(source_files())
    assert {"tidegate/py.typed", "tidegate/middleware/layers/cache.py", "tidegate/rollout/machine.py"} <= expected
    assert shipped == expected


def test_the_wheel_has_its_licence_and_its_command(built: Path) -> None:
    (path,) = built.glob("tidegate-*.whl")
    with zipfile.ZipFile(path) as wheel:
        (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        (licence,) = (name for name in wheel.namelist() if name.endswith("LICENSE"))
        (metadata,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
        assert "tidegate = tidegate.cli:main" in wheel.read(entry_points).decode()
        assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()
        described = Parser().parsestr(wheel.read(metadata).decode())
    assert described["License-Expression"] == "Apache-2.0"
    assert set(described.get_all("Provides-Extra", [])) == {"redis", "unleash", "openfeature", "rollout", "otel", "all"}


def test_the_sdist_holds_every_module_the_tests_and_the_examples_once(built: Path) -> None:
    (path,) = built.glob("tidegate-*.tar.gz")
    with tarfile.open(path) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
        links = [member.name for member in archive.getmembers() if member.issym() or member.islnk()]
    assert links == []
    assert len(names) == len(set(names))
    in_tree = {file.relative_to(ROOT).as_posix() for file in source_files().values()}
    assert in_tree <= set(names)
    assert {"tests/conftest.py", "tests/services/unleash/package-lock.json", "CHANGELOG.md", "LICENSE"} <= set(names)
    assert not [name for name in names if name.startswith("src/tidegate/middleware")]
