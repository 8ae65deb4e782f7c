"""Who asks, out of headers and out of Starlette's user: whom it has seen before it names as if it had not."""

import asyncio
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest

from tests.driver import Origin, User, call, scope_of
from tidegate import CacheLayer, MemoryStore, Settings, Tidegate
from tidegate.errors import ConfigError
from tidegate.middleware.core.identity import Identity
from tidegate.middleware.layers.asgi import ContextResolver
from tidegate.middleware.layers.identifying import starlette_user, trusted_headers

VALUES = ("", "a", "b", " a\t", "a,b")


def headers_of(*values: tuple[str, str]) -> dict[str, object]:
    return scope_of("/", headers=[("accept", "a"), *values])


def test_headers_name_everybody_alike_the_first_time_and_later() -> None:
    identify = trusted_headers(tenant="X-Tenant", user="X-User", grants="X-Grants")
    asked = [
        list(zip(names, values, strict=True))
        for names in (("x-tenant", "x-user"), ("x-user", "x-tenant"), ("x-tenant", "x-grants"), ("x-tenant",))
        for values in product(VALUES, repeat=len(names))
    ]
    asked += [[*each, ("x-tenant", "a")] for each in asked]
    for _ in range(2):
        for sent in asked:
            said = {name: value.strip() for name, value in sent}
            twice = len(said) < len(sent)
            expected = None
            if said["x-tenant"] and not twice:
                expected = Identity(said["x-tenant"], said.get("x-user") or None, said.get("x-grants", ""))
            assert identify(headers_of(*sent)) == expected, sent
    assert len({identify(headers_of(*sent)) for sent in asked}) > 20


def test_one_header_that_is_to_name_two_names_the_last() -> None:
    assert trusted_headers(tenant="x-who", user="X-Who")(headers_of(("x-who", "a"))) is None
    identify = trusted_headers(tenant="x-tenant", user="x-who", grants="x-who")
    assert identify(headers_of(("x-tenant", "a"), ("x-who", "b"))) == Identity("a", None, "b")
    assert identify(headers_of(("x-tenant", "a"), ("x-who", "b"), ("x-who", "b"))) is None


def test_headers_of_a_server_that_gives_pairs_as_lists_name_the_same() -> None:
    identify = trusted_headers(tenant="x-tenant")
    scope = scope_of("/", headers=[])
    scope["headers"] = [[b"x-tenant", b"acme"]]
    assert identify(scope) == Identity("acme")


def test_a_name_that_no_header_can_have_is_refused_with_all_others() -> None:
    with pytest.raises(ConfigError) as raised:
        trusted_headers(tenant="x tenant", user="x-user", grants="")
    assert [problem.path for problem in raised.value.problems] == ["tenant", "grants"]


def test_no_client_can_fill_the_memory_of_whom_headers_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate.middleware.layers.identifying._IDENTITIES", 4)
    identify = trusted_headers(tenant="x-tenant", user="x-user")
    (known,) = (cell.cell_contents for cell in identify.__closure__ or () if cell.cell_contents == {})  # type: ignore[attr-defined]
    for number in range(10):
        identify(headers_of(("x-tenant", "acme"), ("x-user", f"{number}")))
        assert 1 <= len(known) <= 4
    before = len(known)
    assert identify(headers_of(("x-tenant", "acme"), ("x-user", "u" * 600))) == Identity("acme", "u" * 600)
    assert len(known) == before


class Named:
    """A user who has some other attributes than most."""

    is_authenticated = True

    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (User("acme", "ann", "admin"), Identity("acme", "ann", "admin")),
        (Named(tenant="acme", username="ann"), Identity("acme", "ann")),
        (Named(tenant="acme", identity="ann"), Identity("acme", "ann")),
        (Named(tenant="acme"), Identity("acme")),
        (Named(tenant="", username="ann"), None),
        (Named(username="ann"), None),
        (Named(tenant="acme", username="ann", is_authenticated=False), None),
        (SimpleNamespace(tenant="acme", username="ann"), None),
        (None, None),
    ],
)
def test_a_starlette_user_is_named_by_what_it_has(user: object, expected: Identity | None) -> None:
    assert starlette_user(scope_of("/", user=user)) == expected


@dataclass(frozen=True)
class Decided:
    open: frozenset[str]
    cohorts: tuple[tuple[str, str, str], ...] = ()
    shadow: frozenset[str] = frozenset()


def test_what_is_decided_by_names_is_decided_for_whoever_asks_and_is_shut_where_that_fails() -> None:
    asked: list[tuple[str | None, str | None]] = []
    failures: list[str] = []

    def decide_for(tenant: str | None, user: str | None) -> Decided:
        asked.append((tenant, user))
        if tenant == "evil":
            raise ValueError(tenant)
        return Decided(frozenset({"cache"}) if user == "ann" else frozenset())

    resolver = ContextResolver(
        decide_for=decide_for, on_error=lambda component, error: failures.append(f"{component}: {error}")
    )

    def opened(user: User | None) -> frozenset[str]:
        decision = resolver.of(scope_of("/", user=user)).decision
        assert decision is not None
        return decision.open

    assert opened(User("acme", "ann")) == {"cache"}
    assert opened(User("acme", "ben")) == opened(None) == opened(User("evil", "ann")) == frozenset()
    assert asked == [("acme", "ann"), ("acme", "ben"), (None, None), ("evil", "ann")]
    assert failures == ["flags: evil"]
    supposed = resolver.as_if(scope_of("/"), Identity("acme", "ann")).decision
    assert supposed is not None
    assert supposed.open == {"cache"}


async def asynchronous(_scope: Any) -> Identity:
    return Identity("acme", "ann")


@pytest.mark.parametrize(
    "identify",
    [asynchronous, lambda _: "ann", lambda _: ("acme", "ann"), lambda _: {"tenant": "acme"}, lambda _: True],
    ids=["async", "text", "tuple", "dict", "flag"],
)
def test_what_is_no_identity_counts_as_nobody_and_as_an_error_and_the_app_answers(identify: Any) -> None:
    errors: list[tuple[str, Exception]] = []
    resolver = ContextResolver(identify=identify, on_error=lambda what, error: errors.append((what, error)))
    origin = Origin(headers=[("cache-control", "max-age=60")])
    layer = CacheLayer(origin, store=MemoryStore(), resolver=resolver)
    answers = [asyncio.run(call(layer)) for _ in range(2)]
    assert [answer.body for answer in answers] == [b"hello"] * 2
    assert {answer.header("cache-status") for answer in answers} == {"Tidegate; fwd=bypass; detail=no-identity"}
    assert [(what, type(error)) for what, error in errors] == [("identify", TypeError)] * 2


def test_an_identity_of_a_class_of_its_own_is_one() -> None:
    class Person(Identity):
        pass

    assert ContextResolver(identify=lambda _: Person("acme", "ann")).of(scope_of()).identity == Person("acme", "ann")


def test_an_async_identify_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="is async"):
        Tidegate(Settings(), identify=asynchronous)  # type: ignore[arg-type]
