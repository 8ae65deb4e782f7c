"""The demo, run as a person runs it: both stories in embedded mode, with a local file and the app's own /metrics."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 175
"""The issue promises less than three minutes."""


@pytest.mark.timeout(SECONDS + 10)
def test_the_demo_ends_well_and_shows_what_it_measured() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo"], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    said = done.stdout
    print("\n".join(said.splitlines()[-12:]))
    assert done.returncode == 0, said + done.stderr
    assert "all went as it should" in said
    seen = list(dict.fromkeys(int(percent) for percent in re.findall(r"round 1 +(\d+) %", said)))
    assert [percent for percent in seen if percent] == [1, 10, 50, 100], "one sees it open step by step"
    assert re.search(r"rolled_back: \d+ errors in \d+ requests", said)
    assert figures(said, "hit ratio")[0] == 0.0
    assert figures(said, "hit ratio")[1] > 80
    shut, wide_open = figures(said, "calls that reached the app")
    assert wide_open < shut / 4
    seconds = re.search(r"from fault to shut: ([\d.]+) s", said)
    assert seconds is not None
    assert float(seconds[1]) < 15


def figures(said: str, row: str) -> list[float]:
    """The numbers in one row of the summary."""
    line = next(line for line in said.splitlines() if row in line and "│" in line)
    return [float(number) for number in re.findall(r"[\d.]+", line.partition(row)[2])]
