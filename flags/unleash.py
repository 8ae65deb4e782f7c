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
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from UnleashClient.clients.unleash_client import UnleashClient
from UnleashClient.constants import FEATURES_URL
from UnleashClient.utils import LOGGER, InstanceAllowType

from tidegate.errors import FlagError, Problems
from tidegate.flags.evaluate import FlagContext
from tidegate.flags.provider import Extent, ProviderHealth, Reach
from tidegate.flags.report import OnError, Reporter
from tidegate.flags.ticker import Ticker
from tidegate.flags.unleash_state import StateCache
from tidegate.flags.unleash_usage import send_usage
from tidegate.flags.usage import Unreported, Usage

__all__ = ["UnleashFlags"]

_numbers = itertools.count(1)


class _Sdk(Protocol):
    """What is used of the SDK's client, with the types that it leaves out."""

    def initialize_client(self) -> None: ...

    def is_enabled(self, feature_name: str, context: dict[str, Any]) -> bool: ...

    def get_variant(self, feature_name: str, context: dict[str, Any]) -> dict[str, Any]: ...

    def destroy(self) -> None: ...


class UnleashFlags:
    """A flag provider on one environment of an Unleash server: the one that the token belongs to.

    url: the server's address; `/api` is added if it does not end in it.
    token: a backend token (`project:environment.secret`).
    app_name: under which the application shows in Unleash.
    poll_interval: seconds between two questions for changes.
    request_timeout: seconds until an unanswered request counts as failed; the next poll is its repetition.
    metrics_interval: seconds between two reports of how often the gates found each flag open and shut.
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
        metrics_interval: float = 60.0,
        close_timeout: float = 3.0,
        on_error: OnError | None = None,
    ) -> None:
        seconds = {
            "poll_interval": poll_interval,
            "request_timeout": request_timeout,
            "metrics_interval": metrics_interval,
            "close_timeout": close_timeout,
        }
        _check(url, token, app_name, seconds)
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
        self._cache = StateCache()
        self._unreported = Unreported()
        self._reported_until = datetime.now(UTC)
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
        """Stop polling and report the last usage, within `close_timeout`; the last state stays in force."""
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

        Not reported to Unleash: the gates count what they decide.

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

    def open_as(self, flag: str, context: FlagContext) -> str | None:
        """None if the flag is shut for this context; else its variant in lower case, "" for none.

        Raises:
            UnicodeEncodeError: as `is_enabled`.
        """
        client = self._client
        if client is None or flag not in self._cache.varied:
            return "" if self.is_enabled(flag, context) else None
        for value in context.properties.values():
            value.encode()
        found = client.get_variant(flag, {"properties": context.properties})
        if not found.get("feature_enabled"):
            return None
        return str(found["name"]).lower() if found.get("enabled") else ""

    def reach(self, flag: str) -> Reach:
        """Whom the flag admits, as far as its strategies tell; nobody before the first answer, or if it is unknown."""
        return self._cache.reaches.get(flag, "nobody")

    def extent(self, flag: str) -> Extent | None:
        """How far the flag's only strategy opens it, if that is a gradual rollout."""
        return self._cache.extents.get(flag)

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
            while not stop.wait(self._metrics_interval):
                self._report_usage(self._request_timeout)
            client.destroy()
            self._report_usage(min(self._request_timeout, self._close_timeout))
        except Exception as error:  # noqa: BLE001 - P5: reported; the flags stay as they are
            failed = error
        self._settle(failed)
        if self._stop is stop:  # else it was started again meanwhile
            LOGGER.removeFilter(self._quiet)

    def report_usage(self, usage: Usage) -> None:
        """Report this usage too, from now on; Gates call it."""
        self._unreported.add(usage)

    def _report_usage(self, timeout: float) -> None:
        def send(counts: Mapping[str, tuple[int, int]]) -> bool:
            try:
                send_usage(
                    self._url,
                    {"Authorization": self._token},
                    counts,
                    app_name=self._app_name,
                    instance_id=_instance_id(),
                    since=self._reported_until,
                    timeout=timeout,
                )
            except FlagError as error:
                self._quiet.note(str(error))
                return False
            self._reported_until = datetime.now(UTC)
            return True

        self._unreported.report(send)
        self._tell()

    def _make_client(self) -> _Sdk:
        self._ticker = ticker = Ticker(self._thread_name, self._settle)
        client = UnleashClient(
            self._url,
            self._app_name,
            instance_id=_instance_id(),
            custom_headers={"Authorization": self._token},
            custom_options={"hooks": {"response": self._answered}},
            refresh_interval=cast(int, self._poll_interval),  # fractions work: it becomes a timedelta
            metrics_interval=max(1, round(self._metrics_interval)),  # told at registration
            disable_metrics=True,  # it would count what is asked once and then remembered: see unleash_usage
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
            self._fault = _explained(notes[0])  # the cause; the rest are its echoes
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


def _explained(fault: str) -> str:
    """A refusal with what to do about it; the SDK names the status alone."""
    if fault.rstrip().endswith((": 401", ": 403")):
        return f"{fault.rstrip()}: it does not know the token; give a backend token (TIDEGATE_FLAGS_UNLEASH_TOKEN)"
    return fault


def _instance_id() -> str:
    """Asked for when it is needed: a worker that was forked meanwhile has another process id."""
    return f"{socket.gethostname()}-{os.getpid()}"


def _check(url: str, token: str, app_name: str, seconds: dict[str, float]) -> None:
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
    problems.raise_if_any()
