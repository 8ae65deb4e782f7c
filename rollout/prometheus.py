"""Reads raw counter samples from Prometheus, and leaves the arithmetic to `tidegate.rollout.stats`."""

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

import httpx2

from tidegate.errors import MetricsError
from tidegate.rollout.source import BUCKETS, CohortQuery
from tidegate.rollout.stats import Series

__all__ = ["PrometheusSource", "selector"]

_MAX_BYTES: Final = 64 * 1024 * 1024


class PrometheusSource:
    """A MetricsSource on Prometheus' HTTP API (or anything that speaks it: VictoriaMetrics, Thanos, Mimir).

    url: base address; `http://user:password@host:9090` for basic authentication. timeout: seconds for an answer.
    """

    def __init__(self, url: str, *, timeout: float = 2.0) -> None:
        self._address = httpx2.URL(url.rstrip("/") + "/api/v1/query")
        self._shown = str(self._address.copy_with(userinfo=b""))
        self._timeout = timeout
        self._client = httpx2.AsyncClient(timeout=timeout, follow_redirects=False)

    async def samples(self, query: CohortQuery, start: float, end: float) -> Sequence[Series]:
        """See MetricsSource. A series that does not exist is an empty answer, which the judge reads as no data."""
        span = max(1, math.ceil((end - start) * 1000))
        asked = {"query": f"{selector(query)}[{span}ms]", "time": f"{end:.3f}", "timeout": f"{self._timeout:g}s"}
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._client.post(self._address, data=asked)
        except TimeoutError as error:
            raise MetricsError(f"{self._shown} did not answer within {self._timeout:g} s") from error
        except httpx2.HTTPError as error:
            raise MetricsError(f"{self._shown} could not be asked: {str(error) or type(error).__name__}") from error
        if len(response.content) > _MAX_BYTES:
            raise MetricsError(f"{self._shown} sent more than {_MAX_BYTES} bytes")
        try:
            document = cast(Mapping[str, Any], response.json())
            return list(_series(self._result(response.status_code, document)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MetricsError(f"{self._shown} answered nonsense ({response.status_code}): {error!r}") from error

    async def close(self) -> None:
        """See MetricsSource."""
        await self._client.aclose()

    def _result(self, status: int, document: Mapping[str, Any]) -> list[dict[str, Any]]:
        if status != 200 or document.get("status") != "success":
            told = f"{document.get('errorType', 'error')}: {document.get('error', 'no reason given')}"
            raise MetricsError(f"{self._shown} answered {status}, {told}")
        if document.get("warnings"):
            raise MetricsError(f"{self._shown} answered in part: {'; '.join(document['warnings'])}")
        data = document["data"]
        if data["resultType"] != "matrix":
            raise MetricsError(f"{self._shown} answered with a {data['resultType']}, not a matrix")
        return cast(list[dict[str, Any]], data["result"])


def selector(query: CohortQuery) -> str:
    """The PromQL selector of a query: `{__name__=~"…",flag="…",job="…"}`.

    Bucket bounds are text in Prometheus and exporters write them differently (`1`, `1.0`), so all spellings are asked.
    """
    matchers = [f"flag={_quote(query.flag)}"]
    matchers += [f"{label}={_quote(value)}" for label, value in sorted(query.select.items())]
    if query.le is not None:
        spellings = dict.fromkeys([repr(query.le), f"{query.le:g}"])
        bounds = "|".join(spelling.replace(".", "[.]") for spelling in spellings)
        matchers.append(f'le=~"|{bounds}|[+]Inf"')
    return f'{{__name__=~"{"|".join(query.names)}",{",".join(matchers)}}}'


def _quote(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _series(result: list[dict[str, Any]]) -> Iterator[Series]:
    for one in result:
        labels = cast(dict[str, str], dict(one["metric"]))
        name = labels.pop("__name__")
        if name == BUCKETS:
            float(labels["le"])  # a bound that is no number would be met much later
        samples = tuple((float(at), float(value)) for at, value in one["values"])
        yield Series(name=name, labels=labels, samples=samples)
