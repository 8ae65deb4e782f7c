"""What the cache's key does not tell apart, and may all the same not be shared."""

import asyncio
from typing import Any

import pytest

from tests.driver import Answer, User, call
from tests.middleware.layers.coalescing import App, Call, run, settle
from tidegate import RoutePolicy, Settings, Tidegate
from tidegate.settings import CacheSettings
from tidegate.vocabulary import LAYERS, Layer

Asked = dict[str, Any]


async def together(mounted: Any, app: App, *asked: Asked) -> list[Answer]:
    """The answers to requests that are all under way before the app answers one."""
    tasks: list[asyncio.Task[Answer]] = []
    for each in asked:
        tasks.append(asyncio.create_task(call(mounted, **each)))
        await settle()
    app.gate.set()
    return [await task for task in tasks]


@pytest.mark.parametrize("stated", [True, False], ids=["stated", "unknown"])
def test_a_field_that_only_the_policy_names_tells_runs_apart_from_the_first_on(stated: bool) -> None:
    async def step(call: Call) -> None:
        language = dict(call.scope["headers"])[b"accept-language"]
        await (call.answer(language) if stated else call.start())
        if not stated:
            await call.body(language)

    async def body() -> None:
        policy = RoutePolicy(route="/page", ttl=60, share="public", vary=("Accept-Language",))
        app = App(step)
        mounted = Tidegate(Settings(), policies=[policy])(app)
        wanted = ("en", "de", "en", "de")
        asked: list[Asked] = [{"path": "/page", "headers": [("accept-language", value)]} for value in wanted]
        answers = await together(mounted, app, *asked)
        assert [answer.body.decode() for answer in answers] == list(wanted)
        assert app.runs == 2, "those who want the same share"
        for each, language in zip(asked, wanted, strict=True):
            hit = await call(mounted, **each)
            assert (hit.hit, hit.body) == (True, language.encode())

    run(body)


@pytest.mark.parametrize(
    ("fields", "runs"),
    [
        ([], 2),
        ([(b"etag", b'"1"')], 2),
        ([(b"cache-control", b"max-age=0"), (b"etag", b'"1"')], 2),
        ([(b"cache-control", b"max-age=60, no-cache"), (b"etag", b'"1"')], 2),
        ([(b"Cache-Control", b"max-age=60")], 1),
    ],
)
def test_what_was_stored_with_vary_does_not_give_one_persons_page_to_another(fields: Any, runs: int) -> None:
    """The public page says how long it may be reused; that of who is known says nothing, and so is not stored."""

    async def step(call: Call) -> None:
        user = call.scope.get("user")
        if user is None:
            await call.answer(b"public", (b"vary", b"accept-encoding"), (b"cache-control", b"max-age=60"))
        else:
            await call.answer(user.username.encode(), (b"vary", b"accept-encoding"), *fields)

    async def body() -> None:
        tide = Tidegate(Settings(cache=CacheSettings(share="public")))
        app = App(step)
        mounted = tide(app)
        app.gate.set()
        assert (await call(mounted)).body == b"public"
        # They want a coding that is not stored yet.
        app.gate.clear()
        app.runs = 0
        asked: list[Asked] = [
            {"user": User(tenant, name), "headers": [("accept-encoding", "gzip")]}
            for tenant, name in (("acme", "ann"), ("evil", "ben"))
        ]
        answers = await together(mounted, app, *asked)
        assert app.runs == runs
        assert [answer.body for answer in answers] == [b"ann", b"ben" if runs == 2 else b"ann"]

    run(body)


@pytest.mark.parametrize(
    ("status", "fields", "runs"),
    [
        (403, [], 2),
        (404, [], 2),
        (429, [(b"retry-after", b"9")], 2),
        (302, [(b"location", b"/ann")], 2),
        (404, [(b"cache-control", b"max-age=60")], 1),
        (200, [], 1),
        (301, [(b"location", b"/there")], 1),
    ],
)
def test_a_refusal_for_one_of_a_tenant_is_not_the_answer_to_another(status: int, fields: Any, runs: int) -> None:
    """A policy's share speaks of what its ttl is for: of a refusal, an error or a redirect only its own fields do."""

    async def step(call: Call) -> None:
        await call.answer(call.scope["user"].username.encode(), *fields, status=status)

    async def body() -> None:
        app = App(step)
        policy = RoutePolicy(route="/page", ttl=60, share="tenant")
        mounted = Tidegate(Settings(), policies=[policy])(app)
        asked: list[Asked] = [{"path": "/page", "user": User("acme", name)} for name in ("ann", "ben", "ann")]
        answers = await together(mounted, app, *asked)
        assert app.runs == runs, "those of one user share in any case"
        assert [answer.body for answer in answers] == [b"ann", b"ben" if runs == 2 else b"ann", b"ann"]

    run(body)


def test_who_is_answered_by_anothers_run_is_told_so_though_the_cache_stood_aside() -> None:
    async def body() -> None:
        app = App()
        mounted = Tidegate(Settings(), policies=[RoutePolicy(route="/page", mode="off")])(app)
        answers = await together(mounted, app, *[{"path": "/page", "user": User("acme", "ann")}] * 2)
        assert [answer.header("cache-status") for answer in answers] == [
            "Tidegate; fwd=bypass; detail=policy-off",
            "Tidegate; fwd=bypass; detail=policy-off; collapsed",
        ]
        assert app.runs == 1

    run(body)


@pytest.mark.parametrize("layers", [LAYERS, ("coalesce",)], ids=len)
def test_after_a_purge_nobody_joins_a_run_that_began_before_it_though_the_cache_stands_aside(
    layers: tuple[Layer, ...],
) -> None:
    async def body() -> None:
        app = App()
        tide = Tidegate(policies=[RoutePolicy(route="/page", mode="off")], layers=layers)
        mounted = tide(app)
        asked = {"path": "/page", "user": User("acme", "ann")}
        before = [asyncio.create_task(call(mounted, **asked)) for _ in range(2)]
        await settle()
        assert (await tide.purge("news", tenant="acme")).state == "done"
        after = [asyncio.create_task(call(mounted, **asked)) for _ in range(2)]
        await settle()
        app.gate.set()
        assert [(await each).body for each in before] == [b"run 1"] * 2
        assert [(await each).body for each in after] == [b"run 2"] * 2

    run(body)
