"""Whoever asks in another's name, without a name, or with another's secret gets nothing of theirs."""

import asyncio
import unicodedata
from itertools import count
from typing import Any

from tests.driver import User, scope_of
from tests.middleware.layers.coalescing import App, Client, settle
from tests.promises.attacks.faults import NOBODY_CHECKED, ONE_TENANT, blind_answer, blind_sharing, narrowing
from tests.promises.attacks.planting import Plant, attack
from tests.promises.attacks.stage import ANN, BEA, BOB, Echo, asked, fields_of, hits, said, stack, tide
from tidegate import Identity, RoutePolicy, trusted_headers
from tidegate.middleware.layers import identifying
from tidegate.settings import CacheSettings, Settings

LEAVE = [b"public, max-age=60", b"s-maxage=60", b"max-age=60, must-revalidate"]

AUTHORIZED_ANYWAY = narrowing(
    "a policy's answers to Authorization are stored",
    "middleware.core.storing:judge_response",
    request=lambda pairs: [pair for pair in pairs if pair[0] != b"authorization"],
)


def asked_with(app: Any, field: str, *values: str | None) -> list[Any]:
    return asked(app, *({"headers": [(field, value)] if value is not None else []} for value in values))


@attack("1", without=[NOBODY_CHECKED], cases=LEAVE)
def test_authorization_of_somebody_unknown_is_never_answered_for_another(case: bytes) -> None:
    answers = asked_with(stack(Echo((b"cache-control", case))), "authorization", "ann", "bob", None, None)
    assert [fields_of(answer, "authorization") for answer in answers] == [["ann"], ["bob"], [], []]
    assert hits(answers) == [False, False, False, True]


@attack("1", without=[(NOBODY_CHECKED, AUTHORIZED_ANYWAY)])
def test_authorization_is_kept_apart_where_the_answer_says_nothing() -> None:
    answers = asked_with(stack(Echo()), "authorization", "ann", "bob", None, None)
    assert [fields_of(answer, "authorization") for answer in answers] == [["ann"], ["bob"], [], []]
    assert hits(answers)[3]


@attack("1", without=[ONE_TENANT], cases=LEAVE)
def test_no_response_can_widen_the_share_of_a_tenant(case: bytes) -> None:
    app = stack(Echo((b"cache-control", case)), share="tenant")
    answers = asked(app, {"user": ANN}, {"user": BEA}, {"user": BOB})
    assert [said(answer)["who"][0] for answer in answers] == ["acme", "bolt", "acme"]
    assert hits(answers) == [False, False, True]


@attack("2", without=[NOBODY_CHECKED])
def test_a_cookie_is_never_answered_for_another_cookie() -> None:
    answers = asked_with(stack(Echo((b"cache-control", b"max-age=60"))), "cookie", "s=ann", "s=bob", None, None)
    assert [fields_of(answer, "cookie") for answer in answers] == [["s=ann"], ["s=bob"], [], []]
    assert hits(answers)[3]


READ_ONCE = Plant(
    name="header fields are read once",
    target="middleware.layers.asgi:ContextResolver.of",
    by=lambda original: lambda self, scope: (self._identify(scope) and None) or original(self, scope),
)


@attack("2", without=[READ_ONCE], cases=["cache", "coalesce", "etag", "all"])
def test_a_cookie_in_fields_that_can_be_read_once_is_seen_by_all(case: Any) -> None:
    policy = RoutePolicy(route="/", ttl=600, share="public")
    layers = {} if case == "all" else {"layers": (case,)}
    app = tide(policy, identify=trusted_headers(tenant="x-tenant"), **layers)(Echo())
    fields = [[(b"host", b"example.test"), (b"cookie", name)] for name in (b"s=ann", b"s=bob")]
    answers = asked(app, *({"scope": scope_of() | {"headers": iter(each)}} for each in fields))
    assert [fields_of(answer, "cookie") for answer in answers] == [["s=ann"], ["s=bob"]]
    assert hits(answers) == [False, False]


SPARED = narrowing(
    "a cookie's answer is stored where responses decide alone",
    "middleware.core.storing:judge_request",
    has_credential=lambda _given: False,
)


@attack("2", without=[SPARED, NOBODY_CHECKED])
def test_a_cookies_answer_is_not_stored_where_responses_decide_alone() -> None:
    app = tide(settings=Settings(cache=CacheSettings(share="public")))(Echo((b"cache-control", b"max-age=60")))
    answers = asked_with(app, "cookie", "s=ann", "s=bob", None, None)
    assert [fields_of(answer, "cookie") for answer in answers] == [["s=ann"], ["s=bob"], [], []]
    assert hits(answers)[3]


def naive_headers(_original: Any) -> Any:
    """What a hand-written resolver does: the last line wins, and somebody has to be the tenant."""

    def trusted(*, tenant: str, **_names: str) -> Any:
        wanted = tenant.lower().encode()
        return lambda scope: Identity(dict(scope["headers"]).get(wanted, b"").decode() or "default", "somebody")

    return trusted


NAIVE_HEADERS = Plant(
    name="a tenant out of dict(headers)", target="middleware.layers.identifying:trusted_headers", by=naive_headers
)


@attack("3", "5", without=[NAIVE_HEADERS], cases=[(), ("",), ("  ",), ("acme", "bolt"), ("acme", "acme")])
def test_a_tenant_that_is_missing_empty_or_sent_twice_is_nobody(case: tuple[str, ...]) -> None:
    identify = identifying.trusted_headers(tenant="X-Tenant", user="X-User")
    app = tide(RoutePolicy(route="/", ttl=60, share="tenant"), identify=identify)(Echo())
    odd = [("X-Tenant", value) for value in case]
    answers = asked(app, {"headers": odd}, {"headers": odd}, *[{"headers": [("X-Tenant", "acme")]}] * 2)
    assert hits(answers) == [False, False, False, True]
    assert [answer.header("cache-status") for answer in answers[:2]] == ["Tidegate; fwd=bypass; detail=no-identity"] * 2


@attack("3", without=[ONE_TENANT], cases=["Acme", "acme, acme", "bolt, acme", "acme;", "acme\xa0"])
def test_a_tenant_in_another_spelling_is_another_tenant(case: str) -> None:
    identify = identifying.trusted_headers(tenant="X-Tenant")
    app = tide(RoutePolicy(route="/", ttl=60, share="tenant"), identify=identify)(Echo())
    answers = asked(app, *({"headers": [("X-Tenant", name)]} for name in ("acme", case, "acme")))
    assert hits(answers) == [False, False, True]
    assert fields_of(answers[1], "x-tenant") == [case]


@attack("3", without=[ONE_TENANT])
def test_a_tenant_field_that_nobody_asked_to_trust_says_nothing() -> None:
    app = stack(Echo(), share="tenant")
    spoofed = [("X-Tenant", "acme"), ("X-User", "ann")]
    answers = asked(app, {"user": ANN}, {"user": BEA, "headers": spoofed}, {"headers": spoofed}, {"user": BOB})
    assert [said(answer)["who"] for answer in answers[:3]] == [["acme", "ann", ""], ["bolt", "bea", ""], None]
    assert hits(answers) == [False, False, False, True]


def naive_join(_original: Any) -> Any:
    return lambda parts: b":".join(part or b"" for part in parts)


NAIVE_JOIN = Plant(name="keys joined with a colon", target="middleware.core.keys:encode_parts", by=naive_join)
COMPATIBLE = Plant(
    name="names normalised",
    target="middleware.core.keys:_text",
    by=lambda original: lambda name: original(unicodedata.normalize("NFKC", name)),
)
CUT = Plant(
    name="names cut off", target="middleware.core.keys:_text", by=lambda original: lambda name: original(name)[:1000]
)


def strangers(*users: User) -> None:
    """Each gets only its own, twice; the second time from the cache."""
    answers = asked(stack(Echo(), share="user"), *({"user": user} for user in (*users, *users)))
    wanted = [[user.tenant, user.username, user.grants] for user in users]
    assert [said(answer)["who"] for answer in answers] == [*wanted, *wanted]
    assert hits(answers) == [False] * len(users) + [True] * len(users)


SEPARATORS = [":", "\x00", "/", "|", "}{", "*", "\n"]


@attack("4", "CVE-2026-39972", "CVE-2026-35039", "CVE-2026-25480", without=[NAIVE_JOIN])
def test_names_that_hold_a_separator_meet_nobody_elses() -> None:
    strangers(*[User(f"a{s}b", "c") for s in SEPARATORS], *[User("a", f"b{s}c") for s in SEPARATORS])


@attack("4", without=[CUT])
def test_names_of_any_length_are_told_apart_at_their_ends() -> None:
    strangers(User("x" * 10_000 + "a", "u"), User("x" * 10_000 + "b", "u"))


@attack("4", without=[COMPATIBLE])
def test_names_that_only_look_the_same_are_two() -> None:
    strangers(User("\N{ANGSTROM SIGN}", "u"), User("\N{LATIN CAPITAL LETTER A WITH RING ABOVE}", "u"), User("ﬁ", "u"),
              User("fi", "u"), User("A", "u"), User("\N{FULLWIDTH LATIN CAPITAL LETTER A}", "u"))  # fmt: skip


SOMEBODY = Plant(
    name="who is nobody has a default tenant",
    target="middleware.layers.identifying:starlette_user",
    by=lambda original: lambda scope: original(scope) or Identity("default", "default"),
)


@attack("5", without=[SOMEBODY], cases=["tenant", "user"])
def test_without_a_tenant_nothing_is_stored(case: Any) -> None:
    app = tide(RoutePolicy(route="/", ttl=60, share=case), identify=identifying.starlette_user)(Echo())
    answers = asked(app, {}, {}, {"user": ANN}, {"user": ANN})
    assert hits(answers) == [False, False, False, True]


def two_at_once(app: App, *clients: dict[str, Any], share: Any = "tenant") -> list[Any]:
    """Answers to requests that come while the first of them runs."""

    async def together() -> list[Any]:
        layers = stack(app, share=share)
        sent = []
        for client in clients:
            sent.append(Client(layers, **client))
            await settle()
        app.gate.set()
        return [await client.done() for client in sent]

    return asyncio.run(together())


SESSIONS = count()


async def session(run: Any) -> None:
    await run.answer(b"for one", (b"set-cookie", b"s=%d" % next(SESSIONS)))


@attack("6", without=[blind_sharing(b"set-cookie")])
def test_a_leaders_session_cookie_is_the_leaders_alone() -> None:
    one, other = two_at_once(App(session), {"user": ANN}, {"user": BOB})
    assert one.header("set-cookie") != other.header("set-cookie")
    app = App()
    shared = two_at_once(app, {"user": ANN}, {"user": BOB})
    assert (app.runs, [answer.body for answer in shared]) == (1, [b"run 1", b"run 1"])


def no_authorization(original: Any) -> Any:
    def fake(**given: Any) -> Any:
        return original(**given | {"headers": [pair for pair in given["headers"] if pair[0] != b"authorization"]})

    return fake


ANYBODY_JOINS = Plant(
    name="followers of any Authorization", target="middleware.core.sharing:request_key", by=no_authorization
)


@attack("7", without=[ANYBODY_JOINS], cases=["public", "tenant", "user"])
def test_another_authorization_is_no_follower(case: Any) -> None:
    app = App()
    by = [{"headers": [("authorization", name)]} for name in ("ann", "bob", "ann")]
    answers = two_at_once(app, *by, share=case)
    assert [answer.body for answer in answers] == [b"run 1", b"run 2", b"run 1"]


class Doorkeeper(Echo):
    """Lets acme in and forbids everybody else, with one ETag on both answers."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.status = 200 if scope["user"].tenant == "acme" else 403
        await super().__call__(scope, receive, send)


ANY_STATUS_MATCHES = Plant(
    name="304 for a refusal",
    target="middleware.core.validators:is_not_modified",
    by=lambda original: lambda request, response, **_status: original(request, response),
)


@attack("8", without=[ONE_TENANT, ANY_STATUS_MATCHES])
def test_a_stolen_etag_does_not_tell_what_only_its_owner_may_read() -> None:
    app = stack(Doorkeeper((b"etag", b'"v1"')), share="tenant")
    stolen = [("if-none-match", '"v1"')]
    answers = asked(app, {"user": ANN}, {"user": BEA, "headers": stolen}, {"user": BOB, "headers": stolen})
    assert [answer.status for answer in answers] == [200, 403, 304]
    assert answers[2].hit


WITHOUT_GRANTS = Plant(
    name="keys without grants",
    target="middleware.core.keys:primary_parts",
    by=lambda original: (
        lambda **given: original(
            **given | {"identity": given["identity"] and Identity(given["identity"].tenant, given["identity"].user)}
        )
    ),
)


@attack("9", without=[WITHOUT_GRANTS], cases=["tenant", "user"])
def test_after_a_change_of_roles_or_a_logout_what_was_stored_is_out_of_reach(case: Any) -> None:
    app = stack(Echo(), share=case)
    admin, demoted = User("acme", "ann", "admin"), User("acme", "ann", "")
    answers = asked(app, *({"user": user} for user in (admin, demoted, None, admin)))
    assert [said(answer)["who"] for answer in answers] == [["acme", "ann", "admin"], ["acme", "ann", ""], None,
                                                           ["acme", "ann", "admin"]]  # fmt: skip
    assert hits(answers) == [False, False, False, True]


ONE_SCOPE = Plant(
    name="one ledger scope for all tenants",
    target="middleware.core.keys:scope_of",
    by=lambda _original: lambda _identity, _share: "tenant:all",
)


@attack("10", without=[ONE_SCOPE])
def test_a_purge_of_one_tenant_leaves_the_others_hits_alone() -> None:
    read = RoutePolicy(route="/c", ttl=600, share="tenant", tags=("clients",))
    write = RoutePolicy(route="/w", invalidates=("clients",))
    layers = tide(read, write)
    app = layers(Echo())
    get = [{"path": "/c", "user": user} for user in (ANN, BEA)]
    assert hits(asked(app, *get, *get)) == [False, False, True, True]
    answers = asked(app, {"path": "/w", "user": BEA, "method": "POST"}, *get)
    assert hits(answers[1:]) == [True, False]
    asyncio.run(layers.purge("clients", tenant="bolt"))
    assert hits(asked(app, *get)) == [True, False]


@attack("CVE-2026-48588", without=[blind_answer(b"set-cookie")])
def test_a_new_session_is_not_stored_because_the_request_had_a_cookie() -> None:
    app = stack(Echo((b"set-cookie", b"session=new")), share="tenant")
    cookie = [("cookie", "theme=dark")]
    answers = asked(app, *({"user": user, "headers": cookie} for user in (ANN, BOB)))
    assert hits(answers) == [False, False]
    plain = stack(Echo(), share="tenant")
    assert hits(asked(plain, *({"user": user, "headers": cookie} for user in (ANN, BOB)))) == [False, True]
