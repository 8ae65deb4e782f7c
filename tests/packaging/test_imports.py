"""`import tidegate`: what it must not need, and what it must not leave in `sys.modules`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# What the extras bring.
OPTIONAL = (
    "redis",
    "hiredis",
    "msgpack",
    "UnleashClient",
    "yaml",
    "httpx2",
    "rich",
    "uvicorn",
    "openfeature",
    "opentelemetry",
)

BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Blocker())
"""

EVERYTHING = """
import importlib, json, pkgutil, sys
import tidegate
names = [found.name for found in pkgutil.walk_packages(tidegate.__path__, "tidegate.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(json.dumps({"imported": names, "loaded": sorted(sys.modules), "path": sys.path}))
"""


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Asks a page twice through all five layers; the app runs once.
CACHED_APP = """
import asyncio
from tidegate import RoutePolicy, Tidegate

calls = []

async def page(scope, receive, send):
    calls.append(scope["path"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"tide"})

async def ask(app):
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": "/page", "raw_path": b"/page", "query_string": b"", "root_path": "",
        "headers": [(b"host", b"example.com")], "server": ("example.com", 80), "client": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])

async def main():
    tide = Tidegate(policies=[RoutePolicy(route="/page", ttl=60, share="public")])
    app = tide(page)
    return [await ask(app), await ask(app)]

print(asyncio.run(main()), calls)
"""


def test_a_cached_app_works_without_any_extra(tmp_path: Path) -> None:
    answer = (200, b"tide")
    assert run(BLOCKED.format(names=set(OPTIONAL)) + CACHED_APP, tmp_path) == f"{[answer, answer]} ['/page']\n"


@pytest.mark.parametrize("name", OPTIONAL)
def test_the_blocker_of_these_tests_blocks(name: str, tmp_path: Path) -> None:
    code = BLOCKED.format(names={name}) + f"import {name}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert f"ModuleNotFoundError: blocked: {name}" in done.stderr


def test_importing_everything_loads_no_bare_name_of_the_root_folders(tmp_path: Path) -> None:
    seen = json.loads(run(EVERYTHING, tmp_path))
    assert {"tidegate.middleware.layers.cache", "tidegate.flags.gate", "tidegate.rollout.machine"} <= set(
        seen["imported"]
    )
    tops = {name.partition(".")[0] for name in seen["loaded"]}
    assert tops.isdisjoint({"middleware", "flags", "rollout"})


@pytest.mark.parametrize("name", ["middleware", "flags", "rollout"])
def test_the_bare_name_of_a_root_folder_cannot_be_imported(name: str, tmp_path: Path) -> None:
    code = f"import importlib.util; print(importlib.util.find_spec({name!r}))"
    assert run(code, tmp_path) == "None\n"
