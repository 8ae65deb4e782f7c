"""The command `tidegate`, called in a folder with settings of its own."""

import os
from pathlib import Path

import pytest

from tests.services.unleash import Unleash
from tidegate.cli import main

__all__ = ["Shell"]


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
        """Exit code, stdout, stderr."""
        try:
            code = main(arguments)
        except SystemExit as ended:  # argparse
            code = int(ended.code or 0)
        out, err = self._capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err
