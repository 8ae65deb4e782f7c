"""Joins what people do with flags with its adapters, as the settings say."""

import time
from pathlib import Path

from tidegate.control import check_actuator
from tidegate.errors import FlagError, Problems, RolloutError
from tidegate.operations.desk import Desk
from tidegate.operations.desk_local import LocalDesk
from tidegate.rollout.records import Rollout
from tidegate.rollout.store import Journal
from tidegate.settings import Settings
from tidegate.stopping import stop_of

__all__ = ["make_desk", "owner_of", "refuse_if_owned", "refuse_to_open"]


def make_desk(settings: Settings, environment: str | None = None) -> Desk:
    """Where flags are made and opened.

    Raises:
        ConfigError: if the settings name no source of flags that can be written.
    """
    problems = Problems("settings")
    check_actuator(settings, problems)
    problems.raise_if_any()
    flags = settings.flags
    if flags.provider == "local":
        return LocalDesk(flags.file, environment or flags.environment)
    from tidegate.operations.desk_unleash import UnleashDesk  # it needs the extra `rollout`

    return UnleashDesk(flags.unleash_url, settings.rollout.admin_token, environment or flags.environment)


def owner_of(flag: str, environment: str, settings: Settings) -> Rollout | None:
    """The rollout that owns the flag and is not over, if the journal knows one.

    Raises:
        RolloutError: if the journal is there and cannot be read.
    """
    if not Path(settings.rollout.journal).exists():
        return None
    with Journal(settings.rollout.journal, make=False) as journal:
        owned = [one for one in journal.active() if (one.flag, one.environment) == (flag, environment)]
    return owned[0] if owned else None


async def refuse_to_open(flag: str, environment: str, settings: Settings) -> None:
    """Let nobody open by hand what a rollout moves, or what a person has stopped.

    Raises:
        RolloutError, FlagError: naming rollout or stop and what to do; also where neither can be known.
    """
    refuse_if_owned(flag, environment, settings)
    record = await stop_of(settings, flag, environment)
    if record is not None and record.in_force(time.time()):
        raise FlagError(f"{flag} in {environment} was stopped by {record.by} ({record.reason}): tidegate lift {flag}")


def refuse_if_owned(flag: str, environment: str, settings: Settings) -> None:
    """Let nobody open or shut by hand what a rollout moves.

    Raises:
        RolloutError: naming the rollout and what to do.
    """
    owner = owner_of(flag, environment, settings)
    if owner is not None:
        raise RolloutError(
            f"{flag} in {environment} is moved by the rollout {owner.name} ({owner.state}): "
            f"tidegate rollout abort {owner.name}, or tidegate kill {flag}"
        )
