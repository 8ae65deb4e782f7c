"""On CI nothing is skipped: a skipped or expectedly failing test makes the run fail, and the last line counts."""

import os
from collections.abc import Iterator

import pytest

COUNTED = ("passed", "failed", "error", "skipped", "xfailed", "xpassed", "deselected")
FORBIDDEN = ("skipped", "xfailed", "xpassed")


def _counts(config: pytest.Config) -> dict[str, int]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return {kind: len(reporter.stats.get(kind, [])) if reporter else 0 for kind in COUNTED}


def _not_run(config: pytest.Config) -> dict[str, int]:
    if os.environ.get("CI") != "true":
        return {}
    return {kind: count for kind, count in _counts(config).items() if kind in FORBIDDEN and count}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Turn a green run with tests that did not really run into a failed one."""
    if session.exitstatus == pytest.ExitCode.OK and _not_run(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was counted, and what CI does not accept."""
    if os.environ.get("CI") == "true":
        terminalreporter.line("counted: " + ", ".join(f"{count} {kind}" for kind, count in _counts(config).items()))
    if not_run := _not_run(config):
        what = ", ".join(f"{count} {kind}" for kind, count in not_run.items())
        terminalreporter.line(f"FAILED: {what}; on CI every test runs and passes", red=True, bold=True)
