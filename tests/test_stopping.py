"""Where the stop records lie: one answer for everybody who has the same settings."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.services import Valkey
from tidegate.cli import main
from tidegate.errors import FlagError
from tidegate.settings import Settings
from tidegate.stopping import in_thread, place_of, shown_place, stop_home

REDIS, ANOTHER = "redis://me:s3cret@cache:6379/0", "redis://other:6379/1"


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({}, "tidegate-stops.json"),
        ({"flags": {"file": "/etc/app/flags.json"}}, "/etc/app/tidegate-stops.json"),
        ({"store": {"url": REDIS}}, REDIS),
        ({"store": {"url": REDIS, "enabled": False}}, "tidegate-stops.json"),
        ({"store": {"url": REDIS}, "flags": {"stops": ANOTHER}}, ANOTHER),
        ({"store": {"url": REDIS}, "flags": {"stops": "/var/lib/stops.json"}}, "/var/lib/stops.json"),
    ],
)
def test_they_lie_where_the_settings_say_else_in_the_stores_redis_else_beside_the_flag_file(
    settings: dict[str, Any], place: str
) -> None:
    made = Settings.of(settings)
    assert place_of(made) == place
    assert "s3cret" not in shown_place(made) + str(stop_home(made, "production"))


def test_doctor_names_the_place_without_its_password(
    valkey: Valkey, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis.Redis.from_url(valkey.url) as admin:
        admin.execute_command("ACL", "SETUSER", "me", "on", ">s3cret", "~*", "&*", "+@all")
    url = valkey.url.replace("://", "://me:s3cret@")
    (tmp_path / "tidegate.toml").write_text(f'[flags]\nprovider = "local"\nstops = "{url}"')
    (tmp_path / "flags.json").write_text('{"version": 1, "flags": {}}')
    monkeypatch.chdir(tmp_path)
    main(["doctor"])
    said = "".join(capsys.readouterr())
    assert f"no flag is stopped ({valkey.url.replace('://', '://***@')})" in said
    assert "s3cret" not in said


def test_work_that_hangs_holds_up_nobody_and_what_it_raises_is_raised() -> None:
    async def check() -> None:
        assert await in_thread(lambda: 7, 5, "it") == 7
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: 1 // 0, 5, "it")
        with pytest.raises(FlagError, match=r"it did not answer within 0\.05 s"):
            await in_thread(lambda: time.sleep(1), 0.05, "it")

    asyncio.run(check())
