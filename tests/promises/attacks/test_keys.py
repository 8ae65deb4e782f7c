"""Paths that look alike, and parts of requests that could run into each other, have keys of their own."""

import asyncio
from typing import Any
from urllib.parse import unquote_to_bytes

from prometheus_client import CollectorRegistry

from tests.driver import Origin, call, scope_of
from tests.promises.attacks.faults import ONE_TENANT, key_without, narrowing
from tests.promises.attacks.planting import Plant, attack
from tests.promises.attacks.stage import ANN, BEA, BOB, Echo, asked, hits, said, stack, tide
from tests.promises.attacks.test_identity import NAIVE_JOIN
from tests.property import test_keys as laws
from tidegate import RoutePolicy
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.memory import MemoryStore

PATHS = ["/me", "/me/", "//me", "/ME", "/me/x.css", "/me;x.css", "/me%2fx.css", "/me%2Fx.css", "/me%00.css", "/me%0a",
         "/static/..%2fme", "/static/../me", "/static/%2e%2e/me", "/./me", "/me?", "/me%3Fb", "/%6de", "/me%20",
         "/me\\x.css", "/me%5cx.css", "/me#x", "http://evil.test/me", "/me/."]  # fmt: skip


def at(sent: str) -> dict[str, Any]:
    """A request for a path as it was sent, as a server would give it."""
    raw = sent.encode().partition(b"?")[0]
    return {"scope": scope_of() | {"raw_path": raw, "path": unquote_to_bytes(raw).decode()}}


DECODED = Plant(
    name="keys of decoded paths",
    target="middleware.core.keys:path_part",
    by=lambda _original: lambda path, _raw, _root: path.encode(),
)
ONE_PATH = Plant(
    name="keys of the last segment", target="middleware.core.keys:path_part", by=lambda _original: lambda *_: b"/me"
)


def kept_apart(paths: list[str]) -> None:
    answers = asked(stack(Echo()), *(at(path) for path in paths * 2))
    assert [said(answer)["url"][1] for answer in answers] == [path.partition("?")[0] for path in paths * 2]
    assert sum(hits(answers)[len(paths) :]) >= len(paths) - 1  # an absolute form is no policy's


@attack("19", without=[ONE_PATH, DECODED])
def test_every_spelling_of_a_path_has_an_answer_of_its_own() -> None:
    kept_apart([path for path in PATHS if path != "/me?"])


CLIMBING = Plant(
    name="paths that climb", target="middleware.core.keys:climbs", by=lambda _original: lambda _path: False
)


@attack("19", without=[CLIMBING], cases=["public", "tenant"])
def test_a_users_page_under_a_path_that_climbs_out_of_a_shared_folder_is_nobody_elses(case: Any) -> None:
    """The app takes out dot segments, as some frameworks and file servers do; the folder's policy shares its files."""
    shared = tide(RoutePolicy(route="/static/{rest:path}", ttl=600, share=case))(Echo())
    for path in (
        "/static/..%2fme", "/static/../me", "/static/%2e%2e/me", "/static/x/./../../me",
        "/static/..%5cme", "/static%5c..%5cme", "/static/..;x/me", "/static/%252e%252e/me", "/static/.%252E%252fme",
    ):  # fmt: skip
        bob = asked(shared, *({"scope": at(path)["scope"] | {"user": user}} for user in (ANN, BOB)))[1]
        assert said(bob)["who"][1] == "bob"
    for path in (
        "/static/..logo.png",
        "/static/a..",
        "/static/...",
        "/static/a%5cb",
        "/static/100%25",
        "/static/a%3b..",
    ):
        logos = asked(shared, *({"scope": at(path)["scope"] | {"user": user}} for user in (ANN, BOB)))
        assert hits(logos) == [False, True], f"what only looks like it is shared: {path}"


@attack("19", without=[ONE_TENANT], cases=["/me/x.css", "/me;x.css", "/me.css", "/static/..%2fme", "/logo.png"])
def test_no_extension_makes_a_users_page_everybodys(case: str) -> None:
    app = tide()(Echo((b"cache-control", b"public, max-age=600"), (b"content-type", b"text/css")))
    requests = [{"scope": at(case)["scope"] | {"user": user}} for user in (ANN, BEA, ANN)]
    answers = asked(app, *requests)
    assert [said(answer)["who"][1] for answer in answers] == ["ann", "bea", "ann"]
    assert hits(answers) == [False, False, True]


SPILLED = Plant(
    name="keys without lengths",
    target="middleware.core.keys:encode_parts",
    by=lambda _original: lambda parts: b"".join(part or b"" for part in parts),
)

SPILLED_URL = Plant(
    name="keys without the lengths of path and query",
    target="middleware.core.keys:encode_pair",
    by=lambda _original: lambda one, other: one + other,
)


@attack("20", without=[SPILLED_URL])
def test_a_question_mark_in_the_path_is_not_that_of_a_query() -> None:
    pairs = [("/a", "b"), ("/a%3Fb", ""), ("/ab", ""), ("/", "ab")]
    answers = asked(stack(Echo()), *({"path": path, "query": query} for path, query in pairs * 2))
    assert [tuple(said(answer)["url"][1:]) for answer in answers] == pairs * 2
    assert hits(answers) == [False] * 4 + [True] * 4


@attack("20", "CVE-2026-39972", "CVE-2026-35039", without=[NAIVE_JOIN, SPILLED])
def test_the_law_of_the_encoding_can_fail() -> None:
    laws.test_the_encoding_is_injective()


@attack("20", without=[ONE_TENANT, key_without("scheme", "http"), key_without("raw_path", b"/"),
                       key_without("query", b""), key_without("host", b""), key_without("share", "user")])  # fmt: skip
def test_the_law_of_the_keys_can_fail() -> None:
    laws.test_keys_meet_exactly_where_all_that_selects_is_equal()


ONE_NAMESPACE = narrowing(
    "keys without a namespace", "middleware.core.keys:primary_parts", namespace=lambda _given: b"one"
)


@attack("21", without=[ONE_NAMESPACE])
def test_two_apps_in_one_store_keep_apart_by_their_namespaces() -> None:
    store = MemoryStore(metrics=Metrics.of(CollectorRegistry()))

    def app(name: str) -> CacheLayer:
        origin = Origin(name.encode(), headers=[("cache-control", "max-age=60")])
        metrics = Metrics.of(CollectorRegistry())
        return CacheLayer(origin, store=store, share="public", namespace=name, metrics=metrics)

    async def both() -> list[Any]:
        one, other = app("one"), app("other")
        return [await call(each) for each in (one, other, one, other)]

    answers = asyncio.run(both())
    assert [answer.body for answer in answers] == [b"one", b"other"] * 2
    assert hits(answers) == [False, False, True, True]


@attack("21", without=[DECODED, ONE_PATH])
def test_apps_under_two_mounts_that_see_one_path_keep_apart() -> None:
    app = tide(RoutePolicy(route="/{rest:path}", ttl=60, share="public"))(Echo())
    mounted = [{"scope": scope_of("/x") | {"root_path": root}} for root in ("/one", "/other")]
    answers = asked(app, *mounted, *mounted)
    assert [said(answer)["root"] for answer in answers] == ["/one", "/other"] * 2
    assert hits(answers)[2:] == [True, True]
