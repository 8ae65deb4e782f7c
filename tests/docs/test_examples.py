"""The examples do what they say, in process. tests.docs.test_pages runs them under uvicorn, as their README says."""

import asyncio
import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest

from examples import one_layer
from tests.docs.pages import ROOT
from tests.driver import Answer, call
from tidegate.rollout.loading import load_spec

WHOLE = ROOT / "examples" / "whole_gate"


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The app of the whole gate, in a copy of its folder."""
    folder = tmp_path / "gate"
    shutil.copytree(WHOLE, folder)
    monkeypatch.chdir(folder)
    return runpy.run_path("app.py")["app"]


def open_cache() -> None:
    """Write the flag file anew, with the cache open for everybody."""
    document = json.loads(Path("flags.json").read_text(encoding="utf-8"))
    document["flags"]["tidegate.cache"] = {"enabled": True, "strategies": [{"percentage": 100}]}
    Path("new.json").write_text(json.dumps(document), encoding="utf-8")
    Path("new.json").replace("flags.json")


async def ask(app: Any, path: str, who: str = "acme/ann", **more: Any) -> Answer:
    return await call(app, path, headers=[("authorization", f"Bearer {who}")], **more)


def test_one_layer_answers_the_second_request_from_the_store() -> None:
    async def drive() -> list[Answer]:
        return [await call(one_layer.app, "/rates") for _ in range(2)]

    first, second = asyncio.run(drive())
    assert (first.header("cache-status"), second.hit) == ("Tidegate; fwd=miss; stored", True)
    assert first.body == second.body != b""


def test_the_whole_gate_opens_with_its_flag_file_and_keeps_tenants_apart(whole: Any) -> None:
    async def opened() -> None:
        # What is stored while the purge with which a gate opens is on its way is purged by it.
        async with asyncio.timeout(20):
            while not (await ask(whole, "/clients/1", "acme/bob")).hit:
                pass  # each look takes as long as the app's slow query

    async def drive() -> None:
        shut = await ask(whole, "/clients/1")
        assert (shut.status, shut.header("cache-status"), shut.header("x-cache-misses")) == (200, None, "1")
        assert shut.header("etag")  # whose gate is open

        open_cache()
        await opened()
        assert (await ask(whole, "/clients/1")).hit, "of the same tenant"
        assert not (await ask(whole, "/clients/1", "globex/ann")).hit

        renamed = await ask(whole, "/clients/1/name", method="PUT", body=b"One")
        assert renamed.status == 204
        after = await ask(whole, "/clients/1")
        assert (json.loads(after.body)["name"], after.hit) == ("One", False)
        assert (await ask(whole, "/clients/1", "globex/ann")).hit

        exposed = (await call(whole, "/metrics")).body.decode()
        assert 'tidegate_cohort_hits_total{band="100",cohort="canary",flag="tidegate.cache"}' in exposed
        await stop(whole)

    asyncio.run(drive())


async def stop(app: Any) -> None:
    """End what the first request began, as the end of the app's life would."""
    middleware = app.middleware_stack
    while not hasattr(middleware, "tide"):
        middleware = middleware.app
    await middleware.tide.aclose()


def test_the_spec_of_the_whole_gate_fits_its_flags() -> None:
    spec = load_spec(WHOLE / "cache-canary.yaml")
    assert spec.flag in json.loads((WHOLE / "flags.json").read_text(encoding="utf-8"))["flags"]
