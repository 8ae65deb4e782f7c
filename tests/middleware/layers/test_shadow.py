"""Shadow mode finds what is planted and nothing else, touches no answer, and is bounded."""

import asyncio
import json
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.driver import Answer, Origin, User, call, scope_of
from tests.middleware.layers.shadowing import CLEAN, MISTAKEN, PLANTED, Clock, Watched, found, total
from tests.services import Valkey
from tidegate import CacheLayer, MemoryStore, RoutePolicy
from tidegate.errors import StoreError
from tidegate.middleware.core.policy import Policies
from tidegate.middleware.core.shadow import Sight
from tidegate.middleware.core.shadow_kinds import Told
from tidegate.middleware.layers import shadow_notes
from tidegate.middleware.layers.asgi import ContextResolver
from tidegate.middleware.layers.shadow_notes import MAX_ASKERS, MAX_LEARNED, MAX_SIGHTS, Difference, Ring, ShadowNotes
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.base import Lookup
from tidegate.middleware.stores.guard import GuardedStore
from tidegate.middleware.stores.redis import RedisStore

ANN, BEN = User("acme", "ann"), User("acme", "ben")
TENANT = RoutePolicy(route="/", ttl=60, share="tenant", mode="shadow", tags=("it",))
SERVED = RoutePolicy(route="/", ttl=60, share="tenant", tags=("it",))


class Stand:
    """A cache layer on an origin, with a clock of its own."""

    def __init__(self, origin: Any, *policies: RoutePolicy, store: Any = None, notes: Any = None, **options: Any):
        self.clock = Clock()
        self.registry = CollectorRegistry()
        metrics = Metrics.of(self.registry)
        self.store = store or MemoryStore(clock=self.clock, metrics=metrics)
        self.notes = ShadowNotes(metrics=metrics, clock=self.clock, **(notes or {}))
        self.layer = CacheLayer(
            origin,
            store=self.store,
            resolver=ContextResolver(policies=Policies(policies or (TENANT,))),
            shadow=self.notes,
            metrics=metrics,
            clock=self.clock,
            **options,
        )

    async def settled(self) -> dict[str, Any]:
        """The report, once nothing waits any more."""
        self.clock.now += 5.0
        await self.notes.look(most=10_000)
        return self.notes.report()

    def value(self, metric: str, **labels: str) -> float:
        return self.registry.get_sample_value(metric, labels) or 0.0


@pytest.mark.parametrize("seed", [1, 2])
def test_it_finds_all_five_planted_mistakes_on_their_routes_and_no_other(seed: int) -> None:
    watched = Watched(seed, CLEAN + MISTAKEN)
    (report,) = watched.run(1500)
    assert found([report]) == PLANTED
    value = watched.registry.get_sample_value
    for route, kind, _ in PLANTED:
        labels = {"route": route, "result": "mismatch"}
        assert value("tidegate_shadow_total", labels) == report["routes"][route]["mismatch"] > 10
        assert (value("tidegate_shadow_findings_total", {"route": route, "kind": kind}) or 0) > 10
    assert all(0 < len(one["examples"]) <= 5 for one in report["findings"])


@pytest.mark.parametrize("seed", [1, 2])
def test_it_finds_nothing_in_a_clean_app_though_writes_run_beside_the_requests(seed: int) -> None:
    (report,) = Watched(seed, CLEAN).run(1500)
    assert (found([report]), total([report], "mismatch"), report["learned_fields"]) == (set(), 0, {})
    assert total([report], "match") > 600
    assert report["routes"]["/clients/{client_id}"]["match"] > 20
    assert report["waiting"] == 0


def test_what_somebody_further_out_writes_into_the_very_messages_is_no_difference_of_the_apps() -> None:
    writes = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-of", b"the app")]})
        await send({"type": "http.response.body", "body": b"the same ", "more_body": True})
        await send({"type": "http.response.body", "body": b"each time"})

    stand = Stand(app)

    async def compressing(scope: Any, receive: Any, send: Any) -> None:
        async def written(message: Any) -> None:
            nonlocal writes
            writes += 1
            if message["type"] == "http.response.start":
                message["status"] = 203
                message["headers"].append((b"x-written", b"%d" % writes))
            else:
                message["body"] = b"%d" % writes
            await send(message)

        await stand.layer(scope, receive, written)

    async def run() -> dict[str, Any]:
        answers = [await call(compressing, user=ANN) for _ in range(5)]
        assert len({answer.body for answer in answers}) == 5
        return await stand.settled()

    report = asyncio.run(run())
    assert report["routes"]["/"]["match"] == 4
    assert (total([report], "mismatch"), report["learned_fields"]) == (0, {})


def test_the_layers_inside_change_nothing_about_that() -> None:
    mistaken, clean = (Watched(4, policies, whole=True).run(1500) for policies in (CLEAN + MISTAKEN, CLEAN))
    assert (found(mistaken), found(clean), total(clean, "mismatch")) == (PLANTED, set(), 0)
    assert total(clean, "match") > 300


def test_two_workers_on_one_valkey_hear_of_each_others_records_and_purges(valkey: Valkey) -> None:
    def watched(policies: tuple[RoutePolicy, ...], namespace: str) -> list[dict[str, Any]]:
        metrics = Metrics.of(CollectorRegistry())
        stores = [
            GuardedStore(RedisStore(valkey.url, namespace=namespace, metrics=metrics), budget=5.0, metrics=metrics)
            for _ in range(2)
        ]
        return Watched(6, policies, stores=stores).run(1500)

    mistaken, clean = watched(CLEAN[:3] + MISTAKEN, "mistaken"), watched(CLEAN, "clean")
    assert (found(mistaken), found(clean), total(clean, "mismatch")) == (PLANTED, set(), 0)
    assert all(total([report], "match") > 200 for report in clean)


def test_a_write_that_purges_too_little_shows_as_a_body_that_changes_over_time() -> None:
    forgetful = tuple(RoutePolicy(route=p.route, mode="shadow") if p.invalidates else p for p in CLEAN)
    reports = Watched(3, forgetful).run(1500)
    assert found(reports) == {("/clients/{client_id}", "body-over-time", "")}


def test_differences_that_race_a_write_are_not_compared_but_would_be_without_waiting() -> None:
    patient, hasty = (Watched(5, CLEAN, settle=settle).run(1500) for settle in (2.0, 0.0))
    assert total(patient, "mismatch") == 0
    assert total(hasty, "mismatch") > 0


async def answers(layer: Any, *requests: Any) -> list[Answer]:
    """The answers to requests, each given as options of `call`, one after the other."""
    return [await call(layer, **({"user": ANN} | request)) for request in requests]


def test_the_app_is_asked_every_time_and_no_answer_is_touched() -> None:
    origin = Origin(b"body", headers=[("x-own", "1")])

    async def run(layer: Any) -> list[Any]:
        conditional = {"headers": [("if-none-match", '"x"')]}
        insisting = {"headers": [("cache-control", "only-if-cached")]}
        ranged = {"headers": [("range", "bytes=0-1")]}
        given = await answers(layer, {}, {}, {"method": "HEAD"}, conditional, insisting, ranged)
        return [answer.messages for answer in given]

    bare = asyncio.run(run(origin))
    seen_bare = [scope["headers"] for scope in origin.seen]
    assert asyncio.run(run(Stand(origin).layer)) == bare
    assert [scope["headers"] for scope in origin.seen[6:]] == seen_bare


def test_each_message_passes_as_the_very_object_and_as_it_comes() -> None:
    messages: list[dict[str, Any]] = [
        {"type": "http.response.early_hint", "links": [b"</a.css>"]},
        {"type": "http.response.start", "status": 200, "headers": [(b"X-Case", b"kept")]},
        {"type": "http.response.body", "body": b"one", "more_body": True},
        {"type": "an.invention", "of": "the test"},
        {"type": "http.response.body", "body": b"two", "more_body": True},
        {"type": "http.response.body", "body": b""},
    ]
    got: list[Any] = []
    held: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        held[:] = [scope, receive]
        for number, message in enumerate(messages):
            await send(message)
            assert len(got) == number + 1

    async def receive() -> Any: ...

    async def send(message: Any) -> None:
        got.append(message)

    stand = Stand(app)
    scope = scope_of("/", user=ANN)
    asyncio.run(stand.layer(scope, receive, send))
    assert all(one is other for one, other in zip(got, messages, strict=True))
    assert held[0] is scope
    assert held[1] is receive
    assert stand.store.stats().entries == 0  # what it does not know, it does not keep


def test_nothing_of_shadow_mode_is_served_when_the_cache_is_opened() -> None:
    origin = Origin(b"body")
    shadowed = Stand(origin)
    opened = Stand(origin, SERVED, store=shadowed.store)

    async def run() -> list[bool]:
        await answers(shadowed.layer, {}, {})
        assert shadowed.notes.report()["routes"] == {"/": {"would-miss": 1, "match": 1}}
        return [answer.hit for answer in await answers(opened.layer, {}, {})]

    assert asyncio.run(run()) == [False, True]
    assert origin.calls == 3


def test_a_stored_response_of_the_open_cache_is_no_record_of_shadow_mode() -> None:
    origin = Origin(b"body")
    opened = Stand(origin, SERVED)
    shadowed = Stand(origin, store=opened.store)

    async def run() -> None:
        await answers(opened.layer, {}, {})
        await answers(shadowed.layer, {}, {})

    asyncio.run(run())
    assert shadowed.notes.report()["routes"] == {"/": {"would-miss": 1, "match": 1}}


def test_with_the_gate_shut_nothing_is_looked_at() -> None:
    origin = Origin(b"body")
    stand = Stand(origin, gate=lambda _context: False)
    asyncio.run(answers(stand.layer, {}, {}))
    assert stand.notes.report()["routes"] == {}
    assert stand.store.stats().entries == 0


def test_an_answer_during_which_the_record_is_purged_is_not_compared() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if origin.calls:
            origin.body = b"new"
            await stand.store.purge({"tenant:acme": ["it"]})
        await origin(scope, receive, send)

    origin = Origin(b"old")
    stand = Stand(app)
    asyncio.run(answers(stand.layer, {}, {}))
    report = stand.notes.report()
    assert (report["routes"], report["waiting"]) == ({"/": {"would-miss": 1, "uncompared": 1}}, 0)


def test_what_layers_inside_say_of_an_answer_counts() -> None:
    """Another run's answer is kept by that run; an ETag of ours says nothing that the body does not say."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["tidegate"].collapsed, scope["tidegate"].own_etag = collapsed, True
        origin.headers = [(b"etag", b'"%d"' % origin.calls)]
        await origin(scope, receive, send)

    origin, collapsed = Origin(b"body"), True
    stand = Stand(app)
    asyncio.run(answers(stand.layer, {}, {}))
    assert stand.notes.report()["routes"] == {"/": {"would-miss": 2}}
    collapsed = False
    asyncio.run(answers(stand.layer, {}, {}, {"headers": [("cache-control", "no-cache")]}))
    assert stand.notes.report()["routes"] == {"/": {"would-miss": 4, "match": 1}}


def test_sights_of_one_record_are_not_mixed_with_those_of_the_next() -> None:
    notes = ShadowNotes(metrics=Metrics.of(CollectorRegistry()))
    ring = notes.open_ring(b"key", b"one", sight(1.0))
    assert notes.ring(b"key", b"one") is ring
    assert notes.ring(b"key", b"two") is None
    assert notes.open_ring(b"key", b"two", sight(2.0)).until(9) == [sight(2.0)]


def test_a_purge_clears_a_record_and_its_lifetime_ends_it() -> None:
    origin = Origin(b"old")
    stand = Stand(origin)

    async def run() -> dict[str, Any]:
        await answers(stand.layer, {}, {})
        origin.body = b"new"
        await stand.store.purge({"tenant:acme": ["it"]})
        await answers(stand.layer, {}, {})
        origin.body = b"newest"
        stand.clock.now += 61.0
        await answers(stand.layer, {}, {})
        return await stand.settled()

    assert asyncio.run(run())["routes"] == {"/": {"would-miss": 3, "match": 3}}


@pytest.mark.parametrize(
    ("status", "headers", "result"),
    [
        (500, [], "uncompared"),
        (429, [], "uncompared"),
        (404, [], "mismatch"),
        (200, [("x-new", "1")], "mismatch"),
        (200, [("date", "now"), ("set-cookie", "a=b"), ("x-request-id", "7")], "match"),
        (200, [("connection", "x-new"), ("x-new", "1")], "match"),
        (304, [("etag", '"1"')], "match"),
        (304, [("etag", '"2"')], "uncompared"),
        (304, [], "uncompared"),
    ],
)
def test_what_is_compared(status: int, headers: Any, result: str) -> None:
    origin = Origin(b"body", headers=[("etag", '"1"')])
    stand = Stand(origin)

    async def run() -> dict[str, Any]:
        await answers(stand.layer, {})
        origin.status, origin.headers = status, [(b"etag", b'"1"')] if status == 200 else []
        origin.headers += [(name.encode(), value.encode()) for name, value in headers]
        await answers(stand.layer, {})
        return await stand.settled()

    assert asyncio.run(run())["routes"] == {"/": {"would-miss": 1, result: 1}}


def test_an_answer_that_is_too_large_cut_off_or_not_a_body_is_neither_kept_nor_compared() -> None:
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in sent:
            await send(message)

    start = {"type": "http.response.start", "status": 200, "headers": []}
    said = {**start, "headers": [(b"content-length", b"9")]}
    large = [start, {"type": "http.response.body", "body": b"x" * 60, "more_body": True}]
    large += [{"type": "http.response.body", "body": b"x" * 60}]
    short = [said, {"type": "http.response.body", "body": b"short"}]
    by_path = [start, {"type": "http.response.pathsend", "path": "/etc/hostname"}]
    policy = RoutePolicy(route="/", ttl=60, share="tenant", mode="shadow", max_body=100)
    stand = Stand(app, policy)

    async def run() -> int:
        for messages in (large, short, by_path):
            sent[:] = messages
            await answers(stand.layer, {})
        kept = stand.store.stats().entries
        sent[:] = [start, {"type": "http.response.body", "body": b"good"}]
        await answers(stand.layer, {})
        for messages in (large, short, by_path):
            sent[:] = messages
            await answers(stand.layer, {})
        return kept

    assert asyncio.run(run()) == 0
    assert stand.notes.report()["routes"] == {"/": {"would-miss": 3, "uncompared": 2}}


class Failing(MemoryStore):
    """A store that fails, or holds what is no sight."""

    fails = False

    async def get(self, key: bytes, scopes: Any = ()) -> Lookup:
        if self.fails:
            raise StoreError("down")
        return await super().get(key, scopes)


def test_whatever_fails_in_the_comparison_is_counted_and_the_answer_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    origin = Origin(b"body")
    stand = Stand(origin, store=Failing())

    async def run() -> list[Answer]:
        given = await answers(stand.layer, {}, {})
        stand.store.fails = True
        given += await answers(stand.layer, {})
        stand.store.fails = False
        monkeypatch.setattr("tidegate.middleware.layers.shadow.decode_sight", lambda _: 1 / 0)
        monkeypatch.setattr("tidegate.middleware.layers.shadow.lowered", lambda _: 1 / 0)
        given += await answers(stand.layer, {})
        monkeypatch.undo()
        monkeypatch.setattr("tidegate.middleware.layers.shadow.decode_sight", lambda _: 1 / 0)
        return given + await answers(stand.layer, {})

    assert [(answer.status, answer.body) for answer in asyncio.run(run())] == [(200, b"body")] * 5
    assert stand.value("tidegate_errors_total", component="store") == 1
    assert stand.value("tidegate_errors_total", component="shadow") == 2


def test_an_app_that_fails_is_heard_of() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("the app's own")

    with pytest.raises(RuntimeError, match="the app's own"):
        asyncio.run(answers(Stand(app).layer, {}))


def test_examples_show_what_differs_and_no_bodies_unless_they_were_asked_for() -> None:
    def body(scope: Any) -> bytes:
        return json.dumps({"secret of": scope["user"].username}).encode()

    async def run(stand: Stand) -> dict[str, Any]:
        for _ in range(9):
            await answers(stand.layer, {"user": ANN}, {"user": BEN, "headers": [("accept", "*/*")]})
        return await stand.settled()

    def report(**notes: Any) -> dict[str, Any]:
        origin = Origin(body, headers=[("content-type", "application/json")])
        (finding,) = asyncio.run(run(Stand(origin, notes=notes)))["findings"]
        return finding

    finding = report()
    newest = finding["examples"][-1]
    assert (finding["route"], finding["kind"], finding["count"] > 0) == ("/", "share-too-wide", True)
    assert (newest["path"], newest["same_asker"], newest["request_fields"]) == ("/", False, ["accept"])
    assert newest["body"][0] != newest["body"][1]
    assert "secret" not in json.dumps(finding)
    assert report(keep_bodies=10)["examples"][-1]["excerpts"] == ['{"secret o'] * 2


def test_a_field_that_changes_from_answer_to_answer_is_learned_to_mean_nothing() -> None:
    origin = Origin(b"body")
    stand = Stand(origin)

    async def run() -> dict[str, Any]:
        for number in range(8):
            origin.headers = [(b"x-served-after", b"%d" % number)]
            await answers(stand.layer, {})
            await stand.settled()
        return await stand.settled()

    report = asyncio.run(run())
    assert report["learned_fields"] == {"/": ["x-served-after"]}
    assert report["findings"] == []
    assert report["routes"]["/"]["match"] == 6


def test_no_more_fields_of_a_route_are_learned_than_may_be() -> None:
    origin = Origin(b"body")
    stand = Stand(origin)

    async def run() -> dict[str, Any]:
        for number in range(24):
            kind = b"early" if number < 8 else b"late"
            origin.headers = [(b"x-%s-%d" % (kind, field), b"%d" % number) for field in range(20)]
            await answers(stand.layer, {})
            await stand.settled()
        return await stand.settled()

    learned = asyncio.run(run())["learned_fields"]["/"]
    assert 0 < len(learned) <= MAX_LEARNED


def test_what_goes_with_a_cookie_is_laid_to_the_cookie_and_not_to_time() -> None:
    def body(scope: Any) -> bytes:
        return dict(scope["headers"])[b"cookie"]

    async def run(stand: Stand) -> dict[str, Any]:
        for _ in range(9):
            for theme in ("dark", "light"):
                for user in (ANN, BEN):
                    await answers(stand.layer, {"user": user, "headers": [("cookie", f"theme={theme}")]})
        return await stand.settled()

    report = asyncio.run(run(Stand(Origin(body))))
    assert {(one["kind"], one["field"]) for one in report["findings"]} == {("missing-vary", "cookie")}
    assert "theme" not in json.dumps(report)


def sight(at: float, who: str = "ann", body: str = "b") -> Sight:
    return Sight(
        at=at, who=who, tenant="acme", asked=(), status=200, body=body, length=1, order="", headers=(), excerpt=""
    )


def test_the_sights_of_a_key_are_bounded_and_the_first_askers_keep_their_newest() -> None:
    ring = Ring(b"record", sight(0.0))
    for at in range(1, 1001):
        ring.add(sight(float(at), who=f"user-{at % 100}"))
    kept = ring.until(ring.seen)[1:]
    assert len(kept) == MAX_SIGHTS
    assert {one.who for one in kept} == {f"user-{n}" for n in range(1, MAX_ASKERS + 1)}
    assert [one.at for one in kept] == sorted(one.at for one in kept)
    assert min(one.at for one in kept) > 600
    assert ring.until(0) == [ring.basis]


def test_every_limit_bites_and_says_so() -> None:
    origin = Origin(b"x")
    limits = {"max_keys": 2, "max_waiting": 3, "max_findings": 1, "max_examples": 2}
    policies = [RoutePolicy(route=f"/{n}", ttl=60, share="tenant", mode="shadow") for n in range(4)]
    stand = Stand(origin, *policies, notes=limits)

    async def run() -> dict[str, Any]:
        for round_ in range(6):
            for n in range(4):
                origin.body = b"%d" % round_
                await answers(stand.layer, {"path": f"/{n}"})
            if round_ > 1:
                await stand.settled()
        return await stand.settled()

    report = asyncio.run(run())
    for limit in ("shadow-keys", "shadow-waiting", "shadow-findings"):
        assert stand.value("tidegate_limits_total", limit=limit) > 0, limit
    assert len(report["findings"]) == 1
    assert len(report["findings"][0]["examples"]) == 2
    assert total([report], "uncompared") > 0


def test_looking_for_causes_stops_when_it_has_taken_its_share_of_time() -> None:
    origin = Origin(b"x")
    spent = iter(range(1_000_000))
    stand = Stand(origin, notes={"analysis": 0.01, "burst": 2.0, "timer": lambda: float(next(spent))})

    async def run() -> dict[str, Any]:
        for number in range(20):
            origin.body = b"%d" % number
            await answers(stand.layer, {})
            stand.clock.now += 2.1
            await stand.notes.look()
        return await stand.settled()

    report = asyncio.run(run())
    assert stand.value("tidegate_limits_total", limit="shadow-analysis") > 0
    assert report["routes"]["/"]["mismatch"] == 19


def test_no_two_keys_are_looked_into_in_one_turn_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may take tens of milliseconds, where somebody means it to (P5)."""
    turn, looked = 0, list[int]()

    def told(_sights: Any, _volatile: Any) -> Told:
        looked.append(turn)
        return Told((), frozenset())

    async def run() -> None:
        nonlocal turn
        origin = Origin(b"x")
        stand = Stand(origin, *(RoutePolicy(route=f"/{n}", ttl=60, share="tenant", mode="shadow") for n in range(4)))
        for origin.body in (b"x", b"y"):
            for n in range(4):
                await answers(stand.layer, {"path": f"/{n}"})
        stand.clock.now += 5
        looking = asyncio.create_task(stand.notes.look())
        while not looking.done():
            turn += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(shadow_notes, "tell", told)
    asyncio.run(run())
    assert len(set(looked)) == len(looked) == 4


def test_a_difference_that_is_not_due_waits_and_one_whose_record_is_gone_counts_for_nothing() -> None:
    clock, registry = Clock(), CollectorRegistry()
    notes = ShadowNotes(metrics=Metrics.of(registry), clock=clock)
    ring = Ring(b"record", sight(clock.now))

    def difference(due: float, holding: bool) -> Difference:
        async def holds() -> bool:
            return holding

        made = sight(clock.now)
        return Difference(
            route="/", path="/", due=clock.now + due, sight=made, ring=ring, number=ring.seen, holds=holds
        )

    async def run() -> list[dict[str, int]]:
        for due, holding in ((1.0, True), (1.0, False), (9.0, True)):
            notes.wait(difference(due, holding))
        await notes.look()
        before = notes.report()["routes"].copy()
        clock.now += 2.0
        await notes.look()
        return [before, notes.report()["routes"]["/"]]

    assert asyncio.run(run()) == [{}, {"mismatch": 1, "uncompared": 1}]
    assert notes.report()["waiting"] == 1
