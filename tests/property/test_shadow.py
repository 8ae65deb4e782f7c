"""Laws: order never shows in `order_free` and content always does; no cause is told that some sight contradicts."""

import json
import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tidegate.middleware.core.shadow import Sight, decode_sight, encode_sight, order_free
from tidegate.middleware.core.shadow_kinds import tell

SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False, width=16) | st.text(max_size=3)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=4),
    max_leaves=12,
)


def shuffled(tree: Any, chance: random.Random) -> Any:
    if isinstance(tree, dict):
        members = [(name, shuffled(value, chance)) for name, value in tree.items()]
        chance.shuffle(members)
        return dict(members)
    if isinstance(tree, list):
        elements = [shuffled(value, chance) for value in tree]
        chance.shuffle(elements)
        return elements
    return tree


def canonical(tree: Any) -> str:
    """Another way to the same end: what is left of a tree when order is taken out of it."""
    if isinstance(tree, dict):
        return "{" + ",".join(sorted(json.dumps(name) + ":" + canonical(value) for name, value in tree.items())) + "}"
    if isinstance(tree, list):
        return "[" + ",".join(sorted(map(canonical, tree))) + "]"
    return json.dumps(tree)


def text(tree: Any, **spacing: Any) -> bytes:
    return json.dumps(tree, **spacing).encode()


@given(TREES, st.randoms(use_true_random=False))
def test_a_text_in_another_order_and_spacing_has_the_same_digest(tree: Any, chance: random.Random) -> None:
    assert order_free(text(tree)) == order_free(text(shuffled(tree, chance), indent=2)) != ""


@given(TREES, TREES)
def test_texts_that_differ_in_more_than_order_have_different_digests(one: Any, other: Any) -> None:
    assert (order_free(text(one)) == order_free(text(other))) == (canonical(one) == canonical(other))


@given(st.binary(max_size=300) | st.text(alphabet='[]{},:"1ae.-', max_size=300).map(str.encode))
def test_any_bytes_have_an_answer(body: bytes) -> None:
    assert isinstance(order_free(body), str)


NAMED = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["1", "2"])), max_size=2, unique_by=lambda p: p[0]
)
SIGHTS = st.builds(
    Sight,
    at=st.floats(0, 9),
    who=st.sampled_from(["ann", "ben", "cat"]),
    tenant=st.just("acme"),
    asked=NAMED.map(tuple),
    status=st.sampled_from([200, 404]),
    body=st.sampled_from(["x", "y", "z"]),
    length=st.just(1),
    order=st.just(""),
    headers=NAMED.map(tuple),
    excerpt=st.text(max_size=3),
)


@given(SIGHTS)
def test_a_sight_comes_back_from_its_bytes(sight: Sight) -> None:
    assert decode_sight(encode_sight(sight)) == sight


@given(st.lists(SIGHTS, max_size=24))
def test_no_cause_is_told_that_a_sight_contradicts(sights: list[Sight]) -> None:
    told = {(finding.kind, finding.field) for finding in tell(sights).findings}
    contents = [(sight.status, sight.body) for sight in sights]
    if ("share-too-wide", "") in told and not any(kind == "missing-vary" for kind, _ in told):
        assert len({(sight.who, *content) for sight, content in zip(sights, contents, strict=True)}) == len(
            {sight.who for sight in sights}
        )
    if ("body-over-time", "") in told:
        asked = [(sight.who, frozenset(sight.asked)) for sight in sights]  # request fields have no order
        assert len({(*one, *content) for one, content in zip(asked, contents, strict=True)}) > len(set(asked))
    if told or tell(sights).volatile:
        assert len(set(contents)) > 1 or len({sight.headers for sight in sights}) > 1


@given(st.lists(SIGHTS, min_size=1, max_size=24))
def test_sights_of_one_body_prove_nothing_about_bodies(sights: list[Sight]) -> None:
    same = [
        Sight(
            at=s.at, who=s.who, tenant=s.tenant, asked=s.asked, status=200, body="x", length=1, order="",
            headers=(), excerpt="",
        )
        for s in sights
    ]  # fmt: skip
    assert tell(same).findings == ()
