"""Fetching the servers: what is said when one cannot be had."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services import ServiceError, install, programs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing in the cache and nothing on PATH but what a test puts into the folder that this gives."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(programs, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(programs, "UNLEASH_FOLDER", tmp_path / "cache" / "unleash")
    remembered = (programs.redis_server, programs.prometheus, programs.node, programs._refresh_package_lists)
    for function in remembered:
        function.cache_clear()
    yield folder
    for function in remembered:
        function.cache_clear()


def fake(folder: Path, name: str, script: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_each_thing_that_cannot_be_had_is_one_line_and_the_status_is_1(
    bare_machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "MISSING" in line] == [
        "services: MISSING redis-server 7: apt-get is not on PATH; or put redis-server 7 on PATH",
        "services: MISSING prometheus 2: apt-get is not on PATH; or put prometheus 2 on PATH",
        "services: MISSING unleash-server: node is not on PATH; it needs Node.js 20 or newer, npm and its registry",
    ]
    assert "services: valkey-server: present" in lines
    assert "services: PostgreSQL: present" in lines


def test_a_failed_download_is_tried_again_after_the_package_lists_are_renewed(
    bare_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    fake(
        bare_machine,
        "apt-get",
        f'echo "$*" >> {calls}; [ $1 = update ] || {{ echo "E: No packages found"; exit 100; }}',
    )
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(ServiceError, match=r"^apt-get download -q prometheus: E: No packages found$"):
        programs.PROMETHEUS.install()
    assert calls.read_text().splitlines() == ["download -q prometheus", "update -q", "download -q prometheus"]


def test_without_root_a_failed_download_says_that_root_has_to_renew_the_package_lists(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(bare_machine, "apt-get", "exit 100")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ServiceError, match="only root may run apt-get update"):
        programs.REDIS.install()


def test_a_program_on_path_is_taken_only_in_the_wanted_version(bare_machine: Path) -> None:
    fake(bare_machine, "redis-server", "echo 'Redis server v=8.2.0 sha=0'")
    with pytest.raises(
        ServiceError, match=r"^redis-server 7 is not installed: run python -m tests\.services\.install$"
    ):
        programs.redis_server()
    fake(bare_machine, "redis-server", "echo 'Redis server v=7.0.15 sha=0'")
    assert programs.redis_server().program == bare_machine / "redis-server"


def test_an_old_node_is_refused(bare_machine: Path) -> None:
    fake(bare_machine, "node", "echo v18.20.4")
    with pytest.raises(ServiceError, match=r"^node is v18\.20\.4$"):
        programs.node()


def test_an_unleash_of_another_lock_file_counts_as_missing(bare_machine: Path) -> None:
    script = programs.UNLEASH_FOLDER / "node_modules" / "unleash-server" / "dist" / "server.js"
    script.parent.mkdir(parents=True)
    script.touch()
    lock = programs.UNLEASH_FOLDER / "package-lock.json"
    lock.write_bytes((programs.UNLEASH_MANIFEST / "package-lock.json").read_bytes())
    assert programs.unleash_server() == script
    lock.write_text("{}")
    with pytest.raises(ServiceError, match="unleash-server is not installed"):
        programs.unleash_server()


def test_a_test_that_needs_a_missing_server_fails_with_one_line(tmp_path: Path) -> None:
    module = tmp_path / "test_child.py"
    module.write_text(
        "import pathlib\n"
        "from tests.services import programs\n"
        "programs.CACHE = pathlib.Path('nowhere')\n"
        "programs.shutil.which = lambda name: None\n"
        "def test_it(redis_server): pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.services.fixtures", "-p", "no:cacheprovider", str(module)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "1 error" in done.stdout
    assert "ERROR" in done.stdout
    assert "\nredis-server 7 is not installed: run python -m tests.services.install\n" in done.stdout
    assert "Traceback" not in done.stdout
    assert "def redis_server" not in done.stdout
