"""`python -m tests.promises.faults.forked URL`: a worker that is made before its process forks, as servers do that load
an application first (gunicorn's `preload_app`); each child serves with it. Prints a line a child: its share of hits.
"""

import asyncio
import os
import sys

from tests.promises.faults.stage import Stage

CHILDREN = 3


async def serve(stage: Stage) -> float:
    """The share of hits, once most are."""
    async with asyncio.timeout(60), stage:
        while (share := (await stage.crowd()).share) < 0.9:
            pass
        assert stage.mixed == stage.old == []
        return share


def say(share: float) -> None:
    """A line in one write: the others write into the same pipe."""
    os.write(sys.stdout.fileno(), f"{os.getpid()} {share:.3f}\n".encode())


def main(url: str) -> None:
    """Fork, serve in each child and then in the parent."""
    stage = Stage(url, url, memory=True)
    children = list[int]()
    for _ in range(CHILDREN):
        child = os.fork()
        if not child:
            code = 1
            try:
                say(asyncio.run(serve(stage)))
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    say(asyncio.run(serve(stage)))
    sys.exit(max(codes))


if __name__ == "__main__":
    main(sys.argv[1])
