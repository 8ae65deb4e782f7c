"""What `tidegate doctor` asks about the rest: settings, extras, the store, metrics, the controller."""

import asyncio
import json
import os
import time
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from tidegate.errors import MetricsError, StoreError
from tidegate.keyfile import is_readable_by_others, ring_reader
from tidegate.operations.asking import Unanswered, ask
from tidegate.operations.doctor import SECTIONS, Finding, ProbeError
from tidegate.operations.probes_flags import resolved
from tidegate.settings import FlagSettings, Settings, variable_names
from tidegate.stopping import in_thread
from tidegate.vocabulary import COHORT_REQUESTS

__all__ = ["app_metrics", "controller", "extras", "keys", "metrics_folder", "prometheus", "store", "variables"]

_ANSWER_SECONDS: Final = 2.5
_GET_SECONDS: Final = 2.75
"""For an HTTP request in a thread: a little more than its own time, whose error says more."""
_STALENESS: Final = "tidegate_flags_staleness_seconds"
_MAX_BYTES: Final = 16 * 1024 * 1024

_EXTRAS: Final[Mapping[str, tuple[str, ...]]] = {
    "redis": ("redis", "msgpack", "cryptography"),
    "unleash": ("UnleashClient",),
    "rollout": ("httpx2", "yaml", "rich", "uvicorn"),
    "otel": ("opentelemetry",),
}
_SAFE_POLICIES: Final = ("noeviction", "volatile-")


def variables(path: str | None, environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """Where the settings come from. Names only: what is in them may be secret."""
    named = path or environ.get("TIDEGATE_CONFIG")
    file = Path(named or "tidegate.toml")
    known = ("REDIS_URL", "REDIS_ENABLED", "REDIS_DEFAULT_TTL", "CACHE_VERSION", "PROMETHEUS_MULTIPROC_DIR")
    given = sorted(name for name in environ if name.startswith("TIDEGATE_") or name in known)
    told = [str(file) if file.exists() else f"no {file}", *given]
    if named and not file.exists():
        text = f"{file} was asked for and is not there: what follows is about the defaults, not about your settings"
        return [Finding(level="warn", about="settings", text=text), *_unread(given)]
    return [Finding(level="ok", about="settings", text=f"from {', '.join(told)}"), *_unread(given)]


def _unread(given: Sequence[str]) -> list[Finding]:
    """Variables that look like settings and are none. Not refused: Kubernetes makes such of a service's name."""
    known = variable_names()
    sections = tuple(f"TIDEGATE_{section}_".upper() for section in SECTIONS)
    found: list[Finding] = []
    for name in given:
        near = get_close_matches(name, known, n=1, cutoff=0.8)
        if name not in known and (near or name.startswith(sections)):
            fix = f"did you mean {near[0]}?" if near else "see the settings in docs/mounting.md"
            found.append(Finding(level="warn", about="settings", text=f"{name} is no setting, and not read", fix=fix))
    return found


async def extras(settings: Settings) -> list[Finding]:
    """Which extras are installed, and which of the missing ones the settings ask for."""
    have = {extra: all(find_spec(name) is not None for name in names) for extra, names in _EXTRAS.items()}
    needed = {
        "redis": settings.store.url is not None and settings.store.enabled,
        "unleash": settings.flags.provider == "unleash",
    }
    found = [
        Finding(level="FAIL", about="extras", text=f"{extra} is missing", fix=f"pip install 'tidegate[{extra}]'")
        for extra, wanted in needed.items()
        if wanted and not have[extra]
    ]
    installed = ", ".join(extra for extra, there in have.items() if there) or "none"
    return found or [Finding(level="ok", about="extras", text=f"installed: {installed}")]


async def store(settings: Settings) -> list[Finding]:
    """Whether the store answers, and whether its server may throw purge stamps away."""
    given = settings.store
    if given.url is None or not given.enabled:
        told = "each process's own memory: a purge holds for the process that is asked"
        several = _workers() > 1
        fix = "set store.url: several workers share one Redis" if several else ""
        return [Finding(level="warn" if several else "ok", about="store", text=told, fix=fix)]
    url = given.url
    policies = await in_thread(lambda: _policies(url), _ANSWER_SECONDS, f"the store at {url}")
    wrong = [told for told in policies if isinstance(told, Finding)]
    if wrong:
        return wrong
    for policy in map(str, policies):
        if not policy.startswith(_SAFE_POLICIES):
            told = f"{url} answers, but maxmemory-policy {policy} may evict purge stamps"
            return [Finding(level="FAIL", about="store", text=told, fix="set noeviction or one of volatile-*")]
    servers = f" from {len(policies)} servers" if len(policies) > 1 else ""
    return [
        Finding(
            level="ok",
            about="store",
            text=f"{url} answers{servers}, maxmemory-policy {', '.join({*map(str, policies)})}",
        )
    ]


async def keys(settings: Settings) -> list[Finding]:
    """Whether what lies in Redis is sealed, and whether the keys are kept as keys are."""
    given = settings.store
    if given.url is None or not given.enabled:
        return []
    read = ring_reader(given)
    if read is None:
        told = "none: whoever may read Redis can read the responses"
        found = await _held(settings)
        return found or [
            Finding(level="warn", about="keys", text=told, fix="tidegate keys new FILE, and store.key_file")
        ]
    ring = await in_thread(read, _ANSWER_SECONDS, "the keys")
    found = await _held(settings)
    if not ring.naming_key:
        told = "no naming key: names of tenants can be guessed by whoever may read Redis"
        found.append(Finding(level="warn", about="keys", text=told, fix="tidegate keys new --print shows one"))
    if given.key_file is not None and is_readable_by_others(Path(given.key_file)):
        told = f"{given.key_file} may be read by others"
        found.append(Finding(level="FAIL", about="keys", text=told, fix=f"chmod 600 {given.key_file}"))
    sealing = ring.sealing(time.time()).id.hex()
    told = f"{len(ring.keys)}, of which {sealing} seals; see tidegate keys check"
    return found or [Finding(level="ok", about="keys", text=told)]


async def _held(settings: Settings) -> list[Finding]:
    """Whether the records that lie there are sealed with other keys, or with none: purges would reach nothing."""
    from prometheus_client import CollectorRegistry

    from tidegate.adapters import seals_of, shared_store_of
    from tidegate.middleware.metrics import Metrics

    metrics = Metrics.of(CollectorRegistry())
    store = shared_store_of(settings, metrics, seals_of(settings, metrics))
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            held = await store.held(thorough=True)
    except (StoreError, TimeoutError):
        return []  # the line of the store tells of it
    finally:
        await store.aclose()
    if (problem := held.problem()) is None:
        return []
    told = f"{problem.path} {problem.problem}"
    return [Finding(level="warn" if held.unreached() is None else "FAIL", about="keys", text=told, fix=problem.fix)]


def _policies(url: str) -> list[str | Finding]:
    """What each server that takes writes evicts when it is full; or that it takes none."""
    import redis
    from redis.exceptions import RedisClusterException

    from tidegate.redis_client import is_replica, memory_of, open_client

    try:
        client = open_client(url, timeout=_ANSWER_SECONDS)
    except RedisClusterException as error:
        told = f"the store at {url}: {str(error).rstrip('.')}"
        raise ProbeError(
            told, "is it a cluster? store.url (REDIS_URL) of a single server begins with redis://"
        ) from error
    except redis.RedisError as error:
        raise _unreachable(url, error) from error
    try:
        if is_replica(client):
            told = f"{url} is a replica: nothing can be stored or purged there"
            return [Finding(level="FAIL", about="store", text=told, fix="name its master in store.url (REDIS_URL)")]
        return [_policy(url, memory) for memory in memory_of(client)]
    except redis.RedisError as error:
        raise _unreachable(url, error) from error
    finally:
        client.close()


def _policy(url: str, memory: Mapping[str, Any]) -> str | Finding:
    policy = str(memory.get("maxmemory_policy", "unknown"))
    most = int(memory.get("maxmemory", 0))
    if policy == "noeviction" and 0 < most <= int(memory.get("used_memory", 0)):
        told = f"{url} is full (maxmemory {most}): nothing is stored, and purges pend"
        return Finding(level="FAIL", about="store", text=told, fix="raise maxmemory, or set one of volatile-*")
    return policy


def _unreachable(url: str, error: Exception) -> StoreError:
    told = str(error).rstrip(".")
    return StoreError(f"the store at {url}: {told}; is it running there, and is store.url (REDIS_URL) right?")


async def prometheus(settings: Settings) -> list[Finding]:
    """Whether Prometheus answers, and whether it has ever seen an app of ours."""
    given = settings.rollout
    if given.prometheus_url is None:
        if given.metrics_urls:
            return []
        told, fix = "none: the controller has nothing to judge by", "set rollout.prometheus_url or rollout.metrics_urls"
        return [Finding(level="warn", about="metrics", text=told, fix=fix)]
    url = given.prometheus_url.rstrip("/")
    document = await _get(f"{url}/api/v1/query?query=count({COHORT_REQUESTS})")
    try:
        result = json.loads(document)["data"]["result"]
    except (ValueError, LookupError, TypeError) as error:
        raise MetricsError(f"{url} answers, but not as Prometheus does") from error
    if not result:
        told = f"{url} answers, but has no {COHORT_REQUESTS}"
        return [Finding(level="warn", about="Prometheus", text=told, fix="let it scrape the app's /metrics")]
    return [Finding(level="ok", about="Prometheus", text=f"{url} answers and knows the app")]


async def app_metrics(settings: Settings) -> list[Finding]:
    """Whether the app's /metrics answer, and how old its flags are."""
    found: list[Finding] = []
    for url in settings.rollout.metrics_urls:
        try:
            found.append(_judged(url, await _get(url), settings.flags))
        except MetricsError as error:
            found.append(Finding(level="FAIL", about="app", text=str(error), fix="is the app running?"))
    return found


def _judged(url: str, text: str, flags: FlagSettings) -> Finding:
    from prometheus_client.parser import text_string_to_metric_families

    ages: list[float] = []
    counted = ours = False
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                ours |= sample.name.startswith("tidegate_")
                counted |= sample.name == COHORT_REQUESTS
                if sample.name == _STALENESS:
                    ages.append(sample.value)
    except ValueError as error:
        raise MetricsError(f"{url} answers, but not with metrics: {error}") from error
    if not counted:
        told = f"{url} has no {COHORT_REQUESTS}: nothing to judge by"
        fix = "mount Tidegate's metrics_app there"
        if flags.provider == "none":
            fix = "set flags.provider: without flags nobody is counted"
        elif ours:  # it is mounted
            fix = "the app that answers runs without flags: start it anew with these settings (flags.provider)"
        return Finding(level="FAIL", about="app", text=told, fix=fix)
    if ages and max(ages) > flags.max_staleness:
        told = f"{url}: its flags are {max(ages):.0f} s old, so partly open ones are shut"
        return Finding(level="FAIL", about="app", text=told, fix="can the app reach its source of flags?")
    age = f", flags {max(ages):.0f} s old" if ages else ""
    return Finding(level="ok", about="app", text=f"{url} answers{age}")


async def _get(url: str) -> str:
    await resolved(url)
    try:
        answer = await in_thread(lambda: ask("GET", url, timeout=_ANSWER_SECONDS, limit=_MAX_BYTES), _GET_SECONDS, url)
    except Unanswered as error:
        raise MetricsError(f"{url} could not be asked: {error}") from error
    if answer.status != 200 or not answer.whole:
        raise MetricsError(f"{url} answered {answer.status} with {len(answer.body)} bytes")
    return answer.body.decode("utf-8", "replace")


async def metrics_folder(settings: Settings) -> list[Finding]:
    """Whether the cohort counters of several workers come together."""
    folder = settings.telemetry.metrics_dir
    if folder is None:
        if _workers() > 1:
            told = f"WEB_CONCURRENCY is {_workers()}, but each worker counts alone"
            fix = "set telemetry.metrics_dir (PROMETHEUS_MULTIPROC_DIR)"
            return [Finding(level="FAIL", about="metrics_dir", text=told, fix=fix)]
        told = "none: right for one worker; several need telemetry.metrics_dir"
        return [Finding(level="ok", about="metrics_dir", text=told)]
    path = Path(folder)

    def usable() -> bool:
        return path.is_dir() and os.access(path, os.W_OK | os.X_OK)

    if await in_thread(usable, _ANSWER_SECONDS, f"the folder {path}"):
        return [Finding(level="ok", about="metrics_dir", text=f"{path} can be written")]
    return [Finding(level="FAIL", about="metrics_dir", text=f"{path} cannot be written", fix="make that folder")]


async def controller(settings: Settings) -> list[Finding]:
    """Whether somebody attends to the rollouts that are not over."""
    from tidegate.rollout.store import Journal

    path = settings.rollout.journal

    def look() -> tuple[str | None, list[str]] | None:
        if not Path(path).exists():
            return None
        with Journal(path, make=False) as journal:
            return journal.holder(time.time()), [rollout.name for rollout in journal.active()]

    seen = await in_thread(look, _ANSWER_SECONDS, f"the journal {path}")
    if seen is None:
        return [Finding(level="ok", about="controller", text=f"no journal {path} yet: no rollout was ever started")]
    holder, active = seen
    if holder is None and active:
        told = f"none runs on {path}, though {', '.join(active)} is not over"
        return [Finding(level="FAIL", about="controller", text=told, fix="tidegate controller")]
    told = f"{holder} holds the lease" if holder else "none runs, and no rollout needs one"
    return [Finding(level="ok", about="controller", text=f"{told} ({path})")]


def _workers() -> int:
    text = os.environ.get("WEB_CONCURRENCY", "1")
    return int(text) if text.isascii() and text.isdigit() else 1
