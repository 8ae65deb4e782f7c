"""RFC 9213: which field's directives count."""

import pytest

from tidegate.middleware.core.targeted import control_of

CC = (b"cache-control", b"no-store")


@pytest.mark.parametrize(
    ("headers", "targeted", "directives"),
    [
        ([CC], None, {b"no-store": None}),
        ([CC, (b"cdn-cache-control", b"max-age=60")], b"cdn-cache-control", {b"max-age": b"60"}),
        (
            [(b"cdn-cache-control", b"max-age=60"), (b"tidegate-cache-control", b"private")],
            b"tidegate-cache-control",
            {b"private": None},
        ),
        (
            [CC, (b"cdn-cache-control", b"max-age=60"), (b"cdn-cache-control", b"max-age=9")],
            b"cdn-cache-control",
            {b"max-age": b"9"},
        ),
        (
            [CC, (b"cdn-cache-control", b"private=?0, foo;bar, max-age=0")],
            b"cdn-cache-control",
            {b"foo": None, b"max-age": b"0"},
        ),
        # Not valid, or nothing in it: as if it were not there.
        ([CC, (b"cdn-cache-control", b"max-age=60, &&&")], None, {b"no-store": None}),
        ([CC, (b"cdn-cache-control", b'max-age="60"')], None, {b"no-store": None}),
        ([CC, (b"cdn-cache-control", b"max-age=60.5")], None, {b"no-store": None}),
        ([CC, (b"cdn-cache-control", b"max-age=-1")], None, {b"no-store": None}),
        ([CC, (b"cdn-cache-control", b"MAX-AGE=60")], None, {b"no-store": None}),
        ([CC, (b"cdn-cache-control", b"")], None, {b"no-store": None}),
        ([CC, (b"cdn-cache-control", b"\xff")], None, {b"no-store": None}),
        (
            [(b"tidegate-cache-control", b"=bad"), (b"cdn-cache-control", b"max-age=1")],
            b"cdn-cache-control",
            {b"max-age": b"1"},
        ),
    ],
)
def test_the_most_specific_valid_field_decides_alone(
    headers: list[tuple[bytes, bytes]], targeted: bytes | None, directives: dict[bytes, bytes | None]
) -> None:
    control = control_of(headers)
    assert (control.targeted, control.directives) == (targeted, directives)
