"""Law (P3): whatever an honest app says and whoever asks for what, each answer is one that RFC 9111 allows.

A state machine drives the cache over a small app that does what HTTP asks of one: it answers conditions, Range and
If-Range by the versions that it has. A model, which reads no field that it did not write, knows all that the app said.
An answer from the store must be bytes of one version, of a variant that the request selects, of the same tenant, not
invalidated since, fresh or stale as far as somebody allowed, and say the right age; any other must be of the version
that the app has now.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.property.right_life import Right
from tidegate.middleware.core import parts, ranges, storing
from tidegate.middleware.core.message import directives, field_values, single_value
from tidegate.middleware.core.targeted import Control
from tidegate.middleware.layers import cache, exchange, filling, fused, keeping, parted, straight
from tidegate.middleware.layers.cache import CacheLayer

DEEP = int(os.environ.get("TIDEGATE_DEEP", "1"))
SETTINGS = settings(
    max_examples=70 * DEEP,
    stateful_step_count=40,
    deadline=None,
    derandomize=DEEP == 1,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)


def test_every_answer_is_one_that_the_rules_allow() -> None:
    Right.seen.clear()
    run_state_machine_as_test(Right, settings=SETTINGS)
    seen = Right.seen
    print("\n" + ", ".join(f"{name} {count}" for name, count in sorted(seen.items())))
    floors = {"hit": 200, "206 hit": 100, "304 hit": 15, "fwd-status=304": 60, "fwd=partial; fwd": 10}
    floors |= {"stale-while-revalidate": 12, "stale-if-error": 5, "disconnected": 4, "stale by the client's leave": 5}
    assert all(seen[name] >= floor for name, floor in floors.items()), seen


# --- the machine finds what would break the law ------------------------------------

Planted = Callable[[pytest.MonkeyPatch], None]


def _no_field_selects(patch: pytest.MonkeyPatch) -> None:
    for module in (filling, fused, parted):
        patch.setattr(module, "variant_values", lambda _request, names: tuple((name, None) for name in names))


def _age_does_not_count(patch: pytest.MonkeyPatch) -> None:
    for module in (filling, keeping):
        patch.setattr(module, "born_at", lambda _headers, *, asked, answered: answered)


def _targeted_fields_do_not_count(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(storing, "control_of", lambda headers: Control(directives(field_values(headers, b"cache-control"))))


def _writes_clear_nothing(patch: pytest.MonkeyPatch) -> None:
    async def nothing(_self: Any, _tags: Any) -> None: ...

    patch.setattr(CacheLayer, "_purge", nothing)


def _all_may_be_stale(patch: pytest.MonkeyPatch) -> None:
    judged = storing.judge_response

    def lenient(**of: Any) -> Any:
        kept = judged(**of)
        windows = {"stale_while_revalidate": 500.0, "stale_if_error": 500.0, "must_revalidate": False}
        return replace(kept, **windows) if isinstance(kept, storing.Kept) else kept

    for module in (filling, straight):
        patch.setattr(module, "judge_response", lenient)


def _a_304_renews_no_field(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(exchange, "updated", lambda stored, _news: stored)


def _parts_are_joined_whatever_they_are_of(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(parts, "strong_match", lambda _one, _other: True)
    patch.setattr(
        parts, "single_value", lambda headers, name: b'"a"' if name == b"etag" else single_value(headers, name)
    )


def _a_joined_part_is_the_answer_to_the_last_range(patch: pytest.MonkeyPatch) -> None:
    join = parts.joined

    def longer(*of: Any) -> Any:
        both = join(*of)
        return both and ([*both[0], (b"x-joined", b"1")], both[1])

    def whole(request: Any, headers: Any, body: bytes, *, came_for: bytes | None, born: float) -> Any:
        if (b"x-joined", b"1") in headers:
            came_for = single_value(request, b"range")
        return parts.cut(request, headers, body, came_for=came_for, born=born)

    patch.setattr(parted, "joined", longer)
    patch.setattr(parted, "cut", whole)


def _any_version_is_the_one_of_if_range(patch: pytest.MonkeyPatch) -> None:
    for module in (parts, ranges):
        patch.setattr(module, "allows_range", lambda _request, _headers, *, born: True)


def _what_the_client_wants_does_not_count(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cache, "request_directives", lambda _headers: storing.RequestDirectives())
    taken = fused.FusedHits.__call__

    def blind(self: Any, scope: Any, context: Any) -> Any:
        headers = [pair for pair in scope["headers"] if pair[0] != b"cache-control"]
        return taken(self, {**scope, "headers": headers}, context)

    patch.setattr(fused.FusedHits, "__call__", blind)


DEFECTS: list[Planted] = [
    _no_field_selects,
    _age_does_not_count,
    _targeted_fields_do_not_count,
    _writes_clear_nothing,
    _all_may_be_stale,
    _a_304_renews_no_field,
    _parts_are_joined_whatever_they_are_of,
    _a_joined_part_is_the_answer_to_the_last_range,
    _any_version_is_the_one_of_if_range,
    _what_the_client_wants_does_not_count,
]


@pytest.mark.parametrize("plant", DEFECTS, ids=lambda plant: plant.__name__.strip("_").replace("_", " "))
def test_a_planted_defect_is_found(plant: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    found = settings(SETTINGS, phases=[Phase.generate], derandomize=True, report_multiple_bugs=False, print_blob=False)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Right, settings=found)
