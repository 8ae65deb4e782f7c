"""`tidegate doctor` on real servers, well and ill: what it says, how it exits, how long it takes, what it hides."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.docs.pages import Page
from tests.operations.running import Shell, until_clients_know
from tests.services import Prometheus, Redis, RedisCluster, SentinelTrio, Unleash, Valkey
from tests.services.server import free_port
from tidegate.operations import doctor
from tidegate.operations.doctor import PROBE_SECONDS, Finding
from tidegate.operations.masking import Mask
from tidegate.rollout.loading import load_spec
from tidegate.rollout.store import Journal
from tidegate.settings import Settings
from tidegate.vocabulary import COHORT_REQUESTS, FLAGS

ENDS_WITHIN = 5.0
"""Seconds that the whole may take, whatever hangs: the issue's bound. Probes end after PROBE_SECONDS."""


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    return Shell(tmp_path, capsys, monkeypatch)


def examined(shell: Shell, *arguments: str) -> tuple[int, dict[str, list[tuple[str, str]]]]:
    """Exit code, and what was found about each part: level, and text with fix."""
    code, out, err = shell.run("doctor", "--json", *arguments)
    assert err == ""
    found: dict[str, list[tuple[str, str]]] = {}
    for one in json.loads(out):
        found.setdefault(one["about"], []).append((one["level"], f"{one['text']}; {one['fix']}"))
    assert code == int(any(level == "FAIL" for several in found.values() for level, _ in several))
    return code, found


@pytest.fixture
def app_metrics() -> Iterator[Callable[[str], str]]:
    """Serves a text as an app's /metrics; the address."""
    servers: list[ThreadingHTTPServer] = []

    def serve(text: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                """Quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}/metrics"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_with_nothing_configured_nothing_fails_and_it_says_what_is_open(shell: Shell) -> None:
    code, found = examined(shell)
    assert code == 0
    assert found["flags"][0] == ("warn", "flags.provider is none: every layer is open for everybody; "
                                 "fine to begin with; else use local or unleash")  # fmt: skip
    code, out, _ = shell.run("doctor")
    assert out.splitlines()[0] == "ok    settings: from no tidegate.toml"


def test_of_a_file_that_is_not_there_nothing_is_said_to_be_well(shell: Shell) -> None:
    code, out, _ = shell.run("doctor", "--config", "nope.toml")
    said = [line for line in out.splitlines() if " settings: " in line]
    assert code == 1
    assert [line[:4] for line in said] == ["warn", "FAIL"]
    assert "about the defaults" in said[0]
    assert "nope.toml" in said[1]


def test_of_a_file_that_cannot_be_read_it_says_that_the_rest_is_about_defaults(shell: Shell) -> None:
    shell.settings("[store\n")
    _, found = examined(shell)
    told = "what follows is about the defaults, not about your settings"
    assert [text.partition(";")[0] == told for _, text in found["settings"]].count(True) == 1


def test_a_whole_installation_that_is_well_is_called_so(
    start_unleash: Callable[..., Unleash], valkey: Valkey, app_metrics: Callable[[str], str], shell: Shell
) -> None:
    unleash = start_unleash()
    url = app_metrics(f'{COHORT_REQUESTS}{{flag="tidegate.cache"}} 0\ntidegate_flags_staleness_seconds 1.5\n')
    folder = shell.folder / "metrics"
    folder.mkdir()
    assert shell.run("keys", "new", "keys.txt")[0] == 0
    store = f'url = "{valkey.url}"\nkey_file = "keys.txt"'
    more = f'metrics_urls = ["{url}"]\n[store]\n{store}\n[telemetry]\nmetrics_dir = "{folder}"'
    shell.on(unleash, flags=f'unleash_token = "{unleash.development_token}"', rest=more)
    assert shell.run("flags", "init")[0] == 0
    until_clients_know(unleash, "tidegate.etag")
    _, found = examined(shell)
    assert {level for several in found.values() for level, _ in several} == {"ok"}, found
    assert found["tidegate.cache"][0][1].startswith("off, 0 % by tenantId; open for nobody")
    assert found["admin token"][0][1].startswith("Unleash knows it as admin")
    assert "flags 2 s old" in found["app"][0][1]
    parts = {"settings", "extras", "flags", "clock", "stops", "store", "keys", "metrics_dir", "controller"}
    assert set(found) == {*parts, "admin token", "app", *FLAGS.values()}


def test_flags_that_are_dangerous_fail_and_flags_that_are_odd_warn(
    start_unleash: Callable[..., Unleash], shell: Shell
) -> None:
    unleash = start_unleash()
    shell.on(unleash, flags=f'unleash_token = "{unleash.development_token}"')
    unleash.admin.create_flag("tidegate.etag")
    unleash.admin.turn_on("tidegate.etag")  # for everybody
    wrong = unleash.admin.roll_out("tidegate.cache", 5)
    unleash.admin.set_percentage("tidegate.cache", wrong, "12.5")
    unleash.admin.roll_out("tidegate.breaker", 5, stickiness="userId")
    for name in ("tidegate.etag", "tidegate.cache", "tidegate.breaker"):
        until_clients_know(unleash, name)
    code, found = examined(shell)
    assert code == 1
    assert {name: found[name][0][0] for name in FLAGS.values()} == {
        "tidegate.telemetry": "warn",
        "tidegate.cache": "FAIL",
        "tidegate.coalesce": "warn",
        "tidegate.breaker": "warn",
        "tidegate.etag": "FAIL",
    }
    assert "open for every tenant" in found["tidegate.etag"][0][1]
    assert "'12.5'" in found["tidegate.cache"][0][1]
    assert "sticky by 'userId'" in found["tidegate.breaker"][0][1]
    assert "tidegate flags init tidegate.coalesce" in found["tidegate.coalesce"][0][1]


def test_tokens_that_will_not_do_fail_with_their_fix(unleash: Unleash, shell: Shell) -> None:
    shell.on(unleash, token="*:*.wrong", flags=f'unleash_token = "{unleash.production_token}"')
    _, found = examined(shell)
    assert found["admin token"][0][0] == "FAIL"
    assert "set TIDEGATE_ROLLOUT_ADMIN_TOKEN" in found["admin token"][0][1]
    assert found["flags"][0][0] == "FAIL"
    assert "reads the environment 'production', but flags.environment is 'development'" in found["flags"][0][1]

    shell.on(unleash, token="", flags=f'unleash_token = "{unleash.admin_token}"')
    _, found = examined(shell)
    assert found["admin token"][0][0] == "warn"
    assert "tidegate flags init --token prints one" in found["flags"][0][1]

    shell.on(unleash)
    _, found = examined(shell)
    assert found["flags"][0] == ("FAIL", "no backend token: apps keep their layers shut; tidegate flags init --token "
                                 "prints one for TIDEGATE_FLAGS_UNLEASH_TOKEN")  # fmt: skip


def test_black_holes_everywhere_hold_it_up_five_seconds_at_most(shell: Shell) -> None:
    """Listeners that accept and never answer."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as hole:
        at = f"127.0.0.1:{hole.getsockname()[1]}"
        shell.settings(
            f"""
            [flags]
            provider = "unleash"
            unleash_url = "http://{at}/api"
            unleash_token = "default:development.s3cret"
            [store]
            url = "redis://{at}/0"
            [rollout]
            admin_token = "*:*.s3cret"
            prometheus_url = "http://{at}"
            metrics_urls = ["http://{at}/metrics"]
            """
        )
        began = time.monotonic()
        code, found = examined(shell)
        took = time.monotonic() - began
    assert code == 1
    for about in ("flags", "admin token", "clock", "stops", "store", "Prometheus", "app"):
        assert found[about][0][0] == "FAIL", about
        assert ": ;" not in found[about][0][1], about
    assert PROBE_SECONDS <= 3
    assert took < ENDS_WITHIN


def test_a_probe_that_never_ends_or_breaks_is_a_line_and_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless(_: Settings) -> list[Finding]:
        await asyncio.Event().wait()
        return []

    async def broken(_: Settings) -> list[Finding]:
        raise KeyError("odd")

    async def well(_: Settings) -> list[Finding]:
        return [Finding(level="ok", about="well", text="fine")]

    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.1)
    found = asyncio.run(doctor.examine(Settings(), {"endless": endless, "broken": broken, "well": well}))
    assert [(one.about, one.level) for one in found] == [("endless", "FAIL"), ("broken", "FAIL"), ("well", "ok")]
    assert ("no answer within 0.1 s" in found[0].text, "KeyError: 'odd'" in found[1].text) == (True, True)


def test_what_is_refused_is_told_without_a_password(shell: Shell) -> None:
    port = free_port()
    shell.settings(
        f"""
        [flags]
        provider = "unleash"
        unleash_url = "http://ann:pass%21word@127.0.0.1:{port}/api"
        unleash_token = "default:development.hush-hush"
        [store]
        url = "redis://bob:hunter22@127.0.0.1:{port}/0?password=swordfish"
        [rollout]
        admin_token = "*:*.very-secret"
        prometheus_url = "http://eve:tell-nobody@127.0.0.1:{port}"
        metrics_urls = ["http://joe:keep-mum@127.0.0.1:{port}/metrics?token=abracadabra"]
        """
    )
    for arguments in ((), ("--json",)):
        code, out, err = shell.run("doctor", *arguments)
        assert (code, err) == (1, "")
        assert f"127.0.0.1:{port}" in out
        told = (
            "pass",
            "ann:",
            "hush-hush",
            "hunter22",
            "swordfish",
            "very-secret",
            "tell-nobody",
            "keep-mum",
            "abracad",
        )
        assert [secret for secret in told if secret in out.replace("password=***", "")] == []


def test_the_mask_hides_a_password_in_an_error_of_a_library() -> None:
    settings = Settings.of({"store": {"url": "redis://:p%40ssword@host:6379"}, "flags": {"unleash_token": "a:b.cdef"}})
    mask = Mask(settings)
    assert mask("AUTH p@ssword or p%40ssword failed, rediss://u:x@h/1?password=y&db=2") == (
        "AUTH *** or *** failed, rediss://***@h/1?password=***&db=2"
    )
    assert mask("a:b.cdef and a:b") == "*** and a:b"


def test_a_store_of_many_servers_is_asked_as_a_whole(
    sentinels: SentinelTrio, redis_cluster: RedisCluster, shell: Shell
) -> None:
    for url, told in ((sentinels.url, " answers, "), (redis_cluster.url, " answers from 3 servers, ")):
        shell.settings(f'[store]\nurl = "{url}"\n')
        ((level, text),) = examined(shell)[1]["store"]
        assert level == "ok"
        assert told in text
    one = redis_cluster.masters[1]
    one.command_reply("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        ((level, text),) = examined(shell)[1]["store"]
    finally:
        one.command_reply("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert level == "FAIL"
    assert "allkeys-lru may evict purge stamps" in text


@pytest.mark.parametrize("servers", ["valkey", "redis_server"])
def test_a_user_who_may_not_hear_of_kills_or_tell_of_them_is_told_what_to_grant(
    servers: str, request: pytest.FixtureRequest, shell: Shell
) -> None:
    server: Redis | Valkey = request.getfixturevalue(servers)
    redis = " ".join(Page.of("docs/mounting.md").section("Redis").split())
    store, *_, hear = (
        told.split() for told in re.findall(r"`([~+][^`]*)`", redis.partition("A user of an ACL needs")[2])
    )
    channel = "&tidegate:stops:development"

    def stops(*rights: str) -> list[tuple[str, str]]:
        server.command_reply("ACL", "SETUSER", "app", "reset", "on", ">x", *rights)
        return examined(shell)[1]["stops"]

    shell.settings(f'[flags]\nprovider = "local"\n[store]\nurl = "redis://app:x@127.0.0.1:{server.port}/0"\n')
    assert shell.run("flags", "init")[0] == 0
    try:
        ((level, told),) = stops(*store)
        assert (level, "is not heard at once but within 2 s" in told) == ("warn", True)
        assert f"grant it +subscribe +publish {channel}" in told
        code, _, err = shell.run("kill", "tidegate.cache")
        assert (code, "nobody could be told of it at once" in err) == (0, True)
        reads, heard = stops("~tidegate:*", "+@read", "+@connection")
        assert (reads[0], "tidegate.cache is stopped" in reads[1]) == ("warn", True)
        assert (heard[0], "whether a kill is heard at once could not be seen" in heard[1]) == ("warn", True)
        stops(*store)
        assert shell.run("lift", "tidegate.cache")[0] == 0
        assert f"grant it +publish {channel} " in stops(*store, "+subscribe", channel)[0][1]
        assert stops(*store, "+publish", "+subscribe")[0][0] == "warn", "without the channel it helps nobody"
        assert stops(*store, *hear)[0][0] == "ok"
        assert "nobody could be told" not in shell.run("kill", "tidegate.cache")[2]
    finally:
        server.command_reply("ACL", "DELUSER", "app")


def test_a_policy_that_may_evict_stamps_fails(start_redis: Callable[..., Redis], shell: Shell) -> None:
    redis = start_redis()
    shell.settings(f'[store]\nurl = "{redis.url}"\n')
    assert examined(shell)[1]["store"][0][0] == "ok"
    redis.command_reply("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    _, found = examined(shell)
    assert found["store"][0][0] == "FAIL"
    assert "allkeys-lru may evict purge stamps" in found["store"][0][1]
    redis.suspend()
    assert examined(shell)[1]["store"][0][0] == "FAIL"
    redis.resume()


def test_keys_that_are_missing_open_to_others_or_without_names_are_told(valkey: Valkey, shell: Shell) -> None:
    told = "whoever may read Redis can read the responses"
    shell.settings(f'[store]\nurl = "{valkey.url}"\n')
    assert [(level, told in text) for level, text in examined(shell)[1]["keys"]] == [("warn", True)]
    shell.run("keys", "new", "keys.txt")
    shell.settings(f'[store]\nurl = "{valkey.url}"\nkey_file = "keys.txt"\n')
    assert [level for level, _ in examined(shell)[1]["keys"]] == ["ok"]
    path = shell.folder / "keys.txt"
    path.chmod(0o640)
    assert [(level, "chmod 600" in text) for level, text in examined(shell)[1]["keys"]] == [("FAIL", True)]
    path.chmod(0o600)
    items = path.read_text().splitlines()
    path.write_text(items[-1])
    assert [(level, "naming key" in text) for level, text in examined(shell)[1]["keys"]] == [("warn", True)]
    path.write_text(items[-1][:-1])
    (finding,) = examined(shell)[1]["keys"]
    assert (finding[0], "is no key" in finding[1], items[-1][5:20] in finding[1]) == ("FAIL", True, False)


def test_a_prometheus_that_never_saw_the_app_is_told(prometheus: Callable[..., Prometheus], shell: Shell) -> None:
    shell.settings(f'[rollout]\nprometheus_url = "{prometheus(targets=[]).url}"\n')
    level, told = examined(shell)[1]["Prometheus"][0]
    assert (level, f"has no {COHORT_REQUESTS}" in told) == ("warn", True)


def test_an_apps_metrics_tell_how_old_its_flags_are(app_metrics: Callable[[str], str], shell: Shell) -> None:
    counted = f'{COHORT_REQUESTS}{{flag="tidegate.cache"}} 0\n'
    cases = {
        counted + "tidegate_flags_staleness_seconds 75\n": ("FAIL", "its flags are 75 s old"),
        "up 1\n": ("FAIL", "nothing to judge by"),
        "<html>": ("FAIL", "not with metrics"),
        counted: ("ok", "answers"),
    }
    urls = [app_metrics(text) for text in cases]
    shell.settings(f"[rollout]\nmetrics_urls = {json.dumps(urls)}\n")
    found = examined(shell)[1]["app"]
    assert [level for level, _ in found] == [level for level, _ in cases.values()]
    assert [told in text for (_, text), (_, told) in zip(found, cases.values(), strict=True)] == [True] * 4


def test_where_nobody_is_counted_it_says_that_flags_are_lacking_or_the_mount(
    app_metrics: Callable[[str], str], shell: Shell
) -> None:
    url = app_metrics("up 1\n")
    for provider, told in (("none", "set flags.provider"), ("local", "mount Tidegate's metrics_app there")):
        shell.settings(f'[flags]\nprovider = "{provider}"\n[rollout]\nmetrics_urls = ["{url}"]\n')
        level, text = examined(shell)[1]["app"][0]
        assert (level, told in text) == ("FAIL", True)


def test_an_app_that_was_started_without_flags_is_told_so(app_metrics: Callable[[str], str], shell: Shell) -> None:
    url = app_metrics("tidegate_flags_ready 1\n")
    shell.settings(f'[flags]\nprovider = "local"\n[rollout]\nmetrics_urls = ["{url}"]\n')
    ((level, text),) = examined(shell)[1]["app"]
    assert (level, "runs without flags: start it anew with these settings" in text) == ("FAIL", True)
    assert "mount" not in text


def test_an_unleash_and_stop_records_that_are_not_there_are_told_with_what_to_do(shell: Shell) -> None:
    port = free_port()
    shell.settings(
        f'[flags]\nprovider = "unleash"\nunleash_url = "http://127.0.0.1:{port}/api"\nunleash_token = "x"\n'
        f'stops = "redis://127.0.0.1:{port}/0"\n[rollout]\nadmin_token = "x"\n'
    )
    _, found = examined(shell)
    for part in ("flags", "admin token", "clock"):
        ((level, text),) = found[part]
        assert (level, "is Unleash running there, is flags.unleash_url right" in text) == ("FAIL", True), part
    ((level, text),) = found["stops"]
    assert (level, "is that Redis running, and is flags.stops" in text) == ("FAIL", True)
    shell.settings('[flags]\nprovider = "local"\nstops = "stops.json"\n')
    (shell.folder / "stops.json").mkdir()
    ((level, text),) = examined(shell)[1]["stops"]
    assert (level, "may this user read that file" in text) == ("FAIL", True)


def test_a_store_that_is_not_there_is_told_with_the_setting_that_names_it(shell: Shell) -> None:
    shell.settings(f'[store]\nurl = "redis://127.0.0.1:{free_port()}/0"\n')
    ((level, text),) = examined(shell)[1]["store"]
    assert (level, "is it running there, and is store.url (REDIS_URL) right?" in text) == ("FAIL", True)


def test_a_store_that_takes_no_writes_fails(start_redis: Callable[..., Redis], shell: Shell) -> None:
    redis = start_redis()
    shell.settings(f'[store]\nurl = "{redis.url}"\n')
    redis.command_reply("CONFIG", "SET", "maxmemory", "1")
    ((level, text),) = examined(shell)[1]["store"]
    assert (level, "is full (maxmemory 1): nothing is stored, and purges pend" in text) == ("FAIL", True)
    redis.command_reply("CONFIG", "SET", "maxmemory", "0")
    redis.command_reply("REPLICAOF", "127.0.0.1", str(free_port()))
    ((level, text),) = examined(shell)[1]["store"]
    assert (level, "is a replica: nothing can be stored or purged there" in text) == ("FAIL", True)


def test_a_single_server_that_is_taken_for_a_cluster_is_told(valkey: Valkey, shell: Shell) -> None:
    shell.settings(f'[store]\nurl = "{valkey.url.replace("redis://", "redis+cluster://")}"\n')
    ((level, text),) = examined(shell)[1]["store"]
    assert (level, "of a single server begins with redis://" in text, "report it" in text) == ("FAIL", True, False)


def test_a_variable_that_is_nearly_a_setting_is_told_and_others_are_left_alone(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEGATE_STORE_BUDGETT", "1")
    monkeypatch.setenv("TIDEGATE_STOR_URL", "redis://secret")
    monkeypatch.setenv("TIDEGATE_CACHE_PORT_80_TCP", "tcp://10.0.0.1:80")
    monkeypatch.setenv("TIDEGATE_STORE_BUDGET", "0.1")
    monkeypatch.setenv("TIDEGATE_OF_ANOTHER", "x")
    _, found = examined(shell)
    told = [text for level, text in found["settings"] if level == "warn"]
    assert told == [
        "TIDEGATE_CACHE_PORT_80_TCP is no setting, and not read; see the settings in docs/mounting.md",
        "TIDEGATE_STORE_BUDGETT is no setting, and not read; did you mean TIDEGATE_STORE_BUDGET?",
        "TIDEGATE_STOR_URL is no setting, and not read; did you mean TIDEGATE_STORE_URL?",
    ]


def test_how_old_flags_may_be_is_what_the_settings_say(app_metrics: Callable[[str], str], shell: Shell) -> None:
    url = app_metrics(f'{COHORT_REQUESTS}{{flag="tidegate.cache"}} 0\ntidegate_flags_staleness_seconds 75\n')
    for seconds, level in ((300, "ok"), (5, "FAIL")):
        shell.settings(f"[flags]\nmax_staleness = {seconds}\n[rollout]\nmetrics_urls = [{json.dumps(url)}]\n")
        assert examined(shell)[1]["app"][0][0] == level


def test_a_flag_file_that_never_ends_holds_up_nobody(shell: Shell) -> None:
    """In a process of its own: what waits for a thread waits at the end of it."""
    os.mkfifo(shell.folder / "flags.json")
    shell.settings('[flags]\nprovider = "local"\n')
    for command in (["doctor"], ["flags", "status"]):
        ended = subprocess.run(
            [sys.executable, "-m", "tidegate.cli", *command], capture_output=True, text=True, timeout=60, check=False
        )
        assert (ended.returncode, "flags.json did not answer within" in ended.stdout + ended.stderr) == (1, True)


def test_several_workers_that_count_alone_fail(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    _, found = examined(shell)
    assert (found["metrics_dir"][0][0], found["store"][0][0]) == ("FAIL", "warn")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(shell.folder / "nowhere"))
    level, told = examined(shell)[1]["metrics_dir"][0]
    assert (level, "make that folder" in told) == ("FAIL", True)


def test_a_rollout_that_nobody_attends_to_fails(shell: Shell) -> None:
    shell.settings('[flags]\nprovider = "local"\n')
    shell.run("flags", "init")
    spec = shell.folder / "canary.yaml"
    spec.write_text(
        "name: canary\nflag: tidegate.cache\nsteps: [{percent: 1, dwell: 15s, min_requests: 1}]\n"
        "objectives: {errors: {max: 1%}}\n"
    )
    with Journal(shell.folder / "tidegate-journal.sqlite3") as journal:
        journal.add(load_spec(spec), "development", time.time())
        level, told = examined(shell)[1]["controller"][0]
        assert (level, "canary is not over; tidegate controller" in told) == ("FAIL", True)
        journal.acquire("desk-1", time.time(), 60)
        assert examined(shell)[1]["controller"][0][0] == "ok"


def test_settings_that_are_wrong_are_lines_and_the_rest_is_still_seen(shell: Shell) -> None:
    shell.settings('[flags]\nprovider = "local"\n[store]\nurl = "http://u:secret@x"\n[cache]\nshare = "all"\n')
    shell.run("flags", "init")
    code, found = examined(shell)
    assert code == 1
    wrong = [told for level, told in found["settings"] if level == "FAIL"]
    assert [told.partition(":")[0] for told in wrong] == ["cache.share", "store.url"]
    warned = [told for level, told in found["settings"] if level == "warn"]
    assert [told.partition(" is about its defaults")[0] for told in warned] == [
        "what follows of cache", "what follows of store"
    ]  # fmt: skip
    assert "secret" not in str(found)
    assert "the file flags.json answers" in found["flags"][0][1]
    (shell.folder / "flags.json").unlink()
    level, told = examined(shell)[1]["flags"][0]
    assert (level, "every layer is shut; tidegate flags init" in told) == ("FAIL", True)
