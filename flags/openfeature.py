"""Flags from any OpenFeature provider, through the OpenFeature SDK (extra `openfeature`).

Guarantees: the provider is initialised in the background, and every flag is shut until it is ready. A flag that it does
not know is shut, and so is one that it fails on; that is reported. While it says that it is stale or broken, the last
it said stays in force and its age shows in `health()`, so that the gates shut what is open for some. A change is in
force with the provider's event, or after `poll_interval` where it tells of none (many do not).

Not guaranteed: that evaluating is quick. OpenFeature's evaluation is one call in this process; a provider that asks a
server for each answer holds up the event loop that long. A decision is remembered, so that happens once a unit and
flag in each `poll_interval`. Nor can OpenFeature say whom a flag admits: every flag may be open for `some`.

Source: https://openfeature.dev/specification
"""

import asyncio
import itertools
import math
import threading
import time

from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import EventDetails, ProviderEvent
from openfeature.exception import ErrorCode
from openfeature.provider import FeatureProvider, ProviderStatus
from openfeature.provider.no_op_provider import NoOpProvider

from tidegate.errors import FlagError, Problems
from tidegate.flags.evaluate import FlagContext
from tidegate.flags.provider import ProviderHealth, Reach
from tidegate.flags.report import OnError, Reporter
from tidegate.flags.ticker import Job

__all__ = ["OpenFeatureFlags"]

_numbers = itertools.count(1)


class OpenFeatureFlags:
    """A flag provider on one OpenFeature provider.

    provider: it gets a domain of its own in the SDK. One that the application has registered too is shared with it,
        and is initialised once.
    poll_interval: seconds for which an answer counts where the provider tells of no change; None: until it does.
    on_error: hears, as "flags.openfeature", of each answer that failed. Default: the log.

    A unit is the targeting key; the context's properties are its attributes. Hooks run as in every OpenFeature client.

    Raises:
        ConfigError: if `poll_interval` is not a positive number.
    """

    def __init__(
        self, provider: FeatureProvider, *, poll_interval: float | None = 2.0, on_error: OnError | None = None
    ) -> None:
        if poll_interval is not None and not 0 < poll_interval < math.inf:
            problems = Problems("OpenFeatureFlags")
            problems.add("poll_interval", poll_interval, "is not a positive number of seconds", "write 2.0, or None")
            problems.raise_if_any()
        self.version = 0
        self._provider = provider
        self._poll_interval = poll_interval
        self._report = Reporter("flags.openfeature", on_error)
        self._domain = f"tidegate-{next(_numbers)}"
        self._client: OpenFeatureClient = api.get_client(self._domain)
        self._changing = threading.Lock()
        self._poll: Job | None = None
        self._was_ready = False
        self._current = False
        self._seen_at = -math.inf
        self._said = ""
        self._fault = "not ready yet"

    async def start(self) -> None:
        """Initialise the provider in the background; returns at once. May be called again after `aclose`."""
        if self._poll is not None:
            return
        for event in ProviderEvent:
            self._client.add_handler(event, self._heard)
        api.set_provider(self._provider, self._domain)
        # A job is made in any case: it also sees the state of a provider that was ready before we listened.
        self._poll = Job(self._looked, self._poll_interval or 1.0, f"{self._domain}-poll")
        self._poll.start()
        self._note_status()

    async def aclose(self) -> None:
        """Let go of the provider; the SDK shuts it down in the background unless the application uses it too.

        Decisions that are remembered stay; what is asked afterwards is shut.
        """
        poll, self._poll = self._poll, None
        if poll is None:
            return
        poll.remove()
        for event in ProviderEvent:
            self._client.remove_handler(event, self._heard)
        api.set_provider(NoOpProvider(), self._domain)
        await asyncio.to_thread(poll.join, 1.0)

    def is_enabled(self, flag: str, context: FlagContext) -> bool:
        """Whether the flag is open for this context; what fails is shut and reported, an unknown flag only shut."""
        asked = EvaluationContext(targeting_key=context.unit, attributes=dict(context.properties))
        answer = self._client.get_boolean_details(flag, False, asked)
        if answer.error_code is None:
            return answer.value
        if answer.error_code != ErrorCode.FLAG_NOT_FOUND:
            self._report(FlagError(f"{flag}: {answer.error_code}: {answer.error_message}"))
        return False

    def reach(self, flag: str) -> Reach:
        """Some, for OpenFeature cannot tell; nobody before the provider is ready."""
        return "some" if self._was_ready else "nobody"

    def health(self) -> ProviderHealth:
        """Ready once the provider was; stale since it last said that it is ready."""
        self._note_status()
        with self._changing:
            staleness = 0.0 if self._current else time.monotonic() - self._seen_at
            return ProviderHealth(ready=self._was_ready, staleness=staleness, detail=self._fault)

    def _heard(self, details: EventDetails) -> None:
        """An event of the provider, in a thread of the SDK, which keeps no order: what counts is the status now."""
        with self._changing:
            self._said = details.message or self._said
            self.version += 1
        self._note_status()

    def _looked(self) -> None:
        self._note_status()
        if self._poll_interval is not None:
            with self._changing:
                self.version += 1

    def _note_status(self) -> None:
        status = self._client.get_provider_status()
        with self._changing:
            ready = status is ProviderStatus.READY
            if ready:
                self._fault = self._said = ""
                if not self._was_ready:
                    self._was_ready = True
                    self.version += 1
            elif self._current:  # it has just left off
                self._seen_at = time.monotonic()
            if not ready:
                self._fault = f"the OpenFeature provider is {status.value}{self._said and f': {self._said}'}"
            self._current = ready
