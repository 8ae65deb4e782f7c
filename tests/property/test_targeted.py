"""Law: whatever stands in a targeted field, its directives are what it says, or else Cache-Control's are (RFC 9213)."""

from hypothesis import given
from hypothesis import strategies as st

from tidegate.middleware.core.groups import group_tags, invalidated_targets
from tidegate.middleware.core.targeted import control_of

CC = (b"cache-control", b"max-age=1, private")
NAMES = st.from_regex(r"[a-z*][a-z0-9_*.-]{0,9}", fullmatch=True)


@given(st.binary(max_size=40))
def test_no_bytes_raise_and_invalid_ones_change_nothing(value: bytes) -> None:
    control = control_of([CC, (b"cdn-cache-control", value)])
    if control.targeted is None:
        assert control == control_of([CC])
    assert isinstance(group_tags([(b"cache-groups", value)], "http", b"a"), list)
    invalidated_targets([(b"location", value)], scheme="http", host=b"a", raw_path=b"/", query=b"")


@given(st.dictionaries(NAMES, st.integers(0, 10**12) | st.none(), min_size=1, max_size=5))
def test_a_valid_field_is_read_as_it_was_written(wanted: dict[str, int | None]) -> None:
    # With a number for what has one, and none for what has none.
    numbered = {"max-age", "s-maxage", "stale-while-revalidate", "stale-if-error"}
    wanted = {name: value for name, value in wanted.items() if name not in numbered or value is not None} or {"a": None}
    written = ", ".join(name if value is None else f"{name}={value}" for name, value in wanted.items())
    control = control_of([CC, (b"cdn-cache-control", written.encode())])
    assert control.targeted == b"cdn-cache-control"
    assert control.directives == {
        name.encode(): None if value is None else b"%d" % value for name, value in wanted.items()
    }
