"""Where failures of the flags go: counted by the application's callback, or logged at most once a second."""

import logging
import time
from collections.abc import Callable

__all__ = ["OnError", "Reporter"]

OnError = Callable[[str, Exception], None]
"""Hears of a failure that a request must not notice: a component's name, and the error. It may be called from any
thread. `tidegate.middleware.metrics.Metrics.fail` is one: it counts and logs."""

_log = logging.getLogger("tidegate.flags")


class Reporter:
    """Tells one component's failures to `on_error`; without one, to the log, at most one line a second (P5)."""

    def __init__(self, component: str, on_error: OnError | None) -> None:
        self._component = component
        self._on_error = on_error
        self._next_line = 0.0
        self._unlogged = 0

    def __call__(self, error: Exception) -> None:
        """Report; never raises, since the threads that watch for flag changes must outlive a broken callback."""
        if self._on_error is not None:
            try:
                self._on_error(self._component, error)
            except Exception:  # noqa: BLE001 - logged here; there is nobody left to tell
                _log.exception("on_error failed for %s: %s", self._component, error)
            return
        now = time.monotonic()
        if now < self._next_line:
            self._unlogged += 1
            return
        more = f" ({self._unlogged} more since the last line)" if self._unlogged else ""
        self._next_line, self._unlogged = now + 1.0, 0
        _log.warning("%s: %s: %s%s", self._component, type(error).__name__, error, more)
