"""Runs the demo: `python -m examples.demo [--real]`. Exit status 0 if all went as it should, 1 if not."""

import argparse
import asyncio
import logging
import sys
import tempfile
from pathlib import Path

from examples.demo.stage import embedded_stage
from examples.demo.story import tell
from tidegate.errors import TidegateError


async def _run(real: bool) -> bool:
    with tempfile.TemporaryDirectory(prefix="tidegate-demo-") as folder:
        if real:
            # The servers come with the tests, and only then need to be there.
            from examples.demo.real import real_stage

            async with real_stage(Path(folder)) as stage:
                return await tell(stage)
        async with embedded_stage(Path(folder)) as stage:
            return await tell(stage)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--real", action="store_true", help="real Unleash, PostgreSQL, Valkey and Prometheus")
    arguments = parser.parse_args()
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    try:
        return 0 if asyncio.run(_run(arguments.real)) else 1
    except TidegateError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
