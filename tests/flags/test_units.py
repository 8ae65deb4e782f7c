"""Who is decided about, through the whole stack: tenant, user or session, and what else the application knows."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.driver import Origin, User, call, scope_of
from tidegate import Settings, Tidegate
from tidegate.flags import normalized

ANN, BEN = User("acme", "ann"), User("globex", "ben")


def flags_file(tmp_path: Path, **strategies: list[dict[str, Any]]) -> str:
    file = tmp_path / "flags.json"
    flags = {f"tidegate.{layer}": {"enabled": True, "strategies": of} for layer, of in strategies.items()}
    file.write_text(json.dumps({"version": 1, "flags": flags}))
    return str(file)


def within(field: str, *values: str) -> dict[str, Any]:
    return {"field": field, "operator": "IN", "values": list(values)}


def known(scope: Any) -> Mapping[str, str]:
    """What an application knows of a request besides the user."""
    fields: Mapping[str, str] = scope["known"]
    return fields


def decisions(file: str, unit: str, requests: list[tuple[User | None, dict[str, str]]]) -> list[tuple[set[str], str]]:
    """For each request the open layers, and the cohort in the cache's flag."""
    settings = Settings.of({"flags": {"provider": "local", "file": file, "unit": unit}})
    tide = Tidegate(settings, properties=known, registry=CollectorRegistry())
    found: list[tuple[set[str], str]] = []

    async def run() -> None:
        layers = tide(Origin(b"body"))
        for user, fields in requests:
            scope = scope_of(user=user, known=fields)
            await call(layers, scope=scope)
            decision = scope["tidegate"].decision
            (cohort,) = [cohort for flag, _, cohort in decision.cohorts if flag == "tidegate.cache"]
            found.append((set(decision.open), cohort))
        await tide.aclose()

    asyncio.run(run())
    return found


def test_constraints_see_tenant_user_and_whatever_the_application_adds(tmp_path: Path) -> None:
    file = flags_file(
        tmp_path,
        cache=[{"percentage": 100, "constraints": [within("region", "eu"), within("tenantId", "acme")]}],
        etag=[{"percentage": 100, "constraints": [within("plan", "gold", "silver")]}],
        breaker=[{"percentage": 100, "constraints": [within("userId", "ben")]}],
    )
    requests = [
        (ANN, {"region": "eu"}),
        (ANN, {"region": "us"}),
        (ANN, {}),
        (BEN, {"region": "eu", "plan": "gold"}),
        (ANN, {"region": "eu", "plan": "iron"}),
        (ANN, {"region": "eu", "plan": "silver"}),
    ]
    assert decisions(file, "tenant", requests) == [
        ({"cache"}, "canary"),
        (set(), "control"),
        (set(), "control"),
        ({"etag", "breaker"}, "control"),
        ({"cache"}, "canary"),
        ({"cache", "etag"}, "canary"),
    ]


def test_the_application_cannot_say_by_its_fields_that_somebody_else_asks(tmp_path: Path) -> None:
    file = flags_file(tmp_path, cache=[{"percentage": 100, "constraints": [within("tenantId", "globex")]}])
    forged = {"tenantId": "globex", "userId": "ben"}
    assert decisions(file, "tenant", [(ANN, forged), (BEN, forged)]) == [(set(), "control"), ({"cache"}, "canary")]


@pytest.mark.parametrize(
    ("unit", "requests", "expected"),
    [
        ("tenant", [(None, {}), (None, {"sessionId": "s"}), (ANN, {})], ["none", "none", "canary"]),
        ("user", [(None, {}), (None, {"sessionId": "s"}), (ANN, {})], ["none", "none", "canary"]),
        ("session", [(None, {}), (ANN, {}), (None, {"sessionId": "s"})], ["none", "none", "canary"]),
    ],
)
def test_without_a_unit_every_layer_is_shut_and_the_cohort_is_none(
    tmp_path: Path, unit: str, requests: list[tuple[User | None, dict[str, str]]], expected: list[str]
) -> None:
    """Though the flag would admit by another field that is known."""
    fields = ("tenantId", "userId", "sessionId")
    file = flags_file(tmp_path, cache=[{"percentage": 100, "stickiness": field} for field in fields])
    found = decisions(file, unit, requests)
    assert [cohort for _, cohort in found] == expected
    assert [opened for opened, _ in found] == [{"cache"} if cohort == "canary" else set() for cohort in expected]


def test_a_percentage_of_sessions_is_drawn_over_sessions(tmp_path: Path) -> None:
    file = flags_file(tmp_path, cache=[{"percentage": 40, "stickiness": "sessionId"}])
    sessions = [f"s{number}" for number in range(60)]
    found = decisions(file, "session", [(ANN, {"sessionId": session}) for session in sessions])
    inside = [normalized("tidegate.cache", session) <= 40 for session in sessions]
    assert [opened == {"cache"} for opened, _ in found] == inside
    assert 5 < sum(inside) < 55
