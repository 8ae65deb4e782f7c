"""`tidegate controller`: the daemon that moves the flags."""

import argparse
import asyncio
import logging
import sys

from tidegate.commands.shared import Commands, settings_of

__all__ = ["register"]


def register(families: Commands, common: argparse.ArgumentParser) -> None:
    """Add `tidegate controller`."""
    controller = families.add_parser("controller", parents=[common], help="run the controller (the daemon)")
    controller.add_argument("--once", action="store_true", help="do what is due now, then end")
    controller.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from tidegate import control

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    if asyncio.run(control.run_controller(settings_of(arguments), once=arguments.once)):
        return 0
    print("tidegate: another controller holds the lease", file=sys.stderr)
    return 1
