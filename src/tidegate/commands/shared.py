"""What the families of commands have in common: their options, their settings, how they speak."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from tidegate.settings import Settings

__all__ = ["Commands", "Run", "common_options", "say", "settings_of"]

Run = Callable[[argparse.Namespace], int]
"""One command: from its arguments to its exit code."""


class Commands(Protocol):
    """What argparse's `add_subparsers` returns, by the one method that is used."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser:
        """Add a command and return its parser."""
        ...


def common_options() -> argparse.ArgumentParser:
    """The options of every command, as a parent for its parser."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", metavar="FILE", help="settings (default: TIDEGATE_CONFIG, else tidegate.toml)")
    common.add_argument("--journal", metavar="FILE", help="the controller's journal (default: rollout.journal)")
    return common


def settings_of(arguments: argparse.Namespace, only: Sequence[str] | None = None) -> Settings:
    """The settings that the common options name. only: as in Settings.load.

    Raises:
        ConfigError: with every problem of file and environment.
    """
    settings = Settings.load(arguments.config, only=only)
    if arguments.journal:
        return replace(settings, rollout=replace(settings.rollout, journal=arguments.journal))
    return settings


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)
