"""Every test of an attack fails where the defence that it stands on is missing."""

import pytest

from tests.promises.attacks import test_identity, test_keys, test_poisoning, test_sessions, test_store, test_whole
from tests.promises.attacks.planting import ATTACKS, Attack, Fault, planted

MODULES = (test_identity, test_keys, test_poisoning, test_sessions, test_store, test_whole)


ADVISORIES = {
    "CVE-2026-6907", "CVE-2026-48587", "CVE-2026-8404", "CVE-2026-48588", "CVE-2026-113593", "CVE-2026-25480",
    "CVE-2026-39972", "CVE-2026-35039", "CVE-2026-24472", "CVE-2025-49826", "CVE-2024-46982", "CVE-2025-49005",
    "CVE-2025-57752", "CVE-2021-33026", "CVE-2025-69872", "CVE-2026-2970", "CVE-2026-35192", "CVE-2014-1418",
    "CVE-2026-27205",
}  # fmt: skip

ELSEWHERE = {
    "25": "key rotation: tests/middleware/stores/test_seals.py, tests/middleware/core/test_keyring.py",
    "28": "a flood by one tenant: the tests of limits",
    "29": "coalescing as denial of service: tests/middleware/layers/test_coalesce*.py",
    "30": "unbounded variants and tags: the tests of limits",
    "31": "there is no warmer yet",
    "32": "there is no administration over HTTP yet; the shadow report is an app of its own, mounted by the operator",
}
"""Of the attacks 1 to 32, those that are no test here, and why. docs/isolation.md says the same."""


def test_every_attack_has_a_test_or_a_reason() -> None:
    tested = {number for attack in ATTACKS for number in attack.ids}
    assert tested | ELSEWHERE.keys() == ADVISORIES | {str(number) for number in range(1, 33)}
    assert not tested & ELSEWHERE.keys()


def _name(fault: Fault) -> str:
    return " + ".join(plant.name for plant in fault) if isinstance(fault, tuple) else fault.name


FAULTS = [
    pytest.param(attack, fault, id=f"{','.join(attack.ids)}: {attack.name} [{_name(fault)}]")
    for attack in ATTACKS
    for fault in attack.without
]


@pytest.mark.parametrize(("attack", "fault"), FAULTS)
def test_an_attack_gets_through_where_its_defence_is_taken_out(
    attack: Attack, fault: Fault, request: pytest.FixtureRequest
) -> None:
    needed = attack.test.__code__.co_varnames[: attack.test.__code__.co_argcount]
    fixtures = {name: request.getfixturevalue(name) for name in needed if name != "case"}
    for arguments in [{"case": case} for case in attack.cases] or [{}]:
        with planted(fault), pytest.raises((AssertionError, pytest.fail.Exception)):
            attack.test(**arguments, **fixtures)
