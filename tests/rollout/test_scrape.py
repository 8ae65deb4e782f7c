"""Reading the app's own /metrics: a history of looks, and one clear error when a look fails."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

import pytest

from tests.rollout.exporter import Exporter, exporting
from tests.rollout.worlds import FLAG
from tests.services.server import free_port
from tidegate.errors import MetricsError
from tidegate.rollout.scrape import ScrapeSource
from tidegate.rollout.source import CohortQuery
from tidegate.rollout.stats import Series, total

T = TypeVar("T")
QUERY = CohortQuery(flag=FLAG, select={"job": "api"}, le=0.5)


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    with exporting() as made:
        yield made


def scraping(urls: Sequence[str], scenario: Callable[[ScrapeSource], Awaitable[T]], timeout: float = 2.0) -> T:
    async def whole() -> T:
        source = ScrapeSource(urls, timeout=timeout)
        try:
            return await scenario(source)
        finally:
            await source.close()

    return asyncio.run(whole())


def growth(series: Sequence[Series], name: str, cohort: str, **labels: str) -> float | None:
    chosen = [
        one for one in series
        if one.name == name and one.labels["cohort"] == cohort and labels.items() <= one.labels.items()
    ]  # fmt: skip
    return total(chosen, 0, 1000, 1000)


def test_looks_make_a_history_from_which_increases_come(exporter: Exporter) -> None:
    async def scenario(source: ScrapeSource) -> Sequence[Series]:
        for at in (10.0, 20.0, 30.0):
            exporter.count("canary", 5, errors=1, hits=3, seconds=0.7)
            exporter.count("control", 2)
            series = await source.samples(QUERY, 0, at)
        return series

    series = scraping([exporter.url], scenario)
    assert growth(series, "tidegate_cohort_requests_total", "canary") == 10
    assert growth(series, "tidegate_cohort_errors_total", "canary") == 2
    assert growth(series, "tidegate_cohort_hits_total", "canary") == 6
    assert growth(series, "tidegate_cohort_requests_total", "control") == 4
    assert growth(series, "tidegate_cohort_errors_total", "control") == 0
    assert growth(series, "tidegate_cohort_duration_seconds_bucket", "canary", le="0.5") == 0
    assert growth(series, "tidegate_cohort_duration_seconds_bucket", "canary", le="+Inf") == 10


def test_only_the_series_that_were_asked_for_come(exporter: Exporter) -> None:
    exporter.count("canary", 1, flag="tidegate.etag")
    series = scraping([exporter.url], lambda source: source.samples(QUERY, 0, 10))
    assert series
    assert {one.labels["flag"] for one in series} == {FLAG}
    assert {one.labels.get("le") for one in series} == {None, "0.5", "+Inf"}


def test_instances_are_told_apart_and_add_up(exporter: Exporter) -> None:
    with exporting() as other:

        async def scenario(source: ScrapeSource) -> Sequence[Series]:
            other.count("canary", 100)
            await source.samples(QUERY, 0, 10)
            exporter.count("canary", 5)
            other.count("canary", 7)
            return await source.samples(QUERY, 0, 20)

        series = scraping([exporter.url, other.url], scenario)
    assert growth(series, "tidegate_cohort_requests_total", "canary") == 12


def test_two_rollouts_of_one_tick_look_once(exporter: Exporter) -> None:
    async def scenario(source: ScrapeSource) -> None:
        await asyncio.gather(source.samples(QUERY, 0, 10), source.samples(QUERY, 5, 10))

    scraping([exporter.url], scenario)
    assert exporter.reads == 1


def test_samples_older_than_anybody_asks_for_are_forgotten(exporter: Exporter) -> None:
    async def scenario(source: ScrapeSource) -> int:
        for at in range(10, 500, 10):
            await source.samples(QUERY, at - 50, at)
        return max(len(history) for history in source._history.values())

    assert scraping([exporter.url], scenario) <= 11


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (503, "answered 503"),
        (302, "answered 302"),
        ("<html>welcome</html>", "not in the Prometheus text format"),
        (threading.Event(), "did not answer within 0.3 s"),
    ],
    ids=["503", "redirect", "html", "hangs"],
)
def test_an_address_that_fails_is_named_with_the_reason(
    exporter: Exporter, broken: int | str | threading.Event, says: str
) -> None:
    exporter.broken = broken
    with pytest.raises(MetricsError, match=says) as caught:
        scraping([exporter.url], lambda source: source.samples(QUERY, 0, 10), timeout=0.3)
    assert exporter.url in str(caught.value)


def test_a_port_where_nobody_listens_is_named(exporter: Exporter) -> None:
    url = f"http://127.0.0.1:{free_port()}/metrics"
    with pytest.raises(MetricsError, match=f"{url} could not be read"):
        scraping([exporter.url, url], lambda source: source.samples(QUERY, 0, 10))


def test_an_endless_answer_is_cut_off(exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate.rollout.scrape._MAX_BYTES", 100)
    with pytest.raises(MetricsError, match="more than 100 bytes"):
        scraping([exporter.url], lambda source: source.samples(QUERY, 0, 10))


def test_after_a_failed_look_the_next_one_goes_on(exporter: Exporter) -> None:
    async def scenario(source: ScrapeSource) -> Sequence[Series]:
        await source.samples(QUERY, 0, 10)
        exporter.broken = 500
        with pytest.raises(MetricsError):
            await source.samples(QUERY, 0, 20)
        exporter.broken = None
        exporter.count("canary", 9)
        return await source.samples(QUERY, 0, 30)

    series = scraping([exporter.url], scenario)
    assert growth(series, "tidegate_cohort_requests_total", "canary") == 9
