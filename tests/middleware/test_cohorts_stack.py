"""The cohort counters behind the five layers: all there before the first request, decided at its start, bounded."""

import asyncio
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.driver import Answer, User, call, scope_of
from tidegate import RoutePolicy, Settings, Tidegate
from tidegate.flags import FlagContext, ProviderHealth, normalized
from tidegate.middleware.cohorts import CohortTotals
from tidegate.middleware.metrics import LATENCY_BUCKETS
from tidegate.vocabulary import BAND_EDGES, COHORT_BUCKETS, FLAGS

ANN = User("acme", "ann")
NAMES = ("requests_total", "errors_total", "storable_total", "hits_total", "duration_seconds_sum")


class Percentages:
    """A flag provider whose flags are all open for the same share of tenants, which a test changes."""

    def __init__(self, percent: int) -> None:
        self.version = 1
        self.percent = percent

    def set(self, percent: int) -> None:
        self.percent = percent
        self.version += 1

    def is_enabled(self, flag: str, context: FlagContext) -> bool:
        return normalized(flag, context.properties["tenantId"]) <= self.percent

    def reach(self, flag: str) -> str:
        return {0: "nobody", 100: "everybody"}.get(self.percent, "some")

    def health(self) -> ProviderHealth:
        return ProviderHealth(ready=True, staleness=0.0, detail="")

    async def start(self) -> None: ...
    async def aclose(self) -> None: ...


def series(page: str) -> set[str]:
    """Every series of a /metrics page, without its value."""
    return {line.rpartition(" ")[0] for line in page.splitlines() if line and not line.startswith("#")}


def per_cohort(tide: Tidegate, flag: str = FLAGS["cache"]) -> dict[str, CohortTotals]:
    """The totals of a flag, by cohort."""
    assert tide.cohorts is not None
    sums: dict[str, CohortTotals] = {}
    for (its_flag, _, cohort), totals in tide.cohorts.totals().items():
        if its_flag == flag and totals.requests:
            assert cohort not in sums, "one tenant is in one band"
            sums[cohort] = totals
    return sums


@pytest.mark.parametrize("workers", [False, True])
def test_a_scrape_before_the_first_request_shows_every_flag_band_and_cohort_at_zero(
    workers: bool, tmp_path: Path
) -> None:
    settings = Settings.of({"telemetry": {"metrics_dir": str(tmp_path / "metrics")}} if workers else {})
    tide = Tidegate(settings, provider=Percentages(50), registry=CollectorRegistry())
    page = asyncio.run(call(tide.metrics_app, "/metrics")).body.decode().splitlines()
    bands = [(str(edge), cohort) for edge in BAND_EDGES for cohort in ("canary", "control")] + [("none", "none")]
    expected = {
        f'tidegate_cohort_{name}{{band="{band}",cohort="{cohort}",flag="{flag}"}} 0.0'
        for name in NAMES
        for flag in FLAGS.values()
        for band, cohort in bands
    }
    assert len(expected) == 5 * 13 * 5
    assert expected <= set(page)


@pytest.mark.parametrize("mounted", [True, False])
@pytest.mark.parametrize(
    ("failure", "errors"),
    [(OSError("it left"), 0), (RuntimeError("no server does this"), 1), (asyncio.CancelledError(), 0)],
)
def test_a_hit_that_could_not_be_sent_counts_once_and_as_an_error_unless_the_client_left(
    failure: BaseException, errors: int, mounted: bool
) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
        await send({"type": "http.response.body", "body": b"one"})

    async def broken(message: Any) -> None:
        sent.append(message["type"])
        raise failure

    sent: list[str] = []
    tide = Tidegate(
        provider=Percentages(100), policies=[RoutePolicy(route="/page", ttl=60)], registry=CollectorRegistry()
    )

    async def run() -> None:
        layers: Any = tide(app)
        await tide.start()
        layers = layers if mounted else layers.app
        for hits in range(3):
            assert (await call(layers, "/page", user=ANN)).hit is (hits > 0)
        with pytest.raises(type(failure)):
            await layers(scope_of("/page", user=ANN), None, broken)
        await tide.aclose()

    asyncio.run(run())
    counted = per_cohort(tide)["canary"]
    assert (counted.requests, counted.hits, counted.errors) == (4, 3, errors)
    assert sent == ["http.response.start"]


@pytest.mark.parametrize(("before", "after"), [(100, 0), (0, 100)])
@pytest.mark.parametrize("waits", ["before its start", "between two chunks", "after an early hint"])
def test_a_request_counts_in_the_cohort_that_it_began_in_whatever_becomes_of_the_flag(
    before: int, after: int, waits: str
) -> None:
    running, go = asyncio.Event(), asyncio.Event()

    async def pause(scope: Any, where: str) -> None:
        if waits == where and scope["path"] == "/slow":
            running.set()
            await go.wait()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await pause(scope, "before its start")
        if waits == "after an early hint":
            await send({"type": "http.response.early_hint", "links": []})
        await pause(scope, "after an early hint")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await pause(scope, "between two chunks")
        await send({"type": "http.response.body", "body": b"two"})

    flags = Percentages(before)
    tide = Tidegate(provider=flags, policies=[RoutePolicy(route="/{page}", ttl=60)], registry=CollectorRegistry())
    layers = tide(app)
    cohort = {100: "canary", 0: "control"}

    async def run() -> Answer:
        slow = asyncio.create_task(call(layers, "/slow", user=ANN))
        await running.wait()
        flags.set(after)
        await call(layers, "/quick", user=ANN)
        now = {name: totals.requests for name, totals in per_cohort(tide).items()}
        assert now == {cohort[after]: 1}, "the change is in force, and the first is not counted yet"
        go.set()
        answer = await slow
        await tide.aclose()
        return answer

    answer = asyncio.run(run())
    assert (answer.status, answer.body) == (200, b"onetwo")
    told = {name: (totals.requests, totals.storable, totals.errors) for name, totals in per_cohort(tide).items()}
    assert told == {"canary": (1, 1, 0), "control": (1, 1, 0)}


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
STATUSES = (200, 301, 404, 500)
OUTCOMES = ("hit", "miss", "stale", "revalidated", "pass", "bypass")


def bound(flags: int, bands: int, routes: int) -> tuple[int, int]:
    """How many series there can be: cohort counters, and all. A counter's child shows two, its value and its birth."""
    cohorts = (flags * bands * 2 + flags) * (4 + len(COHORT_BUCKETS) + 1 + 2)
    requests = (len(METHODS) + 1) * len({status // 100 for status in STATUSES}) * 2
    seconds = len(LATENCY_BUCKETS) + 1 + 3
    breaker = 1 + 3 * 2 + 2
    fixed = 100  # failures, limits, reasons: words of our own
    return cohorts, cohorts + (routes + 1) * (requests + seconds + len(OUTCOMES) * 2 + breaker) + fixed


async def answering(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the status that the query names."""
    status = int(scope["query_string"].partition(b"=")[2] or 200)
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


def test_series_are_bounded_by_flags_bands_and_routes_whoever_asks_for_what(capsys: pytest.CaptureFixture[str]) -> None:
    routes = 200
    policies = [RoutePolicy(route=f"/r{number}/{{id}}", ttl=60, share="tenant") for number in range(routes)]
    tide = Tidegate(provider=Percentages(100), policies=policies, registry=CollectorRegistry())
    layers = tide(answering)

    async def ask(path: str, tenant: str, **of: Any) -> None:
        await call(layers, path, user=User(tenant, f"{tenant}-user"), **of)
        await asyncio.sleep(0)  # the loop is to breathe

    async def crowd(name: str) -> set[str]:
        paths = [*(f"/r{number}/{name}" for number in range(routes)), f"/nowhere/{name}"]
        for path in paths:
            for method in (*METHODS, f"X{name}".upper()):
                for status in STATUSES:
                    await ask(path, f"{name}{status}", method=method, query=f"status={status}")
            await ask(path, f"{name}200", query="status=200")
        return series((await call(tide.metrics_app, "/metrics")).body.decode())

    async def run() -> tuple[set[str], set[str]]:
        first = await crowd("one")
        for number in range(300):
            await ask(f"/nowhere/{number}/{number * 7}", f"tenant{number}", headers=[("user-agent", f"agent {number}")])
        second = await crowd("two")
        await tide.aclose()
        return first, second

    first, second = asyncio.run(run())
    cohorts = {one for one in first if one.startswith("tidegate_cohort_")}
    most_cohorts, most = bound(len(FLAGS), len(BAND_EDGES), routes)
    print(f"{len(FLAGS)} flags, {len(BAND_EDGES)} bands, {routes} routes:")
    print(f"{len(cohorts)} cohort series (at most {most_cohorts}), {len(second)} series in all (at most {most})")
    assert len(cohorts) == most_cohorts
    assert most / 2 < len(second) <= most
    # A circuit may open or try again at any moment: those series are bounded too, but come when they come.
    assert {one for one in second - first if not one.startswith("tidegate_breaker_")} == set()
    assert [one for one in second if re.search(r"tenant\d|nowhere|two|agent", one)] == []


def test_a_hit_is_what_the_cache_answered_and_neither_a_followers_answer_nor_shadow_modes() -> None:
    running, go, calls = asyncio.Event(), asyncio.Event(), 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal calls
        if scope["path"] != "/first":
            calls += 1
            running.set()
            await go.wait()
        await answering(scope, receive, send)

    policies = [RoutePolicy(route="/served", ttl=60, share="tenant")]
    policies.append(RoutePolicy(route="/shadow", ttl=60, share="tenant", mode="shadow"))
    tide = Tidegate(provider=Percentages(100), policies=policies, registry=CollectorRegistry())
    layers = tide(app)

    async def run() -> tuple[CohortTotals, CohortTotals, int]:
        await call(layers, "/first")  # by nobody: with it everything starts
        together = [asyncio.create_task(call(layers, "/served", user=ANN)) for _ in range(6)]
        await running.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        go.set()
        await asyncio.gather(*together)
        assert (await call(layers, "/served", user=ANN)).hit
        served, its_calls = per_cohort(tide)["canary"], calls
        for _ in range(3):
            await call(layers, "/shadow", user=ANN)
        await tide.aclose()
        return served, per_cohort(tide)["canary"], its_calls

    served, both, its_calls = asyncio.run(run())
    assert its_calls == 1, "five of six followed"
    assert (served.requests, served.storable, served.hits) == (7, 7, 1)
    assert (both.requests, both.storable, both.hits, calls) == (10, 7, 1, 4), (
        "a route in shadow mode is to store nothing"
    )


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("percent", [0, 100])
def test_what_the_app_raises_never_answers_or_answers_in_part_counts_once(percent: int, method: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/raises":
            raise RuntimeError
        if scope["path"] == "/cancelled":
            raise asyncio.CancelledError
        if scope["path"] == "/breaks-off":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            await send({"type": "http.response.body", "body": b"some", "more_body": True})

    async def run() -> None:
        for path in ("/raises", "/cancelled", "/says-nothing", "/breaks-off"):
            with suppress(RuntimeError, asyncio.CancelledError):
                await call(mounted, path, method=method, user=ANN)
        await tide.aclose()

    tide = Tidegate(provider=Percentages(percent), registry=CollectorRegistry())
    mounted = tide(app)
    asyncio.run(run())
    (totals,) = per_cohort(tide).values()
    assert (totals.requests, totals.errors) == (2, 1), "who is sent nothing, and no error, was not answered"
