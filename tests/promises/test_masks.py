"""P1, P4: what a shut gate means. Every set of open gates, every kind of request, against a small model.

The stack is the real one: flags from a file, the gates, the five layers, the memory store.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import xxhash
from prometheus_client import CollectorRegistry

from tests.docs.pages import Page
from tests.driver import Answer, User, call, scope_of
from tests.promises.mask_model import BODY, KINDS, LAYERS, STORED_BODY, Kind, Outcome, expected, masks
from tidegate import MemoryStore, RoutePolicy, Settings, Tidegate
from tidegate.middleware.metrics import Metrics
from tidegate.vocabulary import FLAGS, Layer
from tidegate.vocabulary import LAYERS as ORDER

ANN = User("acme", "ann")
BEN = User("acme", "ben")
POLICY = RoutePolicy(route="/{page}", ttl=60, share="tenant")
MASKS = {"".join(str(int(layer in mask)) for layer in LAYERS): mask for mask in masks()}
"""The sets of open gates by their name, which is also the flags' unit: `01000` is open for the cache alone."""
FILLERS = {"all": "11111", "plain": "01000"}
RIPE, STALE = "max-age=60", "max-age=1, stale-if-error=600"
PATIENCE = 4.0
"""Seconds: below the time after which the breaker tries again."""


class App:
    """Answers as the case wants it, a few turns of the loop later, so that two requests at once meet."""

    def __init__(self, *, labels: bool) -> None:
        self.labels = labels
        self.body = BODY
        self.control, self.age = RIPE, 0
        self.failing = False
        self.runs = 0
        self.asked: Any = None
        self.sent: list[tuple[bytes, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.runs += 1
        self.asked = scope
        for _ in range(10):
            await asyncio.sleep(0)
        ranged = any(name == b"range" for name, _ in scope["headers"])
        status = 500 if self.failing else 206 if ranged else 200
        body = self.body[:4] if ranged else self.body
        self.sent = [(b"content-length", b"%d" % len(body)), (b"x-app", b"is here")]
        if not self.failing:
            self.sent += [(b"cache-control", self.control.encode()), (b"age", b"%d" % self.age)]
            self.sent += [(b"content-range", b"bytes 0-3/23")] if ranged else []
        if self.labels:
            self.sent.append((b"etag", b'"app"'))
        await send({"type": "http.response.start", "status": status, "headers": self.sent})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def flags_for(path: Path, units: Mapping[str, frozenset[str]]) -> Settings:
    """Settings with a flag file that opens each layer for the sessions whose mask has it."""

    def flag(layer: str) -> dict[str, Any]:
        values = [unit for unit, mask in units.items() if layer in mask]
        constraint = {"field": "sessionId", "operator": "IN", "values": values}
        strategy = {"percentage": 100, "stickiness": "sessionId", "constraints": [constraint]}
        return {"enabled": True, "strategies": [strategy]}

    path.write_text(json.dumps({"version": 1, "flags": {FLAGS[layer]: flag(layer) for layer in LAYERS}}))
    return Settings.of({"flags": {"provider": "local", "file": str(path), "unit": "session"}})


def session_of(scope: Any) -> dict[str, str]:
    unit = scope["state"].get("unit")
    return {} if unit is None else {"sessionId": unit}


def our_etag(body: bytes) -> str:
    return f'"{xxhash.xxh3_128_hexdigest(body)}"'


class Bench:
    """One stack for one kind of request; each mask has a page of its own on it.

    A second stack on the same store, without flags, looks whether a page is stored; it never asks the app.
    """

    def __init__(self, settings: Settings, kind: Kind, *, labels: bool) -> None:
        self.kind = kind
        self.app = App(labels=labels)
        store = MemoryStore()
        self.metrics = CollectorRegistry()
        self.tide = Tidegate(settings, policies=[POLICY], properties=session_of, store=store, registry=self.metrics)
        self.stack = self.tide(self.app)
        self.looking = Tidegate(policies=[POLICY], store=store, registry=CollectorRegistry())(self.app)

    async def stored(self, page: str) -> bool:
        answer = await call(self.looking, page, user=ANN, headers=[("cache-control", "only-if-cached")])
        return answer.hit

    async def observe(self, unit: str) -> Outcome:
        """Prepare the world, ask, and see what comes of it."""
        began = time.monotonic()
        kind, app, page = self.kind, self.app, f"/{unit}-{time.monotonic_ns()}"
        await self._prepare(unit, page)
        scopes = [self._scope(unit, page) for _ in range(2 if kind.twins else 1)]
        app.runs, app.asked, app.sent = 0, None, []
        before = self._counts()
        gone: list[bool] = []

        async def one(scope: dict[str, Any]) -> Answer:
            async def stack(scope: Any, receive: Any, send: Any) -> None:
                async def sending(message: Any) -> None:
                    if message["type"] == "http.response.start" and kind.method == "POST":
                        gone.append(not await self.stored(page))
                    await send(message)

                await self.stack(scope, receive, sending)

            return await call(stack, scope=scope)

        answer = (await asyncio.gather(*map(one, scopes)))[0]
        if kind.tripped and time.monotonic() - began > PATIENCE:
            return await self.observe(unit)
        etag = answer.header("etag")
        return Outcome(
            runs=app.runs,
            status=answer.status,
            body=answer.body,
            etag={'"app"': "app", our_etag(BODY): "own", our_etag(STORED_BODY): "own"}.get(etag or "", etag),  # type: ignore[arg-type]
            cache_status=_parts(answer.header("cache-status")),
            untouched=answer.headers == app.sent,
            scope_kept=None if app.asked is None else any(app.asked is scope for scope in scopes),
            hit_next=await self.stored(page),
            gone_at_start=gone[0] if gone else None,
            **self._counted(before),
        )

    async def _prepare(self, unit: str, page: str) -> None:
        kind, app = self.kind, self.app
        app.failing, app.body = False, STORED_BODY
        if kind.stored is not None:
            app.control, app.age = (STALE, 5) if kind.stale else (RIPE, 0)
            filled = await call(self.stack, page, user=BEN, state={"unit": FILLERS[kind.stored]})
            assert "; stored" in (filled.header("cache-status") or "")
        if kind.tripped:
            app.failing = True
            for _ in range(5):
                await call(self.stack, page + "-broken", user=ANN, state={"unit": unit})
        app.failing, app.body = kind.failing, BODY
        app.control, app.age = RIPE, 0

    def _scope(self, unit: str, page: str) -> dict[str, Any]:
        kind = self.kind
        headers: list[tuple[str, str]] = []
        if kind.condition is not None:
            body = STORED_BODY if kind.stored is not None and not kind.stale else BODY
            tag = {"own": our_etag(body), "app": '"app"', "*": "*"}[kind.condition]
            headers.append(("if-none-match", tag))
        if kind.ranged:
            headers.append(("range", "bytes=0-3"))
        if kind.credential:
            headers.append(("authorization", "Bearer somebody's"))
        user, session = ANN if kind.known else None, unit if kind.unit else None
        return scope_of(page, method=kind.method, headers=headers, user=user, state={"unit": session})

    def _counts(self) -> dict[tuple[str, ...], tuple[float, ...]]:
        assert self.tide.cohorts is not None
        requests = Metrics.of(self.metrics).requests
        routed = sum(
            sample.value for family in requests.collect() for sample in family.samples if sample.name[-1] == "l"
        )
        return {("route",): (routed,)} | {label: tuple(row[:4]) for label, row in self.tide.cohorts.totals().items()}

    def _counted(self, before: Mapping[tuple[str, ...], tuple[float, ...]]) -> dict[str, Any]:
        after = self._counts()
        rows = {
            label: tuple(int(new - old) for new, old in zip(row, before[label], strict=True))
            for label, row in after.items()
            if row != before[label]
        }
        (routed,) = rows.pop(("route",), (0,))
        layer_of = {flag: layer for layer, flag in FLAGS.items()}
        # What is counted beside the requests is the same under each flag, or else shows as something that no model has.
        (counted,) = (
            {row[1:] for row in rows.values()} if len({row[1:] for row in rows.values()}) == 1 else {(-1, -1, -1)}
        )
        return {
            "route_counted": routed,
            "cohorts": frozenset((layer_of[flag], cohort, rows[flag, band, cohort][0]) for flag, band, cohort in rows),
            "errors": counted[0],
            "storable": counted[1],
            "hits": counted[2],
        }


def _parts(cache_status: str | None) -> tuple[str, ...]:
    if cache_status is None:
        return ()
    name, *parts = cache_status.split("; ")
    assert name == "Tidegate"
    return tuple(part for part in parts if not part.startswith("ttl="))


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    kind: Kind
    mask: str
    labels: bool
    seen: Outcome

    @property
    def wanted(self) -> Outcome:
        return expected(MASKS[self.mask], self.kind, app_labels=self.labels)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Every kind under every mask, by an app that labels its answers and by one that does not."""
    settings = flags_for(tmp_path_factory.mktemp("masks") / "flags.json", MASKS)

    async def observe(kind: Kind, labels: bool) -> list[Row]:
        bench = Bench(settings, kind, labels=labels)
        rows = [Row(kind, mask, labels, await bench.observe(mask)) for mask in MASKS]
        await bench.tide.aclose()
        return rows

    async def run() -> list[Row]:
        return [row for kind in KINDS for labels in (False, True) for row in await observe(kind, labels)]

    return asyncio.run(run())


def differences(seen: Outcome, wanted: Outcome) -> list[str]:
    names = Outcome.__dataclass_fields__
    return [
        f"{name}: saw {getattr(seen, name)!r}, the model says {getattr(wanted, name)!r}"
        for name in names
        if getattr(seen, name) != getattr(wanted, name)
    ]


@pytest.mark.parametrize("labels", [False, True], ids=["unlabelled", "labelled"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_under_every_set_of_open_gates_a_request_leads_to_what_the_model_says(
    kind: Kind, labels: bool, table: list[Row]
) -> None:
    rows = [row for row in table if row.kind is kind and row.labels == labels]
    assert {MASKS[row.mask] for row in rows} == set(masks())
    wrong = {row.mask: differences(row.seen, row.wanted) for row in rows if row.seen != row.wanted}
    told = [
        f"{mask} ({'+'.join(sorted(MASKS[mask])) or 'all shut'}): {line}"
        for mask, lines in wrong.items()
        for line in lines
    ]
    assert not told, "\n".join(told)


@pytest.mark.parametrize("layer", [layer for layer in ORDER if layer != "telemetry"])
def test_a_shut_layer_hands_on_the_very_scope_receive_and_send(layer: Layer, tmp_path: Path) -> None:
    """But telemetry, which counts cohorts whatever its gate says; and the cache hands on another `send` for a write."""
    settings = flags_for(tmp_path / "flags.json", MASKS)
    seen: list[tuple[Any, ...]] = []

    async def app(*of: Any) -> None:
        seen.append(of)
        await of[2]({"type": "http.response.start", "status": 200, "headers": []})
        await of[2]({"type": "http.response.body", "body": b""})

    async def run() -> int:
        tide = Tidegate(
            settings, policies=[POLICY], properties=session_of, layers=[layer], registry=CollectorRegistry()
        )
        stack = tide(app)
        kept = 0
        for mask, opened in MASKS.items():
            for method in ("GET", "HEAD", "POST"):
                given: list[Any] = []

                async def noting(*of: Any, given: list[Any] = given) -> None:
                    given[:] = of
                    await stack(*of)

                await call(noting, scope=scope_of("/page", method=method, user=ANN, state={"unit": mask}))
                same = [new is old for new, old in zip(seen[-1], given, strict=True)]
                if layer not in opened:
                    assert same == [True, True, not (layer == "cache" and method == "POST")], (mask, method)
                    kept += 1
        await tide.aclose()
        return kept

    assert asyncio.run(run()) == 16 * 3


SEEN = {
    "runs": "runs of the app",
    "status": "status",
    "etag": "`ETag`",
    "cache_status": "`Cache-Status`",
    "hit_next": "what is stored",
    "route_counted": "route metrics",
}
"""What the page on flags calls the fields of an outcome. The others follow from these, or never depend on a gate."""


@pytest.mark.parametrize("layer", LAYERS)
def test_the_page_on_flags_says_what_depends_on_each_gate(layer: str, table: list[Row]) -> None:
    told = {cells[0].strip("`"): cells[1] for cells in Page.of("docs/flags.md").table("What a shut gate means")}
    assert tuple(told) == LAYERS
    seen = {(row.kind, row.labels, MASKS[row.mask]): row.seen for row in table}
    depend = {
        field
        for (kind, labels, mask), outcome in seen.items()
        if layer not in mask
        for field in Outcome.__dataclass_fields__
        if getattr(seen[kind, labels, mask | {layer}], field) != getattr(outcome, field)
    }
    assert "gone_at_start" not in depend, "a write purges whatever is open"
    assert "storable" not in depend
    assert set(told[layer].split(", ")) == {name for field, name in SEEN.items() if field in depend}


def test_the_table_was_put_to_the_test(table: list[Row]) -> None:
    assert tuple(ORDER) == LAYERS
    assert len(table) == 32 * 2 * len(KINDS)
    assert sum(row.seen.hits for row in table) > 400
    assert sum(row.seen.status == 304 for row in table) > 150
    assert sum(row.seen.etag == "own" for row in table) > 300
    assert sum(row.seen.gone_at_start is True for row in table) == 32 * 2 * 3
    assert sum(row.seen.untouched for row in table) > 500
