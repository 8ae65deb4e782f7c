"""docs/isolation.md tells of each test of an attack, and of no other."""

import re
from pathlib import Path

from tests.docs.pages import ROOT, Page
from tests.promises.attacks.planting import ATTACKS
from tests.promises.attacks.test_planted import ELSEWHERE

PAGE = Page.of("docs/isolation.md")
ROWS = PAGE.table("Attacks")
TESTED = [row for row in ROWS if re.fullmatch(r"`test_\w+`", row[3])]
OTHERS = [row for row in ROWS if row not in TESTED]


def test_each_attack_that_is_tested_has_a_line_with_its_numbers_and_its_tests_name() -> None:
    told = {row[3].strip("`"): tuple(row[0].split(", ")) for row in TESTED}
    assert len(told) == len(TESTED) > 60
    assert told == {attack.test.__name__: attack.ids for attack in ATTACKS}
    assert all(row[1] and row[2] for row in TESTED)


def test_each_attack_that_is_tested_elsewhere_names_files_that_are_there() -> None:
    assert [row[0] for row in OTHERS] == list(ELSEWHERE)
    files = re.findall(r"`(tests/[\w/.]+)`", " ".join(row[3] for row in OTHERS) + PAGE.section("Attacks"))
    assert len(files) >= 6
    assert [file for file in files if not Path(ROOT, file).exists()] == []
