"""What a refusal of Redis means to whoever asked."""

from typing import Final

from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError

from tidegate.errors import StoreError
from tidegate.middleware.stores.base import ReadsOnlyError

__all__ = ["FullError", "told_of"]

_NO_WRITES: Final = ("MISCONF ", "NOREPLICAS ")
"""How a master refuses writes that goes on answering look-ups."""


class FullError(StoreError):
    """Redis is out of memory: it still answers, so this is no reason to stop reading."""


def told_of(error: RedisError) -> StoreError:
    """The same as the layers know it."""
    if isinstance(error, OutOfMemoryError):
        return FullError(str(error))
    if isinstance(error, ReadOnlyError):
        return ReadsOnlyError(f"redis: {error}")
    kind = ReadsOnlyError if str(error).startswith(_NO_WRITES) else StoreError
    return kind(f"redis: {type(error).__name__}: {error}")
