"""The bench runs, measures what its cases are called, and says where a target is missed. Nothing here is timed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench import __main__ as command
from tests.bench.calibration import CALIBRATED, THERE, factors
from tests.bench.exchanges import bare, raw, same_page
from tests.bench.facts import Fact
from tests.bench.frame import BARE, RAW, Bench, Case, Target, measure
from tests.bench.table import calibrated, markdown, table
from tests.driver import Answer

QUICK = ["--rounds", "1", "--seconds", "0.0005"]


def a_page(answer: Answer) -> bool:
    return answer.body == b"page"


@pytest.mark.parametrize("name", command.benches())
def test_each_bench_runs_and_its_table_can_be_recorded_and_compared_with(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "recorded.json"
    monkeypatch.setattr(command, "RECORDED", file)
    assert command.main([name, *QUICK, "--record", str(file)]) == 0
    assert "%" not in capsys.readouterr().out, "nothing was recorded yet"
    figures = json.loads(file.read_text())["figures"]
    assert figures
    assert command.main([name, *QUICK]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines()[1:] if not line.startswith("This machine takes ")]
    assert len(lines) == len(figures)
    assert any("%" in line for line in lines)


def test_what_is_measured_once_is_told_in_its_unit_and_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fact(name: str, most: float | None) -> Fact:
        return Fact(name=name, unit="runs", measure=lambda part: 3.0, most=most)

    made = [fact("kept", 3), fact("missed", 2), fact("told", None)]
    monkeypatch.setattr(command, "benches", lambda: {"made-up": lambda bench: made})
    file = tmp_path / "recorded.json"
    assert command.main(["made-up", *QUICK, "--check", "--record", str(file)]) == 1
    head, *lines = capsys.readouterr().out.splitlines()
    assert "unit" in head
    assert [line.split() for line in lines] == [
        ["kept", "3", "runs", "met,", "at", "most", "3"],
        ["missed", "3", "runs", "missed,", "at", "most", "2"],
        ["told", "3", "runs"],
        ["missed:", "missed:", "3", "runs,", "target", "2"],
    ]
    assert [row for row in markdown(json.loads(file.read_text()), "2 KiB") if row[0] != "told"] == [
        ("kept", "3 runs", "", "3"),
        ("missed", "3 runs", "", "2"),
    ]


def test_servers_are_measured_in_one_round_of_three() -> None:
    rounds: list[str] = []

    def case(name: str, elapsed: Callable[[], float] | None) -> Case:
        def seconds(count: int) -> float:
            rounds.append(name)
            return count * 1e-6

        return Case(name=name, seconds=seconds, most=10, elapsed=elapsed)

    figures = measure([case("here", None), case("served", lambda: 1e-5)], rounds=7, seconds=0.00001)
    assert [round(figure.microseconds, 6) for figure in figures] == [1.0, 1.0]
    assert (rounds.count("here"), rounds.count("served")) == (7 + 1, 3 + 1), "and each once to see how long it takes"


def test_rounds_that_others_have_slowed_down_do_not_count() -> None:
    rounds = iter([1.0, 1.0, 1.0, 3.0, 3.0, 1.1, 3.0, 3.0, 3.0])  # the first one says how many operations to ask for
    case = Case(name="page", seconds=lambda count: next(rounds) * count / 1e6, most=10)
    assert [one.microseconds for one in measure([case], rounds=8, seconds=0.0001)] == [pytest.approx(1.1)]


def constant(name: str, microseconds: float, **of: object) -> Case:
    """A case that always costs the same."""
    return Case(name=name, seconds=lambda count: count * microseconds / 1e6, **of)  # type: ignore[arg-type]


def test_ratios_and_differences_are_to_the_references_of_the_same_size() -> None:
    cases = [constant(name, cost, size="1 B") for name, cost in ((RAW, 2.0), (BARE, 20.0), ("hit", 5.0))]
    figures = measure([*cases, constant("alone", 3.0)], rounds=3, seconds=0.001)
    told = [(one.microseconds, one.times_raw, one.above_bare) for one in figures]
    expected = [(2.0, None, None), (20.0, 10.0, None), (5.0, 2.5, -15.0), (3.0, None, None)]
    assert told == [tuple(None if one is None else pytest.approx(one) for one in row) for row in expected]


def test_a_missed_target_is_named_and_fails_the_check_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [
        constant(BARE, 10.0, size="1 B"),
        constant("kept", 5.0, size="1 B", target=Target(microseconds=5.5)),
        constant("missed", 5.0, size="1 B", target=Target(microseconds=4.5)),
        constant("pass", 15.0, size="1 B", target=Target(microseconds=4.5, above=BARE)),
        constant("traced", 9.0, size="1 B", target=Target(microseconds=3.5, above="kept")),
    ]
    monkeypatch.setattr(command, "benches", lambda: {"made-up": lambda bench: cases})
    assert command.main(["made-up", *QUICK]) == 0
    assert "missed:" not in capsys.readouterr().out
    assert command.main(["made-up", *QUICK, "--check"]) == 1
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("missed: ")] == [
        "missed: missed, 1 B: 5.000 µs, target 4.5",
        "missed: pass, 1 B: 5.000 µs above bare handler, target 4.5",
        "missed: traced, 1 B: 4.000 µs above kept, target 3.5",
    ]


def test_a_share_of_the_raw_functions_speed_that_is_not_reached_is_a_target_missed() -> None:
    def served(name: str, microseconds: float, seconds: float, target: float | None = None) -> Case:
        wanted = Target(of_raw=target) if target is not None else None
        return constant(name, microseconds, size="sockets", target=wanted, elapsed=lambda: seconds, most=10)

    cases = [served(RAW, 3.0, 0.1), served("kept", 3.9, 0.2, 0.75), served("missed", 6.0, 0.1, 0.75)]
    figures = measure(cases, rounds=1, seconds=0.001)
    assert [one.missed for one in figures] == ["", "", "missed, sockets: 0.50 x raw, target 0.75"]
    head, *lines = table(figures, {"kept, sockets": {"of_raw": 0.25}})
    assert head.split() == ["req/s", "x", "raw", "by", "CPU", "recorded", "change", "target"]
    assert [line.split()[1:] for line in lines] == [
        ["function,", "sockets", "100"],
        ["sockets", "50", "0.50", "0.77", "0.25", "+100%", *["met,", "at", "least", "0.75", "x", "raw", "by", "CPU"]],
        ["sockets", "100", "1.00", "0.50", *["missed,", "at", "least", "0.75", "x", "raw", "by", "CPU"]],
    ]


def test_a_case_that_is_not_what_it_is_called_is_not_measured() -> None:
    with Bench() as bench:
        good = bench.requests("page", raw(b"page"), same_page(), a_page)
        bad = bench.requests("page", bare(b"another"), same_page(), a_page)
        assert [figure.case.name for figure in measure([good], rounds=1, seconds=0.0005)] == ["page"]
        with pytest.raises(AssertionError, match=r"page: answered 200 .* something else"):
            measure([good, bad], rounds=1, seconds=0.0005)


def test_this_machine_is_compared_with_that_of_the_targets_and_nothing_is_said_where_nothing_was_measured() -> None:
    cases = [
        constant(name, there * times, size=CALIBRATED)
        for (name, there), times in zip(THERE.items(), (1, 2, 4), strict=True)
    ]
    factor, each = factors(measure([*cases, constant("else", 1.0)], rounds=1, seconds=0.0001))
    assert (factor, each) == (pytest.approx(2.0), dict(zip(THERE, map(pytest.approx, (1, 2, 4)), strict=True)))
    assert calibrated(factor, each)[0].startswith("This machine takes 2.00 times as long as that ")
    assert calibrated(*factors([])) == []


def test_a_target_in_microseconds_is_one_of_another_machine_and_a_ratio_is_one_here_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    twice = [constant(name, there * 2, size=CALIBRATED) for name, there in THERE.items()]
    cases = [
        constant(BARE, 10.0, size="1 B"),
        constant("kept", 5.0, size="1 B", target=Target(microseconds=2.6)),
        constant("missed", 5.0, size="1 B", target=Target(microseconds=2.4)),
        constant("pass", 15.0, size="1 B", target=Target(microseconds=2.6, above=BARE)),
        constant("part", 5.0, size="1 B", target=Target(of_others=((f"{BARE}, 1 B", 0.4),))),
    ]
    monkeypatch.setattr(command, "benches", lambda: {"made-up": lambda bench: [*twice, *cases]})
    file = tmp_path / "recorded.json"
    assert command.main(["made-up", *QUICK, "--check", "--record", str(file)]) == 1
    told = capsys.readouterr().out.splitlines()
    verdicts = [line.partition("  m")[2] for line in told if ", 1 B" in line and "  m" in line]
    assert verdicts == [
        "et, at most 2.6, here 5.20",
        "issed, at most 2.4, here 4.80",
        "et, at most +2.6, here +5.20 above bare handler",
        "issed, 0.50 of bare handler, 1 B, at most 0.4",
    ]
    assert [line for line in told if line.startswith("missed: ")] == [
        "missed: missed, 1 B: 5.000 µs, target 2.4, which is 4.80 here",
        "missed: part, 1 B: 0.50 of bare handler, 1 B, target 0.4",
    ]
    recorded = json.loads(file.read_text())
    assert recorded["machine"] == 2.0
    assert recorded["figures"]["kept, 1 B"]["target"] == 2.6, "as it was set"
    monkeypatch.setattr(command, "benches", lambda: {"made-up": lambda bench: cases})
    assert command.main(["made-up", *QUICK, "--record", str(file)]) == 0
    assert "here" not in capsys.readouterr().out
    assert json.loads(file.read_text())["machine"] == 2.0, "not measured now"


def test_an_unknown_name_is_told_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["speed"])
    assert "no bench is called speed; there are calibration, " in capsys.readouterr().err
