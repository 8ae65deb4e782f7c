"""What is counted of one operation of one store."""

from tidegate.errors import StoreError
from tidegate.middleware.metrics import Metrics, counting, observing

__all__ = ["Meter"]


class Meter:
    """Metrics of an operation, bound once. store: component in metrics and logs."""

    __slots__ = ("_error", "_metrics", "_operation", "_store", "_timeout", "observe", "ok", "rejected")

    def __init__(self, metrics: Metrics, store: str, operation: str) -> None:
        counter = metrics.store_operations
        self._metrics = metrics
        self._store = store
        self._operation = operation
        self.ok = counting(counter.labels(store, operation, "ok"))
        self._error = counter.labels(store, operation, "error").inc
        self._timeout = counter.labels(store, operation, "timeout").inc
        self.rejected = counter.labels(store, operation, "rejected").inc
        self.observe = observing(metrics.store_seconds.labels(store, operation))

    def failed(self, error: Exception, seconds: float) -> None:
        """Count and log a failure. seconds: that the call had."""
        if isinstance(error, TimeoutError):
            self._timeout()
            error = StoreError(f"{self._operation}: no answer within {seconds * 1000:g} ms")
        else:
            self._error()
        self._metrics.fail(self._store, error)
