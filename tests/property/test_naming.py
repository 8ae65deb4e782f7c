"""A remembered name is the one that would be made anew, whatever was remembered before it (P2)."""

from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.driver import scope_of
from tidegate.middleware.core.identity import Identity
from tidegate.middleware.core.keys import digest, primary_parts
from tidegate.middleware.core.keys import scope_of as ledger_scope_of
from tidegate.middleware.core.policy import Match, RoutePolicy, Share
from tidegate.middleware.layers.naming import Named, Names, host_of, uri_of

NAMES = st.sampled_from(["a", "b", "ab", "\udc80", "1"])
IDENTITIES = st.builds(Identity, tenant=NAMES, user=NAMES, grants=st.sampled_from(["", "a", "b"]))
POLICIES = [None, RoutePolicy(route="/a", query=("x",)), RoutePolicy(route="/a", query=("y",))]
VALUES = st.lists(
    st.tuples(st.sampled_from([b"cookie", b"accept"]), st.sampled_from([None, b"", b"a", b"b", b"a" * 2000])),
    max_size=2,
).map(tuple)

FIELDS: dict[str, st.SearchStrategy[object]] = {
    "path": st.sampled_from(["/a", "/b", "/a?x", "/" + "a" * 1100]),
    "raw": st.sampled_from([None, b"/a", b"/%61", b"/a?x", b""]),
    "root": st.sampled_from(["", "/a"]),
    "query": st.sampled_from(["", "x=1", "x=1&y=2", "y=2"]),
    "scheme": st.sampled_from(["http", "https"]),
    "hosts": st.lists(st.sampled_from(["one.test", "ONE.test", " one.test", "two.test"]), max_size=2),
    "policy": st.sampled_from(POLICIES),
    "share": st.sampled_from(["public", "tenant", "user"]),
    "identity": IDENTITIES,
    "values": VALUES,
}


@st.composite
def neighbours(draw: st.DrawFn) -> list[dict[str, object]]:
    """Requests of which each differs from the one before in one thing."""
    asked = [draw(st.fixed_dictionaries(FIELDS))]
    for field in draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=12)):
        asked.append(asked[-1] | {field: draw(FIELDS[field])})
    return asked


def told(found: Named) -> tuple[object, ...]:
    """All that a name says."""
    return found.policy, found.uri, found.parts, found.primary, found.tag, found.scope


def scope_as(asked: dict[str, object]) -> dict[str, Any]:
    scope = scope_of(str(asked["path"]), query=str(asked["query"]), scheme=asked["scheme"], root_path=asked["root"])
    scope["raw_path"] = asked["raw"]
    scope["headers"] = [(b"host", host.encode()) for host in asked["hosts"]]  # type: ignore[attr-defined]
    return scope


def named(names: Names, asked: dict[str, object]) -> tuple[Named, bytes]:
    scope = scope_as(asked)
    policy: RoutePolicy | None = asked["policy"]  # type: ignore[assignment]
    match = Match(policy, policy.route if policy is not None else "other", {})
    found = names.of(scope, host_of(scope), match, asked["share"], asked["identity"])  # type: ignore[arg-type]
    return found, names.variant(found, asked["values"])  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(neighbours(), st.integers(1, 30))
def test_what_was_asked_before_changes_no_name(asked: list[dict[str, object]], remember: int) -> None:
    old = Names(namespace=b"v1", naming_key=b"secret", remember=remember)
    for each in [*asked, *asked, *asked]:
        known, made = named(old, each), named(Names(namespace=b"v1", naming_key=b"secret"), each)
        assert (told(known[0]), known[1]) == (told(made[0]), made[1])


OPTIONAL = {"scheme": "http", "raw_path": None, "root_path": "", "query_string": b""}
"""What ASGI lets a server leave out of a scope, with what that means."""


@given(st.sampled_from(["/a", "/b"]), st.sets(st.sampled_from(sorted(OPTIONAL)), min_size=1), IDENTITIES)
def test_what_a_server_leaves_out_of_a_scope_is_named_as_what_that_means(
    path: str, left_out: set[str], identity: Identity
) -> None:
    names = Names(namespace=b"v1", naming_key=b"")
    whole = scope_of(path, scheme="https", query="x=1", raw_path=b"/%61", root_path="/c") | {
        name: OPTIONAL[name] for name in left_out
    }
    less = {name: value for name, value in whole.items() if name not in left_out}
    found = [
        told(names.of(scope, b"one.test", Match(None, "other", {}), "user", identity))
        for scope in (whole, less, whole, less)
    ]
    assert all(each == found[0] for each in found)


ASKED = dict.fromkeys(FIELDS) | {"path": "/b", "raw": b"/b", "query": "", "scheme": "http", "hosts": []}
ASKED |= {"share": "public", "values": ()}


@settings(max_examples=150, deadline=None)
@given(neighbours())
@example([ASKED | {"root": "", "path": "/a?x", "raw": b"/a?x"}])  # a server that leaves the query in both
def test_a_name_is_made_of_all_parts_of_its_key_and_no_other(asked: list[dict[str, object]]) -> None:
    names = Names(namespace=b"v1", naming_key=b"secret")
    for each in asked:
        found, _ = named(names, each)
        share, identity = cast(Share, each["share"]), cast(Identity, each["identity"])
        uri = found.uri
        assert uri == uri_of(scope_as(each), cast(RoutePolicy | None, each["policy"]))
        assert found.parts == primary_parts(
            namespace=b"v1", share=share, identity=identity, scheme=uri.scheme, host=uri.host, raw_path=uri.raw_path,
            query=uri.query,
        )  # fmt: skip
        assert found.primary == digest(found.parts, b"secret")
        assert found.tag == uri.tag
        assert found.scope == ledger_scope_of(identity, share)


def test_what_is_asked_for_twice_is_remembered_but_no_more_than_was_said_and_nothing_long() -> None:
    names = Names(namespace=b"v1", naming_key=b"", remember=2)
    match = Match(None, "other", {})

    def asked(path: str) -> Named:
        return names.of(scope_of(path), b"", match, "user", Identity("acme", "ann"))

    once, remembered = asked("/1"), asked("/1")
    assert once is not remembered
    assert asked("/1") is remembered
    for path in map("/{}".format, range(2, 50)):
        asked(path)
    assert asked("/1") is remembered, "what was asked for once pushes out nothing"
    for path in ("/2", "/2", "/3", "/3"):
        asked(path)
    assert asked("/1") is not remembered
    long = "/" + "a" * 1200
    assert len({id(each) for each in [asked(long) for _ in range(4)]}) == 4


def test_one_path_under_two_roots_has_two_names() -> None:
    names = Names(namespace=b"v1", naming_key=b"secret")
    one, other = named(names, ASKED | {"root": ""}), named(names, ASKED | {"root": "/a"})
    made = named(Names(namespace=b"v1", naming_key=b"secret"), ASKED | {"root": "/a"})
    assert told(other[0]) == told(made[0])
    assert one[0].primary != other[0].primary


@pytest.mark.parametrize("once", ["a query that does not count", "a host in other letters", "both alike"])
def test_what_was_asked_for_once_by_another_spelling_pushes_out_nothing(once: str) -> None:
    names = Names(namespace=b"v1", naming_key=b"", remember=512)
    match = Match(RoutePolicy(route="/", ttl=60, share="public", query=("page",)), "/", {})

    def asked(path: str, host: bytes = b"a.test", query: str = "") -> Named:
        return names.of(scope_of(path, query=query), host, match, "public", None)

    asked("/hot")
    hot = asked("/hot")
    assert asked("/hot") is hot
    same: set[bytes] = set()
    for number in range(1024):
        host = bytes(65 + 32 * (number >> bit & 1) for bit in range(10))
        if once == "a query that does not count":
            same.add(asked("/", query=f"n={number}").primary)
        elif once == "a host in other letters":
            same.add(asked("/", host=host).primary)
        else:
            same.add(asked("/", host=host, query=host.decode()).primary)
    assert len(same) == 1
    assert asked("/hot") is hot


def test_a_flood_of_hosts_that_are_asked_for_once_pushes_out_no_owner() -> None:
    names = Names(namespace=b"v1", naming_key=b"", remember=512)
    match = Match(None, "other", {})

    def asked(path: str, host: bytes = b"a.test") -> Named:
        return names.of(scope_of(path), host, match, "public", None)

    asked("/1")
    owner = asked("/2").owner
    for number in range(1024):
        asked("/3", b"%d.test" % number)
    assert asked("/4").owner is owner
    for number in range(2048, 2048 + 512):
        asked("/5", b"%d.test" % number)
        asked("/5", b"%d.test" % number)
    assert asked("/6").owner is not owner, "it is bounded all the same"
