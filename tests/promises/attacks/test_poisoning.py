"""Whoever can make the app answer oddly once cannot make the cache answer so to others."""

import asyncio
from typing import Any

from tests.driver import scope_of
from tests.middleware.layers.coalescing import App, Client, settle
from tests.promises.attacks.faults import ANY_STATUS, blind_answer, blind_request, key_without
from tests.promises.attacks.planting import Plant, attack
from tests.promises.attacks.stage import ANN, BOB, Echo, asked, fields_of, hits, said, stack
from tests.promises.attacks.test_identity import two_at_once
from tidegate.middleware.core.parts import Place
from tidegate.middleware.core.storing import UNSTORABLE_STATUSES

ONE_HOST = key_without("host", b"example.test")


def host_scope(*hosts: str) -> dict[str, Any]:
    return {"scope": scope_of() | {"headers": [(b"host", host.encode()) for host in hosts]}}


@attack("11", without=[ONE_HOST], cases=[("evil.test",), ("example.test:8080",), ("example.test.",), (), ("",),
                                         ("example.test", "evil.test"), ("example.test@evil.test",)])  # fmt: skip
def test_a_page_made_for_another_host_is_not_served(case: tuple[str, ...]) -> None:
    plain = host_scope("example.test")
    answers = asked(stack(Echo()), host_scope(*case), plain, plain, host_scope("EXAMPLE.test"))
    assert fields_of(answers[1], "host") == ["example.test"]
    assert hits(answers) == [False, False, True, True]


NO_REWRITING = Plant(
    name="no field passes for the URL",
    target="middleware.core.identity:REWRITING",
    by=lambda _original: frozenset({b"x-none"}),
)
REWRITES = ["x-forwarded-host", "x-forwarded-scheme", "x-forwarded-proto", "x-forwarded-prefix", "x-original-url",
            "x-rewrite-url", "x-http-method-override", "x-forwarded-port", "x-host"]  # fmt: skip


@attack("11", "16", "CVE-2024-46982", "CVE-2025-49005", "CVE-2025-57752", without=[NO_REWRITING], cases=REWRITES)
def test_what_passes_for_the_url_poisons_no_page_though_the_app_names_no_vary(case: str) -> None:
    evil, proxied, plain = {"headers": [(case, "evil")]}, {"headers": [(case, "good")]}, {}
    app = stack(Echo())
    answers = asked(app, evil, proxied, proxied, evil)
    assert [fields_of(answer, case) for answer in answers] == [["evil"], ["good"], ["good"], ["evil"]]
    assert hits(answers)[2:] == [True, True]
    answers = asked(app, plain, plain)
    assert [fields_of(answer, case) for answer in answers] == [[], []]
    assert hits(answers) == [False, True]


@attack("11", without=[NO_REWRITING], cases=REWRITES)
def test_what_passes_for_the_url_is_no_leader_of_others(case: str) -> None:
    app = App()
    evil, plain = {"headers": [(case, "evil")], "user": ANN}, {"user": BOB}
    assert [answer.body for answer in two_at_once(app, evil, plain)] == [b"run 1", b"run 2"]
    assert [answer.body for answer in two_at_once(App(), plain, plain)] == [b"run 1", b"run 1"]


def reflecting() -> Any:
    """An app that allows whichever origin asks, and names no Vary."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        origin = [(b"access-control-allow-origin", value) for name, value in scope["headers"] if name == b"origin"]
        await Echo(*origin)(scope, receive, send)

    return app


@attack("14", without=[blind_answer(b"access-control-allow-origin")])
def test_one_origin_that_is_allowed_is_not_told_to_another_though_the_app_names_no_vary() -> None:
    one, other = ({"headers": [("origin", f"https://{name}.test")]} for name in ("evil", "good"))
    answers = asked(stack(reflecting()), one, other, one, other)
    allowed = [answer.header("access-control-allow-origin") for answer in answers]
    assert allowed == ["https://evil.test", "https://good.test"] * 2
    assert hits(answers)[2:] == [True, True]


@attack("12", without=[blind_request(b"content-length", b"transfer-encoding")],
        cases=[("content-length", "4"), ("transfer-encoding", "chunked"), ("content-length", "+4")])  # fmt: skip
def test_a_get_with_a_body_poisons_nothing(case: tuple[str, str]) -> None:
    answers = asked(stack(Echo()), {"headers": [case], "body": b"evil"}, {}, {}, {"headers": [case], "body": b"evil"})
    assert [said(answer)["sent"] for answer in answers] == ["evil", "", "", "evil"]
    assert hits(answers) == [False, False, True, False]


EVERY_BODY_IS_TOLD = Plant(
    name="every version of HTTP tells of bodies",
    target="middleware.layers.witness:FRAMED",
    by=lambda _original: frozenset({"1.0", "1.1", "2", "3"}),
)


@attack("12", without=[EVERY_BODY_IS_TOLD], cases=["2", "3"])
def test_a_body_that_no_field_tells_of_poisons_nothing(case: str) -> None:
    evil, plain = {"http_version": case, "body": b"evil"}, {"http_version": case}
    for app in (stack(Echo()), stack(Echo((b"vary", b"accept"))), stack(Late())):
        answers = asked(app, evil, plain, plain)
        assert [said(answer)["sent"] for answer in answers] == ["evil", "", ""]
        assert hits(answers) == [False, False, True]


class Late(Echo):
    """Reads the body when its answer has begun."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

        async def rest(message: Any) -> None:
            if message["type"] == "http.response.body":
                await send(message)

        await super().__call__(scope, receive, rest)


UNHEARD = Plant(
    name="leaders whose bodies nobody hears of",
    target="middleware.layers.leader:Leader._has_body",
    by=lambda _original: lambda _self: None,
)


async def with_its_body(run: Any) -> None:
    await run.answer((await run.receive())["body"])


@attack("12", without=[UNHEARD])
def test_who_follows_a_get_with_a_body_runs_for_itself() -> None:
    class Evil(Client):
        async def receive(self) -> Any:
            return {**await super().receive(), "body": b"evil"}

    async def together() -> list[Any]:
        app = App(with_its_body)
        layers = stack(app)
        clients = []
        for kind in (Evil, Client, Client):
            clients.append(kind(layers, http_version="2"))
            await settle()
        app.gate.set()
        return [(await client.done()).body for client in clients]

    assert asyncio.run(together()) == [b"evil", b"", b""]


ALL_ONE = Plant(
    name="no query in keys", target="middleware.core.keys:counted_query", by=lambda _original: lambda _q, _counted: b""
)
QUERIES = ["a=1", "a=1&a=2", "a=2&a=1", "a=", "a", "a=+", "a=%20", "A=1", "a=1&", "&a=1", "a=1;b=2", "a=1%26b=2"]


@attack("13", without=[ALL_ONE])
def test_queries_that_an_app_may_read_differently_are_kept_apart() -> None:
    for policy in ({}, {"query": ("a", "A")}):
        app = stack(Echo(), **policy)
        answers = asked(app, *({"query": query} for query in QUERIES * 2))
        # Where the app named what counts, an empty parameter says nothing.
        seen = [said(answer)["url"][2].strip("&" if policy else "") for answer in answers]
        assert seen == [query.strip("&" if policy else "") for query in QUERIES * 2]
        assert all(hits(answers)[len(QUERIES) :])


PLAIN_NAMES = Plant(
    name="names of parameters as they are written",
    target="middleware.core.identity:parameter_names",
    by=lambda _original: lambda part: (part.partition(b"=")[0],),
)


@attack("13", without=[PLAIN_NAMES], cases=["%61=2", "utm=1&%61=2"])
def test_a_counted_parameter_cannot_be_cloaked(case: str) -> None:
    answers = asked(stack(Echo(), query=("a",)), {"query": case}, {}, {}, {"query": "utm=1"})
    assert [said(answer)["url"][2] for answer in answers[:2]] == [case, ""]
    assert hits(answers) == [False, False, True, True]


ABSENT_IS_EMPTY = Plant(
    name="a field that is absent is an empty one",
    target="middleware.core.keys:variant_values",
    by=lambda original: lambda request, names: tuple((n, v or b"") for n, v in original(request, names)),
)


@attack("14", "CVE-2024-46982", "CVE-2025-49005", "CVE-2025-57752", without=[blind_answer(b"vary")],
        cases=["accept-encoding", "accept", "origin", "x-forwarded-host", "rsc", "x-kind"])  # fmt: skip
def test_a_field_that_the_answer_varies_by_is_in_the_key(case: str) -> None:
    app = stack(Echo((b"vary", case.title().encode())))
    evil, plain = {"headers": [(case, "evil")]}, {}
    answers = asked(app, evil, plain, evil, plain)
    assert [fields_of(answer, case) for answer in answers] == [["evil"], [], ["evil"], []]
    assert hits(answers)[2:] == [True, True]


@attack("CVE-2026-113593", without=[ABSENT_IS_EMPTY])
def test_a_field_that_is_absent_is_not_an_empty_one() -> None:
    app = stack(Echo((b"vary", b"x-kind")))
    empty, absent = {"headers": [("x-kind", "")]}, {}
    answers = asked(app, empty, absent, empty, absent)
    assert [fields_of(answer, "x-kind") for answer in answers] == [[""], [], [""], []]
    assert hits(answers)[2:] == [True, True]


@attack("CVE-2026-6907", "CVE-2026-48587", without=[blind_answer(b"vary")],
        cases=[[b"*"], [b" * "], [b"Accept, *"], [b"Accept", b"*"], [b",\t*,"], [b"", b" ,*"], [b"*, x"]])  # fmt: skip
def test_an_answer_that_varies_by_everything_is_never_stored(case: list[bytes]) -> None:
    app = stack(Echo(*[(b"vary", line) for line in case]))
    assert hits(asked(app, {}, {}, {})) == [False] * 3
    assert hits(asked(stack(Echo((b"vary", b"accept"))), {}, {})) == [False, True]


@attack("CVE-2026-48587", without=[blind_answer(b"vary")],
        cases=[[b"  X-Kind "], [b"\tX-Kind\t"], [b",, X-Kind ,"], [b"Accept", b" x-kind"], [b"X-KIND"]])  # fmt: skip
def test_white_space_and_empty_members_hide_no_member_of_vary(case: list[bytes]) -> None:
    app = stack(Echo(*[(b"vary", line) for line in case]))
    answers = asked(app, *({"headers": [("x-kind", kind)]} for kind in "abab"))
    assert [fields_of(answer, "x-kind") for answer in answers] == [["a"], ["b"], ["a"], ["b"]]
    assert hits(answers)[2:] == [True, True]


@attack("CVE-2026-8404", "CVE-2026-24472", without=[blind_answer(b"cache-control")],
        cases=[b"Private, NO-STORE", b"PRIVATE", b" private ", b"max-age=60,private", b"No-Store", b'x="a, b", private',
               b"private\t,max-age=9", b'no-cache, x="no', b'foo="bar\\", private", private'])  # fmt: skip
def test_private_and_no_store_are_seen_in_every_spelling(case: bytes) -> None:
    answers = asked(stack(Echo((b"cache-control", case)), share="tenant"), {"user": ANN}, {"user": BOB})
    assert [said(answer)["who"][1] for answer in answers] == ["ann", "bob"]
    open_ones = asked(stack(Echo((b"cache-control", b'x="private, no-store"')), share="tenant"), *[{"user": ANN}] * 2)
    assert hits(open_ones) == [False, True]


@attack("CVE-2026-8404", without=[blind_answer(b"cache-control")])
def test_fields_that_private_names_are_not_stored_and_split_nothing_inside_quotes() -> None:
    secret = ((b"x-one", b"ann's"), (b"x-two", b"ann's"), (b"x-open", b"all's"))
    app = stack(Echo((b"cache-control", b'max-age=60, private="X-One, x-two"'), *secret), share="tenant")
    answers = asked(app, {"user": ANN}, {"user": BOB})
    assert hits(answers) == [False, True]
    assert [answers[1].header(name) for name in ("x-one", "x-two", "x-open")] == [None, None, "all's"]


class Methods(Echo):
    """Answers HEAD and OPTIONS with a page of their own, and a Range with a part."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        ranged = any(name == b"range" for name, _ in scope["headers"])
        self.status = 206 if ranged else 200
        await super().__call__(scope, receive, send)


def of_any_method(_original: Any) -> Any:
    return lambda **given: _original(**given | {"method": "GET"})


ANY_METHOD = Plant(name="all methods are as GET", target="middleware.core.storing:judge_request", by=of_any_method)


def taken_for_all(_headers: Any, length: int | None = None) -> Place:
    return Place(0, length or 1, length or 1)


PART_FOR_WHOLE = Plant(
    name="a part is taken for all there is", target="middleware.core.parts:place_of", by=lambda _original: taken_for_all
)


@attack("15", without=[PART_FOR_WHOLE])
def test_a_part_is_not_stored_as_the_whole() -> None:
    app = stack(Methods((b"cache-control", b"max-age=600"), (b"content-range", b"bytes 0-9998/9999")))
    ranged = {"headers": [("range", "bytes=0-9998")]}
    answers = asked(app, ranged, ranged, {}, {})
    assert [answer.status for answer in answers] == [206, 206, 200, 200]
    assert hits(answers) == [False, True, False, True], "the part is stored, and serves as a part only"


@attack("15", without=[ANY_METHOD])
def test_another_method_or_one_in_another_case_is_neither_stored_nor_answered() -> None:
    app = stack(Echo())
    assert hits(asked(app, {"method": "OPTIONS"}, {}, {}, {"method": "OPTIONS"})) == [False, False, True, False]
    odd = ["TRACE", "OPTIONS"]
    answers = asked(app, *({"method": method} for method in odd * 2))
    assert [said(answer)["url"][0] for answer in answers] == odd * 2


def kept_of_head(original: Any) -> Any:
    async def call(self: Any, scope: Any, receive: Any, send: Any) -> None:
        hidden = scope["method"] == "HEAD"
        await original(self, {**scope, "method": "GET"} if hidden else scope, receive, send)

    return call


HEAD_IS_GET = Plant(
    name="HEAD is stored as GET is", target="middleware.layers.cache:CacheLayer.__call__", by=kept_of_head
)


class EmptyForHead(Echo):
    """Sends a HEAD's answer as servers see it: no body, though the layers may think it a GET."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        told = any(name == b"x-head" for name, _ in scope["headers"])
        await super().__call__({**scope, "method": "HEAD"} if told else scope, receive, send)


@attack("15", without=[HEAD_IS_GET])
def test_the_empty_body_of_a_head_is_not_stored() -> None:
    app = stack(EmptyForHead(length=False))
    head = {"method": "HEAD", "headers": [("x-head", "1")]}
    answers = asked(app, head, {}, {}, head)
    assert [bool(answer.body) for answer in answers] == [False, True, True, False]
    assert hits(answers) == [False, False, True, True]


ERRORS_TOO = Plant(
    name="a policy makes errors fresh",
    target="middleware.core.freshness:POLICY_STATUSES",
    by=lambda _original: frozenset(range(100, 600)),
)


class Touchy(Echo):
    """Fails for one client's odd request."""

    def __init__(self, status: int, *fields: tuple[bytes, bytes]) -> None:
        super().__init__()
        self.odd, self.more = status, list(fields)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        odd = any(name == b"x-odd" for name, _ in scope["headers"])
        self.status, self.fields = (self.odd, self.more) if odd else (200, [])
        await super().__call__(scope, receive, send)


@attack("16", without=[ERRORS_TOO], cases=[302, 303, 307, 400, 401, 403, 404, 405, 413, 414, 429, 431, 500, 501, 503])
def test_an_error_that_one_request_provokes_is_not_everybodys(case: int) -> None:
    odd = {"headers": [("x-odd", "\x7f" * 9000)]}
    answers = asked(stack(Touchy(case, (b"location", b"//evil.test"))), odd, {}, {}, odd)
    assert [answer.status for answer in answers] == [case, 200, 200, 200]
    assert hits(answers) == [False, False, True, True]


class Validating(Echo):
    """Answers 304 to its own validator, as frameworks' static files do."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        asked = any(name == b"if-none-match" for name, _ in scope["headers"])
        self.status, self.fields = (304 if asked else 200), [(b"etag", b'"v"')]
        if asked:
            await send({"type": "http.response.start", "status": 304, "headers": self.fields})
            await send({"type": "http.response.body", "body": b""})
        else:
            await super().__call__(scope, receive, send)


HANDED_ON = Plant(
    name="the client's conditions reach the app",
    target="middleware.core.updating:without_conditions",
    by=lambda _original: lambda headers: list(headers),
)


@attack("17", without=[HANDED_ON])
def test_a_clients_own_validator_does_not_keep_the_page_from_others() -> None:
    answers = asked(stack(Validating()), {"headers": [("if-none-match", '"v"')]}, {}, {})
    assert [answer.status for answer in answers] == [304, 200, 200]
    assert hits(answers) == [False, True, True]


class AlwaysUnmodified(Echo):
    """Answers 304 whatever is asked."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        await send({"type": "http.response.start", "status": 304, "headers": [(b"etag", b'"v"')]})
        await send({"type": "http.response.body", "body": b""})


@attack("17", without=[ANY_STATUS])
def test_a_304_is_never_stored() -> None:
    app = AlwaysUnmodified()
    assert hits(asked(stack(app), {}, {}, {})) == [False] * 3
    assert app.calls == 3
    assert 304 in UNSTORABLE_STATUSES


async def by_turns(run: Any) -> None:
    """One list of headers for all answers; an empty answer first, a page next."""
    shared.clear()
    if any(name == b"x-empty" for name, _ in run.scope["headers"]):
        await run.send({"type": "http.response.start", "status": 204, "headers": shared})
        shared.append((b"x-late", b"from the empty one"))
        await run.body(b"")
        return
    shared.append((b"content-length", b"4"))
    await run.send({"type": "http.response.start", "status": 200, "headers": shared})
    await run.body(b"page")
    shared.append((b"x-late", b"from the page"))


shared: list[tuple[bytes, bytes]] = []
ONE_VARIANT = Plant(
    name="keys without the fields that select a variant",
    target="middleware.core.keys:variant_values",
    by=lambda _original: lambda _request, _names: (),
)


@attack("CVE-2025-49826", without=[ONE_VARIANT])
def test_an_answer_keeps_its_own_status_and_fields_though_the_app_shares_them() -> None:
    app = App(by_turns)
    app.gate.set()
    layers = stack(app, vary=("x-empty",))
    empty: dict[str, Any] = {"headers": [("x-empty", "1")]}
    answers = asked(layers, empty, {}, empty, {})
    assert [(answer.status, answer.body) for answer in answers] == [(204, b""), (200, b"page")] * 2
    assert hits(answers)[2:] == [True, True]
    assert [answer.header("x-late") for answer in answers[2:]] == [None, None]


ONE_KIND = Plant(
    name="followers of any method",
    target="middleware.core.sharing:request_key",
    by=lambda original: lambda **given: original(**given | {"method": "GET"}),
)


@attack("15", without=[ONE_KIND])
def test_a_get_does_not_follow_a_head() -> None:
    async def answer(run: Any) -> None:
        await run.start((b"content-length", b"4"))
        await run.body(b"" if run.scope["method"] == "HEAD" else b"page")

    head, get = two_at_once(App(answer), {"method": "HEAD", "user": ANN}, {"user": BOB})
    assert (head.body, get.body) == (b"", b"page")
