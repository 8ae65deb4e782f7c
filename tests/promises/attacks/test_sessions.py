"""What an app reads of a session, or writes into one, is nobody else's, whatever the response says of it.

Session middleware further out names Cookie in Vary and sets its cookie when the cache has decided already; one further
in may forget to (the three advisories). An app that authenticates by its session must hit all the same.
"""

import asyncio
import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any

import pytest
from itsdangerous import TimestampSigner
from starlette.middleware.sessions import SessionMiddleware

from tests.driver import Answer, App, call, scope_of
from tests.middleware.layers.coalescing import Client, settle
from tests.promises.attacks.faults import NOBODY_CHECKED, ONE_TENANT
from tests.promises.attacks.planting import Plant, attack
from tests.promises.attacks.stage import ANN, BEA, BOB, Echo, asked, hits, said, stack, tide
from tidegate import RoutePolicy

SIGNER = TimestampSigner("a secret of the tests")
THREE = ("CVE-2026-35192", "CVE-2014-1418", "CVE-2026-27205")

UNSEEN = Plant(
    name="sessions that nobody looks at",
    target="middleware.layers.sessions:session_use",
    by=lambda _original: lambda _scope, _watch: "none",
)


def cookie(**session: str) -> list[tuple[str, str]]:
    """The cookie of somebody's session."""
    return [("cookie", "session=" + SIGNER.sign(b64encode(json.dumps(session).encode())).decode())]


def starlettes(app: App) -> App:
    """Starlette's middleware."""
    return SessionMiddleware(app, "a secret of the tests")


def forgetful(app: App) -> App:
    """The same, but it says nothing of the cookie."""
    middleware = starlettes(app)

    async def silenced(scope: Any, receive: Any, send: Any) -> None:
        async def silent(message: Any) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message["headers"] if pair[0] not in (b"vary", b"set-cookie")]
                message = {**message, "headers": kept}
            await send(message)

        await middleware(scope, receive, silent)

    return silenced


def dicts(app: App) -> App:
    """A middleware whose sessions are plain dicts, as Litestar's are; it says nothing of the cookie either."""

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        sent = dict(scope["headers"]).get(b"cookie", b"").removeprefix(b"session=")
        scope["session"] = json.loads(b64decode(SIGNER.unsign(sent))) if sent else {}
        await app(scope, receive, send)

    return middleware


class Shop:
    """GET /basket shows what lies in the session's basket, /visit notes a visit in it, all else leaves it alone."""

    def __init__(self) -> None:
        self.runs = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.runs += 1
        await self.gate.wait()
        session, found = scope["session"], ""
        if scope["path"] != "/open":
            if hasattr(session, "mark_accessed"):
                session.mark_accessed()  # as `request.session` does
            found = session.get("basket", "")
        if scope["path"] == "/visit":
            session["visits"] = found + "!"
        body = f"run {self.runs}: {found}".encode()
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body})


Place = Callable[[Shop], App]

OUTSIDE: dict[str, Place] = {
    "starlette outside": lambda shop: starlettes(stack(shop, share="tenant")),
    "dict outside": lambda shop: dicts(stack(shop, share="tenant")),
}
PLACES = OUTSIDE | {
    "starlette inside, forgetful": lambda shop: stack(forgetful(shop), share="tenant"),
    "dict inside": lambda shop: stack(dicts(shop), share="tenant"),
}


def get(path: str, user: Any, **session: str) -> dict[str, Any]:
    return {"path": path, "user": user, "headers": cookie(**session)}


def baskets(answers: list[Answer]) -> list[str]:
    return [answer.body.decode().partition(": ")[2] for answer in answers]


@attack(*THREE, without=[UNSEEN], cases=sorted(PLACES))
def test_what_was_read_of_a_session_is_served_to_that_session_alone(case: str) -> None:
    ann, bob = get("/basket", ANN, basket="a ring"), get("/basket", BOB, basket="a rope")
    answers = asked(PLACES[case](Shop()), ann, bob, {"path": "/basket", "user": BOB}, ann, bob)
    assert baskets(answers) == ["a ring", "a rope", "", "a ring", "a rope"]
    assert hits(answers) == [False, False, False, True, True]
    if case == "starlette outside":
        assert [answer.header("vary") for answer in answers] == ["Cookie"] * 5


# Of a dict that was not there before the app ran nobody knows whether it was changed.
@attack(*THREE, without=[UNSEEN], cases=sorted(PLACES.keys() - {"dict inside"}))
def test_a_response_that_changed_a_session_is_not_stored(case: str) -> None:
    answers = asked(PLACES[case](Shop()), *[get("/visit", ANN, basket="a ring")] * 3)
    assert hits(answers) == [False] * 3
    assert [answer.body[:5] for answer in answers] == [b"run 1", b"run 2", b"run 3"]


@attack(*THREE, "2", without=[(ONE_TENANT, NOBODY_CHECKED)])
def test_a_session_that_nobody_sees_and_no_vary_names_is_its_users_alone_by_default() -> None:
    app = tide()(Echo((b"cache-control", b"max-age=60")))  # as shipped: no policy, no settings
    ann, bea = get("/", ANN, basket="a ring"), get("/", BEA, basket="a rope")
    answers = asked(app, ann, bea, {"headers": cookie(basket="a hat")}, ann, bea)
    assert [said(answer)["who"] and said(answer)["who"][1] for answer in answers] == ["ann", "bea", None, "ann", "bea"]
    assert hits(answers) == [False, False, False, True, True]


def at_once(shop: Shop, app: App, *requests: dict[str, Any]) -> list[Answer]:
    """Answers to requests that come while the first of them runs."""

    async def together() -> list[Answer]:
        shop.gate = asyncio.Event()
        clients = []
        for request in requests:
            clients.append(Client(app, **request))
            await settle()
        shop.gate.set()
        return [await client.done() for client in clients]

    return asyncio.run(together())


@attack("6", *THREE, without=[UNSEEN], cases=sorted(PLACES))
def test_a_follower_of_another_session_gets_nothing_of_the_leaders(case: str) -> None:
    shop = Shop()
    ann, bob = get("/basket", ANN, basket="a ring"), get("/basket", BOB, basket="a rope")
    answers = at_once(shop, PLACES[case](shop), ann, bob, ann)
    assert baskets(answers) == ["a ring", "a rope", "a ring"]
    assert (shop.runs, answers[2].body) == (2, answers[0].body)


@attack("6", without=[UNSEEN], cases=sorted(OUTSIDE))
def test_who_follows_a_leader_that_changes_its_session_runs_for_itself(case: str) -> None:
    shop = Shop()
    request = get("/visit", ANN, basket="a ring")
    answers = at_once(shop, OUTSIDE[case](shop), request, request)
    assert shop.runs == 2
    if case == "starlette outside":
        assert all("session=" in (answer.header("set-cookie") or "") for answer in answers)


def by_session(app: App) -> App:
    """Finds out by the session who asks, as an authentication middleware between the two does."""

    async def authenticates(scope: Any, receive: Any, send: Any) -> None:
        scope["session"].mark_accessed()
        await app(scope, receive, send)

    return authenticates


@pytest.mark.parametrize("path", ["/open", "/basket"])
def test_a_session_that_only_who_authenticates_reads_keeps_no_tenant_from_its_hits(path: str) -> None:
    async def run() -> list[Answer]:
        bare = starlettes(by_session(Shop()))
        app = starlettes(by_session(stack(Shop(), share="tenant")))
        both = [get(path, ANN, basket="a ring"), get(path, BOB, basket="a rope")]
        return [await call(layers, **request) for layers in (bare, app, app) for request in both]

    answers = asyncio.run(run())
    assert hits(answers) == [False, False, False, path == "/open", True, True]
    # What the session says of itself further out is what it says without the layers, hit or not.
    assert [answer.header("vary") for answer in answers] == ["Cookie"] * 6


def test_a_session_is_left_as_it_was_where_the_app_fails_or_a_stale_response_stands_in() -> None:
    failing = False
    seen: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["session"].accessed)
        if failing:
            raise RuntimeError("the app is down")
        await Echo((b"cache-control", b"max-age=0, stale-if-error=60"))(scope, receive, send)

    layers = tide(RoutePolicy(route="/", share="tenant"), layers=("cache", "coalesce"))(app)
    session_app = starlettes(by_session(layers))

    async def run() -> list[Answer]:
        nonlocal failing
        first = await call(session_app, **get("/", ANN, basket="a ring"))
        failing = True
        answer = Answer()

        async def send(message: Any) -> None:
            answer.messages.append(dict(message))

        with pytest.raises(RuntimeError):
            await session_app(scope_of(**get("/", BOB, basket="a rope")), asyncio.Event().wait, send)
        return [first, answer]

    first, second = asyncio.run(run())
    assert seen == [False, False]
    assert "stale-if-error" in (second.header("cache-status") or "")
    assert [first.header("vary"), second.header("vary")] == ["Cookie", "Cookie"]
