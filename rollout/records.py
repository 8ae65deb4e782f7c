"""What the journal holds, as values: rollouts, intents, lines of the log, commands, the lease."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tidegate.errors import RolloutError
from tidegate.rollout.machine import State
from tidegate.rollout.spec import RolloutSpec

__all__ = ["Command", "ConflictError", "Entry", "Intent", "Lease", "LostLeaseError", "Rollout", "rollout_of"]


class ConflictError(RolloutError):
    """Somebody else changed the rollout in the meantime: read it again."""


class LostLeaseError(RolloutError):
    """Another controller holds the lease: stop writing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """What is about to be done to the flag, written down before it is done.

    do: `begin` turns the flag on, `open` raises the percentage, `shut` turns it off.
    step, percent: what is reached by it. on_request: a person asked for it (abort). at, reason: when it was decided,
        and why.
    """

    do: Literal["begin", "open", "shut"]
    step: int = 0
    percent: int = 0
    on_request: bool = False
    at: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A rollout as the journal has it.

    percent: what the controller last set and read back. opened: when it did. entered: when the present step, or the
        bake, began.
    reason, cause: why it is where it is. memory: the judge's. latest: verdicts and counts of the last tick.
    """

    id: int
    name: str
    flag: str
    environment: str
    spec: RolloutSpec
    state: State
    step: int
    percent: int
    opened: float
    entered: float
    reason: str
    cause: str
    intent: Intent | None
    memory: Mapping[str, Any]
    latest: Mapping[str, Any]
    created: float
    updated: float
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the append-only log."""

    at: float
    kind: str
    came_from: str
    went_to: str
    reason: str
    evidence: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What a person asks of the controller: abort, pause or resume."""

    id: int
    rollout: int
    kind: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to write. token: rises with every new holder."""

    holder: str
    token: int


def rollout_of(row: Mapping[str, Any]) -> Rollout:
    """The rollout in a row of the journal's table.

    Raises:
        RolloutError: if this version cannot read it.
    """
    try:
        return _rollout(row)
    except (ValueError, KeyError, TypeError) as error:
        raise RolloutError(
            f"rollout {row['name']!r} (number {row['id']}) in the journal cannot be read: {error}"
        ) from error


def _rollout(row: Mapping[str, Any]) -> Rollout:
    intent = json.loads(row["intent"])
    return Rollout(
        id=row["id"],
        name=row["name"],
        flag=row["flag"],
        environment=row["environment"],
        spec=RolloutSpec.parse(json.loads(row["spec"]), f"journal, rollout {row['name']}"),
        state=State(row["state"]),
        step=row["step"],
        percent=row["percent"],
        opened=row["opened"],
        entered=row["entered"],
        reason=row["reason"],
        cause=row["cause"],
        intent=Intent(**intent) if intent else None,
        memory=json.loads(row["memory"]),
        latest=json.loads(row["latest"]),
        created=row["created"],
        updated=row["updated"],
        version=row["version"],
    )
