"""Law (P2): whatever identities ask, in whatever order, and whatever the app's answers claim, nobody receives a byte
that was made for somebody else: not in a body, nor a header, nor as a 304 to the other's ETag; and what is shared hits.

A state machine sends requests, for parts and with POST among them, lets time pass, purges, opens and shuts gates, and
lets the app fail. Everything that the app answers carries the letter of those whom it was made for, and the number of
its run. `TIDEGATE_DEEP=20` makes twenty times as many sequences, other ones at each run.
"""

import asyncio
import os
import re
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from prometheus_client import CollectorRegistry

from tests.driver import Answer, User, call, scope_of
from tidegate.middleware.core import validators
from tidegate.middleware.core.identity import Identity
from tidegate.middleware.core.keys import primary_parts
from tidegate.middleware.core.policy import Policies, RoutePolicy
from tidegate.middleware.layers import (
    answering,
    etag,
    filling,
    fused,
    joining,
    naming,
    parted,
    posting,
    tee,
)
from tidegate.middleware.layers.asgi import ContextResolver
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.layers.coalesce import CoalesceLayer
from tidegate.middleware.layers.etag import ETagLayer
from tidegate.middleware.layers.filling import Filling
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.memory import MemoryStore

DEEP = int(os.environ.get("TIDEGATE_DEEP", "1"))
SETTINGS = settings(
    max_examples=70 * DEEP,
    stateful_step_count=40,
    deadline=None,
    derandomize=DEEP == 1,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True)
class Caller:
    """Somebody known, or nobody, perhaps with a credential that no identity was made of."""

    user: User | None = None
    headers: tuple[tuple[str, str], ...] = ()
    query: str = ""

    @property
    def has_credential(self) -> bool:
        return bool(self.headers or self.query)


CALLERS = (
    Caller(User("acme", "ann")),
    Caller(User("acme", "ben")),
    Caller(User("acme", "ann", "admin")),
    Caller(User("evil", "ann")),
    Caller(User("evil", "eve", "admin")),
    Caller(),
    Caller(headers=(("cookie", "sid=1"),)),
    Caller(headers=(("cookie", "sid=2"),)),
    Caller(headers=(("authorization", "Bearer 1"),)),
    Caller(query="token=1"),
)
SHARES = {"/user": "user", "/tenant": "tenant", "/public": "public", "/rfc": "user"}
POLICIES = [
    RoutePolicy(route=path, ttl=60, share=share, stale_while_revalidate=30, stale_if_error=90)  # type: ignore[arg-type]
    for path, share in SHARES.items()
    if path != "/rfc"
]
LAYERS = ("cache", "coalesce", "etag")


def made_for(caller: int, path: str) -> str:
    """The letter of those for whom the app answers what it answers this caller: all who may see it have it."""
    who = CALLERS[caller]
    share = SHARES[path]
    if who.user is None:
        return chr(ord("A") + caller) if who.has_credential else ("P" if share == "public" else "N")
    if share == "public":
        return "P"
    if share == "user":
        return chr(ord("A") + caller)
    return {("acme", ""): "T", ("acme", "admin"): "U", ("evil", ""): "V", ("evil", "admin"): "W"}[
        who.user.tenant, who.user.grants
    ]


CACHE_CONTROL = [
    "",
    "",
    "public, max-age=60",
    "max-age=60, stale-while-revalidate=30",
    "s-maxage=60",
    "public, s-maxage=60, must-revalidate",
    "private, max-age=60",
    'private="x-secret", max-age=60',
    'no-cache="x-secret", public, max-age=60',
    "no-cache",
    "no-store",
    "public, immutable, max-age=600, stale-if-error=600",
]
MOODS = st.fixed_dictionaries(
    {
        "cache-control": st.sampled_from(CACHE_CONTROL),
        "cdn-cache-control": st.sampled_from(["", "", "", "public, max-age=90", "no-store"]),
        "vary": st.sampled_from(["", "", "", "x-kind", "X-Kind, Accept", "cookie", "authorization", "*"]),
        "set-cookie": st.sampled_from(["", "", "", "", "sid=own-{who}"]),
        "etag": st.sampled_from(["", "", '"own-{who}"', 'W/"own-{who}-1"']),
        "content-location": st.sampled_from(["", "", "/user", "/public"]),
        "cache-groups": st.sampled_from(["", "", '"g"', '"own-{who}"']),
        "surrogate-key": st.sampled_from(["", "", "k"]),
        "last-modified": st.sampled_from(["", "", "", "Sun, 06 Nov 1994 08:49:37 GMT"]),
    }
)
WHO = st.integers(0, len(CALLERS) - 1)
PATHS = st.sampled_from(sorted(SHARES))
KINDS = st.sampled_from(["", "", "", "de"])


@dataclass(frozen=True)
class Decided:
    open: frozenset[str]
    cohorts: tuple[tuple[str, str, str], ...] = ()
    shadow: frozenset[str] = frozenset()


class TwoIdentities(RuleBasedStateMachine):
    """Cache, coalescing and ETags over one app."""

    seen: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.now = 1_700_000_000.0
        self.runs = 0
        self.mood = dict.fromkeys(("cache-control",), "public, max-age=60")
        self.failing = self.validates = self.parts = False
        self.posted: set[int] = set()
        self.shut: dict[int, frozenset[str]] = {}
        self.etags: dict[str, str] = {}
        metrics = Metrics.of(CollectorRegistry())

        def clock() -> float:
            return self.now

        resolver = ContextResolver(policies=Policies(POLICIES), decide=lambda _who, scope: scope["state"]["decided"])
        self.store = MemoryStore(clock=clock, metrics=metrics)
        inner = ETagLayer(self.app, resolver=resolver, gate=lambda context: context.is_open("etag"))
        self.coalescing = CoalesceLayer(
            inner, resolver=resolver, metrics=metrics, gate=lambda context: context.is_open("coalesce")
        )
        self.cache = CacheLayer(
            self.coalescing,
            store=self.store,
            resolver=resolver,
            metrics=metrics,
            clock=clock,
            gate=lambda context: context.is_open("cache"),
        )

    def teardown(self) -> None:
        self.loop.close()

    async def app(self, scope: Any, _receive: Any, send: Any) -> None:
        """Answers with the letter of those it is for, all over; fails or says 304 when it is in the mood."""
        who = scope["state"]["who"]
        self.runs += 1
        mood, failing, validates, parts = self.mood, self.failing, self.validates, self.parts
        for _ in range(4):
            await asyncio.sleep(0)
        headers = [(name.encode(), value.format(who=who).encode()) for name, value in mood.items() if value]
        headers.append((b"x-secret", b"own-" + who.encode()))
        status, body = (503, b"") if failing else (200, who.encode() * 30 + b"%d" % self.runs)
        if scope["method"] == "POST":
            self.posted.add(self.runs)
        asked = [value for name, value in scope["headers"] if name == b"if-none-match"]
        if validates and not failing and asked and (b"etag", asked[0]) in headers:
            status, body = 304, b""
        else:
            ranges = [value for name, value in scope["headers"] if name == b"range"]
            place = re.fullmatch(rb"bytes=(\d+)-(\d*)", ranges[0]) if parts and ranges and not failing else None
            if place is not None:
                first, last = int(place[1]), min(int(place[2] or len(body)), len(body) - 1)
                headers.append((b"content-range", b"bytes %d-%d/%d" % (first, last, len(body))))
                status, body = 206, body[first : last + 1]
            headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _ask(self, caller: int, path: str, kind: str, *more: tuple[str, str], method: str = "GET") -> Answer:
        who = CALLERS[caller]
        fields = [*who.headers, *([("x-kind", kind)] if kind else []), *more]
        state = {
            "who": made_for(caller, path),
            "decided": Decided(frozenset(LAYERS) - self.shut.get(caller, frozenset())),
        }
        scope = scope_of(path, method=method, headers=fields, query=who.query, user=who.user, state=state)
        answer = await call(self.cache, scope=scope)
        self.check(caller, path, answer, dict(more).get("if-none-match"))
        return answer

    def check(self, caller: int, path: str, answer: Answer, condition: str | None) -> None:
        """Nothing in the answer was made for anybody else."""
        own = made_for(caller, path)
        told = f"{CALLERS[caller]} on {path} may see {own!r}: {answer.messages}"
        assert set(re.findall("[A-Z]", answer.body.decode())) <= {own}, told
        for _, value in answer.headers:
            assert set(re.findall("own-([A-Z])", value.decode())) <= {own}, told
        if answer.status == 304 and condition is not None:
            assert self.etags.get(condition) == own, f"304 to {condition}: {told}"
        tag = answer.header("etag")
        if tag is not None:
            assert self.etags.setdefault(tag, own) == own, told
        note = answer.header("cache-status") or ""
        mark = "shared hit" if own in "PTUVW" else "hit"
        hit = "; hit" in note
        self.seen[mark] += hit and answer.status == 200
        self.seen["part" if own not in "PTUVW" else "shared part"] += hit and answer.status == 206 and self.parts
        run = re.search(r"\d+$", answer.body.decode())
        if hit and answer.status == 200 and run is not None and int(run[0]) in self.posted:
            self.seen["posted" if own not in "PTUVW" else "shared posted"] += 1
        self.seen["304"] += answer.status == 304
        self.seen["206"] += answer.status == 206
        self.seen["collapsed"] += "collapsed" in note
        self.seen["stale"] += "stale-" in note

    def _run(self, *asked: Coroutine[Any, Any, Answer]) -> None:
        async def all_of_them() -> None:
            for result in await asyncio.gather(*asked, return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result
            while tasks := tuple(self.cache._refreshes._tasks.values()):
                await asyncio.wait(tasks)
                await asyncio.sleep(0)

        self.loop.run_until_complete(all_of_them())

    @rule(who=WHO, path=PATHS, kind=KINDS, method=st.sampled_from(["GET", "GET", "GET", "HEAD"]))
    def asks(self, who: int, path: str, kind: str, method: str) -> None:
        self._run(self._ask(who, path, kind, method=method))

    @rule(path=PATHS, kind=KINDS)
    def everybody_asks(self, path: str, kind: str) -> None:
        for who in range(len(CALLERS)):
            self._run(self._ask(who, path, kind))

    @rule(one=WHO, other=WHO, path=PATHS, kind=KINDS)
    def ask_at_the_same_time(self, one: int, other: int, path: str, kind: str) -> None:
        self._run(*(self._ask(who, path, kind) for who in (one, other, one)))

    @rule(who=WHO, path=PATHS, data=st.data())
    def asks_by_an_etag_of_whomever(self, who: int, path: str, data: st.DataObject) -> None:
        if self.etags:
            tag = data.draw(st.sampled_from(sorted(self.etags)))
            self._run(self._ask(who, path, "", ("if-none-match", tag)))

    @rule(who=WHO, other=WHO, path=PATHS, kind=KINDS)
    def ask_in_turn_and_by_the_etags_they_got(self, who: int, other: int, path: str, kind: str) -> None:
        for first, then in ((other, who), (who, who)):
            got: list[Answer] = []

            async def asks(got: list[Answer] = got, first: int = first) -> Answer:
                got.append(await self._ask(first, path, kind))
                return got[0]

            self._run(asks())
            tag = got[0].header("etag")
            if tag is not None:
                self._run(self._ask(then, path, kind, ("if-none-match", tag)))

    @rule(who=WHO, other=WHO, path=PATHS, fails=st.booleans(), more=st.sampled_from([65, 65, 95]))
    def ask_for_what_has_gone_stale(self, who: int, other: int, path: str, fails: bool, more: int) -> None:
        self.mood = {**self.mood, "cache-control": "max-age=60, stale-while-revalidate=30, stale-if-error=90"}
        self._run(self._ask(who, path, ""))
        self.now += more
        self.failing = fails
        for caller in (other, who):
            self._run(self._ask(caller, path, ""))
        self.failing = False

    @rule(who=WHO, path=PATHS, start=st.integers(0, 20))
    def asks_for_a_part(self, who: int, path: str, start: int) -> None:
        self._run(self._ask(who, path, ""))
        self._run(self._ask(who, path, "", ("range", f"bytes={start}-{start + 5}")))

    @rule(who=WHO, other=WHO, third=WHO, path=PATHS, start=st.integers(0, 8), etag=st.booleans())
    def ask_for_parts_that_the_app_gives(
        self, who: int, other: int, third: int, path: str, start: int, etag: bool
    ) -> None:
        """Two that can be joined where they have an ETag, then others ask for what lies in them, and for all."""
        self.mood = {"cache-control": "public, max-age=60"} | ({"etag": '"own-{who}"'} if etag else {})
        self.parts = True
        for caller, first, last in (
            (who, start, start + 9),
            (who, start + 5, start + 15),
            (other, start, start + 9),
            (who, start + 2, start + 7),
            (third, start + 2, start + 7),
        ):
            self._run(self._ask(caller, path, "", ("range", f"bytes={first}-{last}")))
        for caller in (who, other):
            self._run(self._ask(caller, path, ""))
        self.parts = False

    @rule(who=WHO, path=PATHS)
    def posts_what_everybody_then_asks_for(self, who: int, path: str) -> None:
        self.mood = {"cache-control": "public, max-age=60", "content-location": path}
        self._run(self._ask(who, path, "", method="POST"))
        for caller in range(len(CALLERS)):
            self._run(self._ask(caller, path, ""))

    @rule(who=WHO, other=WHO, path=PATHS, elsewhere=PATHS)
    def a_write_elsewhere_invalidates_a_group(self, who: int, other: int, path: str, elsewhere: str) -> None:
        """Whoever writes, and whoever has something of the group stored: what was answered before is gone."""
        self.mood = {"cache-control": "public, max-age=60", "cache-groups": '"g"'}
        self.failing = self.validates = False
        for scope in ("public", "tenant:acme", "tenant:evil"):
            self.somebody_purges(scope)  # what was answered without the group
        for _ in range(2):
            self._run(self._ask(who, path, ""))
        self.mood = {"cache-group-invalidation": '"g"'}
        self._run(self._ask(other, elsewhere, "", method="POST"))
        before, runs = self.runs, self.seen["hit"] + self.seen["shared hit"]
        self._run(self._ask(who, path, ""))
        hits = self.seen["hit"] + self.seen["shared hit"] - runs
        told = f"{CALLERS[who]} on {path} may see nothing of a group that is gone"
        assert (self.runs, hits) == (before + 1, 0), told
        self.seen["group"] += 1

    @rule(who=WHO, path=PATHS)
    def writes(self, who: int, path: str) -> None:
        self._run(self._ask(who, path, "", method="POST"))

    @rule(scope=st.sampled_from(["public", "tenant:acme", "tenant:evil"]))
    def somebody_purges(self, scope: str) -> None:
        self.loop.run_until_complete(self.store.purge({scope: ("",)}))

    @rule(who=WHO, shut=st.sets(st.sampled_from(LAYERS), max_size=2))
    def gates_move(self, who: int, shut: set[str]) -> None:
        self.shut[who] = frozenset(shut)

    @rule(seconds=st.sampled_from([1, 20, 65, 80, 200]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(mood=MOODS, validates=st.booleans())
    def the_app_labels_otherwise(self, mood: dict[str, str], validates: bool) -> None:
        self.mood, self.validates = mood, validates

    @rule(failing=st.sampled_from([True, False, False]))
    def the_app_fails_or_is_well(self, failing: bool) -> None:
        self.failing = failing


def test_nobody_ever_receives_what_was_made_for_somebody_else_and_what_is_shared_hits() -> None:
    TwoIdentities.seen.clear()
    run_state_machine_as_test(TwoIdentities, settings=SETTINGS)
    seen = TwoIdentities.seen
    print("\n" + ", ".join(f"{name} {count}" for name, count in sorted(seen.items())))
    floors = {"hit": 120, "shared hit": 300, "304": 15, "206": 12, "collapsed": 12, "stale": 20}
    floors |= {"part": 15, "shared part": 25, "posted": 6, "shared posted": 30, "group": 15}
    assert all(seen[name] >= floor for name, floor in floors.items()), seen


# --- the machine finds what would break the law ------------------------------------


def _identity_left_out(patch: pytest.MonkeyPatch) -> None:
    def parts(*, identity: Identity | None, **of: Any) -> Any:
        return primary_parts(identity=Identity("one", "one", identity.grants) if identity else None, **of)

    patch.setattr(naming, "primary_parts", parts)


def _grants_left_out(patch: pytest.MonkeyPatch) -> None:
    def parts(*, identity: Identity | None, **of: Any) -> Any:
        return primary_parts(identity=replace(identity, grants="") if identity else None, **of)

    patch.setattr(naming, "primary_parts", parts)


def _public_widens_the_share(patch: pytest.MonkeyPatch) -> None:
    put = Filling._put

    async def widened(self: Any, entry: Any, vary: Any, **of: Any) -> None:
        await put(self, entry, vary, **of)
        if any(name == b"cache-control" and b"public" in value for name, value in entry.headers) and not vary:
            for caller in CALLERS[:5]:
                who = Identity(caller.user.tenant, caller.user.username, caller.user.grants)  # type: ignore[union-attr]
                named = self._config.names.of(self._scope, b"example.test", self._context.match, self._share, who)
                await self._config.store.put(named.primary, entry, retain=60)

    patch.setattr(Filling, "_put", widened)


def _runs_shared_whoever_asks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(joining, "request_key", lambda **of: (of["method"], *of["url"]))


def _any_etag_matches(patch: pytest.MonkeyPatch) -> None:
    def matches(request: Any, *_: Any, **__: Any) -> bool:
        return any(name == b"if-none-match" for name, _value in request)

    for module in (answering, etag, tee, validators):
        patch.setattr(module, "is_not_modified", matches)
    patch.setattr(fused, "_has_it", lambda *_: True)


def _credentials_not_seen(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CacheLayer, "_has_credential", lambda *_, **__: False)
    patch.setattr(fused.FusedHits, "_is_somebodys", lambda *_: False)


def _parts_of_a_url_are_everybodys(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(parted.Parted, "_part_key", lambda self: b"part of " + self._uri.raw_path)


def _posted_answers_are_everybodys(patch: pytest.MonkeyPatch) -> None:
    commit = posting.Posted._commit

    async def widened(self: Any, status: int, headers: Any, body: bytes) -> None:
        await commit(self, status, headers, body)
        stored = (await self._config.store.get(self._primary)).record
        for caller in CALLERS[:5]:
            who = Identity(caller.user.tenant, caller.user.username, caller.user.grants)  # type: ignore[union-attr]
            named = self._config.names.of(self._scope, b"example.test", self._context.match, self._share, who)
            if stored is not None:
                await self._config.store.put(named.primary, stored, retain=60)

    patch.setattr(posting.Posted, "_commit", widened)


def _groups_not_tagged(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(filling, "group_tags", lambda *_: [])


DEFECTS = [
    _parts_of_a_url_are_everybodys,
    _posted_answers_are_everybodys,
    _groups_not_tagged,
    _identity_left_out,
    _grants_left_out,
    _public_widens_the_share,
    _runs_shared_whoever_asks,
    _any_etag_matches,
    _credentials_not_seen,
]


@pytest.mark.parametrize("plant", DEFECTS, ids=lambda plant: plant.__name__.strip("_").replace("_", " "))
def test_a_planted_defect_is_found(plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    found = settings(SETTINGS, phases=[Phase.generate], derandomize=True, report_multiple_bugs=False, print_blob=False)
    with pytest.raises(AssertionError, match=r"may see|304 to"):
        run_state_machine_as_test(TwoIdentities, settings=found)
