"""Reads the app's own /metrics, for an app without Prometheus: one look a tick, a bounded memory of what was seen."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from tidegate.errors import MetricsError
from tidegate.rollout.source import BUCKETS, COUNTERS, CohortQuery
from tidegate.rollout.stats import Sample, Series

__all__ = ["ScrapeSource"]

_MAX_BYTES: Final = 16 * 1024 * 1024
_MAX_SAMPLES: Final = 4096

_Key = tuple[str, str, tuple[tuple[str, str], ...]]


class ScrapeSource:
    """A MetricsSource on the addresses of an app's instances.

    Several workers behind one address are fine: cohort counters at /metrics are summed over workers. Several instances
    need an address each; if one does not answer, nothing is judged, since nobody knows what it would have said.

    urls: of each instance's /metrics. timeout: seconds for each.
    """

    def __init__(self, urls: Sequence[str], *, timeout: float = 2.0) -> None:
        self._urls = tuple(urls)
        self._timeout = timeout
        self._client = httpx2.AsyncClient(timeout=timeout, follow_redirects=False)
        self._history: dict[_Key, deque[Sample]] = {}
        self._looked: float | None = None
        self._longest = 0.0
        self._lock = asyncio.Lock()

    async def samples(self, query: CohortQuery, start: float, end: float) -> Sequence[Series]:
        """See MetricsSource. What is read now counts as read at `end`, the tick that asked for it."""
        self._longest = max(self._longest, end - start)
        async with self._lock:
            if self._looked is None or end > self._looked:
                await self._look(end)
        found: list[Series] = []
        for (_, name, labels), history in self._history.items():
            samples = tuple(sample for sample in history if start <= sample[0] <= end)
            if samples and query.wants(name, named := dict(labels)):
                found.append(Series(name=name, labels=named, samples=samples))
        return found

    async def close(self) -> None:
        """See MetricsSource."""
        await self._client.aclose()

    async def _look(self, at: float) -> None:
        """Read every address once; what could be read is kept even if another address fails."""
        answers = await asyncio.gather(*(self._read(url) for url in self._urls), return_exceptions=True)
        failures: list[MetricsError] = []
        for url, answer in zip(self._urls, answers, strict=True):
            if isinstance(answer, MetricsError):
                failures.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                self._keep(url, answer, at)
        self._forget(at)
        if failures:
            raise MetricsError("; ".join(str(failure) for failure in failures))
        self._looked = at

    async def _read(self, url: str) -> list[tuple[str, dict[str, str], float]]:
        try:
            async with asyncio.timeout(self._timeout):
                text = await self._fetch(url)
            return [
                (sample.name, sample.labels, sample.value)
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                if sample.name in COUNTERS or sample.name == BUCKETS
            ]
        except TimeoutError as error:
            raise MetricsError(f"{url} did not answer within {self._timeout:g} s") from error
        except httpx2.HTTPError as error:
            raise MetricsError(f"{url} could not be read: {error or type(error).__name__}") from error
        except ValueError as error:
            raise MetricsError(f"{url} is not in the Prometheus text format: {error}") from error

    async def _fetch(self, url: str) -> str:
        body = bytearray()
        async with self._client.stream("GET", url, headers={"Accept": "text/plain; version=0.0.4"}) as response:
            if response.status_code != 200:
                raise MetricsError(f"{url} answered {response.status_code}")
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > _MAX_BYTES:
                    raise MetricsError(f"{url} sent more than {_MAX_BYTES} bytes")
        return body.decode("utf-8")

    def _keep(self, url: str, values: list[tuple[str, dict[str, str], float]], at: float) -> None:
        for name, labels, value in values:
            key = (url, name, tuple(sorted(labels.items())))
            history = self._history.setdefault(key, deque(maxlen=_MAX_SAMPLES))
            if not history or history[-1][0] < at:
                history.append((at, value))

    def _forget(self, at: float) -> None:
        for key, history in list(self._history.items()):
            while history and history[0][0] < at - 2 * self._longest:
                history.popleft()
            if not history:
                del self._history[key]
