"""A remembered name is the one that would be made anew, whatever was remembered before it (P2)."""

from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.driver import scope_of
from tidegate.middleware.core.identity import Identity
from tidegate.middleware.core.keys import digest, primary_parts
from tidegate.middleware.core.keys import scope_of as ledger_scope_of
from tidegate.middleware.core.policy import Match, RoutePolicy, Share
from tidegate.middleware.layers.naming import Named, Names, host_of

NAMES = st.sampled_from(["a", "b", "ab", "\udc80", "1"])
IDENTITIES = st.builds(Identity, tenant=NAMES, user=NAMES, grants=st.sampled_from(["", "a", "b"]))
POLICIES = [None, RoutePolicy(route="/a", query=("x",)), RoutePolicy(route="/a", query=("y",))]
VALUES = st.lists(
    st.tuples(st.sampled_from([b"cookie", b"accept"]), st.sampled_from([None, b"", b"a", b"b", b"a" * 2000])),
    max_size=2,
).map(tuple)

FIELDS: dict[str, st.SearchStrategy[object]] = {
    "path": st.sampled_from(["/a", "/b", "/" + "a" * 1100]),
    "raw": st.sampled_from([None, b"/a", b"/%61", b""]),
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


def named(names: Names, asked: dict[str, object]) -> tuple[Named, bytes]:
    scope = scope_of(str(asked["path"]), query=str(asked["query"]), scheme=asked["scheme"], root_path=asked["root"])
    scope["raw_path"] = asked["raw"]
    scope["headers"] = [(b"host", host.encode()) for host in asked["hosts"]]  # type: ignore[attr-defined]
    policy: RoutePolicy | None = asked["policy"]  # type: ignore[assignment]
    match = Match(policy, policy.route if policy is not None else "other", {})
    found = names.of(scope, host_of(scope), match, asked["share"], asked["identity"])  # type: ignore[arg-type]
    return found, names.variant(found, asked["values"])  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(neighbours(), st.integers(1, 30))
def test_what_was_asked_before_changes_no_name(asked: list[dict[str, object]], remember: int) -> None:
    old = Names(namespace=b"v1", naming_key=b"secret", remember=remember)
    for each in [*asked, *asked]:
        new = Names(namespace=b"v1", naming_key=b"secret")
        assert named(old, each) == named(new, each)


@settings(max_examples=150, deadline=None)
@given(neighbours())
def test_a_name_is_made_of_all_parts_of_its_key_and_no_other(asked: list[dict[str, object]]) -> None:
    names = Names(namespace=b"v1", naming_key=b"secret")
    for each in asked:
        found, _ = named(names, each)
        share, identity = cast(Share, each["share"]), cast(Identity, each["identity"])
        uri = found.uri
        assert found.parts == primary_parts(
            namespace=b"v1", share=share, identity=identity, scheme=uri.scheme, host=uri.host, raw_path=uri.raw_path,
            query=uri.query,
        )  # fmt: skip
        assert found.primary == digest(found.parts, b"secret")
        assert found.tag == uri.tag
        assert found.scope == ledger_scope_of(identity, share)


def test_no_more_is_remembered_than_was_said_and_nothing_long() -> None:
    names = Names(namespace=b"v1", naming_key=b"", remember=2)
    match = Match(None, "other", {})
    ann = Identity("acme", "ann")
    first = scope_of("/1")
    remembered = names.of(first, b"", match, "user", ann)
    assert names.of(first, b"", match, "user", ann) is remembered
    for path in ("/2", "/3"):
        names.of(scope_of(path), b"", match, "user", ann)
    assert names.of(first, b"", match, "user", ann) is not remembered
    long = scope_of("/" + "a" * 1200)
    assert names.of(long, b"", match, "user", ann) is not names.of(long, b"", match, "user", ann)


def test_one_path_under_two_roots_has_two_names() -> None:
    names = Names(namespace=b"v1", naming_key=b"secret")
    asked = dict.fromkeys(FIELDS) | {"path": "/b", "raw": b"/b", "query": "", "scheme": "http", "hosts": []}
    asked |= {"share": "public", "values": ()}
    one, other = named(names, asked | {"root": ""}), named(names, asked | {"root": "/a"})
    assert other == named(Names(namespace=b"v1", naming_key=b"secret"), asked | {"root": "/a"})
    assert one != other
