"""`tidegate cache purge` with other keys than the application's, or without: it purges nothing, and so does not say
`done`; and what a process and `doctor` say of the same."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis as Client

from tests.middleware.stores.support import ACME, entry, eventually, new_metrics, positions, write
from tests.services import RedisCluster, RedisServer
from tidegate.adapters import seals_of, shared_store_of
from tidegate.cli import main
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores import redis_held
from tidegate.middleware.stores.redis import LARGE, RedisStore
from tidegate.settings import Settings

Settle = Callable[[str | None], str]
"""The settings file of a process that has this key file; None: it has no keys."""


@pytest.fixture
def settle(valkey: RedisServer, tmp_path: Path) -> Settle:
    return settling(valkey.url, tmp_path)


def settling(url: str, folder: Path) -> Settle:
    for name in ("a", "b"):
        assert main(["keys", "new", str(folder / name)]) == 0

    def made(keys: str | None) -> str:
        path = folder / f"{keys}.toml"
        more = f'key_file = "{folder / keys}"\n' if keys is not None else ""
        path.write_text(f'[store]\nurl = "{url}"\n{more}')
        return str(path)

    return made


def held_by(path: str, *, filling: bool = False, body: bytes = b"body", records: int = 3) -> int:
    """How many records the process with these settings serves. filling: store them first."""

    async def run() -> int:
        settings, metrics = Settings.load(path, {}), new_metrics()
        store = shared_store_of(settings, metrics, seals_of(settings, metrics))
        keys = [b"%d" % number for number in range(records)]
        try:
            at = await positions(store) if filling else ()
            for key in keys if filling else ():
                made = entry(body, tags=((ACME, "list"),), positions=at, born=time.time(), lifetime=3600.0)
                await write(store, key, made)
            return sum([(await store.get(key)).record is not None for key in keys])
        finally:
            await store.aclose()

    return asyncio.run(run())


def purged(path: str, *words: str) -> int:
    return main(["cache", "purge", "list", "--tenant", "acme", "--config", path, *words])


@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--json",)], ids=["purge", "dry run", "json"])
@pytest.mark.parametrize(
    ("apps", "ours", "said"),
    [
        ("a", None, "store.key_file (or store.keys) is not given, and of 3 records looked at in Redis 3 are sealed"),
        ("a", "b", "has none of the keys that records in Redis are sealed with"),
        (None, "a", "is given, and of 3 records looked at in Redis none is sealed"),
    ],
    ids=["without keys", "other keys", "keys where there are none"],
)
def test_what_a_purge_could_not_reach_is_refused_and_stays(
    settle: Settle,
    capsys: pytest.CaptureFixture[str],
    apps: str | None,
    ours: str | None,
    said: str,
    more: tuple[str, ...],
) -> None:
    app = settle(apps)
    assert held_by(app, filling=True) == 3
    capsys.readouterr()
    assert purged(settle(ours), *more) == 2
    out, err = capsys.readouterr()
    assert (out, said in err) == ("", True), err
    assert held_by(app) == 3
    assert purged(app) == 0
    assert capsys.readouterr().out == "done: 1 tag of the tenant acme\n"
    assert held_by(app) == 0


@pytest.mark.parametrize("size", [4, LARGE], ids=["small", "large"])
def test_one_sealed_record_among_others_is_enough(settle: Settle, size: int) -> None:
    held_by(settle(None), filling=True)
    held_by(settle("a"), filling=True, records=1, body=b"b" * size)  # over one of them: keys were just given
    assert purged(settle(None)) == 2
    assert purged(settle("a")) == 0


@pytest.mark.parametrize("before", [None, "b"], ids=["keys first given", "another ring before"])
def test_right_after_keys_were_given_it_looks_until_it_meets_one_of_them(
    settle: Settle, before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_held, "_LOOK_FOR", 4.0)  # the machine may be busy
    held_by(settle(before), filling=True, records=1500)
    assert held_by(settle("a"), filling=True, records=1) == 1
    assert purged(settle("a")) == 0
    assert held_by(settle("a"), records=1) == 0


def test_anyway_it_purges_and_says_why_it_would_not_have(settle: Settle, capsys: pytest.CaptureFixture[str]) -> None:
    held_by(settle(None), filling=True)
    capsys.readouterr()
    assert purged(settle("a"), "--anyway") == 0
    done, note = capsys.readouterr().out.splitlines()
    assert done == "done: 1 tag of the tenant acme"
    assert note.startswith("note: store.key_file (or store.keys) is given, and of 3 records looked at in Redis none")


def test_where_not_all_was_looked_at_the_refusal_names_the_way_round(
    settle: Settle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held_by(settle(None), filling=True, records=120)
    monkeypatch.setattr(redis_held, "_LOOK_FOR", 0.0)
    assert purged(settle("a")) == 2
    assert "--anyway where these keys were given or replaced just now" in capsys.readouterr().err


def test_a_process_that_may_not_look_says_so_once(valkey: RedisServer) -> None:
    valkey.command_reply("ACL", "SETUSER", "blind", "reset", "on", ">x", "~*", "&*", "+@all", "-scan")

    async def run() -> None:
        metrics = new_metrics()
        store = RedisStore(valkey.url.replace("://", "://blind:x@"), metrics=metrics)

        async def looked() -> bool:
            return store.checked

        await store.start()
        await eventually(looked, "it has given up", 4.0)
        assert metrics.errors.labels("redis-check")._value.get() == 1
        await store.aclose()

    asyncio.run(run())


def with_names_of(folder: Path, keys: str, names: str | None) -> str:
    """A key file with the sealing keys of one ring and the naming key of another, or none."""
    sealing = [line for line in (folder / keys).read_text().splitlines() if "tgk1_" in line]
    naming = [line for line in (folder / names).read_text().splitlines() if "tgn1_" in line] if names else []
    made = f"{keys}-{names}"
    (folder / made).write_text("\n".join([*naming, *sealing]))
    (folder / made).chmod(0o600)
    return made


@pytest.mark.parametrize("names", ["b", None], ids=["another naming key", "no naming key"])
def test_a_process_that_names_otherwise_is_refused_whatever_it_seals_with(
    settle: Settle, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: str | None
) -> None:
    app, other = settle("a"), settle(with_names_of(tmp_path, "a", names))
    assert held_by(app, filling=True) == 3
    capsys.readouterr()
    assert purged(other) == 2
    assert "has another naming key than processes that stored responses here" in capsys.readouterr().err
    assert main(["doctor", "--config", other, "--json"]) == 1
    found = [each for each in json.loads(capsys.readouterr().out) if each["about"] == "keys"]
    assert [each["level"] for each in found if "another naming key" in each["text"]] == ["FAIL"]
    assert held_by(app) == 3
    assert purged(app) == 0
    assert held_by(app) == 0
    assert (purged(other, "--anyway"), "note: " in capsys.readouterr().out) == (0, True)


def test_where_some_processes_name_as_it_does_and_others_do_not_it_purges_and_says_so(
    settle: Settle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app, other = settle("a"), settle(with_names_of(tmp_path, "a", "b"))
    held_by(other, filling=True)
    held_by(app, filling=True)
    capsys.readouterr()
    assert purged(app) == 0
    done, note = capsys.readouterr().out.splitlines()
    assert done == "done: 1 tag of the tenant acme"
    assert "(others have the same): its purges do not reach these" in note
    assert (held_by(app), held_by(other)) == (0, 3)


def test_what_was_stored_long_ago_under_other_names_is_no_evidence(
    settle: Settle, tmp_path: Path, valkey: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    held_by(settle(with_names_of(tmp_path, "a", "b")), filling=True)
    with Client.from_url(valkey.url) as client:
        (mark,) = client.zrange("tidegate:n", 0, -1)
        client.zadd("tidegate:n", {mark: time.time() - 3601})
    capsys.readouterr()
    assert purged(settle("a")) == 0
    assert capsys.readouterr().out == "done: 1 tag of the tenant acme\n"
    with Client.from_url(valkey.url) as client:
        client.zadd("tidegate:n", {mark: time.time() - 31 * 24 * 3600})
        held_by(settle("a"), filling=True, records=1)
        assert mark not in client.zrange("tidegate:n", 0, -1), "let go after a month"


def test_in_a_cluster_every_master_is_looked_at(redis_cluster: RedisCluster, tmp_path: Path) -> None:
    settle = settling(redis_cluster.url, tmp_path)
    assert held_by(settle("a"), filling=True, records=1) == 1
    assert purged(settle(None)) == 2
    assert purged(settle("a")) == 0


def test_where_nothing_lies_it_is_done_and_asks_whether_that_is_the_store(
    settle: Settle, valkey: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with Client.from_url(valkey.url) as client:
        client.set("another:e:1", "x")
        client.hset("tidegate:e:00", "no", "record")
    path = settle("a")
    capsys.readouterr()
    assert purged(path) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "done: 1 tag of the tenant acme"
    assert told[1].startswith("note: no response of Tidegate's is stored there at all")
    assert purged(path, "--dry-run") == 0
    assert "no response of Tidegate's is stored there at all" in capsys.readouterr().out


def test_a_user_who_may_purge_and_not_look_purges_and_says_so(
    valkey: RedisServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    valkey.command_reply("ACL", "SETUSER", "blind", "reset", "on", ">x", "~*", "&*", "+@all", "-scan")
    assert held_by(settling(valkey.url, tmp_path)(None), filling=True) == 3
    path = settling(valkey.url.replace("://", "://blind:x@"), tmp_path)(None)
    capsys.readouterr()
    assert purged(path) == 0
    assert "note: whether it reaches what is stored there could not be seen" in capsys.readouterr().out
    assert held_by(path) == 0


@pytest.mark.parametrize(
    ("apps", "ours", "said"), [("a", None, 1), (None, "a", 1), ("a", "b", 1), ("a", "a", 0), (None, None, 0)]
)
def test_a_process_says_so_when_it_starts_and_doctor_does(
    settle: Settle,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    apps: str | None,
    ours: str | None,
    said: int,
) -> None:
    held_by(settle(apps), filling=True)
    path, metrics = settle(ours), new_metrics()

    async def start() -> None:
        settings = Settings.load(path, {})
        store = shared_store_of(settings, metrics, seals_of(settings, metrics))

        async def looked() -> bool:
            return store.checked

        try:
            await store.start()
            await eventually(looked, "it has looked round", 30.0)
        finally:
            await store.aclose()

    asyncio.run(start())
    assert errors(metrics) == said
    assert ("its purges do not reach them" in caplog.text) == bool(said)
    capsys.readouterr()
    main(["doctor", "--json", "--config", path])
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    failed = [one["text"] for one in found if one["about"] == "keys" and one["level"] == "FAIL"]
    assert ["its purges do not reach them" in text for text in failed] == [True] * said


def errors(metrics: Metrics) -> float:
    return metrics.errors.labels("redis-keys")._value.get()
