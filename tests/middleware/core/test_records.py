"""An entry that is made quickly is the same as one that is made plainly."""

from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

from tidegate.middleware.core.records import Entry, new_entry

EVERYTHING: dict[str, Any] = {
    "status": 203,
    "headers": ((b"etag", b'"1"'),),
    "body": b"body",
    "born": 1.5,
    "lifetime": 60.0,
    "stale_while_revalidate": 2.0,
    "stale_if_error": 3.0,
    "must_revalidate": True,
    "no_cache": True,
    "vary": ((b"accept", None),),
    "tags": (("public", "uri:"),),
    "positions": (("public", 7),),
    "own_etag": True,
}
FLAGS = ("must_revalidate", "no_cache", "own_etag")
FLAGGED = [EVERYTHING | {name: name == flag for name in FLAGS} for flag in FLAGS]
LEAST = {name: EVERYTHING[name] for name in ("status", "headers", "body", "born", "lifetime")}


@pytest.mark.parametrize("given", [EVERYTHING, *FLAGGED, LEAST], ids=["everything", *FLAGS, "the least"])
def test_it_equals_the_one_of_the_class_itself(given: dict[str, Any]) -> None:
    quick, plain = new_entry(**given), Entry(**given)
    assert type(quick) is Entry
    assert (quick, repr(quick), hash(quick)) == (plain, repr(plain), hash(plain))
    assert replace(quick, status=404) == replace(plain, status=404) != plain
    assert EVERYTHING.keys() == {field.name for field in fields(Entry)}


def test_nothing_of_it_can_be_changed() -> None:
    quick = new_entry(**EVERYTHING)
    for name in EVERYTHING:
        with pytest.raises(FrozenInstanceError):
            setattr(quick, name, None)
        with pytest.raises(FrozenInstanceError):
            delattr(quick, name)
    with pytest.raises((AttributeError, TypeError)):
        quick.more = 1  # type: ignore[attr-defined]
    assert quick == Entry(**EVERYTHING)
