"""One worker with its flag file, for the tests of epochs: in this process, or in one of its own.

`python -m tests.promises.epoch_stage FLAGS STORE_URL` reads one command a line and answers each with a line of JSON:
`ask GENERATION PAGE...` with [hit, body] for each page; `reach` with the reach of the cache's gate.
The app answers with its generation, so that a body says when it was made.
"""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from prometheus_client import CollectorRegistry

from tests.driver import Answer, User, call
from tests.services import wait_until
from tidegate import RoutePolicy, Settings, Tidegate
from tidegate.flags import Gates
from tidegate.vocabulary import FLAGS

__all__ = ["FlagFile", "Process", "Stage"]

ANN = User("acme", "ann")


class FlagFile:
    """A flag file whose cache flag a test sets; the other layers stay open."""

    def __init__(self, path: Path, percentage: int = 100) -> None:
        self.path = path
        self.set(percentage)

    def set(self, percentage: int, *, enabled: bool = True, named: bool = True, etag: int = 100) -> None:
        """Open the cache for this percentage; `enabled=False` or `named=False` shut it in other ways."""

        def flag(percentage: int, enabled: bool = True) -> dict[str, Any]:
            return {"enabled": enabled, "strategies": [{"percentage": percentage}]}

        flags = {name: flag(100) for name in FLAGS.values()}
        flags[FLAGS["etag"]] = flag(etag)
        flags[FLAGS["cache"]] = flag(percentage, enabled)
        if not named:
            del flags[FLAGS["cache"]]
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps({"version": 1, "flags": flags}))
        os.replace(draft, self.path)


class Stage:
    """A worker in this process. `generation` is what the app answers with.

    budget: seconds for a look-up; long, so that a busy machine is not taken for a Redis that does not answer.
    """

    def __init__(self, flags: FlagFile, url: str | None, *, budget: float = 5.0, **more: Any) -> None:
        self.generation = 1
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()
        settings = {"flags": {"provider": "local", "file": str(flags.path), "poll_interval": 0.1}}
        store = {"url": url, "budget": budget} if url is not None else {}
        policies = [RoutePolicy(route="/{page}", ttl=600, share="tenant")]
        self.tide = Tidegate(
            Settings.of(settings | {"store": store}), policies=policies, registry=CollectorRegistry(), **more
        )
        self.stack = self.tide(self._app)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        body = b"%d" % self.generation
        self.begun.set()
        await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    async def begin(self) -> None:
        """Start, and wait until the flags and the stop records are known."""
        await self.ask("/begin")
        await asyncio.to_thread(wait_until, lambda: self._look().known, 20, "the flags are known")

    def _look(self) -> Gates:
        assert self.tide.gates is not None
        self.tide.gates.refresh()
        return self.tide.gates

    async def ask(self, *pages: str) -> list[Answer]:
        return [await call(self.stack, page, user=ANN) for page in pages]

    @property
    def reach(self) -> str:
        return self._look().reach("cache")


class Process:
    """A worker in a process of its own."""

    def __init__(self, flags: FlagFile, url: str) -> None:
        command = [sys.executable, "-m", __spec__.name, str(flags.path), url]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            assert self._process.wait(20) == 0
        finally:
            self._process.kill()
            self._process.stdout.close()

    def _tell(self, command: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(command, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def ask(self, generation: int, *pages: str) -> list[tuple[bool, int]]:
        return [(hit, int(body)) for hit, body in self._tell(" ".join(["ask", str(generation), *pages]))]

    @property
    def reach(self) -> str:
        return self._tell("reach")


async def _serve(flags: Path, url: str) -> None:
    path = FlagFile.__new__(FlagFile)
    path.path = flags
    stage = Stage(path, url)
    await stage.begin()
    while line := await asyncio.to_thread(sys.stdin.readline):
        command, *words = line.split()
        if command == "reach":
            print(json.dumps(stage.reach), flush=True)
        else:
            stage.generation = int(words[0])
            answers = await stage.ask(*words[1:])
            print(json.dumps([(answer.hit, answer.body.decode()) for answer in answers]), flush=True)
    await stage.tide.aclose()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), sys.argv[2]))
