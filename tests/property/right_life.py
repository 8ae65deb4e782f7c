"""The cache over an app that does what HTTP asks of one, and a model of all that the app said (see `test_right`)."""

import asyncio
import re
from collections import Counter
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from tests.driver import Answer, User, call
from tests.property.right_model import (
    CLEARING,
    CONTROL,
    FIELDS,
    PATH,
    PATHS,
    RANGES,
    SAYS,
    START,
    USER,
    WANTS,
    Asked,
    Known,
    Said,
    Version,
    written,
)
from tidegate.middleware.core.message import format_date
from tidegate.middleware.layers.asgi import ContextResolver
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.middleware.layers.coalesce import CoalesceLayer
from tidegate.middleware.stores.memory import MemoryStore


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
