"""The concrete adapters that the settings name: where flags and stops come from, and where responses are kept."""

import logging
import multiprocessing
from typing import TYPE_CHECKING

from tidegate.errors import ConfigError, Problem
from tidegate.flags import FlagProvider, LocalFlags, PollsNow, Stops
from tidegate.keyfile import ring_reader
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.base import Store
from tidegate.middleware.stores.memory import MemoryStore
from tidegate.settings import Settings
from tidegate.stopping import follow_stops
from tidegate.vocabulary import FLAGS

if TYPE_CHECKING:  # its cryptography comes with the extra `redis`
    from tidegate.middleware.stores.redis import RedisStore
    from tidegate.middleware.stores.seals import Seals

__all__ = ["provider_of", "seals_of", "shared_store_of", "stops_of", "store_of", "warn_worker"]

_log = logging.getLogger("tidegate")


def provider_of(settings: Settings, metrics: Metrics) -> FlagProvider | None:
    flags = settings.flags
    if flags.provider == "none":
        return None
    if flags.provider == "local":
        return LocalFlags(flags.file, poll_interval=min(0.5, flags.poll_interval), on_error=metrics.fail)
    try:
        from tidegate.flags.unleash import UnleashFlags
    except ImportError as error:
        raise _missing_extra("flags.provider", "unleash", "unleash") from error
    if not flags.unleash_token:
        fix = "set TIDEGATE_FLAGS_UNLEASH_TOKEN to a backend token; tidegate flags init --token prints one"
        raise ConfigError("settings", [Problem(path="flags.unleash_token", value="", problem="is empty", fix=fix)])
    return UnleashFlags(
        flags.unleash_url,
        token=flags.unleash_token,
        app_name=flags.app_name,
        poll_interval=flags.poll_interval,
        on_error=metrics.fail,
    )


def stops_of(settings: Settings, provider: FlagProvider | None, metrics: Metrics) -> Stops | None:
    if provider is None:
        return None
    hurry = provider.poll_now if isinstance(provider, PollsNow) else None
    return follow_stops(settings, flags=FLAGS.values(), on_nudge=hurry, on_error=metrics.fail)


def seals_of(settings: Settings, metrics: Metrics) -> "Seals | None":
    """What seals the records of a shared store, if keys are given and there is one."""
    store = settings.store
    read = ring_reader(store) if store.url is not None and store.enabled else None
    if read is None:
        return None
    try:
        from tidegate.middleware.stores.seals import Seals
    except ImportError as error:
        raise _missing_extra("store.url", str(store.url), "redis") from error
    return Seals(read, metrics=metrics)


def store_of(settings: Settings, metrics: Metrics, seals: "Seals | None") -> Store:
    store = settings.store
    if store.url is None or not store.enabled:
        warn_worker(
            "keeps its responses in its own memory: a purge in one worker does not reach the others;"
            " set store.url (REDIS_URL)"
        )
        return MemoryStore(max_bytes=store.max_bytes, metrics=metrics)
    far = shared_store_of(settings, metrics, seals)
    from tidegate.middleware.stores.tiered import in_front_of

    if seals is None:
        _log.warning(
            "the responses in Redis can be read by whoever may read it: give store.key_file or store.keys"
            " (tidegate keys new)"
        )
    return in_front_of(far, max_bytes=store.max_bytes, metrics=metrics)


def shared_store_of(settings: Settings, metrics: Metrics, seals: "Seals | None") -> "RedisStore":
    """The store that `store.url` names."""
    url = str(settings.store.url)
    try:
        from tidegate.middleware.stores.redis import RedisStore
    except ImportError as error:
        raise _missing_extra("store.url", url, "redis") from error
    naming_key = seals.ring.naming_key if seals is not None else b""
    return RedisStore(url, naming_key=naming_key, seals=seals, metrics=metrics)


def warn_worker(told: str) -> None:
    if multiprocessing.parent_process() is not None:
        _log.warning("this worker %s when several workers serve one application", told)


def _missing_extra(path: str, value: str, extra: str) -> ConfigError:
    return ConfigError(
        "settings",
        [
            Problem(
                path=path,
                value=value,
                problem="needs packages that are not here",
                fix=f"pip install 'tidegate[{extra}]'",
            )
        ],
    )
