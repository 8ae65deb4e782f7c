"""Log lines of an application that configures no logging: with time, level and the name of who speaks.

Python prints such lines bare (`logging.lastResort`), and uvicorn, left alone, configures only its own loggers. As soon
as a handler is there that a record would reach, on the root or on one of ours, this one is silent: what an application
configures alone counts.
"""

import logging
import sys
from typing import Final

__all__ = ["FORMAT", "LastResort", "speak_up"]

FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class LastResort(logging.Handler):
    """Prints warnings and errors of the logger that it is on to stderr where no other handler would get them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter(FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record, if nobody else does."""
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None:
            if any(handler is not self for handler in logger.handlers):
                return
            logger = logger.parent if logger.propagate else None
        if sys.stderr is None:  # no console
            return
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:  # noqa: BLE001 - P5: a log line must not cost a request; as logging does itself
            self.handleError(record)


def speak_up() -> None:
    """Put one on the logger `tidegate`, once."""
    logger = logging.getLogger("tidegate")
    if not any(isinstance(handler, LastResort) for handler in logger.handlers):
        logger.addHandler(LastResort())
