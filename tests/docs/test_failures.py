"""docs/failures.md has a line for each fault that is done to a real Redis, and says of it what was seen there."""

from tests.docs.pages import Page
from tests.promises.faults.kinds import ABSENT, FAILOVER, FAULTS
from tidegate.middleware.stores.guard import STORE_BREAKER
from tidegate.settings import StoreSettings

PAGE = Page.of("docs/failures.md")
ROWS = {row[0].partition(":")[0].strip("`"): row for row in PAGE.table("Faults")}
KNOWN = {row[0].strip("`") for row in Page.of("docs/mounting.md").table("Metrics")}


def test_each_fault_has_a_line_and_no_line_is_about_another() -> None:
    assert list(ROWS) == [*(fault.name for fault in FAULTS), FAILOVER.name, ABSENT]


def test_a_line_names_the_metric_and_the_text_in_the_log_that_the_fault_was_seen_to_cause() -> None:
    for fault in (*FAULTS, FAILOVER):
        _, seen, counted, says, _ = ROWS[fault.name]
        assert counted == f"`{fault.counted}`"
        assert says == (f"`{fault.says}`" if fault.says else "nothing")
        assert ("hits" in seen) == fault.reads
        assert ("purges are pending" in seen) == (fault.reads and fault.purge == "pending")


def test_what_to_look_at_are_metrics_that_there_are_and_the_figures_are_those_of_the_code() -> None:
    named = {row[0].strip("`") for row in PAGE.table("What to look at")}
    assert named <= KNOWN
    assert {fault.counted.name for fault in (*FAULTS, FAILOVER)} <= named
    assert f"(`{1000 * StoreSettings().budget:g} ms`)".replace("`", "") in PAGE.text
    assert (STORE_BREAKER.consecutive, STORE_BREAKER.failure_rate, STORE_BREAKER.open_for) == (5, 0.5, 1.0)
    assert "After five failures in a row, or if every other call fails" in PAGE.text
