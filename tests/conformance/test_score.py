"""How the public suite's findings are counted."""

import pytest

from tests.conformance.score import Case, summary, verdicts


def case(*needs: str, kind: str = "required", for_browsers: bool = False) -> Case:
    return Case(name="", kind=kind, group="", needs=needs, for_browsers=for_browsers)


CASES = {
    "a": case(),
    "b": case("a"),
    "c": case("b", kind="optimal"),
    "d": case(),
    "e": case(for_browsers=True),
}


@pytest.mark.parametrize(
    ("results", "wanted"),
    [
        ({"a": True, "b": True, "c": True, "d": True}, ["pass"] * 4),
        ({"a": ["Assertion", "no"], "b": True, "c": True, "d": True}, ["fail", "dependency", "dependency", "pass"]),
        ({"a": True, "b": ["Setup", "no"], "c": True}, ["pass", "setup", "dependency", "untested"]),
        ({"a": ["AbortError", ""], "b": True, "c": True, "d": True}, ["harness", "dependency", "dependency", "pass"]),
    ],
)
def test_a_test_counts_only_with_all_that_it_depends_on(results: dict[str, object], wanted: list[str]) -> None:
    assert list(verdicts(CASES, results).values()) == wanted


def test_the_summary_counts_each_kind_and_names_what_did_not_pass() -> None:
    text = summary(CASES, {"a": True, "b": ["Assertion", "came too late"], "c": True, "d": True})
    assert "required  2 of 3 (1 fail)" in text
    assert "optimal   0 of 1 (1 dependency)" in text
    assert any(line.split() == ["b", "fail", "came", "too", "late"] for line in text.splitlines())
