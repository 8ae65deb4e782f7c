"""What holds for every test: the servers' fixtures, and checks that no test can forget.

- A blocked event loop, a task that is left behind, and an error that asyncio only logs fail the test.
- On CI (`CI=true`) a run with a skipped or expectedly failing test fails.
"""

import os
from collections.abc import Generator

import pytest
from hypothesis import settings

pytest_plugins = ["tests.services.fixtures", "tests.subject", "tests.watch", "tests.nothing_skipped"]

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "local")


@pytest.fixture(scope="session", autouse=True)
def patient_first_request() -> Generator[None]:
    """Without a lifespan a request waits 50 ms for the flags, which a loaded machine may need for a small file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tidegate.runtime.FIRST_REQUEST_WAITS", 20.0)
        yield
