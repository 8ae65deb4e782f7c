"""Key rings: items there and back, which key seals when, and a clear error without a secret for each mistake."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import ConfigError, Problems
from tidegate.middleware.core.keyring import KeyRing, SealingKey, written

ONE, TWO, NAMES = bytes(range(32)), bytes(range(1, 33)), b"n" * 32


def ring_of(*items: str) -> KeyRing:
    problems = Problems("keys")
    ring = KeyRing.of(items, problems)
    problems.raise_if_any()
    return ring


@given(st.binary(min_size=32, max_size=32), st.none() | st.integers(0, 2**33).map(float))
def test_an_item_is_read_as_it_was_written(secret: bytes, since: float | None) -> None:
    ring = ring_of("# made for a test", "", written("tgk1", secret, since), written("tgn1", secret))
    assert ring == KeyRing(keys=(SealingKey(secret, since or 0.0),), naming_key=secret)
    assert ring.keys[0].id.hex() == written("tgk1", secret)[-8:]


@pytest.mark.parametrize(
    ("now", "sealing"),
    [(0.0, ONE), (99.0, ONE), (100.0, TWO), (10_000.0, TWO)],
)
def test_the_latest_key_whose_time_has_come_seals(now: float, sealing: bytes) -> None:
    for items in ((ONE, None, TWO, 100.0), (TWO, 100.0, ONE, None)):
        ring = ring_of(written("tgk1", items[0], items[1]), written("tgk1", items[2], items[3]))
        assert ring.sealing(now).secret == sealing


def test_of_equal_keys_the_first_seals_and_before_any_the_earliest() -> None:
    assert ring_of(written("tgk1", TWO), written("tgk1", ONE)).sealing(5.0).secret == TWO
    assert ring_of(written("tgk1", TWO, 200.0), written("tgk1", ONE, 100.0)).sealing(5.0).secret == ONE


GOOD = written("tgk1", ONE)


@pytest.mark.parametrize(
    ("items", "problem"),
    [
        ((), "no sealing key"),
        ((written("tgn1", NAMES),), "no sealing key"),
        ((GOOD[:-1],), "is no key"),
        ((GOOD[:20] + ("A" if GOOD[20] != "A" else "B") + GOOD[21:],), "is no key"),
        ((GOOD.replace("tgk1", "tgn1"),), "is no key"),
        ((GOOD.replace("tgk1", "tgk2"),), "is no key"),
        ((GOOD + " x",), "is no key"),
        (("tomorrow " + GOOD,), "is no time"),
        (("2026-11-29T03:00:00 " + GOOD,), "is no time"),
        ((GOOD, "2026-11-29T03:00:00Z " + GOOD), "name one key twice"),
        ((GOOD, written("tgn1", NAMES), written("tgn1", ONE)), "two naming keys"),
        ((GOOD, written("tgn1", NAMES, 5.0)), "gives the naming key a time"),
    ],
)
def test_a_mistake_is_named_and_no_secret_shown(items: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as raised:
        ring_of(*items)
    assert GOOD[5:40] not in str(raised.value)
    assert GOOD[5:40] not in repr(ring_of(GOOD))
