"""What /metrics shows while workers come and go."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from tidegate.middleware.exposition import MetricsApp


def test_a_worker_that_is_just_starting_does_not_make_metrics_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has made its file and not yet filled it, for about as long as a look at /metrics takes."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    values = MmapedDict(str(tmp_path / "counter_1.db"))  # type: ignore[no-untyped-call]
    values.write_value(mmap_key("done", "done_total", [], [], "Things done."), 7.0, 0.0)  # type: ignore[no-untyped-call]
    values.close()  # type: ignore[no-untyped-call]
    for name in ("counter_2.db", "gauge_livemax_2.db", "histogram_2.db"):
        (tmp_path / name).touch()
    assert b"done_total 7.0" in MetricsApp(CollectorRegistry()).render()
