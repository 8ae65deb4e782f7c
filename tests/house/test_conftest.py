"""The checks that hold for every test, tried on runs of pytest that break them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOUSE = ["-p", "tests.services.fixtures", "-p", "tests.watch", "-p", "tests.nothing_skipped", "-p", "no:cacheprovider"]


def run_pytest(folder: Path, body: str, *, ci: bool = False) -> tuple[int, str]:
    module = folder / "test_child.py"
    module.write_text(f"import asyncio, logging, time\nimport pytest\n\n{body}")
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | ({"CI": "true"} if ci else {})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *HOUSE, "-W", "error", str(module)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_test_that_blocks_its_event_loop_fails(tmp_path: Path) -> None:
    status, output = run_pytest(
        tmp_path,
        """
async def sleeps():
    time.sleep(0.6)

async def computes():
    until = time.thread_time() + 0.6
    while time.thread_time() < until:
        pass

@pytest.mark.parametrize("main", [sleeps, computes])
def test_it(main):
    asyncio.run(main())

@pytest.mark.blocks_the_loop("on purpose")
def test_on_purpose():
    asyncio.run(sleeps())
""",
    )
    assert status == 1
    assert output.count("event loop blocked: ") >= 2
    assert "ran for 0.6" in output
    assert "3 passed, 2 errors" in output


def test_a_collection_of_what_other_tests_left_is_not_the_callbacks_time(tmp_path: Path) -> None:
    status, output = run_pytest(
        tmp_path,
        """
import gc

async def collects():
    begun = time.thread_time()
    while time.thread_time() - begun < 0.8:
        gc.collect()

def test_it():
    asyncio.run(collects())
""",
    )
    assert status == 0, output


def test_a_test_that_leaves_a_task_behind_fails(tmp_path: Path) -> None:
    status, output = run_pytest(
        tmp_path,
        """
tasks = set()

async def main():
    tasks.add(asyncio.create_task(asyncio.sleep(30), name="forgotten"))
    await asyncio.sleep(0)

def test_it():
    asyncio.run(main())

@pytest.mark.leaves_tasks("on purpose")
def test_on_purpose():
    asyncio.run(main())
""",
    )
    assert status == 1
    assert "task left behind: <Task pending name='forgotten'" in output
    assert "2 passed, 1 error" in output


def test_a_test_that_loses_a_tasks_exception_fails(tmp_path: Path) -> None:
    status, output = run_pytest(
        tmp_path,
        """
async def fails():
    raise ValueError("lost")

async def main():
    task = asyncio.create_task(fails())
    await asyncio.wait([task])

def test_it():
    asyncio.run(main())
""",
    )
    assert status == 1
    assert "asyncio logged: Task exception was never retrieved" in output


SKIPPING = """
def test_runs():
    pass

@pytest.mark.skip(reason="no server")
def test_skipped():
    pass
"""
EXPECTED_TO_FAIL = """
@pytest.mark.xfail
def test_fails():
    assert False
"""


@pytest.mark.parametrize(
    ("body", "what"), [(SKIPPING, "1 skipped"), (EXPECTED_TO_FAIL, "1 xfailed")], ids=["skip", "xfail"]
)
def test_on_ci_a_test_that_does_not_run_fails_the_run(tmp_path: Path, body: str, what: str) -> None:
    status, output = run_pytest(tmp_path, body, ci=True)
    assert status == 1
    assert f"FAILED: {what}; on CI every test runs and passes" in output
    assert run_pytest(tmp_path, body)[0] == 0, "elsewhere it is only shown"


def test_on_ci_a_run_of_passing_tests_passes_and_is_counted(tmp_path: Path) -> None:
    status, output = run_pytest(tmp_path, "def test_it():\n    pass\n", ci=True)
    assert status == 0
    assert "counted: 1 passed, 0 failed, 0 error, 0 skipped, 0 xfailed, 0 xpassed, 0 deselected" in output
