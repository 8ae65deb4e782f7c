"""The straight way for plain misses does as the general one does: the same messages, records in the store, and counts.

Two stacks, of all five layers or of a cache alone, live through the same generated lives: the store of one can be asked
and filled without waiting, that of the other cannot, so that every miss there goes the general way. The app answers in
all the ways that decide something: fields, statuses, bodies, messages, exceptions.
"""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from tests.driver import Answer, App, call
from tests.property.test_fused import FIELDS, FLAGS, Closed, Step, metrics_of
from tidegate.middleware.cohorts import CohortCounters
from tidegate.middleware.core.policy import Policies, RoutePolicy
from tidegate.middleware.layers.asgi import ContextResolver, Gate
from tidegate.middleware.layers.breaker import BreakerLayer
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.layers.coalesce import CoalesceLayer
from tidegate.middleware.layers.etag import ETagLayer
from tidegate.middleware.layers.stacking import lead_through
from tidegate.middleware.layers.telemetry import TelemetryLayer
from tidegate.middleware.layers.through import Throughway
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.base import Record
from tidegate.middleware.stores.guard import GuardedStore
from tidegate.middleware.stores.memory import MemoryStore
from tidegate.middleware.stores.moulds import Mould

FRESH = ("cache-control", "max-age=60")
LAST = ("last-modified", "Mon, 01 Jan 2024 00:00:00 GMT")
DATE = ("date", "Tue, 14 Nov 2023 22:13:20 GMT")
ANSWERS: dict[str, list[tuple[str, str]]] = {
    "/plain": [FRESH],
    "/cased": [("Cache-Control", "Max-Age=60"), ("ETag", '"v1"'), ("X-Plain", "1")],
    "/twice": [FRESH, ("etag", '"v1"'), ("etag", '"v2"')],
    "/shared": [("cache-control", "s-maxage=60, public")],
    "/strict": [("cache-control", "max-age=60, must-revalidate"), LAST],
    "/ask": [("cache-control", "no-cache"), ("etag", '"v1"')],
    "/ask-nothing": [("cache-control", "no-cache")],
    "/never": [("cache-control", "no-store"), LAST],
    "/private": [("cache-control", "private, max-age=60")],
    "/fields": [("cache-control", 'no-cache="x-mine, etag", max-age=60'), ("x-mine", "1"), ("etag", '"v1"')],
    "/stale": [("cache-control", "max-age=0")],
    "/silent": [],
    "/guessed-wrong": [("last-modified", "yesterday")],
    "/guessed": [LAST],
    "/guessed-dated": [LAST, ("date", "Tue, 02 Jan 2024 00:00:00 GMT")],
    "/expired": [DATE, ("expires", "0")],
    "/expires": [DATE, ("expires", "Tue, 14 Nov 2023 22:14:20 GMT")],
    "/dated": [FRESH, ("date", "Tue, 14 Nov 2023 22:13:00 GMT")],
    "/aged": [FRESH, ("age", "3")],
    "/grouped": [FRESH, ("cache-groups", '"all"')],
    "/targeted": [FRESH, ("cdn-cache-control", "no-store")],
    "/hops": [FRESH, ("connection", "x-hop"), ("x-hop", "1"), ("keep-alive", "5")],
    "/told": [FRESH, ("cache-status", "Inner; hit")],
    "/cookie": [FRESH, ("set-cookie", "a=1")],
    "/vary": [FRESH, ("vary", "Accept-Encoding, Cookie")],
    "/vary-etag": [FRESH, ("vary", "etag")],
    "/star": [FRESH, ("vary", "*")],
    "/cors": [FRESH, ("access-control-allow-origin", "https://a.test")],
    "/cors-all": [FRESH, ("access-control-allow-origin", "*")],
    "/split": [FRESH, ("x-split", "a\r\nb: c")],
    "/lengths": [FRESH, ("content-length", "3")],
    "/wide": [FRESH, ("x-wide", "w" * 33_000)],
    "/long-vary": [FRESH, ("vary", ", ".join(f"x-{number}" for number in range(100)))],
    "/user": [],
    "/tenant": [LAST],
    "/public": [("cache-control", "public")],
    "/told-client": [LAST, ("cache-control", "stale-if-error=60")],
    "/varied": [],
    "/hidden": [],
    "/small": [FRESH],
    "/off": [FRESH],
    "/rehearsed": [],
    "/open/../shut": [],
    "/tags/": [],
}
"""Fields by path. Before them comes the body's length, but for the paths that say otherwise."""

POLICIES = (
    RoutePolicy(route="/user", ttl=30, stale_while_revalidate=5),
    RoutePolicy(route="/tenant", ttl=30, share="tenant", query=("page",), tags=("list", "page")),
    RoutePolicy(route="/public", ttl=30, share="public"),
    RoutePolicy(route="/told-client", ttl=30, share="tenant", client_ttl=5),
    RoutePolicy(route="/varied", ttl=30, vary=("Accept-Encoding",)),
    RoutePolicy(route="/hidden", ttl=30, extensions="hide"),
    RoutePolicy(route="/small", ttl=30, max_body=20),
    RoutePolicy(route="/open/{rest:path}", ttl=30, share="public"),
    RoutePolicy(route="/off", mode="off"),
    RoutePolicy(route="/rehearsed", ttl=30, mode="shadow"),
    RoutePolicy(route="/tags/{name:path}", ttl=30, tags=("{name}",)),
)
STATUSES = [200, 200, 200, 200, 203, 204, 206, 301, 304, 404, 500]
MANNERS = [
    "whole", "whole", "whole", "whole", "parts", "a buffer", "no length", "too short", "too long", "no end", "trailers",
    "told of trailers", "a file", "two starts", "a generator", "raises", "raises late", "tags", "many tags", "explains",
    "unknown", "waits", "waits before the body", "waits at the end", "reads", "reads late", "raises at the end",
    "says nothing", "is cancelled", "its own etag", "coded", "a session", "more after the end",
    "two lengths",
]  # fmt: skip
MORE: list[dict[str, Any]] = [
    {},
    {},
    {},
    {"scheme": "https"},
    {"extensions": {"http.response.pathsend": {}, "http.response.trailers": {}}},
    {"session": SimpleNamespace(modified=True)},
    {"session": SimpleNamespace(modified=False)},
    {"extensions": {"tls": {"client_cert_chain": ["x"]}}},
]
REQUEST = [*FIELDS, ("x-forwarded-host", "other.test"), ("if-range", '"v1"'), ("origin", "https://a.test")]


class Noting(MemoryStore):
    """Notes all that it was given to keep."""

    def __init__(self, **of: Any) -> None:
        super().__init__(**of)
        self.kept: list[tuple[bytes, Record, float]] = []
        self.in_pieces = 0

    def keep(self, key: bytes, record: Record, *, retain: float) -> bool:
        self.kept.append((key, record, retain))
        return super().keep(key, record, retain=retain)

    def keep_alike(
        self, mould: Mould, key: bytes, end: bytes, etag: bytes, body: bytes, born: float, retain: float,
        digest: bytes | None = None,
    ) -> bool:  # fmt: skip
        kept = super().keep_alike(mould, key, end, etag, body, born, retain, digest)
        if kept:
            self.kept.append((key, self._record(self._held[key]), retain))
            self.in_pieces += 1
        return kept


class Stack:
    """All five layers, or a public cache alone, on an app that answers as the scope's state says."""

    def __init__(self, *, straight: bool, alone: bool) -> None:
        self.now = 1_700_000_000.0
        self.memory = Noting(clock=lambda: self.now, metrics=Metrics.of(CollectorRegistry()))
        self.registry = CollectorRegistry()
        metrics = Metrics.of(self.registry)
        self.store = GuardedStore(self.memory if straight else Closed(self.memory), metrics=metrics)
        self.cohorts = CohortCounters([(flag, "10", kind) for flag in FLAGS for kind in ("canary", "control")])
        resolver = self.resolver = ContextResolver(
            policies=Policies(POLICIES), decide=lambda _identity, scope: scope["state"]["decided"]
        )
        self.seen: list[Any] = []

        def gate(flag: str) -> Gate:
            return lambda context: context.is_open(flag)

        inner: App = self.app
        self.way: Throughway | None = None
        if not alone:
            inner = etag = ETagLayer(inner, resolver=resolver, gate=gate("etag"))
            inner = breaker = BreakerLayer(inner, resolver=resolver, metrics=metrics)
            inner = self.coalesce = CoalesceLayer(inner, resolver=resolver, metrics=metrics, max_busy=60.0)
        self.cache = CacheLayer(
            inner,
            gate=gate("cache"),
            resolver=resolver,
            store=self.store,
            share="public" if alone else "user",
            naming_key=b"secret",
            metrics=metrics,
            clock=lambda: self.now,
        )
        self.stack: App = self.cache
        if not alone:
            self.stack = TelemetryLayer(
                self.cache,
                gate=gate("telemetry"),
                resolver=resolver,
                cohorts=self.cohorts,
                metrics=metrics,
                hits=self.cache.leave_hits(),
                debug_headers=True,
                clock=lambda: 0.0,
            )
            if straight:
                layers = {"etag": etag, "breaker": breaker, "coalesce": self.coalesce, "cache": self.cache}
                layers["telemetry"] = self.stack
                self.way = lead_through(self.app, layers, gate=lambda context: context.is_open("etag"))

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        context, manner = scope["tidegate"], scope["state"]["manner"]
        told = (context.positions, context.coalesce_key, context.missed)
        self.seen.append((scope["headers"], scope["extensions"], *told))
        user = scope.get("user")
        who = (user.tenant, user.username, user.grants) if user is not None and scope["path"] != "/public" else ""
        sent = sorted(value for name, value in scope["headers"] if name in (b"accept-encoding", b"cookie"))
        body = repr((self.now, scope["path"], scope["query_string"], sent, who)).encode()
        if manner == "explains":
            body = repr(context.explain()).encode()
        elif manner in ("waits", "reads"):
            await (asyncio.sleep(0) if manner == "waits" else receive())
        elif manner == "says nothing":
            return
        elif manner == "is cancelled":
            raise asyncio.CancelledError
        elif manner == "a session":
            scope["session"] = SimpleNamespace(modified=True)
        start = self.start(manner, scope, body)
        if manner == "raises":
            raise ValueError("the app's own")
        await send(start)
        if manner == "explains":
            self.seen.append(context.explain())
        await self.bodies(manner, context, body, start, receive, send)

    def start(self, manner: str, scope: Any, body: bytes) -> dict[str, Any]:
        headers = [(name.encode(), value.encode()) for name, value in ANSWERS[scope["path"]]]
        if manner != "no length":
            stated = len(body) + {"too short": 3, "too long": -3}.get(manner, 0)
            headers.insert(0, (b"content-length", b"%d" % stated))
        start: dict[str, Any] = {"type": "http.response.start", "status": scope["state"]["status"], "headers": headers}
        if manner == "a generator":
            start["headers"] = (pair for pair in headers)
        elif manner == "told of trailers":
            start["trailers"] = True
        elif manner == "its own etag":
            start["headers"] = [*headers, (b"etag", b'"of the app"')]
        elif manner == "two lengths":
            start["headers"] = [*headers, (b"content-length", b"%d" % len(body))]
        elif manner == "coded":
            start["headers"] = [*headers, (b"content-encoding", b"gzip")]
        return start

    async def bodies(self, manner: str, context: Any, body: bytes, start: Any, receive: Any, send: Any) -> None:
        part: dict[str, Any] = {"type": "http.response.body", "body": body}
        if manner in ("parts", "raises late", "no end"):
            await send({**part, "body": body[:9], "more_body": True})
            await send({"type": "http.response.body", "more_body": True})
            if manner == "raises late":
                raise ValueError("the app's own")
            part["body"] = body[9:]
            part["more_body"] = manner == "no end"
        elif manner == "a buffer":
            part["body"] = memoryview(bytearray(body))
        elif manner in ("trailers", "two starts", "unknown"):
            kind = {"trailers": "http.response.trailers", "unknown": "test.invented"}.get(manner)
            await send({"type": kind, "headers": []} if kind is not None else start)
        elif manner == "a file":
            part = {"type": "http.response.pathsend", "path": "/etc/hostname"}
        elif manner == "tags":
            context.tag("one", "list", "")
        elif manner == "many tags":
            context.tag(*map(str, range(128)))
        elif manner in ("waits before the body", "reads late"):
            await (asyncio.sleep(0) if manner == "waits before the body" else receive())
        await send(part)
        if manner == "a buffer":
            part["body"][:] = bytes(len(body))  # filled anew, as a reader of files does
        else:
            await self.end(manner, context, send)

    async def end(self, manner: str, context: Any, send: Any) -> None:
        if manner == "waits at the end":
            await asyncio.sleep(0)
            self.seen.append(context.explain())
        elif manner == "raises at the end":
            raise ValueError("the app's own")
        elif manner == "more after the end":
            await send({"type": "test.invented"})
            await send({"type": "http.response.body", "body": b"more", "more_body": False})

    async def live(self, step: Step, status: int, manner: str) -> Answer | str | None:
        self.now += step.after
        if step.purge is not None:
            await self.store.purge({step.purge: ("",)})
            return None
        try:
            answer = await call(self.stack, scope=step.scope(status=status, manner=manner))
        except (ValueError, asyncio.CancelledError) as error:
            return repr(error)
        for message in answer.messages:
            if "headers" in message:
                message["headers"] = list(message["headers"])  # it may still be the app's generator
        return answer


PATHS = st.sampled_from([*sorted(ANSWERS), "/plain", "/user", "/user", "/tenant", "/public"])
REQUESTS = st.builds(
    Step,
    after=st.sampled_from([0.0, 0.0, 0.5, 4.75, 31.0]),
    path=PATHS,
    method=st.sampled_from(["GET", "GET", "GET", "GET", "GET", "GET", "HEAD", "POST"]),
    query=st.sampled_from(["", "", "page=1", "page=2&x=2", "n=3", "n=4", "token=t"]),
    fields=st.one_of(st.just(()), st.lists(st.sampled_from(REQUEST), max_size=2).map(tuple)),
    user=st.sampled_from([0, 0, 0, 1, 2, 3, 4, None]),
    shut=st.sampled_from([frozenset[str](), frozenset[str](), frozenset({"etag"}), frozenset({"cache"})]),
    shadow=st.integers(0, 19).map(lambda n: n == 19),
    more=st.sampled_from(MORE),
)
PURGES = st.builds(Step, purge=st.sampled_from(["public", "tenant:acme"]))
STEPS = st.tuples(
    st.one_of(REQUESTS, REQUESTS, REQUESTS, REQUESTS, REQUESTS, PURGES), st.sampled_from(STATUSES),
    st.sampled_from(MANNERS),
)  # fmt: skip
Life = list[tuple[Step, int, str]]


def each_once() -> list[Life]:
    """Lives that meet every path, manner and status once, with and without what may stand in the way."""
    lives: list[Life] = []
    for path in ANSWERS:
        steps = [Step(path=path, query=f"page={number}", **of) for number, of in enumerate(WAYS)]
        lives.append([(step, 200, "whole") for step in [*steps, *steps]])
    for manner in dict.fromkeys(MANNERS):
        for path in ("/plain", "/tenant", "/hidden", "/vary", "/small", "/never", "/guessed", "/aged"):
            lives.append([(Step(path=path), 200, manner), (Step(path=path), 200, "whole")])
        lives.append([(Step(path="/plain"), 204, manner), (Step(path="/user"), 301, manner)])
    for status in dict.fromkeys(STATUSES):
        lives.append([(Step(path=path), status, "whole") for path in ANSWERS for _ in range(2)])
    for failing in (("raises", 200), ("raises late", 200), ("whole", 500), ("says nothing", 200)):
        # Until the circuit opens, and once more.
        steps = [
            (Step(path=path, query=f"n={number}"), *reversed(failing))
            for path in ("/plain", "/user")
            for number in range(7)
        ]
        lives.append([*steps, (Step(path="/user", query="n=8"), 200, "whole")])
        # And not until then where one goes well in between.
        lives.append([*steps[:4], (Step(path="/plain", query="n=9"), 200, "whole"), *steps[4:7], steps[0]])
        # The same for one that is known not to be for sharing, and so runs alone.
        never = Step(path="/never")
        lives.append([(never, 200, "whole"), *[(never, *reversed(failing))] * 6, (never, 200, "whole")])
    return lives


WAYS: list[dict[str, Any]] = [
    {},
    {"user": None},
    {"user": 4},
    {"shut": frozenset({"etag"})},
    *({"more": more} for more in MORE[3:]),
    *({"fields": (field,)} for field in REQUEST),
    {"user": None, "fields": (("authorization", "Bearer x"),)},
    {"method": "HEAD"},
]


def test_a_plain_miss_is_passed_stored_and_counted_as_the_general_way_would_have_done() -> None:
    taken: list[int] = []
    through: list[int] = []
    misses: list[bool] = []
    stored: list[int] = []

    async def live(steps: Life, alone: bool) -> None:
        straight, general = (Stack(straight=each, alone=alone) for each in (True, False))
        for step in steps:
            seen, wanted = await straight.live(*step), await general.live(*step)
            assert messages(seen) == messages(wanted), step
            assert straight.seen == general.seen, step
            assert straight.memory.kept == general.memory.kept, step
            misses.append(isinstance(wanted, Answer) and "fwd=miss" in (header(wanted) or ""))
        assert straight.cohorts.totals() == general.cohorts.totals()
        assert metrics_of(straight) == metrics_of(general)
        assert straight.cache.misses is not None
        assert general.cache.misses is not None
        assert general.cache.misses.taken == 0
        through.append(straight.way.taken if straight.way is not None else 0)
        taken.append(straight.cache.misses.taken + through[-1])
        stored.append(len(general.memory.kept))

    @settings(
        max_examples=150,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(STEPS, min_size=4, max_size=16), st.booleans())
    def compare(steps: Life, alone: bool) -> None:
        asyncio.run(live(steps, alone))

    for steps in each_once():
        for alone in (False, True):
            asyncio.run(live(steps, alone))
    compare()
    assert sum(misses) > 1500, sum(misses)
    assert sum(stored) > 700, sum(stored)
    assert sum(taken) > sum(misses) * 0.35, f"{sum(taken)} of {sum(misses)} misses went straight"
    assert sum(through) > 400, f"{sum(through)} of {sum(taken)} went through all layers"


class Sparing(Stack):
    """An app that puts the body into the very message that was its start."""

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        message: dict[str, Any] = self.start("whole", scope, b"body")
        await send(message)
        if scope["state"]["manner"] == "waits before the body":
            await asyncio.sleep(0)
        message.clear()
        message |= {"type": "http.response.body", "body": b"body"}
        await send(message)


@pytest.mark.parametrize("manner", ["whole", "waits before the body"])
@pytest.mark.parametrize("alone", [False, True])
def test_an_app_may_say_its_body_in_the_message_that_was_its_start(manner: str, alone: bool) -> None:
    async def body() -> None:
        seen: list[object] = []
        for straight in (True, False):
            stack = Sparing(straight=straight, alone=alone)
            for number in range(3):
                answer = await stack.live(Step(path="/plain", query=f"n={number}"), 200, manner)
                assert isinstance(answer, Answer)
                seen.append(messages(answer))
            hit = await stack.live(Step(path="/plain", query="n=2"), 200, manner)
            assert isinstance(hit, Answer)
            assert "hit" in (header(hit) or "")
        assert seen[:3] == seen[3:]
        assert "http.response.start" in repr(seen[0])

    asyncio.run(body())


def header(answer: Answer) -> str | None:
    starts = [message for message in answer.messages if message["type"] == "http.response.start"]
    return replace(answer, messages=starts[:1]).header("cache-status") if starts else None


def messages(answer: Answer | str | None) -> object:
    return answer.messages if isinstance(answer, Answer) else answer
