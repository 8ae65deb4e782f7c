"""One of the five apps as a server runs it: `FRAMEWORK=quart uvicorn tests.frameworks.served:build --factory`.

The layers stand in the framework's own way (`inside`). Beside the app, `/control` shows what its handlers have done,
and with which headers somebody is signed in here; with PUT it lets the background tasks go.
"""

import json
import os
from importlib import import_module
from typing import Any

from prometheus_client import CollectorRegistry

from tests.frameworks.surface import POLICIES, Framework, World
from tests.provider import FixedFlags
from tidegate import Tidegate

__all__ = ["build"]


class SpokenFlags(FixedFlags):
    """Open for everybody; says in the log when the layers start and stop."""

    async def start(self) -> None:
        """Say so."""
        print("layers started", flush=True)

    async def aclose(self) -> None:
        """Say so."""
        print("layers stopped", flush=True)


def build() -> Any:
    """The application."""
    name = os.environ["FRAMEWORK"]
    framework: Framework = getattr(import_module(f"tests.frameworks.{name}_site"), name.upper())
    tide = Tidegate(
        identify=framework.identify("inside"),
        policies=POLICIES,
        provider=SpokenFlags(is_open=True),
        registry=CollectorRegistry(),
    )
    world = World()
    inner = framework.build(world, tide, "inside")

    async def control(scope: Any, send: Any) -> None:
        if scope["method"] == "PUT":
            world.release.set()
        ann = list(framework.headers("ann-token"))
        told = json.dumps({"done": world.done, "runs": world.runs, "ann": ann}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": told})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/control":
            await control(scope, send)
        else:
            await inner(scope, receive, send)

    return app
