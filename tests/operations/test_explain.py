"""`tidegate cache explain`: through an application in this process, and of a server's answer."""

import asyncio
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.driver import call
from tests.services import Valkey, free_port
from tidegate import CacheLayer, cli
from tidegate.middleware.core.explain_status import read_cache_status
from tidegate.middleware.layers.cache import CacheLayer as Layer

APP = """
from prometheus_client import CollectorRegistry
from tidegate import CacheLayer, MemoryStore, RoutePolicy, Settings, Tidegate, trusted_headers

ran = []

async def handler(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            ran.append(kind)
            await send({"type": kind + ".complete"})
            if kind.endswith("shutdown"):
                return
    print("noise on stdout")
    ran.append(scope["method"] + " " + scope["path"])
    scope["tidegate"].tag("by-handler") if "tidegate" in scope else None
    headers = [(b"set-cookie", b"a=b")] if scope["path"] == "/cookie" else [(b"vary", b"cookie")]
    if scope["path"] == "/large":
        headers.append((b"x-large", b"x" * 40_000))
    status = 401 if scope["path"] == "/private" else 200
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})

tide = Tidegate(
    Settings.load(),
    identify=trusted_headers(tenant="x-tenant", user="x-user"),
    policies=[
        RoutePolicy(route="/clients", ttl=60, share="tenant", query=("page", "token"), tags=("clients",)),
        RoutePolicy(route="/rename", invalidates=("clients",)),
        RoutePolicy(route="/cookie", ttl=60),
        RoutePolicy(route="/large", ttl=60),
        RoutePolicy(route="/private", ttl=60),
    ],
    registry=CollectorRegistry(),
)
app = tide(handler)
store = MemoryStore()
alone = CacheLayer(handler, store=store, share="public")
bare = handler
number = 7
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module with an application, in the working directory."""
    name = f"explained_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(APP, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for variable in ("TIDEGATE_CONFIG", "REDIS_URL"):
        monkeypatch.delenv(variable, raising=False)
    yield name
    sys.modules.pop(name, None)


def explained(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert cli.main(["cache", "explain", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_stored_response_is_explained_and_nothing_is_stored(module: str, capsys: Any) -> None:
    words = ("GET", "https://app.test/clients?page=2&utm=x", "--app", f"{module}:app", "-H", "x-tenant: acme")
    told = explained(capsys, *words)
    assert (told["stored"], told["lifetime"], told["rule"], told["share"]) == (True, 60.0, "policy ttl", "tenant")
    assert told["identity"] == {"tenant": "acme", "user": None, "grants": False}
    assert (told["key"]["host"], told["key"]["query"], told["key"]["left_out"]) == ("app.test", "page=2", ["utm"])
    assert ["tenant:acme", "clients"] in told["tags"]
    assert told["cache_status"] == "Tidegate; fwd=miss; stored"
    assert sys.modules[module].ran == ["lifespan.startup", "GET /clients", "lifespan.shutdown"]
    assert explained(capsys, *words)["found"] is None, "the first one stored nothing"


def test_a_refusal_is_explained_with_what_to_change(module: str, capsys: Any) -> None:
    words = ["cache", "explain", "GET", "http://app.test/cookie", "--app", f"{module}:app", "--as", "acme/ann"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "GET http://app.test/cookie as acme/ann" in printed
    assert "stored: no" in printed
    assert "may not be stored: Set-Cookie" in printed
    assert "RFC 9111 7.3" in printed
    assert "fix: set the cookie on another response" in printed
    assert "noise on stdout" not in printed
    assert "--as speaks to the cache only" in printed


def test_an_answer_that_no_ttl_is_for_is_named_by_its_status(module: str, capsys: Any) -> None:
    words = ["cache", "explain", "GET", "http://app.test/private", "--app", f"{module}:app", "--as", "acme/ann"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "  the app answered: 401\n  stored: no\n" in printed
    assert "it is a 401, which says for itself how long it is fresh" in printed
    assert "fix: see why the app answers so" in printed
    assert "--as speaks to the cache only; the app answered" in printed
    assert cli.main([*words, "--no-run"]) == 0
    printed = capsys.readouterr().out
    assert "a plain 200 would be stored for 60 s" in printed
    assert "the app answered" not in printed, "it was not run"


def test_without_an_identity_it_says_so_and_as_gives_one(module: str, capsys: Any) -> None:
    words = ("GET", "http://app.test/clients", "--app", f"{module}:app", "--no-run")
    nobody = explained(capsys, *words)
    assert "nobody is known" in nobody["steps"][0]["because"]
    as_ann = explained(capsys, *words, "--as", "acme/ann", "--grants", "admin")
    assert as_ann["stored"] is None
    assert (as_ann["key"]["tenant"], as_ann["key"]["grants"]) == ("acme", True)
    assert "GET /clients" not in sys.modules[module].ran


def test_an_unsafe_method_never_runs_the_app_and_says_what_it_purges(module: str, capsys: Any) -> None:
    told = explained(capsys, "PUT", "http://app.test/rename", "--app", f"{module}:app", "--as", "acme/ann")
    assert ["tenant:acme", "clients"] in told["purges"]
    assert "PUT /rename" not in sys.modules[module].ran


def test_a_layer_that_is_mounted_alone_is_asked_too_and_acts_again_afterwards(module: str, capsys: Any) -> None:
    told = explained(capsys, "GET", "http://app.test/x", "--app", f"{module}:alone")
    assert told["stored"] is False
    assert told["cache_status"] == 'Tidegate; fwd=miss; detail="no freshness given"'
    layer = sys.modules[module].alone
    assert type(layer) is CacheLayer is Layer
    answer = asyncio.run(call(layer, "/x"))
    assert (answer.status, answer.body) == (200, b"hello")


def test_what_is_stored_is_found_and_served_and_stays_as_it_is(module: str, capsys: Any) -> None:
    sys.path.insert(0, str(Path.cwd()))
    app = importlib.import_module(module).app
    asyncio.run(call(app, "/clients", headers=[("x-tenant", "acme")]))
    capsys.readouterr()  # what the app printed there
    ran = len(sys.modules[module].ran)
    told = explained(capsys, "GET", "http://example.test/clients", "--app", f"{module}:app", "--as", "acme/bob")
    assert told["served"] is True
    assert told["found"]["serving"] == "fresh"
    assert 50 <= told["found"]["ttl"] <= 60
    assert (told["cache_status"] or "").startswith("Tidegate; hit; ttl=")
    assert [line for line in sys.modules[module].ran[ran:] if "lifespan" not in line] == []


def test_of_what_is_served_from_the_store_it_does_not_say_that_it_is_not_stored(module: str, capsys: Any) -> None:
    sys.path.insert(0, str(Path.cwd()))
    asyncio.run(call(importlib.import_module(module).app, "/clients", headers=[("x-tenant", "acme")]))
    words = ["cache", "explain", "GET", "http://example.test/clients", "--app", f"{module}:app", "--as", "acme/bob"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "served from the store: yes" in printed
    assert "  stored: " not in printed
    assert "  tenant:acme: by-handler\n" in printed.partition("\ntags\n")[2]


def test_an_app_without_a_cache_says_so(module: str, capsys: Any) -> None:
    assert cli.main(["cache", "explain", "GET", "http://app.test/", "--app", f"{module}:bare"]) == 1
    assert "no cache sees this request: is Tidegate mounted" in capsys.readouterr().err


def test_where_something_above_the_cache_answers_it_says_so(module: str, capsys: Any) -> None:
    assert cli.main(["cache", "explain", "GET", "http://app.test/private", "--app", f"{module}:bare"]) == 1
    told = capsys.readouterr().err
    assert "no cache sees this request: 401 was answered before it came to one" in told
    assert "-H" in told


def test_a_gate_that_is_shut_is_the_first_thing_said(module: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "flags.json").write_text('{"version": 1, "flags": {}}', encoding="utf-8")
    (tmp_path / "tidegate.toml").write_text('[flags]\nprovider = "local"\n', encoding="utf-8")
    told = explained(capsys, "GET", "http://app.test/clients", "--app", f"{module}:app", "--as", "acme/ann")
    assert told["stored"] is False
    assert "the cache is shut" in told["steps"][0]["found"]
    assert [layer["cohort"] for layer in told["layers"]] == ["control"] * 5


FLAG = "tidegate.cache"


@pytest.mark.parametrize(
    ("strategy", "kill", "words"),
    [
        ({"percentage": 0}, False, "is shut for everybody"),
        ({"percentage": 1}, False, "is open to 1 % by tenantId, and this unit's place is 89 of 100"),
        ({"percentage": 50, "stickiness": "userId"}, False, "is open to 50 % by userId, and neither that nor another"),
        (
            {"percentage": 89, "constraints": [{"field": "tenantId", "operator": "IN", "values": ["globex"]}]},
            False,
            "this unit's place is 89 of 100; but its conditions do not let the unit in",
        ),
        ({"percentage": 100}, True, "is stopped by a record, whatever its percentage"),
        ({"percentage": 100}, False, "lets this unit in"),
    ],
)
def test_of_a_flag_it_says_whether_its_percentage_or_a_stop_shuts_the_layer(
    module: str, tmp_path: Path, capsys: Any, strategy: Any, kill: bool, words: str
) -> None:
    flags = {"version": 1, "flags": {FLAG: {"enabled": True, "strategies": [strategy]}}}
    (tmp_path / "flags.json").write_text(json.dumps(flags), encoding="utf-8")
    (tmp_path / "tidegate.toml").write_text('[flags]\nprovider = "local"\n', encoding="utf-8")
    if kill:
        assert cli.main(["kill", FLAG]) == 0
        # It shuts the file's flag as well; here the stop alone is to say so.
        (tmp_path / "flags.json").write_text(json.dumps(flags), encoding="utf-8")
        capsys.readouterr()
    told = explained(capsys, "GET", "http://app.test/clients", "--app", f"{module}:app", "--as", "acme/ann")
    cache = next(layer for layer in told["layers"] if layer["layer"] == "cache")
    assert words in cache["why"]
    assert (words == "lets this unit in") == cache["open"] == ("the cache is shut" not in told["steps"][0]["found"])


def test_of_a_request_without_a_unit_it_says_that_no_percentage_opens_the_cache_and_what_does(
    module: str, tmp_path: Path, capsys: Any
) -> None:
    whole = {"version": 1, "flags": {FLAG: {"enabled": True, "strategies": [{"percentage": 100}]}}}
    (tmp_path / "flags.json").write_text(json.dumps(whole), encoding="utf-8")
    (tmp_path / "tidegate.toml").write_text('[flags]\nprovider = "local"\n', encoding="utf-8")
    step = explained(capsys, "GET", "http://app.test/clients", "--app", f"{module}:app")["steps"][0]
    assert "no unit is known (no identity), and for such requests it is shut, at 100 % too" in step["because"]
    assert "Tidegate(properties=...)" in step["fix"]
    assert "flags status" not in step["fix"]


def test_a_limit_that_bites_is_named_in_words_and_in_cache_status(module: str, capsys: Any) -> None:
    told = explained(capsys, "GET", "http://app.test/large", "--app", f"{module}:app", "--as", "acme/ann")
    assert (told["stored"], told["cache_status"]) == (False, "Tidegate; fwd=miss; detail=limit-headers")
    assert "its header fields are longer than 32768 bytes" in [step["because"] for step in told["steps"]]
    (said,) = read_cache_status([(b"cache-status", told["cache_status"].encode())]) or []
    assert "too many bytes of header fields" in " ".join(said.words)


def test_what_lies_in_a_real_redis_is_explained_and_left_alone(
    module: str, tmp_path: Path, capsys: Any, valkey: Valkey
) -> None:
    (tmp_path / "tidegate.toml").write_text(f'[store]\nurl = "{valkey.url}"\nbudget = 5.0\n', encoding="utf-8")
    sys.path.insert(0, str(Path.cwd()))
    stored = importlib.import_module(module)

    async def fill() -> None:
        await call(stored.app, "/clients", headers=[("x-tenant", "acme")])
        await stored.tide.aclose()

    asyncio.run(fill())
    capsys.readouterr()
    with Redis.from_url(valkey.url) as redis:
        before = {key: redis.dump(key) for key in redis.scan_iter()}
        assert len(before) >= 1
        words = ("--app", f"{module}:app", "--as")
        found = explained(capsys, "GET", "http://example.test/clients", *words, "acme/bob")
        other = explained(capsys, "GET", "http://example.test/clients", *words, "globex/eve")
        assert {key: redis.dump(key) for key in redis.scan_iter()} == before
    assert (found["served"], found["found"]["serving"]) == (True, "fresh")
    assert ["tenant:acme", "clients"] in found["found"]["tags"]
    assert (other["served"], other["stored"], other["found"]) == (False, True, None)


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_no_secret_is_printed(module: str, more: list[str], capsys: Any) -> None:
    words = ["cache", "explain", "GET", "http://app.test/clients?page=1&token=s3cr3t", "--app", f"{module}:app"]
    words += ["-H", "x-tenant: acme", "-H", "Cookie: s3cr3t", "-H", "Authorization: Bearer s3cr3t", *more]
    assert cli.main(words) == 0
    printed = capsys.readouterr()
    assert "token=***" in printed.out
    assert "cookie" in printed.out.lower()
    assert "s3cr3t" not in printed.out + printed.err


def test_bad_input_is_named_all_at_once_and_without_secrets(capsys: Any) -> None:
    words = ["cache", "explain", "G T", "//host/x?token=s3cr3t", "-H", "s3cr3t", "-H", "a: \x01s3cr3t", "--as", "/ann"]
    assert cli.main([*words, "--no-run"]) == 2
    told = capsys.readouterr().err
    for path in ("METHOD", "URL", "-H[0]", "-H[1]", "--as", "--no-run"):
        assert path in told
    assert "s3cr3t" not in told
    assert cli.main(["cache", "explain", "POST", "http://user:s3cr3t@host/"]) == 2
    told = capsys.readouterr().err
    assert "may change something on the server" in told
    assert "holds a user name or password" in told
    assert "s3cr3t" not in told


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "names no application"),
        ("no_such_module:app", "cannot be imported"),
        ("{module}:nothing", "cannot be imported"),
        ("{module}:number", "not an ASGI application"),
        ("{module}:tide", "name what tide(app) gave"),
    ],
)
def test_an_app_that_is_not_there_is_named(module: str, name: str, words: str, capsys: Any) -> None:
    assert cli.main(["cache", "explain", "GET", "http://a/", "--app", name.format(module=module)]) == 2
    told = capsys.readouterr().err
    assert "--app" in told
    assert words in told


def test_a_server_that_is_not_there_is_named_without_its_query(capsys: Any) -> None:
    port = free_port()
    assert cli.main(["cache", "explain", "GET", f"http://127.0.0.1:{port}/a?token=s3cr3t"]) == 1
    told = capsys.readouterr().err
    assert f"http://127.0.0.1:{port}/a could not be asked: ConnectionRefusedError; is it running there?" in told
    assert "s3cr3t" not in told


def test_a_servers_cache_status_is_read_in_words() -> None:
    lines = [(b"cache-status", b'Tidegate; fwd=miss; detail="Set-Cookie"'), (b"cache-status", b"Edge; hit; ttl=-3")]
    ours, edge = read_cache_status(lines) or []
    assert ours.rule is not None
    assert ours.rule.source == "P2, RFC 9111 7.3"
    assert edge.words == ("answered from the store", "stale for 3 s")
    (bypass,) = read_cache_status([(b"cache-status", b"Tidegate; fwd=bypass; detail=no-user")]) or []
    assert bypass.rule is not None
    assert "names a tenant only" in bypass.rule.words
    assert read_cache_status([(b"cache-status", b"((")]) is None
    assert read_cache_status([]) == []
