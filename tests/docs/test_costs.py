"""The table of costs in docs/mounting.md is the one that was recorded."""

from tests.bench.table import RECORDED, load, markdown
from tests.docs.pages import Page


def test_the_table_of_costs_is_the_recorded_one() -> None:
    page, recorded = Page.of("docs/mounting.md"), load(RECORDED)
    rows = markdown(recorded, "2 KiB")
    assert len(rows) > 8
    assert [tuple(row) for row in page.table("What it costs")] == rows, "\n".join(
        f"| {' | '.join(row)} |" for row in rows
    )
    assert f"Recorded with {recorded['python']} on {recorded['cpus']} cores" in page.text
    assert f"take {recorded['machine']:.2f} times as long as the machine of the targets" in page.text
