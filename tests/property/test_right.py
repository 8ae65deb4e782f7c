"""Law (P3): whatever an honest app says and whoever asks for what, each answer is one that RFC 9111 allows.

A state machine drives the cache over a small app that does what HTTP asks of one: it answers conditions, Range and
If-Range by the versions that it has. A model, which reads no field that it did not write, knows all that the app said.
An answer from the store must be bytes of one version, of a variant that the request selects, of the same tenant, not
invalidated since, fresh or stale as far as somebody allowed, and say the right age; any other must be of the version
that the app has now.
"""

import asyncio
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.driver import Answer, User, call
from tidegate.middleware.core import parts, ranges, storing
from tidegate.middleware.core.message import directives, field_values, format_date, single_value
from tidegate.middleware.core.targeted import Control
from tidegate.middleware.layers import cache, exchange, filling, fused, parted, straight
from tidegate.middleware.layers.asgi import ContextResolver
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.layers.coalesce import CoalesceLayer
from tidegate.middleware.stores.memory import MemoryStore

DEEP = int(os.environ.get("TIDEGATE_DEEP", "1"))
SETTINGS = settings(
    max_examples=70 * DEEP,
    stateful_step_count=40,
    deadline=None,
    derandomize=DEEP == 1,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
START = 1_700_000_000.0
PATHS = ("/a", "/b")
USERS = (User("acme", "ann"), User("acme", "ben"), User("evil", "eve"))
RANGES = ("bytes=0-9", "bytes=0-19", "bytes=10-", "bytes=5-24", "bytes=20-", "bytes=-9", "bytes=0-3,6-8", "bytes=999-")


@dataclass(frozen=True)
class Said:
    """What the app says of what it has, beside the version: directives with their values, and other fields."""

    control: tuple[tuple[str, int | None], ...] = (("max-age", 60),)
    targeted: tuple[tuple[str, int | None], ...] = ()
    expires: int | None = None
    age: int = 0
    skew: int = 0
    vary: tuple[str, ...] = ()
    etag: str = "strong"
    modified: bool = False
    cookie: bool = False
    group: bool = False

    @property
    def counts(self) -> dict[str, int | None]:
        """The directives that decide."""
        return dict(self.targeted or self.control)


@dataclass(frozen=True)
class Version:
    """One representation. vary: names and values of the request fields that it was chosen by."""

    path: str
    number: int
    vary: tuple[tuple[str, str | None], ...]
    kind: str
    modified: bool

    @cached_property
    def body(self) -> bytes:
        return hashlib.sha256(repr(self).encode()).hexdigest()[:30].encode()

    @cached_property
    def etag(self) -> str | None:
        tag = '"' + hashlib.sha256(b"tag" + repr(self).encode()).hexdigest()[:12] + '"'
        return {"strong": tag, "weak": "W/" + tag}.get(self.kind)

    @cached_property
    def last_modified(self) -> str | None:
        return format_date(START - 100_000 + 10 * self.number).decode() if self.modified else None


@dataclass(frozen=True)
class Known:
    """An answer of the app's, as a cache may have stored it. at: when; turn: of which it was the app's."""

    version: Version
    said: Said
    tenant: str
    at: float
    turn: int
    kept: bool
    selected: frozenset[tuple[str, str | None]]
    names: frozenset[str]

    def lifetime(self) -> float | None:
        counts = self.said.counts
        for name in ("s-maxage", "max-age"):
            if name in counts:
                return float(counts[name] or 0)
        if not self.said.targeted and self.said.expires is not None:
            return max(0.0, float(self.said.expires))
        if self.version.modified:
            since = self.at + self.said.skew - (START - 100_000 + 10 * self.version.number)
            return min(86_400.0, max(0.0, since / 10))
        return 0.0 if "no-cache" in counts else None

    def may_be_stored(self) -> bool:
        counts = self.said.counts
        forbidden = {"no-store", "private"} & counts.keys()
        return (
            self.kept
            and not forbidden
            and not self.said.cookie
            and "*" not in self.names
            and self.lifetime() is not None
        )

    def age(self, now: float) -> float:
        return now - self.at + max(self.said.age, -self.said.skew, 0)

    @property
    def strict(self) -> bool:
        return bool({"must-revalidate", "s-maxage", "no-cache"} & self.said.counts.keys())


@dataclass(frozen=True)
class Asked:
    """A request. wants: its directives."""

    path: str
    user: User
    method: str = "GET"
    fields: tuple[tuple[str, str], ...] = ()
    range: str | None = None
    condition: tuple[str, str] | None = None
    wants: tuple[tuple[str, int | None], ...] = ()

    def lines(self) -> list[tuple[str, str]]:
        lines = list(self.fields)
        lines += [("range", self.range)] if self.range else []
        lines += [self.condition] if self.condition else []
        return lines + ([("cache-control", written(self.wants))] if self.wants else [])


def written(control: tuple[tuple[str, int | None], ...]) -> str:
    return ", ".join(name if value is None else f"{name}={value}" for name, value in control)


SECONDS = st.sampled_from([0, 5, 10, 60, 600])
CONTROL = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["max-age", "max-age", "max-age", "s-maxage"]), SECONDS),
        st.tuples(st.sampled_from(["stale-while-revalidate", "stale-if-error"]), st.sampled_from([0, 30, 100])),
        st.tuples(st.sampled_from(["no-store", "no-cache", "private", "public", "must-revalidate"]), st.none()),
    ),
    max_size=4,
    unique_by=lambda each: each[0],
).map(tuple)
SAYS = st.builds(
    Said,
    control=st.one_of(st.just((("max-age", 60),)), CONTROL),
    targeted=st.one_of(st.just(()), st.just(()), CONTROL),
    expires=st.sampled_from([None, None, None, -5, 20, 300]),
    age=st.sampled_from([0, 0, 0, 7, 70]),
    skew=st.sampled_from([0, 0, 0, -9, 50]),
    vary=st.sampled_from([(), (), (), ("x",), ("x", "y"), ("*",)]),
    etag=st.sampled_from(["strong", "strong", "strong", "weak", ""]),
    modified=st.booleans(),
    cookie=st.sampled_from([False, False, False, False, True]),
    group=st.booleans(),
)
WANTS = st.sampled_from(
    [(), (), (), (), (("no-cache", None),), (("no-store", None),), (("max-age", 5),), (("max-stale", None),),
     (("max-stale", 20),), (("min-fresh", 8),), (("only-if-cached", None),)]
)  # fmt: skip
FIELDS = st.sampled_from([(), (), (), (("x", "1"),), (("x", "2"),), (("x", "1"), ("y", "1"))])
CLEARING = [(), (), (("location", "/b"),), (("content-location", "/a"),), (("cache-group-invalidation", '"g"'),)]
PATH, USER = st.sampled_from(PATHS), st.sampled_from(USERS)


class Right(RuleBasedStateMachine):
    """The cache over one app with two resources."""

    seen: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.now = START
        self.says = dict.fromkeys(PATHS, Said())
        self.numbers = dict.fromkeys(PATHS, 1)
        self.failing: int | None = None
        self.known: dict[Known, None] = {}
        self.versions: set[Version] = set()
        self.turn = 0
        self.cleared = dict.fromkeys([*PATHS, "group"], -1)
        self.purging: tuple[tuple[str, str], ...] = ()

        def clock() -> float:
            return self.now

        resolver = ContextResolver()
        coalescing = CoalesceLayer(self.app, resolver=resolver)
        store = MemoryStore(clock=clock)
        self.cache = CacheLayer(coalescing, store=store, resolver=resolver, clock=clock, share="tenant")

    def teardown(self) -> None:
        self.loop.close()

    # --- the app -----------------------------------------------------------------

    def version(self, path: str, given: dict[str, str]) -> Version:
        """What the app has now for a request with these fields."""
        said = self.says[path]
        vary = tuple((name, given.get(name)) for name in said.vary if name != "*")
        return Version(path, self.numbers[path], vary, said.etag, said.modified)

    async def app(self, scope: Any, _receive: Any, send: Any) -> None:
        given = {name.decode(): value.decode() for name, value in scope["headers"]}
        path, method = scope["path"], scope["method"]
        if self.failing is not None:
            if self.failing == 0:
                raise RuntimeError("the app is broken")
            await answer(send, self.failing, [], b"broken")
            return
        if method == "POST":
            self.numbers[path] += 1
            for each in [path, *(value for _, value in self.purging if value.startswith("/"))]:
                self.cleared[each] = self.turn
            if any(value == '"g"' for _, value in self.purging):
                self.cleared["group"] = self.turn
            await answer(send, 200, list(self.purging), b"done")
            return
        version, said = self.version(path, given), self.says[path]
        self.versions.add(version)
        headers = self.fields_of(version, said)
        status, body, more = self.judged(version, given, method)
        self.note(version, said, given, scope["user"].tenant, status, method)
        await answer(send, status, [*headers, *more], body if method == "GET" else b"", length=len(body))

    def fields_of(self, version: Version, said: Said) -> list[tuple[str, str]]:
        headers = [("cache-control", written(said.control) or "x-nothing")]
        if said.targeted:
            headers.append(("cdn-cache-control", written(said.targeted)))
        if said.expires is not None:
            headers.append(("expires", format_date(self.now + said.skew + said.expires).decode()))
        headers.append(("date", format_date(self.now + said.skew).decode()))
        headers += [("age", str(said.age))] if said.age else []
        headers += [("vary", ", ".join(said.vary))] if said.vary else []
        headers += [("etag", version.etag)] if version.etag else []
        headers += [("last-modified", version.last_modified)] if version.last_modified else []
        headers += [("set-cookie", "a=b")] if said.cookie else []
        return headers + ([("cache-groups", '"g"')] if said.group else [])

    def judged(self, version: Version, given: dict[str, str], method: str) -> tuple[int, bytes, list[tuple[str, str]]]:
        """Status, body and further fields, by RFC 9110 13.2.2 and 14.2; several ranges get the whole."""
        body, etag, modified = version.body, version.etag, version.last_modified
        tags = [tag.strip().removeprefix("W/") for tag in given.get("if-none-match", "").split(",")]
        since = given.get("if-modified-since") if "if-none-match" not in given else None
        if (etag and etag.removeprefix("W/") in tags) or (since is not None and since == modified):
            return 304, b"", []
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", given.get("range", ""))
        named = given.get("if-range")
        if method != "GET" or asked is None or (named is not None and (named != etag or named.startswith("W/"))):
            return 200, body, []
        first, last = asked.groups()
        begin = int(first) if first else max(0, len(body) - int(last))
        end = min(int(last) + 1, len(body)) if first and last else len(body)
        if begin >= len(body):
            return 416, b"", [("content-range", f"bytes */{len(body)}")]
        return 206, body[begin:end], [("content-range", f"bytes {begin}-{end - 1}/{len(body)}")]

    def note(self, version: Version, said: Said, given: dict[str, str], tenant: str, status: int, method: str) -> None:
        """Remember an answer, and what a cache may have made of it together with what it had."""
        kept = "no-store" not in given.get("cache-control", "") and status != 416
        selected = frozenset((name, given.get(name)) for name in ("x", "y"))
        now = Known(version, said, tenant, self.now, self.turn, kept, selected, frozenset(said.vary))
        news = [now]
        if status == 304 or method == "HEAD":
            # What a 304 does not say stays as it was (RFC 9111 3.2): the targeted field, Expires, groups.
            news = [
                replace(
                    now,
                    turn=old.turn,
                    said=replace(
                        said,
                        targeted=said.targeted or old.said.targeted,
                        expires=said.expires if said.expires is not None or old.said.expires is None else -(10**6),
                        group=said.group or old.said.group,
                    ),
                    names=now.names | old.names,
                )
                for old in self.known
                if old.version == version and old.tenant == tenant and old.may_be_stored()
            ]
        self.known |= dict.fromkeys(news)

    # --- the client --------------------------------------------------------------

    def ask(self, asked: Asked) -> Answer | None:
        """One request, with what it begins in the background; None: the app raised, and nothing stood in."""
        self.turn += 1
        before, failing = len(self.known), self.failing

        async def story() -> Answer | None:
            try:
                got = await call(self.cache, asked.path, method=asked.method, headers=asked.lines(), user=asked.user)
            except RuntimeError:
                got = None
            while tasks := tuple(self.cache._refreshes._tasks.values()):
                await asyncio.wait(tasks)
                await asyncio.sleep(0)
            return got

        got = self.loop.run_until_complete(story())
        if asked.method != "POST" and got is not None:
            self.check(asked, got, before, failing)
        return got

    def check(self, asked: Asked, got: Answer, before: int, failing: int | None) -> None:
        note = got.header("cache-status") or ""
        told = f"{asked}: {got.messages}"
        hit = "; hit" in note
        self.count(asked, got, note)
        if got.status >= 500:
            assert got.status == failing or ("only-if-cached", None) in asked.wants, told
            return
        if got.status == 416:
            assert asked.range == RANGES[-1], told
            return
        versions = self.versions_of(asked, got, told)
        if hit:
            stored = islice(self.known, before)
            assert any(self.allows(each, asked, got, note, failing) for each in stored if each.version in versions), (
                told
            )
        else:
            assert self.version(asked.path, dict(asked.fields)) in versions, f"not what the app has: {told}"

    def versions_of(self, asked: Asked, got: Answer, told: str) -> list[Version]:
        """The versions that this can be an answer with."""
        etag = got.header("etag")
        ours = [each for each in self.versions if each.path == asked.path and each.etag == etag]
        if got.status == 304:
            assert asked.condition is not None, told
            name, value = asked.condition
            if name == "if-none-match":
                ours = [each for each in ours if each.etag and each.etag.removeprefix("W/") in value]
            else:
                ours = [each for each in self.versions if each.path == asked.path and each.last_modified == value]
        elif got.status == 206:
            if asked.condition is not None and asked.condition[0] == "if-range":
                named = asked.condition[1]
                ours = [each for each in ours if named in (each.etag, each.last_modified) and named[:2] != "W/"]
            ours = [each for each in ours if self.is_part(asked, got, each)]
        elif asked.method == "GET":
            assert got.header("content-length") in (None, str(len(got.body))), told
            assert got.header("content-range") is None, told
            ours = [each for each in ours if each.body == got.body]
        fields = dict(asked.fields)
        ours = [each for each in ours if all(fields.get(name) == value for name, value in each.vary)]
        assert ours, f"of no version: {told}"
        return ours

    def is_part(self, asked: Asked, got: Answer, version: Version) -> bool:
        if asked.range is None or asked.method != "GET":
            return False
        kind = got.header("content-type") or ""
        whole = version.body
        if kind.startswith("multipart/"):
            found = re.findall(rb"content-range: bytes (\d+)-(\d+)/(\d+)\r\n\r\n(.*?)\r\n--", got.body)
            return len(found) == 2 and all(
                whole[int(a) : int(b) + 1] == part and int(c) == len(whole) for a, b, c, part in found
            )
        place = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", got.header("content-range") or "")
        if place is None or got.header("content-length") != str(len(got.body)):
            return False
        first, last, total = map(int, place.groups())
        return (
            total == len(whole)
            and whole[first : last + 1] == got.body
            and self.named(asked.range, total) == (first, last)
        )

    def named(self, asked: str, total: int) -> tuple[int, int]:
        first, _, last = asked.removeprefix("bytes=").partition("-")
        if not first:
            return max(0, total - int(last)), total - 1
        return int(first), min(int(last), total - 1) if last else total - 1

    def allows(self, each: Known, asked: Asked, got: Answer, note: str, failing: int | None) -> bool:
        """Whether this stored answer may be the one that was used, now, for this request (RFC 9111 4)."""
        wants, lifetime = dict(asked.wants), each.lifetime()
        if each.tenant != asked.user.tenant or not each.may_be_stored() or lifetime is None:
            return False
        fields = dict(asked.fields)
        if any((name, fields.get(name)) not in each.selected for name in each.names):
            return False
        if self.cleared[each.version.path] >= each.turn or (each.said.group and self.cleared["group"] >= each.turn):
            return False
        age = each.age(self.now)
        left = lifetime - age
        if got.header("age") != str(int(age)) or f"; ttl={int(left)}" not in note:
            return False
        counts = each.said.counts
        detail = note.partition("detail=")[2]
        if detail == "stale-if-error":
            return not each.strict and failing is not None and -left <= (counts.get("stale-if-error") or -1)
        if detail == "disconnected":
            return not each.strict and failing in (502, 504) and -left <= 60
        if "no-cache" in wants or "no-cache" in counts or age > (wants.get("max-age") if "max-age" in wants else age):  # type: ignore[operator]
            return False
        if detail == "stale-while-revalidate":
            return not each.strict and left <= 0 and -left < (counts.get("stale-while-revalidate") or 0)
        if left > 0:
            return left >= (wants.get("min-fresh") or 0)
        most = wants.get("max-stale", -1)
        return not each.strict and (most is None or -left <= most)

    def count(self, asked: Asked, got: Answer, note: str) -> None:
        hit = "; hit" in note
        self.seen["hit"] += hit and got.status == 200
        self.seen["206 hit"] += hit and got.status == 206
        self.seen["304 hit"] += hit and got.status == 304
        self.seen["head hit"] += hit and asked.method == "HEAD"
        for mark in ("stale-while-revalidate", "stale-if-error", "disconnected", "fwd-status=304", "fwd=partial; fwd"):
            self.seen[mark] += mark in note
        self.seen["stale by the client's leave"] += hit and "ttl=-" in note and "detail" not in note

    # --- what happens --------------------------------------------------------------

    @rule(path=PATH, user=USER, fields=FIELDS, wants=WANTS, method=st.sampled_from(["GET", "GET", "GET", "HEAD"]))
    def somebody_asks(self, path: str, user: User, fields: Any, wants: Any, method: str) -> None:
        self.ask(Asked(path, user, method, fields, wants=wants))

    @rule(
        path=PATH,
        user=USER,
        fields=FIELDS,
        ranges=st.lists(st.sampled_from(RANGES), min_size=2, max_size=4),
        wants=WANTS,
        plain=st.booleans(),
        changes=st.sampled_from([0, 0, 1]),
    )
    def somebody_asks_for_parts_and_for_all(
        self, path: str, user: User, fields: Any, ranges: list[str], wants: Any, plain: bool, changes: int
    ) -> None:
        if plain:
            self.says[path] = Said()
            self.purging = ()
            self.ask(Asked(path, user, "POST"))
        for each in ranges:
            self.ask(Asked(path, user, fields=fields, range=each))
            self.numbers[path] += changes
        self.ask(Asked(path, user, fields=fields, range=ranges[0], wants=wants))
        self.ask(Asked(path, user, fields=fields, wants=wants))

    @rule(path=PATH, user=USER, fields=FIELDS, span=st.sampled_from(RANGES), by=st.sampled_from(["etag", "date"]),
          changes=st.sampled_from([0, 0, 1]))  # fmt: skip
    def somebody_asks_by_what_they_got(
        self, path: str, user: User, fields: Any, span: str, by: str, changes: int
    ) -> None:
        got = self.ask(Asked(path, user, fields=fields))
        value = got.header("etag" if by == "etag" else "last-modified") if got is not None else None
        if value is None:
            return
        if changes:
            self.numbers[path] += 1
            self.ask(Asked(path, user, fields=fields, wants=(("no-cache", None),)))
        self.ask(Asked(path, user, fields=fields, range=span, condition=("if-range", value)))
        self.ask(
            Asked(
                path, user, fields=fields, condition=("if-none-match" if by == "etag" else "if-modified-since", value)
            )
        )

    @rule(path=PATH, user=USER, fields=FIELDS, wants=WANTS, later=st.sampled_from([1, 20, 70]),
          failing=st.sampled_from([None, 0, 500, 502, 503, 504]))  # fmt: skip
    def somebody_asks_again_later(
        self, path: str, user: User, fields: Any, wants: Any, later: int, failing: Any
    ) -> None:
        self.ask(Asked(path, user, fields=fields))
        self.now += later
        self.failing = failing
        self.ask(Asked(path, user, fields=fields, wants=wants))
        self.failing = None
        self.ask(Asked(path, user, fields=fields))

    @rule(path=PATH, users=st.tuples(USER, USER), extra=CONTROL, wants=WANTS, later=st.sampled_from([11, 45, 95, 200]),
          failing=st.sampled_from([None, 0, 500, 502, 503, 504]))  # fmt: skip
    def somebody_asks_for_what_has_gone_stale(
        self, path: str, users: tuple[User, User], extra: Any, later: int, failing: Any, wants: Any
    ) -> None:
        control = {"stale-while-revalidate": 30, "stale-if-error": 100} | dict(extra) | {"max-age": 10}
        self.says[path] = replace(self.says[path], control=tuple(control.items()), targeted=(), age=0, skew=0)
        self.ask(Asked(path, users[0], wants=(("no-cache", None),)))
        self.now += later
        self.failing = failing
        for user in users:
            self.ask(Asked(path, user, wants=wants))
        self.failing = None
        self.ask(Asked(path, users[0]))

    @rule(path=PATH, user=USER, failing=st.sampled_from([None, None, 500, 404]), more=st.sampled_from(CLEARING))
    def somebody_writes(self, path: str, user: User, failing: int | None, more: tuple[tuple[str, str], ...]) -> None:
        self.purging, self.failing = more, failing
        self.ask(Asked(path, user, "POST"))
        self.failing = None

    @rule(path=PATH)
    def it_changes_though_nobody_says_so(self, path: str) -> None:
        self.numbers[path] += 1

    @rule(path=PATH, says=SAYS)
    def the_app_says_otherwise(self, path: str, says: Said) -> None:
        old = self.says[path]
        # A version's validators are its own: with other ones, or chosen by other fields, it is another.
        self.numbers[path] += (says.vary, says.etag, says.modified) != (old.vary, old.etag, old.modified)
        self.says[path] = says

    @rule(path=PATH, control=CONTROL)
    def the_app_says_only_for_how_long(self, path: str, control: Any) -> None:
        self.says[path] = replace(self.says[path], control=control)

    @rule(seconds=st.sampled_from([1, 4, 12, 65, 700]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds


async def answer(
    send: Any, status: int, headers: list[tuple[str, str]], body: bytes, length: int | None = None
) -> None:
    pairs = [(name.encode(), value.encode()) for name, value in headers]
    if status != 304:
        pairs.append((b"content-length", b"%d" % (len(body) if length is None else length)))
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def test_every_answer_is_one_that_the_rules_allow() -> None:
    Right.seen.clear()
    run_state_machine_as_test(Right, settings=SETTINGS)
    seen = Right.seen
    print("\n" + ", ".join(f"{name} {count}" for name, count in sorted(seen.items())))
    floors = {"hit": 200, "206 hit": 100, "304 hit": 15, "fwd-status=304": 60, "fwd=partial; fwd": 10}
    floors |= {"stale-while-revalidate": 12, "stale-if-error": 5, "disconnected": 4, "stale by the client's leave": 5}
    assert all(seen[name] >= floor for name, floor in floors.items()), seen


# --- the machine finds what would break the law ------------------------------------

Planted = Callable[[pytest.MonkeyPatch], None]


def _no_field_selects(patch: pytest.MonkeyPatch) -> None:
    for module in (filling, fused, parted):
        patch.setattr(module, "variant_values", lambda _request, names: tuple((name, None) for name in names))


def _age_does_not_count(patch: pytest.MonkeyPatch) -> None:
    for module in (filling, straight):
        patch.setattr(module, "born_at", lambda _headers, *, asked, answered: answered)


def _targeted_fields_do_not_count(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(storing, "control_of", lambda headers: Control(directives(field_values(headers, b"cache-control"))))


def _writes_clear_nothing(patch: pytest.MonkeyPatch) -> None:
    async def nothing(_self: Any, _tags: Any) -> None: ...

    patch.setattr(CacheLayer, "_purge", nothing)


def _all_may_be_stale(patch: pytest.MonkeyPatch) -> None:
    judged = storing.judge_response

    def lenient(**of: Any) -> Any:
        kept = judged(**of)
        windows = {"stale_while_revalidate": 500.0, "stale_if_error": 500.0, "must_revalidate": False}
        return replace(kept, **windows) if isinstance(kept, storing.Kept) else kept

    for module in (filling, straight):
        patch.setattr(module, "judge_response", lenient)


def _a_304_renews_no_field(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(exchange, "updated", lambda stored, _news: stored)


def _parts_are_joined_whatever_they_are_of(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(parts, "strong_match", lambda _one, _other: True)
    patch.setattr(
        parts, "single_value", lambda headers, name: b'"a"' if name == b"etag" else single_value(headers, name)
    )


def _a_joined_part_is_the_answer_to_the_last_range(patch: pytest.MonkeyPatch) -> None:
    join = parts.joined

    def longer(*of: Any) -> Any:
        both = join(*of)
        return both and ([*both[0], (b"x-joined", b"1")], both[1])

    def whole(request: Any, headers: Any, body: bytes, *, came_for: bytes | None, born: float) -> Any:
        if (b"x-joined", b"1") in headers:
            came_for = single_value(request, b"range")
        return parts.cut(request, headers, body, came_for=came_for, born=born)

    patch.setattr(parted, "joined", longer)
    patch.setattr(parted, "cut", whole)


def _any_version_is_the_one_of_if_range(patch: pytest.MonkeyPatch) -> None:
    for module in (parts, ranges):
        patch.setattr(module, "allows_range", lambda _request, _headers, *, born: True)


def _what_the_client_wants_does_not_count(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cache, "request_directives", lambda _headers: storing.RequestDirectives())
    taken = fused.FusedHits.__call__

    def blind(self: Any, scope: Any, context: Any) -> Any:
        headers = [pair for pair in scope["headers"] if pair[0] != b"cache-control"]
        return taken(self, {**scope, "headers": headers}, context)

    patch.setattr(fused.FusedHits, "__call__", blind)


DEFECTS: list[Planted] = [
    _no_field_selects,
    _age_does_not_count,
    _targeted_fields_do_not_count,
    _writes_clear_nothing,
    _all_may_be_stale,
    _a_304_renews_no_field,
    _parts_are_joined_whatever_they_are_of,
    _a_joined_part_is_the_answer_to_the_last_range,
    _any_version_is_the_one_of_if_range,
    _what_the_client_wants_does_not_count,
]


@pytest.mark.parametrize("plant", DEFECTS, ids=lambda plant: plant.__name__.strip("_").replace("_", " "))
def test_a_planted_defect_is_found(plant: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    found = settings(SETTINGS, phases=[Phase.generate], derandomize=True, report_multiple_bugs=False, print_blob=False)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Right, settings=found)
