"""The five layers together, in process, without flags."""

import asyncio
import json
import math
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests.driver import Answer, Origin, User, call
from tests.flags.following import until
from tests.middleware.stores.support import eventually
from tests.provider import FixedFlags
from tests.services import Valkey, wait_until
from tidegate import RoutePolicy, Settings, Tidegate, TidegateMiddleware, trusted_headers
from tidegate.errors import ConfigError, StoreError
from tidegate.flags import FlagContext, ProviderHealth, Reach
from tidegate.keyfile import fresh_items
from tidegate.middleware.layers.etag import ETagLayer
from tidegate.middleware.stores.base import Lookup, Purge, StoreStats

ANN, BEN, ZOE = User("acme", "ann"), User("acme", "ben"), User("zorg", "zoe")
POLICY = RoutePolicy(route="/", ttl=60, share="tenant")


def mounted(app: Any, *policies: RoutePolicy, **options: Any) -> Any:
    return Tidegate(policies=policies or (POLICY,), registry=CollectorRegistry(), **options)(app)


def test_two_hundred_identical_misses_run_the_app_once_and_all_but_one_say_collapsed() -> None:
    go = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await go.wait()
        await origin(scope, receive, send)

    origin = Origin(b"once")
    layers = mounted(app)

    async def run() -> list[Answer]:
        requests = [asyncio.create_task(call(layers, user=ANN)) for _ in range(200)]
        for _ in range(20):
            await asyncio.sleep(0)
        go.set()
        return [*await asyncio.gather(*requests), await call(layers, user=BEN)]

    *together, later = asyncio.run(run())
    assert origin.calls == 1
    assert {answer.body for answer in together} == {b"once"}
    statuses = [answer.header("cache-status") for answer in together]
    assert sorted(set(statuses), key=str) == ["Tidegate; fwd=miss; collapsed", "Tidegate; fwd=miss; stored"]
    assert statuses.count("Tidegate; fwd=miss; stored") == 1
    assert later.hit


@pytest.mark.parametrize("length", [b"5", b"05"])
@pytest.mark.parametrize("control", [b"max-age=60", b"no-store"])
@pytest.mark.parametrize("policy", [None, RoutePolicy(route="/", ttl=60)])
def test_an_app_that_has_one_message_and_list_for_the_starts_of_all_answers_answers_nobody_with_anothers(
    policy: RoutePolicy | None, control: bytes, length: bytes
) -> None:
    """A server takes them when they are sent, before the app has anything else to do."""
    fields = [(b"cache-control", control), (b"content-length", length), (b"x-user", b"")]
    start = {"type": "http.response.start", "status": 200, "headers": fields}

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        name = scope["user"].username.encode()
        fields[2] = (b"x-user", name)
        start["status"] = 404 if name == b"ben" else 200
        await send(start)
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"%b's." % name})

    layers = ETagLayer(app) if policy is None else mounted(app, policy)

    async def run() -> list[tuple[str, int, str | None, bytes]]:
        answers: list[tuple[str, int, str | None, bytes]] = []
        await call(layers, user=User("acme", "eve"))
        for _ in range(4):
            users = (User("acme", "kit"), ANN, BEN)
            together = await asyncio.gather(*[call(layers, user=user) for user in users])
            answers += [
                (user.username, answer.status, answer.header("x-user"), answer.body)
                for user, answer in zip(users, together, strict=True)
            ]
        return answers

    answers = asyncio.run(run())
    assert len(answers) == 12
    assert {name: answer for name, *answer in answers} == {
        name: [404 if name == "ben" else 200, name, f"{name}'s.".encode()] for name in ("ann", "ben", "kit")
    }
    assert len(set(answers)) == 3


def test_who_purges_nothing_or_a_text_for_a_list_is_told_what_to_give() -> None:
    tide = Tidegate(registry=CollectorRegistry())
    with pytest.raises(ValueError, match=r"give tags or all_of, or use purge_all"):
        asyncio.run(tide.purge())
    with pytest.raises(TypeError, match=r"give a list of tags: all_of=\['ab'\]"):
        asyncio.run(tide.purge(all_of="ab"))


@pytest.mark.parametrize("wrong", [["more"], 42, b"list", None, ""])
def test_who_purges_what_is_no_tag_hears_of_it_and_writes_go_on_and_purge(wrong: Any) -> None:
    tide = Tidegate(
        policies=[RoutePolicy(route="/", ttl=60, share="tenant", tags=("list",), invalidates=("list",))],
        registry=CollectorRegistry(),
    )
    layers = tide(Origin())

    async def run() -> None:
        for purging in (tide.purge("list", wrong, tenant="acme"), tide.purge(all_of=["list", wrong], tenant="acme")):
            await call(layers, user=ANN)
            assert (await call(layers, user=ANN)).hit
            with pytest.raises((TypeError, ValueError), match="is no tag"):
                await purging
            assert (await call(layers, user=ANN)).hit
            assert (await tide.purge("list", tenant="acme")).state == "done"
            assert not (await call(layers, user=ANN)).hit
            assert (await call(layers, user=ANN)).hit
            assert (await call(layers, user=ANN, method="POST")).status == 200
            assert not (await call(layers, user=ANN)).hit
        await tide.aclose()

    asyncio.run(run())


def test_etags_made_on_the_way_in_answer_hits_with_304() -> None:
    origin = Origin(b"body")
    layers = mounted(origin)

    async def run() -> list[Answer]:
        first = await call(layers, user=ANN)
        again = await call(layers, user=ANN, headers=[("if-none-match", first.header("etag") or "")])
        return [first, again]

    first, again = asyncio.run(run())
    assert (first.status, again.status, again.hit, origin.calls) == (200, 304, True, 1)


def test_an_open_breaker_is_bridged_by_stale_responses_and_else_answers_503() -> None:
    # Stale from the start: it came with an age beyond its lifetime.
    origin = Origin(b"good", headers=[("cache-control", "max-age=1, stale-if-error=600"), ("age", "5")])
    layers = mounted(origin, RoutePolicy(route="/{page}"))

    async def run() -> list[Answer]:
        await call(layers, "/stored", user=ANN)
        origin.status, origin.headers = 500, []
        for _ in range(50):
            await call(layers, "/new", user=ANN)
        calls = origin.calls
        answers = [await call(layers, page, user=ANN) for page in ("/new", "/stored")]
        assert origin.calls == calls
        return answers

    refused, bridged = asyncio.run(run())
    assert (refused.status, refused.header("cache-control")) == (503, "no-store")
    assert int(refused.header("retry-after") or 0) >= 1
    assert (bridged.status, bridged.body) == (200, b"good")
    assert "stale-if-error" in (bridged.header("cache-status") or "")


class BrokenStore:
    """A store whose server answers nothing but errors."""

    local = False

    async def start(self) -> None: ...
    async def aclose(self) -> None: ...

    async def get(self, key: bytes, scopes: Any = ()) -> Lookup:
        raise StoreError("down")

    async def put(self, key: bytes, record: Any, *, retain: float) -> bool:
        raise StoreError("down")

    async def delete(self, key: bytes) -> None:
        raise StoreError("down")

    async def purge(self, tags: Any) -> Purge:
        raise StoreError("down")

    def stats(self) -> StoreStats:
        return StoreStats()


def test_a_store_that_fails_costs_hits_and_nothing_else() -> None:
    origin = Origin(b"served")
    registry = CollectorRegistry()
    tide = Tidegate(policies=[POLICY], store=BrokenStore(), registry=registry)
    layers = tide(origin)

    async def run() -> list[Answer]:
        answers = [await call(layers, user=ANN) for _ in range(20)]
        answers.append(await call(layers, user=ANN, method="POST"))
        await tide.aclose()
        return answers

    answers = asyncio.run(run())
    assert {answer.status for answer in answers} == {200}
    assert (origin.calls, any(answer.hit for answer in answers)) == (21, False)
    assert (registry.get_sample_value("tidegate_errors_total", {"component": "store"}) or 0) >= 5


def test_an_identity_that_cannot_be_told_is_nobody_and_counted() -> None:
    def identify(_scope: Any) -> None:
        raise KeyError("session")

    origin, registry = Origin(), CollectorRegistry()
    layers = Tidegate(policies=[POLICY], identify=identify, registry=registry)(origin)

    async def run() -> list[Answer]:
        return [await call(layers, user=ANN) for _ in range(2)]

    answers = asyncio.run(run())
    assert [answer.status for answer in answers] == [200, 200]
    assert not any(answer.hit for answer in answers)
    assert registry.get_sample_value("tidegate_errors_total", {"component": "identify"}) == 2


def test_what_cannot_say_who_asks_or_is_no_policy_is_refused_at_once_and_named() -> None:
    wrong: Any = {"identify": "x-tenant", "policies": [RoutePolicy(route="/a"), {"route": "/b"}]}
    with pytest.raises(ConfigError) as raised:
        Tidegate(Settings(), **wrong)
    assert [problem.path for problem in raised.value.problems] == ["identify", "policies[1]"]
    for no_list in (RoutePolicy(route="/a"), "/a", {"/a": 60}, 5):
        wrong = {"policies": no_list}
        with pytest.raises(ConfigError, match=r"policies: .* is not a list; write \[RoutePolicy\(route=…\)\]"):
            Tidegate(Settings(), **wrong)


def test_it_mounts_as_a_middleware_class_of_starlette() -> None:
    calls = 0

    async def clients(request: Request) -> JSONResponse:
        nonlocal calls
        calls += 1
        request.scope["tidegate"].tag(f"clients-of-{request.headers['x-tenant']}")
        return JSONResponse({"for": request.headers["x-user"]})

    options = {
        "identify": trusted_headers(tenant="x-tenant", user="x-user"),
        "policies": [RoutePolicy(route="/clients", ttl=60, share="user")],
        "registry": CollectorRegistry(),
    }
    app = Starlette(routes=[Route("/clients", clients)], middleware=[Middleware(TidegateMiddleware, **options)])

    async def run() -> list[Answer]:
        ask = [("x-tenant", "acme"), ("x-user", "ann")], [("x-tenant", "acme"), ("x-user", "ben")]
        return [await call(app, "/clients", headers=headers) for headers in (*ask, *ask)]

    answers = asyncio.run(run())
    assert [answer.body for answer in answers] == [b'{"for":"ann"}', b'{"for":"ben"}'] * 2
    assert [answer.hit for answer in answers] == [False, False, True, True]
    assert calls == 2


def test_a_purge_from_code_reaches_the_tenants_entries() -> None:
    origin = Origin()
    tide = Tidegate(
        policies=[RoutePolicy(route="/", ttl=60, share="tenant", tags=("clients",))], registry=CollectorRegistry()
    )
    layers = tide(origin)

    async def run() -> list[bool]:
        await call(layers, user=ANN)
        before = (await call(layers, user=ANN)).hit
        assert (await tide.purge("clients", tenant="other")).state == "done"
        untouched = (await call(layers, user=ANN)).hit
        assert (await tide.purge("clients", tenant="acme")).state == "done"
        return [before, untouched, (await call(layers, user=ANN)).hit]

    assert asyncio.run(run()) == [True, True, False]


def test_all_of_a_tenant_is_purged_at_once_and_all_of_everybody(valkey: Valkey) -> None:
    async def run(url: str | None) -> None:
        store = {"store": {"url": url, "budget": 10.0}} if url is not None else {}
        policies = [
            RoutePolicy(route="/mine", ttl=60, share="user"),
            RoutePolicy(route="/ours", ttl=60, share="tenant", tags=("clients",)),
            RoutePolicy(route="/all", ttl=60, share="public"),
        ]
        tide = Tidegate(Settings.of(store), policies=policies, registry=CollectorRegistry())
        layers = tide(Origin())
        asked = [(path, user) for path in ("/mine", "/ours", "/all") for user in (ANN, ZOE)]

        async def hits() -> list[tuple[str, User]]:
            return [(path, user) for path, user in asked if (await call(layers, path, user=user)).hit]

        async def all_hit() -> bool:
            return await hits() == asked

        await eventually(all_hit, "all is stored", 20.0)
        told = [await tide.purge_all(tenant, dry_run=True) for tenant in (ANN.tenant, None, "nobody")]
        assert [each.entries for each in told] == [2, 5, 0], "what is public is one for both"
        assert {len(each.sample) == each.entries and each.exact for each in told} == {True}
        assert await hits() == asked, "nothing was changed"
        assert (await tide.purge_all(ANN.tenant)).state == "done"
        assert await hits() == [asked[1], asked[3], asked[4], asked[5]]
        await eventually(all_hit, "all is stored", 20.0)
        assert (await tide.purge_all()).state == "done"
        assert set(await hits()) <= {asked[5]}, "who asks second for what is public may get what the first one made"
        await tide.aclose()

    for url in (None, valkey.url):
        asyncio.run(run(url))


def test_metrics_are_exposed_with_every_cohort_at_zero_only_where_there_are_flags(tmp_path: Any) -> None:
    flags = tmp_path / "flags.json"
    flags.write_text('{"version": 1, "flags": {}}')
    settings = Settings.of({"flags": {"provider": "local", "file": str(flags)}})

    async def run(tide: Tidegate) -> str:
        await call(tide(Origin()), user=ANN)
        text = (await call(tide.metrics_app, "/metrics")).body.decode()
        await tide.aclose()
        return text

    text = asyncio.run(run(Tidegate(settings, registry=CollectorRegistry())))
    assert 'tidegate_cohort_requests_total{band="1",cohort="canary",flag="tidegate.cache"} 0.0' in text
    assert text.count('cohort="control"') > 0
    assert "tidegate_cohort" not in asyncio.run(run(Tidegate(registry=CollectorRegistry())))


class Users:
    """A flag provider with a list of open layers for each user."""

    version = 1

    def __init__(self, **open_to: str) -> None:
        self._open_to = {user: layers.split() for user, layers in open_to.items()}

    def is_enabled(self, flag: str, context: FlagContext) -> bool:
        return flag.removeprefix("tidegate.") in self._open_to[context.properties["userId"]]

    def reach(self, flag: str) -> Reach:
        return "some"

    def health(self) -> ProviderHealth:
        return ProviderHealth(ready=True, staleness=0.0, detail="")

    async def start(self) -> None: ...
    async def aclose(self) -> None: ...


@pytest.mark.parametrize(("own", "sent"), [(True, None), (False, '"app"')])
def test_with_the_etag_gate_shut_our_etags_are_neither_sent_nor_matched_and_the_apps_are(
    own: bool, sent: str | None
) -> None:
    origin = Origin(b"body", headers=[] if own else [("etag", '"app"')])
    settings = Settings.of({"flags": {"unit": "user"}})
    provider = Users(ann="cache etag", ben="cache")
    tide = Tidegate(settings, policies=[POLICY], provider=provider, registry=CollectorRegistry())
    layers = tide(origin)

    async def run() -> list[Answer]:
        first = await call(layers, user=ANN)
        condition = [("if-none-match", first.header("etag") or "")]
        answers = [first, await call(layers, user=BEN), await call(layers, user=BEN, headers=condition)]
        await tide.aclose()
        return answers

    first, plain, conditional = asyncio.run(run())
    assert first.header("etag") is not None
    assert (plain.hit, plain.header("etag")) == (True, sent)
    assert (conditional.hit, conditional.status) == (True, 200 if own else 304)


def test_flags_that_cannot_be_decided_shut_every_layer() -> None:
    def properties(_scope: Any) -> dict[str, str]:
        raise RuntimeError("no region")

    origin, registry = Origin(headers=[("cache-control", "max-age=60")]), CollectorRegistry()
    tide = Tidegate(provider=Users(ann="cache etag"), properties=properties, registry=registry)
    layers = tide(origin)

    async def run() -> list[Answer]:
        answers = [await call(layers, user=ANN) for _ in range(2)]
        await tide.aclose()
        return answers

    answers = asyncio.run(run())
    assert [(answer.status, answer.header("cache-status"), answer.header("etag")) for answer in answers] == [
        (200, None, None)
    ] * 2
    assert registry.get_sample_value("tidegate_errors_total", {"component": "flags"}) == 2


def test_visitors_are_served_what_is_public_where_properties_give_them_a_unit_and_get_no_identity_by_it() -> None:
    def properties(_scope: Any) -> dict[str, str]:
        return {"tenantId": "visitors"}

    async def run(**options: Any) -> list[Answer]:
        origin = Origin(b"plans")
        policies = [RoutePolicy(route="/", ttl=60, share="public"), RoutePolicy(route="/own", ttl=60, share="tenant")]
        tide = Tidegate(policies=policies, provider=FixedFlags(is_open=True), registry=CollectorRegistry(), **options)
        layers = tide(origin)
        answers = [await call(layers) for _ in range(2)]
        answers.append(await call(layers, headers=[("cookie", "a=b")]))
        answers += [await call(layers, "/own") for _ in range(2)]
        await tide.aclose()
        return answers

    without = asyncio.run(run())
    assert [one.header("cache-status") for one in without] == [None] * 5
    first, second, somebody, *own = asyncio.run(run(properties=properties))
    assert (first.header("cache-status"), second.hit) == ("Tidegate; fwd=miss; stored", True)
    assert somebody.header("cache-status") == "Tidegate; fwd=bypass; detail=credential"
    assert [one.header("cache-status") for one in own] == ["Tidegate; fwd=bypass; detail=no-identity"] * 2


class Unstartable(Users):
    """A provider that breaks its promise never to raise."""

    async def start(self) -> None:
        raise OSError("no threads left")

    async def aclose(self) -> None:
        raise OSError("no threads left")


def test_a_provider_that_cannot_start_or_stop_costs_no_answer() -> None:
    registry = CollectorRegistry()
    tide = Tidegate(provider=Unstartable(ann=""), registry=registry)
    layers = tide(Origin())

    async def run() -> Answer:
        answer = await call(layers, user=ANN)
        await tide.aclose()
        return answer

    assert asyncio.run(run()).status == 200
    assert registry.get_sample_value("tidegate_errors_total", {"component": "flags"}) == 2


def test_a_worker_that_shares_neither_responses_nor_counts_warns_of_both(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    Tidegate(provider=Users(ann=""), registry=CollectorRegistry())
    assert not caplog.messages
    monkeypatch.setattr("multiprocessing.parent_process", object)
    Tidegate(provider=Users(ann=""), registry=CollectorRegistry())
    assert [("store.url" in line, "telemetry.metrics_dir" in line) for line in caplog.messages] == [
        (True, False),
        (False, True),
    ]
    caplog.clear()
    store = {"url": "redis://127.0.0.1:1", "keys": fresh_items()}
    settings = Settings.of({"telemetry": {"metrics_dir": str(tmp_path)}, "store": store})
    Tidegate(settings, provider=Users(ann=""), registry=CollectorRegistry())
    assert not caplog.messages


def test_responses_that_can_be_read_in_redis_are_told_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    for keys in (fresh_items(), []):
        settings = Settings.of({"store": {"url": "redis://127.0.0.1:1", "keys": keys}})
        Tidegate(settings, registry=CollectorRegistry())
        assert [("can be read" in line, "tidegate keys new" in line) for line in caplog.messages] == (
            [] if keys else [(True, True)]
        )


class Turned(Users):
    """A provider of one open flag that a test turns off."""

    def __init__(self) -> None:
        super().__init__()
        self.admits: Reach = "everybody"

    def reach(self, flag: str) -> Reach:
        return self.admits


def test_a_change_of_reach_is_noticed_without_requests_until_the_application_ends() -> None:
    provider = Turned()
    tide = Tidegate(provider=provider, registry=CollectorRegistry())
    assert tide.gates is not None
    heard: list[str] = []
    tide.gates.subscribe(lambda before, after: heard.append(after["cache"]))

    async def heard_last(reach: str) -> None:
        await asyncio.to_thread(wait_until, lambda: heard[-1:] == [reach], 20, f"the gates notice {reach}")

    async def run() -> None:
        await call(tide(Origin(b"body")))  # without a lifespan: the first request starts it
        await heard_last("everybody")
        provider.admits, provider.version = "nobody", 2
        await heard_last("nobody")
        timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        assert [timer for timer in timers if not timer.cancelled()] != []
        await tide.aclose()
        assert [timer for timer in timers if not timer.cancelled()] == []

    asyncio.run(run())
    assert heard == ["everybody", "nobody"]


def test_the_variant_shadow_of_the_caches_flag_has_the_app_answer_and_the_report_filled(tmp_path: Any) -> None:
    flags = tmp_path / "flags.json"

    def opened(**strategy: Any) -> str:
        flag = {"enabled": True, "strategies": [{"percentage": 100, **strategy}]}
        return json.dumps({"version": 1, "flags": {"tidegate.cache": flag, "tidegate.telemetry": flag}})

    flags.write_text(opened(variant="shadow"))
    settings = Settings.of({"flags": {"provider": "local", "file": str(flags)}})
    origin, registry = Origin(), CollectorRegistry()
    tide = Tidegate(settings, policies=[POLICY], registry=registry)
    layers = tide(origin)

    def counted() -> list[float]:
        """Requests, storable ones and hits of the cache's canary."""
        assert tide.cohorts is not None
        totals = [values for labels, values in tide.cohorts.totals().items() if labels[0] == "tidegate.cache"]
        return [sum(values[slot] for values in totals) for slot in (0, 2, 3)]

    async def run() -> list[Answer]:
        for headers in ([], [], [], [("cache-control", "no-store")]):
            answer = await call(layers, user=ANN, headers=headers)
            assert answer.header("cache-status") is None
        assert counted() == [4, 0, 0]
        report = json.loads((await call(tide.shadow_app, "/shadow")).body)
        assert report == tide.shadow_report()
        assert report["routes"] == {"/": {"would-miss": 1, "match": 2}}
        flags.write_text(opened())
        gates = tide.gates
        assert gates is not None
        await until(lambda: not gates.decide_for("acme", "ann").shadow, 30, "the change of the file")
        answers = [await call(layers, user=ANN) for _ in range(2)]
        await tide.aclose()
        return answers

    assert [answer.hit for answer in asyncio.run(run())] == [False, True]
    assert counted() == [6, 2, 1]
    assert registry.get_sample_value("tidegate_cache_requests_total", {"route": "/", "outcome": "shadow"}) == 3


def test_the_report_of_shadow_mode_answers_get_only() -> None:
    tide = Tidegate(registry=CollectorRegistry())

    async def run() -> list[Answer]:
        return [await call(tide.shadow_app, "/shadow", method=method) for method in ("GET", "HEAD", "POST")]

    got, head, post = asyncio.run(run())
    assert (got.status, head.status, post.status) == (200, 200, 405)
    assert (got.header("cache-control"), head.body, bool(got.body)) == ("no-store", b"", True)


class Ageing(Users):
    """A provider of one partly open flag whose age a test sets."""

    def __init__(self) -> None:
        super().__init__(ann="cache")
        self.age = math.inf

    def health(self) -> ProviderHealth:
        return ProviderHealth(ready=self.age < math.inf, staleness=self.age, detail="")


def test_the_age_of_the_flags_is_a_metric_and_shuts_a_partly_open_flag_at_the_age_of_the_settings() -> None:
    provider = Ageing()
    settings = Settings.of({"flags": {"unit": "user", "max_staleness": 30}})
    tide = Tidegate(settings, provider=provider, registry=CollectorRegistry())
    layers = tide(Origin(b"body"))

    async def shown(name: str) -> float:
        text = (await call(tide.metrics_app, "/metrics")).body.decode()
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        return float(line.split()[1])

    async def run() -> None:
        seen: list[tuple[float, float, bool]] = []
        for age in (math.inf, 0.5, 29.0, 31.0, 2.0):
            provider.age = age
            provider.version += 1  # no real state ages by leaps: make the gates look
            await tide.aclose()  # and the next request start the layers again, which shows the metrics
            response = await call(layers, user=ANN)
            is_open = response.header("cache-status") is not None
            seen.append((await shown("tidegate_flags_ready"), await shown("tidegate_flags_staleness_seconds"), is_open))
        assert seen == [
            (0.0, math.inf, False),
            (1.0, 0.5, True),
            (1.0, 29.0, True),
            (1.0, 31.0, False),
            (1.0, 2.0, True),
        ]
        await tide.aclose()

    asyncio.run(run())
    ungated = Tidegate(registry=CollectorRegistry())
    assert asyncio.run(call(ungated.metrics_app, "/metrics")).body.count(b"\ntidegate_flags_ready 1.0\n") == 1
