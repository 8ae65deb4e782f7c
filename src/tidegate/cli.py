"""The command `tidegate`.

Exit codes: 0 it went as it should; 1 it failed, was refused, or the rollout did not end well; 2 bad input.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from tidegate.commands import cache, controller, doctor, flags, keys, kill, rollout
from tidegate.commands.shared import common_options
from tidegate.errors import ConfigError, TidegateError

__all__ = ["main"]

_EXAMPLES = """\
examples:
  tidegate flags init                            make the flags, off, in Unleash or in the flag file
  tidegate rollout validate canary.yaml          every problem of a spec at once
  tidegate controller &                          the daemon that moves the flags
  tidegate rollout start canary.yaml             hand it a rollout
  tidegate rollout watch cache-canary            see it open, or shut
  tidegate rollout abort cache-canary            end it and shut its flag
  tidegate kill tidegate.cache                   shut a flag now, with nothing else running
  tidegate lift tidegate.cache                   take that back
  tidegate doctor                                see whether everything is there that the settings ask for
  tidegate keys new keys.txt                     make a key that seals what lies in Redis, or the next one
  tidegate cache explain GET http://host/a       see what was cached of it, and why
  (with --app app:app --as acme/ann: key, tags, policy, and what would change it)

settings come from --config (or tidegate.toml) and from TIDEGATE_* in the environment.
exit codes: 0 as it should, 1 failed or refused, 2 bad input.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Errors are one message on stderr, never a traceback."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except ConfigError as error:
        print(error, file=sys.stderr)
        if error.source == "settings" and not (arguments.config or os.environ.get("TIDEGATE_CONFIG")):
            _say_what_was_read()
        return 2
    except TidegateError as error:
        print(f"tidegate: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"tidegate: {error.name} is not installed: pip install 'tidegate[rollout]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _say_what_was_read() -> None:
    """Where settings lack something and no file was named, the wrong folder is the likely cause."""
    if not os.path.exists("tidegate.toml"):
        told = f"no settings file was read: there is no tidegate.toml in {os.getcwd()}"
        print(f"{told}; go where it lies, or name it with --config or TIDEGATE_CONFIG", file=sys.stderr)


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"{parser.prog} {version('tidegate')}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tidegate",
        description="Cache layers that open behind feature flags, and shut by themselves.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    families = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    common = common_options()
    for family in (flags, rollout, controller, kill, doctor, cache, keys):
        family.register(families, common)
    return parser


if __name__ == "__main__":
    sys.exit(main())
