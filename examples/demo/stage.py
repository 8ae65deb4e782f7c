"""Starts what the demo shows: the application under uvicorn, its flags, the controller; all as separate processes."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from tidegate.errors import TidegateError
from tidegate.vocabulary import LAYERS

__all__ = ["FLAG", "Stage", "embedded_stage", "free_port", "serving"]

FLAG = "tidegate.cache"
"""The flag that the demo opens. The other layers are open for everybody from the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where everything is. `parts` names what runs, for the head of the demo."""

    base: str
    journal: Path
    folder: Path
    environ: Mapping[str, str]
    environment: str
    parts: str


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def process(name: str, *command: str, environ: Mapping[str, str], folder: Path) -> AsyncGenerator[Path, None]:
    """A process for as long as the block lasts; its output goes to a file, whose end is shown if it dies early."""
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        running = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **environ}, stdout=output, stderr=output, stdin=asyncio.subprocess.DEVNULL
        )
    try:
        yield log
        if running.returncode is not None:
            raise TidegateError(f"{name} ended with status {running.returncode}:\n{log.read_text()[-2000:]}")
    finally:
        if running.returncode is None:
            running.terminate()
            try:
                await asyncio.wait_for(running.wait(), 5)
            except TimeoutError:
                running.kill()
                await running.wait()


async def wait_until_up(url: str, log: Path, *, seconds: float = 20.0) -> None:
    """Wait until an address answers, with whatever status.

    Raises:
        TidegateError: with the end of the server's output, if it does not in time.
    """
    async with httpx2.AsyncClient(timeout=1) as client:
        for _ in range(int(seconds / 0.1)):
            try:
                await client.get(url)
            except httpx2.HTTPError:
                await asyncio.sleep(0.1)
            else:
                return
    output = await asyncio.to_thread(log.read_text)
    raise TidegateError(f"{url} did not answer within {seconds:.0f} s:\n{output[-2000:]}")


@asynccontextmanager
async def serving(stack: AsyncExitStack, stage: Stage) -> AsyncGenerator[Stage, None]:
    """The application and the controller of a stage whose flags are ready."""
    port = stage.base.rpartition(":")[2]
    uvicorn = (sys.executable, "-m", "uvicorn", "examples.demo.app:build", "--factory", "--port", port)
    app = process("app", *uvicorn, "--no-access-log", environ=stage.environ, folder=stage.folder)
    log = await stack.enter_async_context(app)
    await wait_until_up(f"{stage.base}/metrics", log)
    controller = (sys.executable, "-m", "tidegate.cli", "controller")
    await stack.enter_async_context(process("controller", *controller, environ=stage.environ, folder=stage.folder))
    yield stage


@asynccontextmanager
async def embedded_stage(folder: Path) -> AsyncGenerator[Stage, None]:
    """Nothing but Python: flags in a file, responses in memory, the controller reads the app's own /metrics."""
    base = f"http://127.0.0.1:{free_port()}"
    flags, journal = folder / "flags.json", folder / "journal.sqlite3"
    flags.write_text(json.dumps(_flag_file(), indent=1))
    stage = Stage(
        base=base,
        journal=journal,
        folder=folder,
        environment="local",
        parts="uvicorn · flags in a file · memory store · controller on /metrics",
        environ={
            "TIDEGATE_FLAGS_PROVIDER": "local",
            "TIDEGATE_FLAGS_FILE": str(flags),
            "TIDEGATE_FLAGS_ENVIRONMENT": "local",
            "TIDEGATE_FLAGS_UNIT": "user",
            "TIDEGATE_FLAGS_BANDS": "1,10,50,100",
            "TIDEGATE_ROLLOUT_JOURNAL": str(journal),
            "TIDEGATE_ROLLOUT_METRICS_URLS": f"{base}/metrics",
        },
    )
    async with AsyncExitStack() as stack, serving(stack, stage) as served:
        yield served


def _flag_file() -> dict[str, object]:
    flags: dict[str, object] = {}
    for layer in LAYERS:
        name = f"tidegate.{layer}"
        is_open = name != FLAG
        strategy = {"percentage": 100 if is_open else 0, "stickiness": "userId"}
        flags[name] = {"enabled": is_open, "strategies": [strategy]}
    return {"version": 1, "flags": flags}
