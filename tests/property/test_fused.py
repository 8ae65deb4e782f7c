"""The straight function for plain hits answers as the general layers do: the same bytes, the same counts.

Three stacks live through the same generated lives: in one the store can be peeked into; in one it has to be asked, as
one in another process has; in one every request goes through the general layers.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any, Literal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from tests.driver import Answer, App, User, call, scope_of
from tests.middleware.layers.taking import hits_taken
from tidegate.middleware.cohorts import CohortCounters
from tidegate.middleware.core.policy import Policies, RoutePolicy
from tidegate.middleware.layers.asgi import ContextResolver, FlagGate, Gate, RequestContext, always
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.layers.etag import ETagLayer
from tidegate.middleware.layers.fused import FusedHits
from tidegate.middleware.layers.naming import Names
from tidegate.middleware.layers.telemetry import TelemetryLayer
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.base import Entry, Lookup, Purge, Record, StoreStats, Variants
from tidegate.middleware.stores.guard import GuardedStore
from tidegate.middleware.stores.memory import MemoryStore

FLAGS = ("telemetry", "cache", "etag")
ANSWERS: dict[str, list[tuple[str, str]]] = {
    "/plain": [("cache-control", "max-age=60"), ("etag", '"v1"'), ("last-modified", "Mon, 01 Jan 2024 00:00:00 GMT")],
    "/ours": [("cache-control", "max-age=5, stale-if-error=60")],
    "/weak": [("cache-control", "public, max-age=60"), ("etag", 'W/"a,b"')],
    "/twice": [("cache-control", "max-age=60"), ("etag", '"v1"'), ("etag", '"v2"')],
    "/vary": [("cache-control", "max-age=60"), ("vary", "Accept-Encoding, Cookie")],
    "/ask": [("cache-control", "no-cache, max-age=60"), ("etag", '"v1"')],
    "/never": [("cache-control", "no-store")],
    "/dated": [("date", "Tue, 14 Nov 2023 22:13:20 GMT"), ("expires", "Tue, 14 Nov 2023 22:14:20 GMT"), ("age", "3")],
    "/tenant": [],
    "/public": [("last-modified", "Mon, 01 Jan 2024 00:00:00 GMT")],
    "/off": [("cache-control", "max-age=60")],
    "/rehearsed": [],
    "/missing": [("cache-control", "max-age=60")],
    "/open/../shut": [],
}
POLICIES = (
    RoutePolicy(route="/tenant", ttl=30, share="tenant", query=("page",), tags=("list",)),
    RoutePolicy(route="/public", ttl=30, share="public", client_ttl=5),
    RoutePolicy(route="/open/{rest:path}", ttl=30, share="public"),
    RoutePolicy(route="/off", mode="off"),
    RoutePolicy(route="/rehearsed", ttl=30, mode="shadow"),
)
FIELDS = [
    ("host", "other.test"),
    ("if-none-match", '"v1"'),
    ("if-none-match", ' W/"v1" '),
    ("if-none-match", '"v0", "v2"'),
    ("if-none-match", 'W/"a,b"'),
    ("if-none-match", "*"),
    ("if-none-match", ""),
    ("if-modified-since", "Tue, 02 Jan 2024 00:00:00 GMT"),
    ("if-modified-since", "yesterday"),
    ("if-match", '"v1"'),
    ("if-range", '"v1"'),
    ("range", "bytes=0-1"),
    ("cache-control", "no-cache"),
    ("cache-control", "max-age=2"),
    ("cache-control", "only-if-cached"),
    ("pragma", "no-cache"),
    ("content-length", "0"),
    ("transfer-encoding", "chunked"),
    ("accept-encoding", "gzip, br"),
    ("accept-encoding", "br"),
    ("cookie", "a=1"),
    ("authorization", "Bearer x"),
    ("user-agent", "a browser"),
]
USERS = [User("acme", "ann"), User("acme", "ben"), User("evil", "ann"), User("acme", "ann", "admin"), User("acme", "")]


class Closed:
    """A store that nobody can peek into."""

    local = True

    def __init__(self, inner: MemoryStore) -> None:
        self._inner = inner
        self.asked = 0

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...

    async def get(self, key: bytes, scopes: Sequence[str] = ()) -> Lookup:
        self.asked += 1
        return await self._inner.get(key, scopes)

    async def put(self, key: bytes, record: Record, *, retain: float) -> bool:
        return await self._inner.put(key, record, retain=retain)

    async def delete(self, key: bytes) -> None:
        await self._inner.delete(key)

    async def purge(self, tags: Any) -> Purge:
        return await self._inner.purge(tags)

    def stats(self) -> StoreStats:
        return self._inner.stats()


@dataclass(frozen=True)
class Decided:
    open: frozenset[str]
    cohorts: tuple[tuple[str, str, str], ...]
    shadow: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Step:
    """Seconds that pass, then a purge or a request."""

    after: float = 0.0
    purge: str | None = None
    path: str = "/plain"
    method: str = "GET"
    query: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    user: int | None = 0
    shut: frozenset[str] = frozenset()
    shadow: bool = False
    more: dict[str, Any] = field(default_factory=dict[str, Any])

    def scope(self, **told: object) -> dict[str, Any]:
        """Of its request. told: what the application is to find in the scope's state."""
        opened = frozenset(FLAGS) - self.shut
        cohorts = tuple((flag, "10", "canary" if flag in opened else "control") for flag in FLAGS)
        shadow = frozenset({"cache"}) if self.shadow else frozenset[str]()
        return scope_of(
            self.path,
            method=self.method,
            headers=self.fields,
            query=self.query,
            user=USERS[self.user] if self.user is not None else None,
            state={"decided": Decided(opened, cohorts, shadow), **told},
            **self.more,
        )


How = Literal["peeks", "asks", "general"]
HOWS: tuple[How, ...] = ("peeks", "asks", "general")


class Stack:
    """Telemetry, cache and etag on an app whose answers depend on all that they may depend on."""

    def __init__(self, how: How, *, debug: bool, telemetry: bool) -> None:
        self.now = 1_700_000_000.0
        memory = MemoryStore(clock=lambda: self.now, metrics=Metrics.of(CollectorRegistry()))
        self.registry = CollectorRegistry()
        metrics = Metrics.of(self.registry)
        self.closed = Closed(memory)
        self.store = GuardedStore(memory if how == "peeks" else self.closed, metrics=metrics)
        self.cohorts = CohortCounters([(flag, "10", kind) for flag in FLAGS for kind in ("canary", "control")])
        resolver = ContextResolver(
            policies=Policies(POLICIES), decide=lambda _identity, scope: scope["state"]["decided"]
        )
        gates: dict[str, Gate] = {
            # Of the flags' own gates the straight function asks no more than what they stand for.
            layer: FlagGate(layer) if how == "peeks" else partial(RequestContext.is_open, layer=layer)
            for layer in ("cache", "telemetry")
        }
        self.cache = CacheLayer(
            ETagLayer(self.app, resolver=resolver, gate=lambda context: context.is_open("etag")),
            gate=gates["cache"],
            resolver=resolver,
            store=self.store,
            metrics=metrics,
            clock=lambda: self.now,
        )
        if how == "general":
            self.cache.hits = self.cache._own_hits = None
        self.runs = 0
        if not telemetry:
            self.stack: App = self.cache
            return
        self.stack = TelemetryLayer(
            self.cache,
            gate=gates["telemetry"],
            resolver=resolver,
            cohorts=self.cohorts,
            metrics=metrics,
            hits=self.cache.leave_hits(),
            bare=self.app,
            debug_headers=debug,
            clock=lambda: 0.0,
        )

    async def app(self, scope: Any, _receive: Any, send: Any) -> None:
        self.runs += 1
        sent = sorted(value for name, value in scope["headers"] if name in (b"accept-encoding", b"cookie"))
        user = scope.get("user")
        who = (user.tenant, user.username, user.grants) if user is not None and scope["path"] != "/public" else ""
        body = repr((self.now, scope["path"], scope["query_string"], sent, who)).encode()
        headers = [(name.encode(), value.encode()) for name, value in ANSWERS[scope["path"]]]
        headers.append((b"content-length", b"%d" % len(body)))
        status = 404 if scope["path"] == "/missing" else 200
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body if scope["method"] != "HEAD" else b""})

    async def live(self, step: Step) -> Answer | None:
        self.now += step.after
        if step.purge is not None:
            await self.store.purge({step.purge: ("",)})
            return None
        return await call(self.stack, scope=step.scope())


def metrics_of(stack: Stack) -> list[str]:
    """All samples but those that are about time."""
    lines = generate_latest(stack.registry).decode().splitlines()
    return [line for line in lines if "store_operation_seconds" not in line and "_created" not in line]


REQUESTS = st.builds(
    Step,
    after=st.sampled_from([0.0, 0.0, 0.0, 0.5, 1.0, 4.75, 31.0]),
    path=st.sampled_from(sorted(ANSWERS)),
    method=st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "OPTIONS"]),
    query=st.sampled_from(["", "", "page=1", "page=1&x=2", "token=t"]),
    fields=st.lists(st.sampled_from(FIELDS), max_size=3).map(tuple),
    user=st.sampled_from([0, 0, 0, 1, 2, 3, 4, None, None]),
    shut=st.sampled_from(
        [frozenset[str](), frozenset[str](), *(frozenset({flag}) for flag in FLAGS), frozenset(FLAGS)]
    ),
    shadow=st.integers(0, 9).map(lambda n: n == 9),
    more=st.sampled_from([{}, {}, {"scheme": "https"}, {"extensions": {"tls": {"client_cert_chain": ["x"]}}}]),
)
PURGES = st.builds(Step, purge=st.sampled_from(["public", "tenant:acme"]))


@st.composite
def lives(draw: st.DrawFn) -> list[Step]:
    """Requests, most of them like one before, so that there is something to hit."""
    steps: list[Step] = []
    for step in draw(st.lists(st.one_of(REQUESTS, REQUESTS, REQUESTS, PURGES), min_size=1, max_size=6)):
        steps += [step] * draw(st.integers(1, 3))
        if step.purge is None:
            for fields in draw(st.lists(FEW, min_size=2, max_size=6)):
                steps.append(Step(path=step.path, query=step.query, user=step.user, more=step.more, fields=fields))
    return steps


ANYBODY = Step(path="/public", user=None)
LIVES = {
    "a path that climbs, for nobody and then for somebody": [
        Step(path="/open/../shut", user=None),
        Step(path="/open/../shut"),
    ],
    "our own ETag, with its gate shut": [
        Step(path="/ours"),
        Step(path="/ours", shut=frozenset({"etag"})),
    ],
    "a route with a policy, first with the telemetry's gate open, then with it shut": [
        Step(path="/tenant", shut=shut)
        for shut in (frozenset[str](), frozenset[str](), frozenset({"telemetry"}), frozenset[str]())
    ],
    "the same in shadow mode": [Step(path="/ours"), Step(path="/ours", shadow=True), Step(path="/ours")],
    "nobody, and then somebody with a cookie": [ANYBODY, ANYBODY, replace(ANYBODY, fields=(("cookie", "a=1"),))],
    "or credentials": [ANYBODY, ANYBODY, replace(ANYBODY, fields=(("authorization", "Bearer x"),))],
    "or a key": [ANYBODY, replace(ANYBODY, query="token=t"), replace(ANYBODY, query="token=t")],
    "or a certificate": [ANYBODY, replace(ANYBODY, more={"extensions": {"tls": {"client_cert_chain": ["x"]}}})],
    "another host": [Step(), Step(fields=(("host", "other.test"),))],
    "other grants, another tenant, another user": [Step(user=user) for user in (0, 3, 2, 1, 0, 3, 2, 1)],
    "a tag that is none of two": [Step(path="/twice"), Step(path="/twice", fields=(("if-none-match", '"v1"'),))],
    "one age to the second, and the last": [Step(), *[Step(after=after) for after in (0.5, 0.5, 58.75, 0.125, 0.125)]],
}
"""Lives that chance would seldom lead, each with something that only one line of the straight function tells apart."""

FEW = st.lists(st.sampled_from(FIELDS), max_size=1).map(tuple)


def test_a_plain_hit_is_what_the_general_layers_would_have_answered_and_counted() -> None:
    taken: dict[How, int] = {"peeks": 0, "asks": 0}
    hits: list[int] = []

    async def live(steps: list[Step], debug: bool, telemetry: bool, answered: Counter[FusedHits]) -> None:
        stacks = {how: Stack(how, debug=debug, telemetry=telemetry) for how in HOWS}
        general = stacks.pop("general")
        for step in steps:
            wanted = await general.live(step)
            hits.append(wanted is not None and wanted.hit)
            for how, fused in stacks.items():
                seen = await fused.live(step)
                assert (seen and seen.messages) == (wanted and wanted.messages), (how, step)
                assert fused.runs == general.runs, (how, step)
        for how, fused in stacks.items():
            assert fused.cohorts.totals() == general.cohorts.totals(), how
            assert metrics_of(fused) == metrics_of(general), how
            assert fused.cache.hits is not None
            taken[how] += answered[fused.cache.hits]
        assert stacks["asks"].closed.asked == general.closed.asked, "nobody asks twice"

    @settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(lives(), st.booleans(), st.integers(0, 3))
    def compare(steps: list[Step], debug: bool, alone: int) -> None:
        with hits_taken() as answered:
            asyncio.run(live(steps, debug, alone != 0, answered))

    for steps, telemetry in product(LIVES.values(), (True, False)):
        with hits_taken() as answered:
            asyncio.run(live(steps, True, telemetry, answered))
    compare()
    assert sum(hits) > 300, sum(hits)
    assert taken["peeks"] > sum(hits) * 0.5, f"{taken} of {sum(hits)}: most hits are plain, and were answered in one go"
    assert taken["asks"] > sum(hits) * 0.25, f"{taken} of {sum(hits)}: and those that have no condition were, asked for"


def test_an_entry_under_the_key_of_another_variant_is_not_served() -> None:
    entry = Entry(status=200, headers=(), body=b"br", born=0.0, lifetime=60.0, vary=((b"accept-encoding", b"br"),))

    def ask(records: list[Record], encoding: str) -> object:
        resolver = ContextResolver()
        hits = FusedHits(
            peek=lambda _key: records.pop(0),
            names=Names(namespace=b"v1", naming_key=b""),
            gate=always,
            share="user",
            credentials=resolver.credentials,
            clock=lambda: 1.0,
        )
        scope = scope_of("/", user=USERS[0], headers=[("accept-encoding", encoding)])
        return hits.find(scope, resolver.of(scope))

    variants = Variants(names=(b"accept-encoding",))
    assert ask([variants, entry], "br") is not None
    assert ask([variants, entry], "gzip") is None
    assert ask([entry], "br") is None
