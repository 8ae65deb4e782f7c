"""Scores what the public caching suite found: a test counts only if every test that it depends on held too."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["KINDS", "Case", "Verdict", "cases_of", "verdicts"]

KINDS = ("required", "optimal", "check")

Verdict = Literal["untested", "dependency", "setup", "harness", "pass", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A test of the suite; `kind` is one of KINDS."""

    name: str
    kind: str
    group: str
    needs: tuple[str, ...]
    for_browsers: bool


def cases_of(exported: Sequence[Mapping[str, Any]]) -> dict[str, Case]:
    """The suite's tests by their ids, from its `export`."""
    return {
        test["id"]: Case(
            name=test["name"],
            kind=test.get("kind", "required"),
            group=group["id"],
            needs=tuple(test.get("depends_on") or ()),
            for_browsers=bool(test.get("browser_only")),
        )
        for group in exported
        for test in group["tests"]
    }


def verdicts(cases: Mapping[str, Case], results: Mapping[str, Any]) -> dict[str, Verdict]:
    """What is to be said of each test; those for browsers, which the suite never sends to a proxy, are left out."""
    known: dict[str, Verdict] = {}

    def of(name: str) -> Verdict:
        if name not in known:
            known[name] = decide(name)
        return known[name]

    def decide(name: str) -> Verdict:
        result = results.get(name)
        if result is None:
            return "untested"
        if any(of(other) != "pass" for other in cases[name].needs):
            return "dependency"
        if result is True:
            return "pass"
        return {"Setup": "setup", "AbortError": "harness"}.get(result[0], "fail")  # type: ignore[return-value]

    said = {name: of(name) for name in cases}
    return {name: each for name, each in said.items() if each != "untested" or not cases[name].for_browsers}


def summary(cases: Mapping[str, Case], results: Mapping[str, Any]) -> str:
    """A line for each kind, then the tests that did not pass, with what the suite said of them."""
    said = verdicts(cases, results)
    lines: list[str] = []
    for kind in KINDS:
        counts = Counter(each for name, each in said.items() if cases[name].kind == kind)
        rest = ", ".join(f"{count} {each}" for each, count in sorted(counts.items()) if each != "pass")
        lines.append(f"{kind:9} {counts['pass']} of {sum(counts.values())}" + (f" ({rest})" if rest else ""))
    for kind in KINDS[:2]:
        lines.append(f"\n{kind}, not passed:")
        for name, each in said.items():
            if cases[name].kind == kind and each != "pass":
                result = results.get(name)
                why = result[1] if isinstance(result, list) else ""
                lines.append(f"  {name:50} {each:10} {why}")
    return "\n".join(lines)
