"""PrometheusSource against a real Prometheus that scrapes a real exporter."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.rollout.exporter import Exporter, exporting
from tests.rollout.worlds import FLAG, make_spec
from tests.services.prometheus import Prometheus
from tests.services.server import free_port, wait_until
from tidegate.errors import MetricsError
from tidegate.rollout.analysis import Evidence
from tidegate.rollout.prometheus import PrometheusSource, selector
from tidegate.rollout.source import CohortQuery
from tidegate.rollout.stats import Series

REQUESTS = "tidegate_cohort_requests_total"


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    with exporting() as made:
        yield made


def ask(url: str, query: CohortQuery, span: float = 60, timeout: float = 2.0) -> Sequence[Series]:
    async def scenario() -> Sequence[Series]:
        source = PrometheusSource(url, timeout=timeout)
        try:
            end = time.time()
            return await source.samples(query, end - span, end)
        finally:
            await source.close()

    return asyncio.run(scenario())


def test_samples_of_a_real_prometheus_become_counts(exporter: Exporter, prometheus: Callable[..., Prometheus]) -> None:
    server = prometheus([f"127.0.0.1:{exporter.port}"], job="api")
    server.wait_for_sample(REQUESTS)
    exporter.count("canary", 40, errors=4, hits=30, seconds=0.7)
    exporter.count("canary", 60, seconds=0.01)
    exporter.count("control", 10)
    server.wait_for_sample(f'{REQUESTS}{{cohort="canary"}} == 100')
    query = CohortQuery(flag=FLAG, select={"job": "api"}, le=0.5)

    def counted() -> Evidence:
        at = time.time()
        return Evidence.of(make_spec(interval=1), ask(server.url, query), step=0, opened=at - 60, at=at)

    found = counted()
    assert (found.canary.requests, found.canary.errors, found.canary.hits) == (100, 4, 30)
    assert (found.canary.timed, found.canary.slow) == (100, 40)
    assert (found.control.requests, found.control.errors) == (10, 0)

    server.suspend()
    with pytest.raises(MetricsError, match=r"did not answer within 0\.3 s"):
        ask(server.url, query, timeout=0.3)
    server.resume()

    assert ask(server.url, CohortQuery(flag=FLAG, select={"job": "other"}, le=0.5)) == []
    assert ask(server.url, CohortQuery(flag='no "such\\flag', select={}, le=0.5)) == []
    whole_seconds = CohortQuery(flag=FLAG, select={}, le=1.0)
    assert {one.labels.get("le") for one in ask(server.url, whole_seconds)} == {None, "1.0", "+Inf"}

    exporter.broken = 500
    wait_until(lambda: counted().canary.requests is None, 20, "scrapes that stopped are no data")


def test_a_prometheus_that_refuses_the_query_is_quoted(prometheus: Callable[..., Prometheus]) -> None:
    server = prometheus([])
    with pytest.raises(MetricsError, match=r"answered 400, bad_data: .*parse error"):
        ask(server.url, CohortQuery(flag=FLAG, select={"not a label": "x"}))


def test_a_prometheus_that_is_down_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(MetricsError, match=f"{url}/api/v1/query could not be asked"):
        ask(url, CohortQuery(flag=FLAG, select={}))


def test_a_password_in_the_address_is_not_shown() -> None:
    with pytest.raises(MetricsError) as caught:
        ask(f"http://user:hunter2@127.0.0.1:{free_port()}", CohortQuery(flag=FLAG, select={}))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("{}", "answered 200, error: no reason given"),
        ("<html>", "answered nonsense"),
        ("[]", "answered nonsense"),
        ('{"status": "success"}', "answered nonsense"),
        ('{"status": "success", "data": {"resultType": "vector", "result": []}}', "with a vector, not a matrix"),
        ('{"status": "success", "data": {"resultType": "matrix", "result": [{"metric": {}}]}}', "answered nonsense"),
        (
            '{"status": "success", "warnings": ["a store is down"], "data": {"resultType": "matrix", "result": []}}',
            "answered in part: a store is down",
        ),
    ],
)
def test_an_answer_that_is_strange_or_partial_is_no_evidence(exporter: Exporter, answer: str, says: str) -> None:
    """Thanos and remote reads answer in part, with a warning; no Prometheus of the tests does."""
    exporter.broken = answer
    with pytest.raises(MetricsError, match=says):
        ask(f"http://127.0.0.1:{exporter.port}", CohortQuery(flag=FLAG, select={}))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (
            CohortQuery(flag="f", select={}),
            '{__name__=~"tidegate_cohort_requests_total|tidegate_cohort_errors_total'
            '|tidegate_cohort_storable_total|tidegate_cohort_hits_total",flag="f"}',
        ),
        (
            CohortQuery(flag='a"b\\c\n', select={"job": "api"}, le=1.0),
            '{__name__=~"tidegate_cohort_requests_total|tidegate_cohort_errors_total'
            "|tidegate_cohort_storable_total|tidegate_cohort_hits_total"
            '|tidegate_cohort_duration_seconds_bucket",flag="a\\"b\\\\c\\n",job="api",le=~"|1[.]0|1|[+]Inf"}',
        ),
    ],
)
def test_a_selector_is_quoted(query: CohortQuery, expected: str) -> None:
    assert selector(query) == expected
