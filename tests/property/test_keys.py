"""Law: two requests share a key only if everything that selects a response is the same (P2)."""

from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from tidegate.middleware.core.identity import Identity
from tidegate.middleware.core.keys import (
    counted_query,
    digest,
    encode_pair,
    encode_parts,
    primary_parts,
    variant_values,
)
from tidegate.middleware.layers.naming import Named, Names

PARTS = st.lists(
    st.none() | st.binary(max_size=6) | st.sampled_from([b"", b":", b"\x00", b"1:a", b"\x011:"]), max_size=5
)
NAMES = st.text(min_size=1, max_size=4)


@given(PARTS, PARTS)
def test_the_encoding_is_injective(one: list[bytes | None], other: list[bytes | None]) -> None:
    assert (encode_parts(one) == encode_parts(other)) == (one == other)


@given(st.binary(), st.binary())
def test_two_parts_are_encoded_like_any(one: bytes, other: bytes) -> None:
    assert encode_pair(one, other) == encode_parts([one, other])


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    share = draw(st.sampled_from(["public", "tenant", "user"]))
    return {
        "namespace": draw(st.sampled_from([b"v1", b"v2"])),
        "share": share,
        "identity": Identity(draw(NAMES), draw(NAMES), draw(st.text(max_size=2))),
        "scheme": draw(st.sampled_from(["http", "https"])),
        "host": draw(st.sampled_from([b"a", b"a:80", b""])),
        "raw_path": draw(st.sampled_from([b"/a", b"/a%2Fb", b"/a/b", b"/a%3Fb"])),
        "query": draw(st.sampled_from([b"", b"b", b"a=1", b"a=1&b=2", b"b=2&a=1"])),
    }


def selecting(request: dict[str, Any]) -> tuple[Any, ...]:
    who: Identity = request["identity"]
    by_share = {"public": (), "tenant": (who.tenant, who.grants), "user": (who.tenant, who.grants, who.user)}
    return (*(v for k, v in request.items() if k != "identity"), by_share[request["share"]])


def neighbours(one: dict[str, Any], other: dict[str, Any]) -> list[dict[str, Any]]:
    """`one` with each part in turn from `other`: drawn apart, hardly any two would differ in one part alone."""
    a, b = one["identity"], other["identity"]
    people = [Identity(b.tenant, a.user, a.grants), Identity(a.tenant, b.user, a.grants)]
    people.append(Identity(a.tenant, a.user, b.grants))
    return [one | {part: other[part]} for part in one] + [one | {"identity": who} for who in people]


@given(requests(), requests())
def test_keys_meet_exactly_where_all_that_selects_is_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    for each in (other, *neighbours(one, other)):
        same = digest(primary_parts(**one), b"k") == digest(primary_parts(**each), b"k")
        assert same == (selecting(one) == selecting(each))


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b"]), st.sampled_from([b"", b"x", b" x "])), max_size=3))
def test_an_absent_field_is_not_an_empty_one(headers: list[tuple[bytes, bytes]]) -> None:
    values = dict(variant_values(headers, (b"a",)))
    assert (values[b"a"] is None) == all(name != b"a" for name, _ in headers)


def test_a_name_hidden_behind_a_semicolon_stays_part_of_the_value() -> None:
    assert counted_query(b"a=1;b=2&c=3&b=4", ("a", "b")) == b"a=1;b=2&b=4"


def test_the_naming_key_changes_every_name() -> None:
    assert digest((b"x",), b"one") != digest((b"x",), b"two")


FULL: dict[str, Any] = {
    "namespace": b"v1",
    "share": "user",
    "identity": Identity("acme", "ann", "admin"),
    "scheme": "http",
    "host": b"a",
    "raw_path": b"/a",
    "query": b"q=1",
}
"""One request; each of the others differs from it in one part, or in how two neighbours are cut."""

OTHERS: dict[str, dict[str, Any]] = {
    "share": {"share": "tenant"},
    "public share": {"share": "public"},
    "tenant": {"identity": Identity("acm", "ann", "admin")},
    "user": {"identity": Identity("acme", "ben", "admin")},
    "grants": {"identity": Identity("acme", "ann", "")},
    "tenant and user cut elsewhere": {"identity": Identity("acmea", "nn", "admin")},
    "user and grants cut elsewhere": {"identity": Identity("acme", "annad", "min")},
    "case of a tenant": {"identity": Identity("Acme", "ann", "admin")},
    "namespace": {"namespace": b"v2"},
    "scheme": {"scheme": "https"},
    "host": {"host": b"b"},
    "host and path cut elsewhere": {"host": b"a/", "raw_path": b"a"},
    "path": {"raw_path": b"/b"},
    "path, encoded": {"raw_path": b"/%61"},
    "query": {"query": b"q=2"},
    "no query": {"query": b""},
    "path and query cut elsewhere": {"raw_path": b"/aq", "query": b"=1"},
}


def test_every_part_alone_makes_another_key() -> None:
    keys = {name: digest(primary_parts(**FULL | other), b"k") for name, other in {"itself": {}, **OTHERS}.items()}
    assert len(set(keys.values())) == len(keys)


VALUES = st.lists(
    st.tuples(st.sampled_from([b"a", b"b", b"vary"]), st.none() | st.sampled_from([b"", b"a", b"b", b"\x00"])),
    max_size=3,
    unique_by=lambda pair: pair[0],
).map(tuple)


def a_name(parts: tuple[bytes | None, ...], primary: bytes) -> Named:
    return cast(Named, SimpleNamespace(parts=parts, primary=primary))


@given(requests(), VALUES, requests(), VALUES)
def test_variants_meet_exactly_where_request_and_varied_fields_are_equal(
    one: dict[str, Any], values: Any, other: dict[str, Any], others: Any
) -> None:
    names = Names(namespace=b"", naming_key=b"k")
    keys = []
    for request, varied in ((one, values), (other, others)):
        parts = primary_parts(**request)
        keys.append(names.variant(a_name(parts, digest(parts, b"k")), varied))
    assert (keys[0] == keys[1]) == ((selecting(one), values) == (selecting(other), others))
    assert digest(primary_parts(**one), b"k") not in keys
    assert names.variant(a_name(primary_parts(**one), b"p"), ((b"a", None),)) != (
        names.variant(a_name(primary_parts(**one), b"p"), ((b"a", b""),))
    )
