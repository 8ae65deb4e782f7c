"""Attacks with their numbers, and faults planted to see that each test of an attack can fail.

Every test of an attack says which defence it stands on (`without`). `test_planted.py` takes each of them out and asks
that the test then fails: a test that passes without its defence proves nothing.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from unittest.mock import patch

import pytest

__all__ = ["ATTACKS", "Attack", "Plant", "attack", "planted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plant:
    """A fault: `target` ("module:name" or "module:Class.name", below tidegate) is replaced by `by(original)`.

    A function or constant is replaced in every module that has imported it, so that moving its callers breaks nothing.
    """

    name: str
    target: str
    by: Callable[[Any], Any]


Fault = Plant | tuple[Plant, ...]
"""One defence that is taken out, or several that stand behind each other and are taken out together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """A test of attacks: their numbers, the test, its cases, and the defences that it stands on."""

    ids: tuple[str, ...]
    test: Callable[..., None]
    cases: tuple[Any, ...]
    without: tuple[Fault, ...]

    @property
    def name(self) -> str:
        """The test's place and name."""
        return f"{self.test.__module__.rpartition('.')[2]}::{self.test.__name__}"


PLANTED_IN = ("tidegate", "tests.property", "tests.promises.attacks.test_")

ATTACKS: list[Attack] = []
"""Of the modules that were imported."""


def attack(*ids: str, without: Sequence[Fault], cases: Sequence[Any] = ()) -> Callable[[Any], Any]:
    """Marks a test. With cases it takes one as `case`, and must fail for each of them where a defence is missing."""
    assert ids
    assert without

    def marked(test: Callable[..., None]) -> Callable[..., None]:
        ATTACKS.append(Attack(ids=ids, test=test, cases=tuple(cases), without=tuple(without)))
        return pytest.mark.parametrize("case", cases)(test) if cases else test

    return marked


@contextmanager
def planted(fault: Fault) -> Iterator[None]:
    """The library with a fault, or several."""
    with ExitStack() as stack:
        for plant in fault if isinstance(fault, tuple) else (fault,):
            module, _, name = plant.target.partition(":")
            home: Any = import_module(f"tidegate.{module}")
            owner, _, attribute = name.rpartition(".")
            if owner:
                owned = getattr(home, owner)
                stack.enter_context(patch.object(owned, attribute, plant.by(getattr(owned, attribute))))
                continue
            original = getattr(home, attribute)
            fake = plant.by(original)
            for loaded in [each for key, each in sys.modules.items() if key.startswith(PLANTED_IN)]:
                for found, value in list(vars(loaded).items()):
                    if value is original:
                        stack.enter_context(patch.object(loaded, found, fake))
        yield
