"""Route policies: matching, and bad input."""

import pytest

from tidegate.errors import ConfigError
from tidegate.middleware.core.policy import Policies, RoutePolicy


@pytest.mark.parametrize(
    ("path", "route", "params"),
    [
        ("/clients", "/clients", {}),
        ("/clients/42", "/clients/{id:int}", {"id": "42"}),
        ("/clients/new", "/clients/{name}", {"name": "new"}),
        ("/clients/new/", "other", {}),
        ("/clients/a/b", "other", {}),
        ("/files/a/b.css", "/files/{rest:path}", {"rest": "a/b.css"}),
        ("/Clients", "other", {}),
        ("/clients\n", "/clients", {}),  # as Starlette's router has it
        ("/a.b", "/a.b", {}),
        ("/axb", "other", {}),
    ],
)
def test_the_first_route_that_matches_the_whole_path_wins(path: str, route: str, params: dict[str, str]) -> None:
    routes = ["/clients", "/clients/{id:int}", "/clients/{name}", "/files/{rest:path}", "/a.b"]
    policies = Policies(RoutePolicy(route=route) for route in routes)
    for _ in range(2):  # the second time from memory
        match = policies.match(path)
        assert (match.route, dict(match.params)) == (route, params)


def test_the_memory_of_paths_is_bounded() -> None:
    policies = Policies([RoutePolicy(route="/{x}")], remember=10)
    for number in range(100):
        assert policies.match(f"/{number}").params == {"x": str(number)}
    assert len(policies.known) <= 10


def test_paths_that_end_with_a_slash_are_remembered_apart_from_those_that_say_all_by_themselves() -> None:
    # Whether their slash counts is for the request's raw path to say: nobody may take them from `known`.
    policies = Policies([RoutePolicy(route="/{x}"), RoutePolicy(route="/{x}/"), RoutePolicy(route="/")])
    for _ in range(2):
        for path, route in (("/a", "/{x}"), ("/a/", "/{x}/"), ("/", "/"), ("", "other")):
            assert policies.match(path).route == route
    assert set(policies.known) == {"/a", "/", ""}


def test_every_problem_of_a_policy_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        RoutePolicy(
            route="clients/{id}/{id}/{x:what}/{",
            ttl=-1,
            client_ttl=float("inf"),
            share="everybody",  # type: ignore[arg-type]
            tags=("a:{nope}", ""),
            vary=("Accept Language",),
            query="q",  # type: ignore[arg-type]
            max_body=-1,
            mode="on",  # type: ignore[arg-type]
            extensions="drop",  # type: ignore[arg-type]
        )
    paths = [problem.path for problem in caught.value.problems]
    assert sorted(set(paths)) == [
        "client_ttl", "extensions", "max_body", "mode", "query", "route", "share", "tags[0]", "tags[1]", "ttl",
        "vary[0]",
    ]  # fmt: skip
    assert paths.count("route") == 4


def test_two_policies_for_one_route_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[1\]\.route: '/a' is also the route of \[0\]"):
        Policies([RoutePolicy(route="/a"), RoutePolicy(route="/a")])
