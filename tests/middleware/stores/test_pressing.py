"""What is pressed comes out as it was, and what recurs is held once."""

import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.middleware.stores.support import entry
from tidegate.middleware.core.records import PUBLIC_SCOPE, Entry
from tidegate.middleware.core.validators import make_etag
from tidegate.middleware.stores.pressing import Form, Forms, released

MOST = 1 << 20


def made(number: int, **of: Any) -> Entry:
    """Of equal parts that are no other entry's objects, and an ETag, a path and a date of its own."""

    def text(value: str) -> bytes:
        return bytes(bytearray(value.encode()))

    tenant = "tenant:" + "".join(["ac", "me"])
    given: dict[str, Any] = {
        "headers": (
            (text("content-length"), b"4"),
            (text("content-type"), text("text/plain")),
            (text("etag"), b'"%032x"' % number),
            (text("x-request-id"), b"%d" % number),
        ),
        "vary": ((text("accept"), None),),
        "tags": ((PUBLIC_SCOPE, f"uri:\x014:http\x017:example\x019:/things/{number}"), (tenant, f"client:{number}")),
        "positions": ((tenant, 10**9), ("".join(["pub", "lic"]), 10**9)),
    }
    return replace(entry(), **(given | of))


def pressed(forms: Forms, *entries: Entry) -> list[Form]:
    """All of them, of which each comes out as it was; the last ones' forms."""
    found: list[Form] = []
    for each in entries:
        form, own = forms.press(each)
        assert released(form, own, each.body, each.born) == each
        found.append(form)
    return found


def test_entries_of_one_kind_have_one_form_and_their_own_parts_in_it_nowhere() -> None:
    forms = Forms(most=MOST)
    *_, one, other = pressed(forms, *[made(number) for number in range(10)])
    assert one is other
    assert one.rows > 2
    told = repr(one.key)
    assert "text/plain" in told
    assert "things" in told
    assert not any(part in told for part in (f"{9:032x}", "things/9", "client:9", "'9'"))


def test_an_etag_and_the_ends_of_tags_are_all_that_an_entry_has_for_itself() -> None:
    forms = Forms(most=MOST)
    plain = [made(number, headers=made(number).headers[:3]) for number in range(10)]
    pressed(forms, *plain)
    own = forms.press(plain[-1])[1]
    assert own == bytes((1, 1)) + b"9" + b"9" + (9).to_bytes(16, "big")


@pytest.mark.parametrize(
    ("etag", "held"),
    [
        (make_etag(b"body"), 16),
        (b'"%032x"' % 0, 16),
        (make_etag(b"body", weak=True), 36),
        (b'"%032X"' % (2**128 - 1), 34),
        (b'"' + b"g" * 32 + b'"', 34),
        (b'"%031x "' % 1, 34),
        (b"'%032x'" % 1, 34),
        (b"\"%032x'" % 1, 34),
        (b'"%034x"' % 1, 36),
        (b"%034x" % 1, 34),
    ],
)
def test_an_etag_of_hexadecimal_digits_is_held_in_half_of_them_and_comes_out_as_it_was(etag: bytes, held: int) -> None:
    forms = Forms(most=MOST)
    tagged = made(1, headers=((b"etag", etag),), tags=())
    pressed(forms, tagged)
    assert len(forms.press(tagged)[1]) == held


@pytest.mark.parametrize(
    "of",
    [
        {"headers": ()},
        {"headers": ((b"content-length", b"04"),)},
        {"headers": ((b"content-length", b"5"), (b"content-length", b"4"), (b"content-length", b"4"))},
        {"headers": ((b"etag", b"x" * 254), (b"date", b"y" * 255), (b"etag", b""), (b"expires", b"z" * 70_000))},
        {"tags": (), "headers": ((b"etag", b"x" * 255), (b"date", b"y"), (b"expires", b"z"))},
        {"tags": (), "headers": ((b"etag", b"x" * 255), (b"date", b"y"))},
        {"tags": ()},
        {"tags": ((PUBLIC_SCOPE, ""), (PUBLIC_SCOPE, "/"), (PUBLIC_SCOPE, "a/\u00e9/\u20ac/\ud800"), ("", "::x"))},
        {"lifetime": 0.1 + 0.2, "stale_while_revalidate": 1.5, "stale_if_error": 2.5},
        {"must_revalidate": True},
        {"no_cache": True},
        {"own_etag": True},
        {"vary": ((b"accept", b"a"), (b"cookie", b""))},
        {"positions": ()},
        {"status": 404, "body": b"", "born": -1.5},
    ],
)
def test_whatever_an_entry_says_it_says_afterwards(of: dict[str, Any]) -> None:
    forms = Forms(most=MOST)
    for _ in range(4):
        pressed(forms, made(1, **of), made(2), made(2, **of))


BYTES = st.binary(max_size=3) | st.sampled_from([b"etag", b"content-length", b"4", b"date", b"x" * 300, b'"%032x"' % 7])
TEXTS = st.text("a/:\u00e9\ud800", max_size=5) | st.sampled_from(["uri:/a/b", "uri:/a/c", "t" * 300])
ENTRIES = st.builds(
    made,
    number=st.integers(0, 3),
    headers=st.lists(st.tuples(BYTES, BYTES), max_size=4).map(tuple),
    tags=st.lists(st.tuples(TEXTS, TEXTS), max_size=4).map(tuple),
    lifetime=st.sampled_from([0.0, 1.5, 60.0, 1e9]),
    vary=st.lists(st.tuples(BYTES, st.none() | BYTES), max_size=2).map(tuple),
    positions=st.lists(st.tuples(TEXTS, st.integers(0, 2**63)), max_size=2).map(tuple),
    no_cache=st.booleans(),
    own_etag=st.booleans(),
)


@given(st.lists(ENTRIES, max_size=12))
def test_all_entries_of_a_store_come_out_as_they_were(entries: list[Entry]) -> None:
    forms = Forms(most=3000)
    held = [(each, *forms.press(each)) for each in [*entries, *entries]]
    for each, form, own in held:
        again = released(form, own, each.body, each.born)
        assert (again, type(again.lifetime)) == (each, float)


def test_a_form_is_let_go_with_its_last_entry() -> None:
    forms = Forms(most=MOST)
    held = pressed(forms, *[made(number) for number in range(20)])
    assert len(forms) > 0
    for form in held:
        forms.let_go(form)
    assert (len(forms), forms._bytes) == (0, 0)


def test_forms_take_no_more_than_they_may_and_who_has_one_alone_is_weighed_with_it() -> None:
    forms = Forms(most=5000)
    kinds = [replace(entry(), status=200 + number) for number in range(100)]
    for _ in range(3):
        pressed(forms, *kinds)
    assert 0 < len(forms) < 12
    assert forms._bytes <= 5000
    form, _ = forms.press(kinds[-1])
    assert not form.shared
    assert form.weight > 400


def test_what_occurs_only_once_is_not_remembered() -> None:
    forms = Forms(most=MOST)
    tracemalloc.start()
    try:
        for number in range(30_000):
            unlike = f"{number}-" * 4
            odd = (unlike.encode(), unlike.encode())
            once = made(1, headers=(odd,), tags=((unlike, unlike + "/x"),), lifetime=0.1 * number)
            forms.let_go(forms.press(once)[0])
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < 700_000
    assert len(forms._fields) + len(forms._beginnings) + len(forms._seconds) < 10


def test_parts_that_are_too_long_are_not_remembered_however_often_they_occur() -> None:
    forms = Forms(most=MOST)
    long = "x" * 1000
    for _ in range(4):
        (form,) = pressed(
            forms,
            made(
                1,
                headers=((long.encode(), b"1"), (b"x", long.encode()), (b"x", b"1")),
                tags=((PUBLIC_SCOPE, long + "/y"),),
            ),
        )
    assert form.pieces == 3
    assert not any("xxx" in repr(known) for known in (forms._fields, forms._beginnings))


def test_forms_that_occur_only_once_are_not_remembered_where_all_their_parts_are_known() -> None:
    """As after each purge: the positions are others."""
    forms = Forms(most=MOST)
    for number in range(10_000):
        forms.let_go(forms.press(made(1, positions=((PUBLIC_SCOPE, number),)))[0])
    assert len(forms) == 0
    assert len(forms._once) <= 4096
