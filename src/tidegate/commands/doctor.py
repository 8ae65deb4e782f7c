"""`tidegate doctor`: is everything there that the settings ask for?"""

import argparse
import asyncio
import json

from tidegate.commands.shared import Commands, say

__all__ = ["register"]


def register(families: Commands, common: argparse.ArgumentParser) -> None:
    """Add `tidegate doctor`."""
    summary = "look at settings, flags, store, metrics and controller; 1 if something fails"
    doctor = families.add_parser("doctor", parents=[common], help=summary, description=summary)
    doctor.add_argument("--json", action="store_true", help="the same for programs")
    doctor.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from tidegate.operations import probes_flags, probes_services
    from tidegate.operations.doctor import examine, load, shown_as

    settings, found = load(arguments.config)
    if arguments.journal:
        settings = replace(settings, rollout=replace(settings.rollout, journal=arguments.journal))
    found = [*probes_services.variables(arguments.config), *found]
    found += asyncio.run(
        examine(
            settings,
            {
                "extras": probes_services.extras,
                "flags": probes_flags.flags,
                "admin token": probes_flags.admin_token,
                "clock": probes_flags.clock,
                "stops": probes_flags.stop_records,
                "store": probes_services.store,
                "keys": probes_services.keys,
                "Prometheus": probes_services.prometheus,
                "app": probes_services.app_metrics,
                "metrics_dir": probes_services.metrics_folder,
                "controller": probes_services.controller,
            },
        )
    )
    if arguments.json:
        say(json.dumps([shown_as(one) for one in found], indent=2))
    for one in [] if arguments.json else found:
        say(f"{one.level:<4}  {one.about}: {one.text}{f'; {one.fix}' if one.fix else ''}")
    return int(any(one.level == "FAIL" for one in found))
