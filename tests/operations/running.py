"""The command `tidegate`, called in a folder with settings of its own."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.services.server import http_request, wait_until
from tests.services.unleash import Unleash
from tidegate.cli import main

__all__ = ["Shell", "called", "until_clients_know"]


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Call the command; exit code, stdout, stderr."""
    try:
        code = main(arguments)
    except SystemExit as ended:  # argparse
        code = int(ended.code or 0)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def until_clients_know(unleash: Unleash, flag: str) -> None:
    """Return when Unleash tells its clients what it tells administrators; it looks once a second."""

    def same() -> bool:
        state = unleash.admin.environment(flag)
        status, body, _ = http_request(
            unleash.port, "GET", "/api/client/features", headers={"Authorization": unleash.development_token}
        )
        assert status == 200
        features = [one for one in json.loads(body)["features"] if one["name"] == flag]
        return [(one["enabled"], [_decisive(each) for each in one["strategies"]]) for one in features] == [
            (state["enabled"], [_decisive(each) for each in state["strategies"]])
        ]

    wait_until(same, 20, f"Unleash tells its clients of {flag}")


def _decisive(strategy: dict[str, Any]) -> tuple[Any, ...]:
    return strategy["name"], strategy["parameters"], len(strategy["constraints"])


class Shell:
    """Runs commands where the test is; each gives exit code, stdout and stderr."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._capsys = capsys
        for name in os.environ:
            if name.startswith(("TIDEGATE_", "REDIS_", "PROMETHEUS_", "CACHE_")):
                monkeypatch.delenv(name)
        monkeypatch.chdir(folder)

    def settings(self, text: str) -> None:
        """Write tidegate.toml."""
        (self.folder / "tidegate.toml").write_text(text, encoding="utf-8")

    def on(self, unleash: Unleash, *, token: str | None = None, flags: str = "", rest: str = "") -> None:
        """Settings for an Unleash. flags, rest: further lines of [flags], and after [rollout]."""
        self.settings(
            f"""
            [flags]
            provider = "unleash"
            unleash_url = "{unleash.api_url}"
            {flags}
            [rollout]
            admin_token = "{unleash.admin_token if token is None else token}"
            {rest}
            """
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """As `called` says."""
        return called(self._capsys, *arguments)
