"""Flags from an Unleash server, through its own SDK (extra `unleash`).

Guarantees: `start` never waits for the server and never fails because of it; until the server has answered once, every
flag is shut. A change is in force one `poll_interval` plus the server's own second after it was made. Whatever happens
to the server later, the last state stays in force and its age shows in `health()`. Two clients never mix their
environments: the SDK's default cache, a folder that all clients of one app name share, is not used.

Not guaranteed: a change while the server cannot be reached. Nor does a forked child follow the flags: start the
provider in each worker, in the app's lifespan.

What the SDK would log at every poll (an ERROR with a traceback while the server is away) goes to `on_error` instead:
one short error per failed poll. Records of other Unleash clients in the process are left alone.
"""

import asyncio
import itertools
import json
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from UnleashClient.cache import BaseCache
from UnleashClient.clients.unleash_client import UnleashClient
from UnleashClient.constants import ETAG, FEATURES_URL
from UnleashClient.utils import LOGGER, InstanceAllowType

from tidegate.errors import FlagError, Problems
from tidegate.flags.evaluate import FlagContext
from tidegate.flags.provider import ProviderHealth, Reach
from tidegate.flags.report import OnError, Reporter
from tidegate.flags.ticker import Ticker

__all__ = ["UnleashFlags"]

_numbers = itertools.count(1)


class _Sdk(Protocol):
    """What is used of the SDK's client, with the types that it leaves out."""

    def initialize_client(self) -> None: ...

    def is_enabled(self, feature_name: str, context: dict[str, Any]) -> bool: ...

    def destroy(self) -> None: ...


class UnleashFlags:
    """A flag provider on one environment of an Unleash server: the one that the token belongs to.

    url: the server's address; `/api` is added if it does not end in it.
    token: a backend token (`project:environment.secret`).
    app_name: under which the application shows in Unleash.
    poll_interval: seconds between two questions for changes.
    request_timeout: seconds until an unanswered request counts as failed; the next poll is its repetition.
    metrics_interval: whole seconds between two reports of how often each flag was asked for.
    close_timeout: seconds that `aclose` waits for the last report; a server that hangs is left to a daemon thread.
    on_error: hears, as "flags.unleash", of each request that failed. Default: the log.

    Raises:
        ConfigError: naming every argument that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str,
        app_name: str = "tidegate",
        poll_interval: float = 2.0,
        request_timeout: float = 5.0,
        metrics_interval: int = 60,
        close_timeout: float = 3.0,
        on_error: OnError | None = None,
    ) -> None:
        seconds = {"poll_interval": poll_interval, "request_timeout": request_timeout, "close_timeout": close_timeout}
        _check(url, token, app_name, seconds, metrics_interval)
        self.version = 0
        self._url = url.rstrip("/") if url.rstrip("/").endswith("/api") else url.rstrip("/") + "/api"
        self._token = token
        self._app_name = app_name
        self._poll_interval = poll_interval
        self._request_timeout = request_timeout
        self._metrics_interval = metrics_interval
        self._close_timeout = close_timeout
        self._report = Reporter("flags.unleash", on_error)
        self._thread_name = f"tidegate-unleash-{next(_numbers)}"
        self._counting = threading.Lock()
        self._cache = _Cache()
        self._quiet = _Quiet(self._thread_name)
        self._client: _Sdk | None = None
        self._ticker: Ticker | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._seen_at = -math.inf
        self._fault = f"no answer from {self._url} yet"

    async def start(self) -> None:
        """Connect in the background; returns at once.

        May be called again after `aclose`, and in a forked child, which has no polling thread.
        """
        if self._thread is not None and self._thread.is_alive() and not self._stop.is_set():
            return
        self._stop = stop = threading.Event()
        LOGGER.addFilter(self._quiet)
        self._thread = threading.Thread(
            target=self._live, args=(stop,), name=f"{self._thread_name}-client", daemon=True
        )
        self._thread.start()

    async def aclose(self) -> None:
        """Stop polling and send the last usage report, within `close_timeout`; the last state stays in force."""
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, self._close_timeout)

    def poll_now(self) -> None:
        """Ask the server for changes now; nothing before the first answer. Returns at once; from any thread."""
        ticker = self._ticker
        if ticker is not None:
            ticker.hurry()

    def is_enabled(self, flag: str, context: FlagContext) -> bool:
        """Whether the flag is open for this context; False before the first answer, and for an unknown flag.

        Raises:
            UnicodeEncodeError: if a value holds a lone surrogate, which cannot be sent through the engine.
        """
        client = self._client
        if client is None:
            return False
        for value in context.properties.values():
            value.encode()
        # The engine looks for userId, sessionId and remoteAddress among the properties too.
        return client.is_enabled(flag, {"properties": context.properties})

    def reach(self, flag: str) -> Reach:
        """Whom the flag admits, as far as its strategies tell; nobody before the first answer, or if it is unknown."""
        return self._cache.reaches.get(flag, "nobody")

    def health(self) -> ProviderHealth:
        """Ready once the server has given its flags; stale since it last answered a poll well (200 or 304)."""
        return ProviderHealth(ready=self.version > 0, staleness=time.monotonic() - self._seen_at, detail=self._fault)

    def _live(self, stop: threading.Event) -> None:
        """The life of one SDK client, in a thread of its own."""
        failed: Exception | None = None
        try:
            # Set before the first answer: a decision made in between is then never older than its version.
            self._client = client = self._make_client()
            client.initialize_client()
            self._settle(None)
            stop.wait()
            client.destroy()
        except Exception as error:  # noqa: BLE001 - P5: reported; the flags stay as they are
            failed = error
        self._settle(failed)
        if self._stop is stop:  # else it was started again meanwhile
            LOGGER.removeFilter(self._quiet)

    def _make_client(self) -> _Sdk:
        self._ticker = ticker = Ticker(self._thread_name, self._settle)
        client = UnleashClient(
            self._url,
            self._app_name,
            # Made here, not in __init__: a worker that was forked in between has another process id.
            instance_id=f"{socket.gethostname()}-{os.getpid()}",
            custom_headers={"Authorization": self._token},
            custom_options={"hooks": {"response": self._answered}},
            refresh_interval=cast(int, self._poll_interval),  # fractions work: it becomes a timedelta
            metrics_interval=self._metrics_interval,
            request_timeout=cast(int, self._request_timeout),
            request_retries=0,
            cache=self._cache,
            scheduler=cast(Any, ticker),
            scheduler_executor="job",
            multiple_instance_mode=InstanceAllowType.SILENTLY_ALLOW,
        )
        return cast(_Sdk, client)

    def _answered(self, response: Any, *_args: Any, **_kwargs: Any) -> None:
        """The SDK has got a response, of whatever kind; called in the thread that asked."""
        if urlsplit(str(response.url)).path.endswith(FEATURES_URL) and response.status_code in (200, 304):
            self._tell()  # what failed before (the registration) does not make this answer a bad one
            self._quiet.local.answered_at = time.monotonic()

    def _settle(self, failed: Exception | None) -> None:
        """A poll, a usage report or the start has ended; called in the thread that did it."""
        answered_at: float | None = getattr(self._quiet.local, "answered_at", None)
        self._quiet.local.answered_at = None
        if failed is not None:
            self._quiet.note(f"{type(failed).__name__}: {failed}")
        if answered_at is not None:
            if self._cache.refused:
                self._quiet.note(self._cache.refused)
            with self._counting:  # the first poll may end while the start does
                if self._cache.take_change():
                    self.version += 1  # after the engine has the state, so that no old answer is kept as a new one
            if not self._quiet.notes():
                self._seen_at, self._fault = answered_at, ""
        self._tell()

    def _tell(self) -> None:
        notes = self._quiet.notes()
        if notes:
            self._fault = notes[0]  # the cause; the rest are its echoes
            notes.clear()
            self._report(FlagError(f"{self._url}: {self._fault}"))


class _Quiet(logging.Filter):
    """Keeps what the SDK says in our threads out of the log, and notes its warnings and errors per thread."""

    def __init__(self, thread_name: str) -> None:
        super().__init__()
        self._thread_name = thread_name
        self.local = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        if not threading.current_thread().name.startswith(f"{self._thread_name}-"):
            return True
        if record.levelno >= logging.WARNING:
            self.note(record.getMessage())
        return False

    def note(self, text: str) -> None:
        self.notes().append(text)

    def notes(self) -> list[str]:
        """What went wrong in this thread since it was last told."""
        found: list[str] | None = getattr(self.local, "notes", None)
        if found is None:
            found = self.local.notes = []
        return found


class _Cache(BaseCache):
    """The SDK's cache, in memory, one per provider. The engine reads its state from here, so bad states end here.

    refused: why the last body was not taken; empty if it was.
    reaches: whom each flag of the last state admits.
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._changed = False
        self.refused = ""
        self.reaches: Mapping[str, Reach] = {}

    def set(self, key: str, value: Any) -> None:
        if key == FEATURES_URL:
            # A 200 without an ETag would leave the former one in force, and the next 304 the wrong state with it.
            self._values[ETAG] = ""
            self.refused = self._take(value)
        elif key == ETAG and self.refused:
            return  # else the next poll would be a 304 for what was not taken
        else:
            self._values[key] = value

    def _take(self, body: str) -> str:
        try:
            features: list[dict[str, Any]] = json.loads(body)["features"]
            reaches: dict[str, Reach] = {feature["name"]: _reach(feature) for feature in features}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return f"an answer that is no list of flags ({type(error).__name__}: {error})"
        if self.reaches and not reaches:
            return f"an answer without any flag, after one with {len(self.reaches)}; the last state is kept"
        self._values[FEATURES_URL] = body
        self.reaches, self._changed = reaches, True
        self.bootstrapped = True  # a later client of this provider begins with the last state
        return ""

    def take_change(self) -> bool:
        """Whether a new state arrived since the last call."""
        changed, self._changed = self._changed, False
        return changed

    def mset(self, data: dict[str, Any]) -> None:
        for key, value in data.items():
            self.set(key, value)

    def get(self, key: str, default: Any = None) -> Any:
        return self._values.get(key, default)

    def exists(self, key: str) -> Any:
        return key in self._values

    def destroy(self) -> None:
        """Nothing to remove: the memory goes with the client."""


def _reach(feature: dict[str, Any]) -> Reach:
    """Whom a flag, as the client API gives it, may admit: nobody where that is certain, everybody likewise."""
    strategies: list[dict[str, Any]] = feature["strategies"]
    if not feature["enabled"] or (bool(strategies) and all(_rollout(strategy) == "0" for strategy in strategies)):
        return "nobody"
    if feature.get("dependencies"):
        return "some"
    if not strategies or any(
        not strategy.get("constraints")
        and not strategy.get("segments")
        and (strategy["name"] == "default" or _rollout(strategy) == "100")
        for strategy in strategies
    ):
        return "everybody"
    return "some"


def _rollout(strategy: dict[str, Any]) -> object:
    parameters: dict[str, Any] = strategy.get("parameters") or {}
    return parameters.get("rollout") if strategy["name"] == "flexibleRollout" else None


def _check(url: str, token: str, app_name: str, seconds: dict[str, float], metrics_interval: int) -> None:
    problems = Problems("UnleashFlags")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        problems.add("url", url, "is not an http address", "write https://unleash.example.com/api")
    if not token:
        problems.add("token", token, "is empty", "give a backend token of the environment to follow")
    elif not token.isascii() or not token.isprintable():
        problems.add("token", "(not shown)", "holds characters that no header can carry", "copy it again")
    if not app_name:
        problems.add("app_name", app_name, "is empty", "name the application as Unleash should show it")
    for name, value in seconds.items():
        if not 0 < value < math.inf:
            problems.add(name, value, "is not a positive number of seconds", "write 2.0")
    if type(metrics_interval) is not int or metrics_interval < 1:
        problems.add("metrics_interval", metrics_interval, "is not a whole number of seconds", "write 60")
    problems.raise_if_any()
