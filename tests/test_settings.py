"""Settings: from file and environment, with every problem named at once."""

from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tidegate import Tidegate
from tidegate.errors import ConfigError
from tidegate.settings import Settings


def test_without_anything_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings.load(environ={}) == Settings()


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    file = tmp_path / "tidegate.toml"
    file.write_text('[flags]\nprovider = "local"\nunit = "user"\n[store]\nbudget = 0.1\n')
    settings = Settings.load(str(file), {"TIDEGATE_FLAGS_UNIT": "session", "TIDEGATE_FLAGS_BANDS": "1, 10,100"})
    assert (settings.flags.provider, settings.flags.unit, settings.flags.bands) == ("local", "session", (1, 10, 100))
    assert settings.store.budget == 0.1


def test_the_names_of_longer_standing_are_understood() -> None:
    environ = {
        "REDIS_URL": "redis://localhost:6379",
        "REDIS_ENABLED": "false",
        "REDIS_DEFAULT_TTL": "300",
        "CACHE_VERSION": "v1-dev",
        "TIDEGATE_ROLLOUT_METRICS_URLS": "http://a/metrics,http://b/metrics",
    }
    settings = Settings.load(environ=environ)
    assert (settings.store.url, settings.store.enabled) == ("redis://localhost:6379", False)
    assert (settings.cache.default_ttl, settings.cache.version) == (300.0, "v1-dev")
    assert settings.rollout.metrics_urls == ("http://a/metrics", "http://b/metrics")


def test_every_problem_is_reported_at_once_with_path_value_and_fix(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(
        '[cache]\nshar = "x"\nshare = "all"\n[[cache.policies]]\nroute = "/a/{x}"\nttl = -1\ntags = ["u:{y}"]\n'
        'tll = 3\n[[cache.policies]]\nttl = 1\n[store]\nurl = "http://foo"\n[flags]\nbands = [10, 5]\n[foo]\n'
    )
    with pytest.raises(ConfigError) as caught:
        Settings.load(str(file), {"REDIS_ENABLED": "maybe", "TIDEGATE_ROLLOUT_LISTEN": "nowhere"})
    assert {problem.path for problem in caught.value.problems} == {
        "foo",
        "cache.shar",
        "cache.share",
        "cache.policies[0].ttl",
        "cache.policies[0].tags[0]",
        "cache.policies[0].tll",
        "cache.policies[1]",
        "store.url",
        "flags.bands",
        "REDIS_ENABLED",
        "TIDEGATE_ROLLOUT_LISTEN",
    }
    text = str(caught.value)
    assert "did you mean share?" in text
    assert "'all' is not a share; use public, tenant or user" in text


def test_a_wrong_token_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.of({"flags": {"unleash_token": 12345}})
    assert "12345" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[cache\n", "is not TOML"),
        (None, "does not exist"),
        ("x = " + "9" * 5000, "is not TOML: Exceeds the limit"),
        ("x = " + "[" * 5000, "is nested too deeply"),
        ("[store]\nbudget = 0x" + "f" * 5000, "store.budget: <int too long to show> is not a time budget"),
    ],
    ids=["broken", "missing", "number", "nested", "hexadecimal"],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "tidegate.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        Settings.load(str(file), {})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("REDIS_URL", "redis://[::1"),
        ("REDIS_URL", "redis://:secret@host:99999"),
        ("REDIS_URL", "rdis://:secret@host"),
        ("TIDEGATE_ROLLOUT_PROMETHEUS_URL", "http://host:port"),
        ("TIDEGATE_ROLLOUT_LISTEN", "host:²"),
        ("TIDEGATE_FLAGS_BANDS", "²,100"),
        ("TIDEGATE_FLAGS_BANDS", "9" * 5000),
    ],
)
def test_an_odd_value_is_refused_by_name_and_tells_no_password(variable: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.load(None, {variable: value})
    assert [problem.path for problem in caught.value.problems] == [variable]
    assert "secret" not in str(caught.value)


def test_a_value_that_holds_itself_many_times_over_is_shown_in_short() -> None:
    bomb: object = ["x"]
    for _ in range(60):
        bomb = [bomb] * 10
    with pytest.raises(ConfigError, match=r"cache.share: \[\[\[\["):
        Settings.of({"cache": {"share": bomb}})


def test_relative_paths_in_a_settings_file_are_seen_from_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "tidegate.toml"
    file.write_text(
        '[flags]\nfile = "flags/all.json"\nstops = "stops.json"\n[telemetry]\nmetrics_dir = "../metrics"\n'
        '[rollout]\njournal = "/var/lib/journal"\n'
    )
    found = Settings.load(str(file), {})
    assert found.flags.file == str(tmp_path / "flags/all.json")
    assert found.flags.stops == str(tmp_path / "stops.json")
    assert found.telemetry.metrics_dir == str(tmp_path / "../metrics")
    assert found.rollout.journal == "/var/lib/journal"
    environ = {"TIDEGATE_FLAGS_FILE": "mine.json", "TIDEGATE_FLAGS_STOPS": "redis://127.0.0.1/0"}
    found = Settings.load(str(file), environ)
    assert (found.flags.file, found.flags.stops) == ("mine.json", "redis://127.0.0.1/0")
    file.write_text('[flags]\nstops = "redis://127.0.0.1/1"\n')
    assert Settings.load(str(file), {}).flags.stops == "redis://127.0.0.1/1"
    assert Settings.load(str(file), {}).flags.file == "flags.json"


def test_an_app_that_follows_unleash_without_a_token_is_told_how_to_get_one() -> None:
    with pytest.raises(ConfigError) as raised:
        Tidegate(Settings.of({"flags": {"provider": "unleash"}}), registry=CollectorRegistry())
    (problem,) = raised.value.problems
    assert (problem.path, "tidegate flags init --token" in problem.fix) == ("flags.unleash_token", True)


@pytest.mark.parametrize(
    "table",
    [
        {"rollout": {"admintoken": "*:*.hush"}},
        {"rolout": {"admin_token": "*:*.hush"}},
        {"store": {"password": "hush"}},
        {"store": {"url": "redis://:hush/hush@host:6379"}},
        {"rollout": {"metrics_urls": ["ftp://joe:hush@host"]}},
    ],
)
def test_what_may_be_a_secret_under_a_wrong_name_or_in_a_wrong_address_is_not_told(table: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.of(table)
    assert "hush" not in str(caught.value)
    assert "***" in str(caught.value)
