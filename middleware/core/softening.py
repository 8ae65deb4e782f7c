"""What a soft purge makes of a stored response: stale from then on, to be served while somebody asks the app for a new
one (RFC 5861 3), but never longer than it would have been served without the purge.

How long: for its own stale-while-revalidate; for `SOFT_FOR` if it has none. One that must not be served stale
(must-revalidate and its kin, no-cache: `core.reuse`) is to be validated before it is served again, from the purge on.
"""

from dataclasses import replace
from typing import Final

from tidegate.middleware.core.records import Entry

__all__ = ["SOFT_FOR", "softened"]

SOFT_FOR: Final = 30.0
"""Seconds after a soft purge in which a response without stale-while-revalidate is served while the app is asked."""


def softened(entry: Entry, at: float) -> Entry:
    """The entry, stale since `at` (wall-clock seconds), or since before if it was."""
    lifetime = at - entry.born
    if lifetime >= entry.lifetime:
        return entry
    window = entry.stale_while_revalidate or min(SOFT_FOR, entry.lifetime - lifetime)
    return replace(entry, lifetime=lifetime, stale_while_revalidate=window)
