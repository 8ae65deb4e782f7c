"""What the quickest way relies on that no result shows."""

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.bench.exchanges import POLICY, Flags
from tests.driver import Origin
from tidegate import MemoryStore, Tidegate

MOST = 30
"""Attributes: CPython keeps more of them (SHARED_KEYS_MAX_SIZE) in a dictionary, and each is read half as quickly."""


def on_the_way() -> list[Any]:
    """Everything that a hit through five layers reads, but for what has slots."""
    tide = Tidegate(policies=[POLICY], provider=Flags(on=True), registry=CollectorRegistry())
    mounted: Any = tide(Origin())
    telemetry = mounted.app
    hits = telemetry._find.__self__
    return [
        mounted,
        mounted._runtime,
        telemetry,
        telemetry._count_at_once.__self__,
        telemetry.cohorts,
        telemetry._resolver,
        tide.gates,
        hits,
        hits._names,
        tide.store,
        MemoryStore(),
    ]


@pytest.mark.parametrize("one", on_the_way(), ids=lambda one: type(one).__name__)
def test_what_every_request_reads_has_no_more_attributes_than_are_read_quickly(one: Any) -> None:
    assert 0 < len(vars(one)) <= MOST
