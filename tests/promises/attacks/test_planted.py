"""Every test of an attack fails where the defence that it stands on is missing."""

import pytest

from tests.promises.attacks import test_identity, test_keys, test_poisoning, test_store, test_whole
from tests.promises.attacks.planting import ATTACKS, Attack, Fault, planted

MODULES = (test_identity, test_keys, test_poisoning, test_store, test_whole)


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
