"""What of an answer is compared in shadow mode, and which causes some sights prove."""

import json
import time
from typing import Any, get_args

import pytest

from tidegate.middleware.core.identity import Identity
from tidegate.middleware.core.shadow import (
    MAX_JSON,
    MAX_VALUE,
    VOLATILE,
    Sight,
    asked_with,
    compared_headers,
    decode_sight,
    encode_sight,
    order_free,
    who_asked,
)
from tidegate.middleware.core.shadow_kinds import ADVICE, PATIENCE, Finding, Kind, Told, tell


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (b'{"a": 1, "b": [2, 3]}', b'{"b":[3,2],"a":1}', True),
        (b'{"a": 1}', b'{"a": 2}', False),
        (b'{"a": 1.0}', b'{"a": 1.00}', False),
        (b'{"a": 1}', b'{"a": "1"}', False),
        (b'["true"]', b"[true]", False),
        (b'{"a": ["x"], "b": ["y"]}', b'{"a": ["y"], "b": ["x"]}', False),
        (b"[[1], [2, 3]]", b"[[1, 2], [3]]", False),
        (b"[[], {}]", b"[{}, []]", True),
        (b"[{}]", b"[[]]", False),
        (b'["\\u00e9"]', '["é"]'.encode(), True),
    ],
)
def test_order_and_spacing_of_json_do_not_count_and_everything_else_does(one: bytes, other: bytes, same: bool) -> None:
    assert order_free(one)
    assert (order_free(one) == order_free(other)) is same


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"[" * 1000 + b"]" * 1000,
        b"[" * MAX_JSON,
        b"[" * 70 + b"]" * 70,
        b"[" + b"0," * 5000 + b"0]",
        b'"' + b"x" * MAX_JSON + b'"',
    ],
)
def test_what_is_no_json_or_too_much_of_it_is_not_looked_into(body: bytes) -> None:
    assert order_free(body) == ""


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"[]," * 4000 + b"[]]",
        b"[" * 60 + b"1" * (MAX_JSON - 120) + b"]" * 60,
        b"{" + b",".join(b'"%d":%d' % (n, n) for n in range(1300)) + b"}",
        b'{"a":' * 60 + b'"' + b"x" * 15_000 + b'"' + b"}" * 60,
        b"[" + b"9" * 5000 + b"]",
    ],
)
def test_the_worst_json_takes_milliseconds(body: bytes) -> None:
    assert len(body) <= MAX_JSON
    began = time.thread_time()
    order_free(body)
    # A hundredth of what it would take if each level were serialised anew; far from what one text takes.
    assert time.thread_time() - began < 0.25


def test_the_worst_names_of_fields_take_milliseconds_and_push_no_cause_out() -> None:
    """Every answer and every question has names of its own; the language, which decides, comes with the others."""
    crowd = [
        sight(
            lang,
            who=who,
            sent=[*language(lang), *((f"x-{n}-{m}", "1") for m in range(31))],
            got=[(f"y-{n}-{m}", "1") for m in range(32)],
        )
        for n, (who, lang) in enumerate(MIXED * 3)
    ]
    began = time.thread_time()
    assert tell(crowd).findings == (VARY,)
    # With every name looked at it was twelve seconds; it is 0.03.
    assert time.thread_time() - began < 0.5


def test_fields_that_may_differ_are_left_out_and_long_values_shortened() -> None:
    headers = [(name.encode(), b"x") for name in VOLATILE]
    headers += [(b"connection", b"close, X-Hop"), (b"x-hop", b"1"), (b"transfer-encoding", b"chunked")]
    headers += [(b"link", b"a"), (b"etag", b'"1"'), (b"link", b"b"), (b"x-long", b"v" * 500)]
    compared = compared_headers(headers, own_etag=False)
    assert [name for name, _ in compared] == ["etag", "link", "x-long"]
    assert dict(compared)["link"] == "a, b"
    assert len(dict(compared)["x-long"]) < MAX_VALUE
    assert compared_headers([(b"x-long", b"v" * 501)], own_etag=False) != compared[2:]
    assert dict(compared_headers(headers, own_etag=True)).keys() == {"link", "x-long"}


@pytest.mark.parametrize("name", ["X-Csrf-Token", "x-api-key", "authentication-info", "x-session-id", "x-set-cookie"])
def test_secrets_in_response_fields_are_compared_but_not_kept(name: str) -> None:
    (ann,), (ben,) = (compared_headers([(name.lower().encode(), who)], own_etag=False) for who in (b"s3cret", b"hush"))
    assert ann[0] == name.lower()
    assert ann != ben
    assert "s3cret" not in ann[1]
    assert compared_headers([(b"author", b"ann")], own_etag=False) == (("author", "ann"),)


def test_request_fields_are_digests_and_those_that_cannot_matter_are_left_out() -> None:
    odd = [(b"x-odd-%d" % n, b"1") for n in range(100)]
    plain = [
        (b"host", b"h"),
        (b"proxy-authorization", b"secret"),
        (b"authorization", b"secret"),
        (b"traceparent", b"00-1"),
    ]
    named = asked_with([*odd, *plain, (b"accept-language", b"de")], b"key")
    assert named[0][0] == "accept-language"
    assert len(named) == 32
    assert not {"host", "x-api-key", "authorization", "traceparent"} & {name for name, _ in named}
    assert "de" not in [value for _, value in named]
    assert asked_with([(b"x" * 65, b"1"), (b"x" * 64, b"1")], b"")[0][0] == "x" * 64
    assert asked_with([(b"accept", b"a"), (b"accept", b"b")], b"") != asked_with([(b"accept", b"a, b")], b"")


def test_who_asked_tells_users_and_tenants_apart_and_names_nobody() -> None:
    ann, ben = Identity("acme", "ann"), Identity("acme", "ben")
    assert who_asked(ann, b"key")[0] != who_asked(ben, b"key")[0]
    assert who_asked(ann, b"key")[1] == who_asked(ben, b"key")[1]
    assert who_asked(ann, b"key") != who_asked(ann, b"other")
    assert who_asked(Identity("a", "b"), b"") != who_asked(Identity("ab", None), b"")
    assert who_asked(None, b"key") == ("", "")


def sight(body: str, *, who: str = "ann", order: str = "", status: int = 200, sent: Any = (), got: Any = ()) -> Sight:
    return Sight(
        at=1.5, who=who, tenant=who[0], asked=tuple(sent), status=status, body=body, length=3, order=order,
        headers=tuple(got), excerpt="",
    )  # fmt: skip


def test_a_sight_comes_back_from_its_bytes_and_other_bytes_are_refused() -> None:
    one = sight("b", order="o", sent=[("accept", "1")], got=[("etag", '"é"')])
    assert decode_sight(encode_sight(one)) == one
    for data in (b"", b"[]", b"{}", b"\xff", b"null", b"[" * 5000, json.dumps([1] * 10).encode()):
        with pytest.raises(ValueError, match="no sight"):
            decode_sight(data)


def language(value: str) -> tuple[tuple[str, str], ...]:
    return (("accept-language", value),)


PEOPLE = ("ann", "ben", "cat")
MIXED = [(PEOPLE[n % 3], "de" if n % 2 else "en") for n in range(12)]
PAIRED = [(PEOPLE[n % 2], "de" if n % 2 else "en") for n in range(PATIENCE)]
WIDE, OVER_TIME = Finding("share-too-wide"), Finding("body-over-time")
VARY = Finding("missing-vary", "accept-language")


@pytest.mark.parametrize(
    ("sights", "findings"),
    [
        ([], ()),
        ([sight("x")] * 20, ()),
        # The same asker, the same request, another body: nothing is left but time.
        ([sight("x"), sight("y")], (OVER_TIME,)),
        ([sight("x"), sight("x", status=404)], (OVER_TIME,)),
        # One pair of people proves nothing: it may be time, or what they sent.
        ([sight("x"), sight("y", who="ben")], ()),
        ([sight("x"), sight("y", who="ben"), sight("x"), sight("y", who="ben")], ()),
        ([sight(who, who=who, sent=language(lang)) for who, lang in MIXED], (WIDE,)),
        ([sight(lang, who=who, sent=language(lang)) for who, lang in MIXED], (VARY,)),
        # Everybody's language is his own: whichever it is, the share is named, late.
        ([sight(who, who=who, sent=language(lang)) for who, lang in PAIRED[:-1]], ()),
        ([sight(who, who=who, sent=language(lang)) for who, lang in PAIRED], (WIDE,)),
        # Both at once.
        ([sight(who + lang, who=who, sent=language(lang)) for who, lang in MIXED * 2], (WIDE, VARY)),
        # A change between two halves of time comes back to nothing.
        ([*[sight("x")] * 6, *[sight("y", who="ben")] * 6], ()),
        ([sight(f"b{n}", order="same") for n in range(2)], (Finding("unstable-order"),)),
        ([sight("x", order="1"), sight("y", order="2")], (OVER_TIME,)),
        # The digest of a body once looked into counts for its other sights.
        ([sight("x", order="1"), sight("y", order="1"), sight("x"), sight("y")], (Finding("unstable-order"),)),
        ([sight("x", who=who, got=[("x-for", who)]) for who, _ in MIXED], (Finding("per-user-header", "x-for"),)),
        (
            [sight("x", who=who, sent=language(lang), got=[("content-language", lang)]) for who, lang in MIXED],
            (VARY,),
        ),
        # What changes with the body is no news.
        ([sight(who, who=who, got=[("etag", who), ("x-for", who)]) for who, _ in MIXED], (WIDE,)),
        (
            [sight(who, who=who, order="same", got=[("etag", who)]) for who, _ in MIXED],
            (Finding("unstable-order"),),
        ),
        # By tenant, in a public share, although a header names the tenant as well.
        ([sight(who[0], who=who, sent=[("x-tenant", who[0])]) for who in ("a1", "a2", "b1", "b2") * 5], (WIDE,)),
        # A field that names each single request is no cause, and hides none.
        ([sight(f"b{n}", sent=[("x-nonce", str(n))]) for n in range(20)], (OVER_TIME,)),
    ],
)
def test_causes_are_told_where_the_sights_leave_no_other(sights: list[Sight], findings: tuple[Finding, ...]) -> None:
    assert tell(sights) == Told(findings, frozenset())


def test_a_response_field_that_changes_under_the_same_request_means_nothing() -> None:
    sights = [sight("x", got=[("x-n", str(n))]) for n in range(3)]
    assert tell(sights) == Told((), frozenset({"x-n"}))
    assert tell(sights, frozenset({"x-n"})) == Told((), frozenset())


def test_there_is_advice_for_every_kind() -> None:
    assert set(ADVICE) == set(get_args(Kind))
