"""Says which Tidegate is tested, and marks the tests that need a real server (`real_server`).

With `TIDEGATE_FROM=folder` a run refuses to test a Tidegate that does not lie in that folder: so a run against the
built wheel cannot quietly test the source tree.
"""

import os
from pathlib import Path

import pytest

import tidegate
from tests.services import fixtures

PLACE = Path(tidegate.__file__).resolve().parent
SERVER_FIXTURES = frozenset(fixtures.__all__)


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known, and refuse the wrong Tidegate."""
    config.addinivalue_line("markers", "real_server: needs a real server (set by itself from the test's fixtures)")
    wanted = os.environ.get("TIDEGATE_FROM")
    if wanted and not PLACE.is_relative_to(Path(wanted).resolve()):
        raise pytest.UsageError(f"tidegate was to come from {wanted} and comes from {PLACE}")


def pytest_report_header() -> str:
    """Where Tidegate was imported from."""
    return f"tidegate: {PLACE}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what asks for a server."""
    for item in items:
        if SERVER_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("real_server")
