"""A store that keeps entries by moulds holds what it would hold had it been given them.

Two stores live through the same generated lives, of which one takes moulds wherever it can: fills of several routes and
tenants, purges hard and soft, look-ups, drops, time that passes, and a store that is emptied. After each step both
hold equal entries, which weigh the same, belong to the same owners and share the same forms.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.middleware.stores.support import new_metrics
from tests.property.test_fused import Closed
from tidegate.middleware.core.records import PUBLIC_SCOPE, WHOLE_SCOPE, Aim, Entry
from tidegate.middleware.stores.guard import GuardedStore
from tidegate.middleware.stores.memory import MemoryStore
from tidegate.middleware.stores.moulds import Mould
from tidegate.middleware.stores.packing import row_of
from tidegate.middleware.stores.rows import ROW

TENANTS = ("tenant:acme", "tenant:evil", PUBLIC_SCOPE)
ROUTES = ("/", "/things/", "/élan/", "/" + "d" * 300 + "/")
PURGES: list[dict[str, tuple[Any, ...]]] = [
    {PUBLIC_SCOPE: (WHOLE_SCOPE,)},
    {"tenant:acme": (WHOLE_SCOPE,)},
    {"tenant:acme": ("other",)},
    {PUBLIC_SCOPE: ("uri:/things/1",)},
    {PUBLIC_SCOPE: (Aim(("uri:/things/2",), soft=True),)},
    {"tenant:acme": (Aim((WHOLE_SCOPE,), soft=True),)},
    {"elsewhere": ("one",)},
]


DIGESTS = 50
"""From here on ETags are such."""


@dataclass(frozen=True)
class Fill:
    """A response of a route, to be kept for a tenant."""

    tenant: str = TENANTS[0]
    route: str = "/things/"
    end: str = "1"
    etag: int = 1
    body: bytes = b"body"
    age: float = 0.0
    retain: float = 50.0
    raced: int | None = None
    """The purge that comes between the reading of the positions and the fill, by number."""

    def entry(self, positions: dict[str, int], now: float) -> Entry:
        """As a layer would make it."""
        return Entry(
            status=200,
            headers=(
                (b"content-type", b"text/plain"),
                (b"content-length", b"%d" % len(self.body)),
                (b"etag", (b'"%d"' if self.etag < DIGESTS else b'"%032x"') % self.etag),
            ),
            body=self.body,
            born=now - self.age,
            lifetime=60.0,
            tags=((PUBLIC_SCOPE, f"uri:{self.route}{self.end}"),),
            positions=tuple(positions.items()),
            own_etag=True,
        )


class Lived:
    """One store, and the moulds that were taken of what is in it."""

    def __init__(self, *, moulds: bool, **limits: int) -> None:
        self.now = 1_700_000_000.0
        self.store = MemoryStore(clock=lambda: self.now, metrics=new_metrics(), **limits)
        self.moulds: dict[tuple[str, str], Mould] | None = {} if moulds else None
        self.alike = 0

    def fill(self, fill: Fill) -> None:
        positions = self.store.positions(tuple(dict.fromkeys((fill.tenant, PUBLIC_SCOPE))))
        if fill.raced is not None:
            asyncio.run(self.store.purge(PURGES[fill.raced]))
        entry = fill.entry(dict(positions), self.now)
        key = f"{fill.tenant}{fill.route}{fill.end}".encode()
        mould = self.moulds.get((fill.tenant, fill.route)) if self.moulds is not None else None
        if mould is not None and mould.positions is positions and fill.end.isascii():
            etag = entry.headers[2][1]
            if self.store.keep_alike(mould, key, fill.end.encode(), etag, fill.body, entry.born, fill.retain):
                self.alike += 1
                return
        self.store.keep(key, entry, retain=fill.retain)
        taken = self.store.mould(key, entry, positions)
        if self.moulds is not None and taken is not None and taken.beginning == f"uri:{fill.route}":
            self.moulds[fill.tenant, fill.route] = taken

    def do(self, step: object) -> None:
        if isinstance(step, Fill):
            self.fill(step)
        elif isinstance(step, float):
            self.now += step
        elif isinstance(step, int):
            asyncio.run(self.store.purge(PURGES[step]))
        elif isinstance(step, bytes):
            self.store.peek(step)
        elif isinstance(step, str):
            self.store.drop(step.encode())
        else:
            asyncio.run(self.store.aclose())

    def held(self) -> dict[str, object]:
        store = self.store
        forms = store._forms._forms.values()
        return {
            "entries": {key: (store._record(held), store._weighed(key, held)[2]) for key, held in store._held.items()},
            "times": {
                key: (store._expires[row_of(held)], store._valid_at[row_of(held)]) for key, held in store._held.items()
            },
            "owners": store._fair.owners(),
            "forms": {form.key: (form.rows, form.shared) for form in forms},
            "stats": store.stats(),
        }


KEYS = [f"{tenant}{route}{end}" for tenant in TENANTS for route in ROUTES[:2] for end in "123"]
FILLS = st.builds(
    Fill,
    tenant=st.sampled_from(TENANTS[:1] * 6 + TENANTS),
    route=st.sampled_from(("/things/",) * 12 + ROUTES),
    end=st.sampled_from(["1", "2", "3", "4", "5", "6", "7", "", "é", "x" * 254, "x" * 255]),
    etag=st.integers(0, DIGESTS + 2),
    body=st.sampled_from([b"", b"body", b"other", b"y" * 400, b"z" * 3000, b"w" * 5000]),
    age=st.sampled_from([0.0, 0.25]),
    retain=st.integers(0, 19).map(lambda n: 50.0 if n else 0.0),
    raced=st.integers(0, 99).map(lambda n: n if n < len(PURGES) else None),
)
HAPPENS = st.one_of(
    st.sampled_from([0.5, 20.0]), st.integers(0, len(PURGES) - 1), st.sampled_from([key.encode() for key in KEYS]),
    st.sampled_from(KEYS), st.none(),
)  # fmt: skip
LIMITS: list[dict[str, int]] = [{}, {"max_bytes": 5000, "max_entry_bytes": 2000}, {"max_entries": 3}]


def test_what_is_kept_by_a_mould_is_what_an_entry_would_have_become() -> None:
    alike: list[int] = []

    @settings(
        max_examples=300,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(st.tuples(st.lists(FILLS, max_size=12), HAPPENS), min_size=3, max_size=8), st.sampled_from(LIMITS))
    def compare(lives: list[tuple[list[Fill], object]], limits: dict[str, int]) -> None:
        moulded, given = Lived(moulds=True, **limits), Lived(moulds=False, **limits)
        for step in [each for fills, then in lives for each in (*fills, then)]:
            moulded.do(step)
            given.do(step)
            assert moulded.held() == given.held(), step
        for key in KEYS:
            assert moulded.store.peek(key.encode()) == given.store.peek(key.encode())
        alike.append(moulded.alike)

    compare()
    assert sum(alike) > 700, sum(alike)


def filled(**of: Any) -> Lived:
    """A store that keeps by a mould."""
    lived = Lived(moulds=True, **of)
    for number in range(5):
        lived.fill(Fill(end=str(number)))
    assert lived.alike > 0
    return lived


ETAG = (b"etag", b'"1"')


def kept_alike() -> tuple[MemoryStore, Entry, Mapping[str, int]]:
    """A store that gives a mould of the entry under b"4"."""
    store = MemoryStore(metrics=new_metrics())
    positions = store.positions(TENANTS[:1] + TENANTS[2:])
    entry = Fill().entry(dict(positions), 1_700_000_000.0)
    for number in range(5):
        assert store.keep(b"%d" % number, entry, retain=60)
    assert store.mould(b"4", entry, positions) is not None
    return store, entry, positions


@pytest.mark.parametrize(
    "change",
    [
        {"headers": ((b"x-own", b"%d"), ETAG)},
        {"headers": ((b"date", b"now"), ETAG)},
        {"headers": ((b"content-length", b"99"), ETAG)},
        {"headers": ((b"date", b"now"),)},
        {"tags": ((PUBLIC_SCOPE, "uri:/things/1"), ("tenant:acme", "one"))},
        {"tags": ()},
    ],
)
def test_of_an_entry_that_has_other_parts_of_its_own_no_mould_is_taken(change: dict[str, Any]) -> None:
    store, entry, positions = kept_alike()
    for number in range(5):
        other = replace(entry, **change)
        headers = tuple((name, value.replace(b"%d", b"%d" % number)) for name, value in other.headers)
        other = replace(other, headers=headers)
        assert store.keep(b"other", other, retain=60)
    assert store.mould(b"other", other, positions) is None


@pytest.mark.parametrize(
    "change",
    [
        {"headers": ((b"content-type", b"text/html"), ETAG)},
        {"body": b"other"},
        {"lifetime": 30.0},
        {"own_etag": False},
    ],
)
def test_of_another_entry_than_the_one_that_was_kept_no_mould_is_taken(change: dict[str, Any]) -> None:
    store, entry, positions = kept_alike()
    assert store.mould(b"4", replace(entry, **change), positions) is None


def test_of_an_entry_whose_lifetime_is_its_own_no_mould_is_taken() -> None:
    store = MemoryStore(metrics=new_metrics())
    positions = store.positions(TENANTS[:1] + TENANTS[2:])
    entry = Fill().entry(dict(positions), 1_700_000_000.0)
    for number in range(5):
        entry = replace(entry, tags=(), lifetime=60.5 + number)
        assert store.keep(b"%d" % number, entry, retain=60)
    assert store.mould(b"4", entry, positions) is None


def test_of_an_entry_that_is_older_than_a_purge_of_its_scope_no_mould_is_taken() -> None:
    store, entry, positions = kept_alike()
    assert store.mould(b"none", entry, positions) is None
    assert store.mould(b"4", entry, {**positions, "more": 0}) is None
    asyncio.run(store.purge({"tenant:acme": ("other",)}))
    assert store.peek(b"4") == entry
    assert store.mould(b"3", entry, positions) is None


def test_a_mould_is_of_no_use_once_its_form_is_gone_or_its_store_was_emptied() -> None:
    lived = filled()
    (mould,) = lived.moulds.values() if lived.moulds is not None else ()
    of = (b"5", b'"5"', b"body", lived.now, 60.0)
    assert lived.store.keep_alike(mould, b"key", *of)
    for number in range(5):
        lived.store.drop(f"tenant:acme/things/{number}".encode())
    assert lived.store.keep_alike(mould, b"key", *of)
    lived.store.drop(b"key")
    assert not lived.store.keep_alike(mould, b"key", *of)
    assert lived.held() == Lived(moulds=True).held() | {"stats": lived.store.stats()}
    lived = filled()
    (mould,) = lived.moulds.values() if lived.moulds is not None else ()
    asyncio.run(lived.store.aclose())
    assert not lived.store.keep_alike(mould, b"key", *of)
    assert lived.store.stats().entries == 0


def test_what_does_not_fit_is_kept_by_no_mould() -> None:
    lived = filled(max_entry_bytes=ROW + 200)
    (mould,) = lived.moulds.values() if lived.moulds is not None else ()
    room = 200 - len(b"key") - len(b"\x011")
    assert lived.store.keep_alike(mould, b"key", b"1", b"e", b"b" * (room - 1), lived.now, 60.0)
    assert not lived.store.keep_alike(mould, b"key", b"1", b"e", b"b" * room, lived.now, 60.0)
    assert not lived.store.keep_alike(mould, b"key", b"1", b"e", b"b", lived.now, 0.0)
    assert not lived.store.keep_alike(mould, b"key", b"1" * 255, b"e", b"", lived.now, 60.0)


def test_a_guarded_store_knows_of_the_one_inside_if_that_is_in_this_process_and_such_a_one() -> None:
    store = filled().store
    assert GuardedStore(store, metrics=new_metrics()).alike() is store
    assert GuardedStore(Closed(store), metrics=new_metrics()).alike() is None
