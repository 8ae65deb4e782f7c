"""`tidegate cache purge`, on a real store."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.middleware.stores.support import ACME, entry, new_metrics, positions, write
from tests.services import RedisServer, free_port
from tidegate.cli import main
from tidegate.middleware.core.records import PUBLIC_SCOPE, Entry
from tidegate.middleware.stores.redis import RedisStore

KEYS = {b"a": ("list", "client:1"), b"b": ("list", "client:2"), b"c": ("other",)}


def config(folder: Path, url: str) -> str:
    path = folder / "tidegate.toml"
    path.write_text(f'[store]\nurl = "{url}"\n')
    return str(path)


def with_store(url: str, *, filling: bool = False) -> dict[bytes, str]:
    """What is served of each: hit, stale or none. filling: store them first."""

    async def run() -> dict[bytes, str]:
        store = RedisStore(url, metrics=new_metrics())
        try:
            at = await positions(store) if filling else ()
            for key, tags in KEYS.items() if filling else ():
                named = tuple((ACME, tag) for tag in tags)
                await write(store, key, entry(tags=named, positions=at, born=time.time(), lifetime=3600.0))
            served: dict[bytes, str] = {}
            for key in KEYS:
                record = (await store.get(key)).record
                stale = isinstance(record, Entry) and record.born + record.lifetime <= time.time()
                served[key] = "none" if record is None else "stale" if stale else "hit"
            return served
        finally:
            await store.aclose()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("words", "left", "said"),
    [
        (["client:1", "--tenant", "acme"], ["none", "hit", "hit"], "1 tag of the tenant acme"),
        (["list", "other", "--tenant", "acme"], ["none", "none", "none"], "2 tags of the tenant acme"),
        (["list", "--tenant", "acme", "--soft"], ["stale", "stale", "hit"], "1 tag of the tenant acme, made stale"),
        (
            ["client:2", "list", "--tenant", "acme", "--all-of"],
            ["hit", "none", "hit"],
            "2 tags of the tenant acme, together",
        ),
        (["list"], ["hit", "hit", "hit"], "1 public tag"),
        (["list", "--tenant", "acme", "--dry-run"], ["hit", "hit", "hit"], "1 tag of the tenant acme"),
        (["--everything", "--tenant", "acme"], ["none", "none", "none"], "everything of the tenant acme and its users"),
        (["--everything"], ["none", "none", "none"], "everything of everybody"),
        (["list", "--tenant", "ACME\x1b[31m"], ["hit", "hit", "hit"], "1 tag of the tenant ACME\\x1b[31m"),
        (
            ["--everything", "--tenant", "acme", "--soft"],
            ["stale", "stale", "stale"],
            "everything of the tenant acme and its users, made stale",
        ),
    ],
    ids=["tag", "any", "soft", "all of", "nobody's", "dry run", "everything", "of everybody", "another's", "all soft"],
)
def test_it_purges_what_it_says(
    valkey: RedisServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    left: list[str],
    said: str,
) -> None:
    assert set(with_store(valkey.url, filling=True).values()) == {"hit"}
    assert main(["cache", "purge", *words, "--config", config(tmp_path, valkey.url)]) == 0
    told = capsys.readouterr().out
    if "--dry-run" in words:
        assert told.startswith(f"2 would be purged ({said}), of 3 that were looked at")
    else:
        assert told == f"done: {said}\n"
    assert list(with_store(valkey.url).values()) == left
    if "--dry-run" in words:
        assert "status 200, 4 bytes, 0 s old: tenant:acme/list, tenant:acme/client:" in told


def test_for_programs_it_speaks_json(
    redis_server: RedisServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_store(redis_server.url, filling=True)
    words = ["list", "--tenant", "acme", "--json", "--config", config(tmp_path, redis_server.url)]

    def told(*more: str) -> Any:
        assert main(["cache", "purge", *words, *more]) == 0
        return json.loads(capsys.readouterr().out)

    seen = told("--dry-run")
    assert (seen["dry_run"], seen["entries"], seen["exact"], seen["looked_at"]) == (True, 2, True, 3)
    assert told() == {"state": "done", "durable": None, "note": None, "scope": ACME}
    assert told("--dry-run")["entries"] == 0
    words = ["--everything", *words[1:]]
    left = told("--dry-run")
    assert (left["entries"], left["exact"], [one["tags"] for one in left["sample"]]) == (1, True, [[[ACME, "other"]]])
    assert told()["state"] == "done"
    assert told("--dry-run")["entries"] == 0


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["list"], "store.url"),
        (["", "--url"], "TAG"),
        (["list", "--tenant", "", "--url"], "--tenant"),
        ([*map(str, range(17)), "--all-of", "--url"], "--all-of"),
        (["--url"], "TAG"),
        (["list", "--everything", "--url"], "--everything"),
        (["--everything", "--all-of", "--url"], "--everything"),
    ],
    ids=["no store", "empty tag", "empty tenant", "too many", "no tag", "a tag of all", "all of all"],
)
def test_what_cannot_be_purged_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], problem: str
) -> None:
    path = config(tmp_path, "redis://127.0.0.1:1/0") if "--url" in words else str(tmp_path / "empty.toml")
    Path(path).touch()
    assert main(["cache", "purge", *[word for word in words if word != "--url"], "--config", path]) != 0
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["purge", "dry run"])
def test_a_store_that_is_away_is_no_purge(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    path = config(tmp_path, f"redis://127.0.0.1:{free_port()}/0")
    assert main(["cache", "purge", "list", "--config", path, *more]) == 1
    said = capsys.readouterr().err
    assert "Connect call failed" in said
    assert ".;" not in said
    assert ("nothing is known to be purged, and nothing is kept to be purged later" in said) == (not more)


def test_what_a_client_has_written_into_a_tag_does_nothing_to_the_terminal(
    valkey: RedisServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run() -> None:
        store = RedisStore(valkey.url, metrics=new_metrics())
        try:
            tags = ((ACME, "\x1b]0;owned\x07\n"), (ACME, "half \ud800"), (PUBLIC_SCOPE, "uri:^A4:http"), (ACME, "list"))
            await write(store, b"a", entry(tags=tags, positions=await positions(store)))
        finally:
            await store.aclose()

    asyncio.run(run())
    words = ["cache", "purge", "list", "--tenant", "acme", "--dry-run", "--config", config(tmp_path, valkey.url)]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert (
        "tenant:acme/\\x1b]0;owned\\x07\\x0a, tenant:acme/half \\xd800, public/its own URL, tenant:acme/list\n" in told
    )
    assert told.count("\n") == 2
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sample"][0]["tags"][0] == ["tenant:acme", "\x1b]0;owned\x07\n"]


def test_tags_without_a_tenant_are_those_of_nobody(valkey: RedisServer, tmp_path: Path) -> None:
    async def run() -> bool:
        store = RedisStore(valkey.url, metrics=new_metrics())
        try:
            return (await store.get(b"public")).record is not None
        finally:
            await store.aclose()

    async def fill() -> None:
        store = RedisStore(valkey.url, metrics=new_metrics())
        try:
            await write(store, b"public", entry(tags=((PUBLIC_SCOPE, "list"),)))
        finally:
            await store.aclose()

    asyncio.run(fill())
    assert asyncio.run(run())
    assert main(["cache", "purge", "list", "--config", config(tmp_path, valkey.url)]) == 0
    assert not asyncio.run(run())
