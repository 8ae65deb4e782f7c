"""What the layers ask of a store, and the records that go into one.

Guarantees asked of every store:
- `get` returns the record last put under the key unless it expired, was evicted, or any of its tags was purged after
  the positions the record carries. It also returns the *current* positions of the scopes asked for: a caller reads
  them before it asks the app and puts them into the entry that it stores, so that a purge between the two wins.
- `purge` is done (every later `get` in this store honours it) or pending (it will be retried; see P4), never lost
  silently.
- Failures are raised as StoreError, never as anything else. `GuardedStore` turns them into misses.
Not guaranteed: that a record which was put can be got (stores evict).
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, Protocol, runtime_checkable

from tidegate.errors import StoreError
from tidegate.middleware.core.records import (
    PUBLIC_SCOPE,
    WHOLE_SCOPE,
    Aim,
    Entry,
    Headers,
    Record,
    ScopedTag,
    Target,
    Variants,
    new_entry,
)

__all__ = [
    "MAX_RETAIN",
    "PUBLIC_SCOPE",
    "WHOLE_SCOPE",
    "Aim",
    "Asks",
    "Bounds",
    "Entry",
    "Headers",
    "Keeps",
    "KeepsAlike",
    "Lookup",
    "MayKeepAlike",
    "Mould",
    "Peeks",
    "Purge",
    "ReadsOnlyError",
    "Reconnects",
    "Record",
    "ScopedTag",
    "Settles",
    "Store",
    "StoreStats",
    "Target",
    "Variants",
    "Waiting",
    "new_entry",
]

MAX_RETAIN: Final = 7 * 24 * 3600.0
"""Seconds that a shared store keeps a record at most, if nobody says otherwise."""


class ReadsOnlyError(StoreError):
    """The store is there and takes no writes at present: no reason to stop reading."""


class Lookup(NamedTuple):
    """What a store found: the record or None, and the positions of the scopes asked for.

    `positions` is None when the store could not tell: then nothing may be stored for this request. `softened`: a soft
    purge made the record stale (`core.softening`); it lies in the store as it was.
    """

    record: Record | None
    positions: Mapping[str, int] | None
    softened: bool = False


@dataclass(frozen=True, slots=True)
class Purge:
    """Outcome of a purge: `done`, or `pending` (accepted here, not yet known everywhere), and how many tags.

    durable: whether a replica has it, so that a failover keeps it. False: not within the time that there was, or the
        purge is pending; it is made again if the failover comes (`docs/coherence.md`). None: there is no replica.
    """

    state: Literal["done", "pending"]
    tags: int
    durable: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """Counts for metrics and `tidegate doctor`. `entries` and `bytes` are None where the store cannot tell cheaply."""

    entries: int | None = None
    bytes: int | None = None
    evictions: int = 0
    rejected: int = 0
    extra: Mapping[str, float] = field(default_factory=dict[str, float])


class Store(Protocol):
    """Where stored responses live. Keys are opaque bytes made by `core.keys`.

    local: calls never wait for anything (memory), so that nobody needs to put a deadline on them.
    """

    @property
    def local(self) -> bool: ...

    async def start(self) -> None:
        """Connect in the background; returns at once and never raises for an unreachable server."""
        ...

    async def aclose(self) -> None:
        """Finish pending writes within a deadline and let go of all resources."""
        ...

    async def get(self, key: bytes, scopes: Sequence[str] = ()) -> Lookup:
        """Look up a record and the positions of `scopes`.

        Raises:
            StoreError: if the store cannot answer.
        """
        ...

    async def put(self, key: bytes, record: Record, *, retain: float) -> bool:
        """Keep a record for `retain` seconds. False if it was refused (too large, over a limit).

        Raises:
            StoreError: if the store cannot answer.
        """
        ...

    async def delete(self, key: bytes) -> None:
        """Forget a record; not an error if it is not there.

        Raises:
            StoreError: if the store cannot answer.
        """
        ...

    async def purge(self, tags: Mapping[str, Sequence[Target]]) -> Purge:
        """Purge tags, given by scope: no entry that carries one of them and was filled before is served again.

        The tag WHOLE_SCOPE stands for all of its scope. An Aim may ask for less: several tags together, or stale.

        Raises:
            StoreError: if the store cannot answer (then the purge did not happen here).
        """
        ...

    def stats(self) -> StoreStats:
        """Counts as they stand now."""
        ...


@runtime_checkable
class Reconnects(Protocol):
    """A store that says when it has a connection again, so that nobody need wait to try."""

    def when_connected(self, told: Callable[[], object]) -> None:
        """Call this whenever a connection has been made."""
        ...


@runtime_checkable
class Settles(Protocol):
    """A store that can say whether a failover would keep a purge."""

    async def settled(self, tags: Mapping[str, Sequence[Target]]) -> bool | None:
        """Whether a purge of these that was done has reached a replica; None: there is none.

        Raises:
            StoreError: if the store cannot answer.
        """
        ...


class Waiting(Protocol):
    """Who looks something up, perhaps more than once."""

    waited: float
    """Seconds that it has waited for the store so far."""


@runtime_checkable
class Bounds(Protocol):
    """A store that bounds how long one request waits for it altogether."""

    def get_for(self, who: Waiting, key: bytes, scopes: Sequence[str] = ()) -> Awaitable[Lookup]:
        """As `get`, within what is left of the time that `who` may wait; adds to it what this took. What fails is told
        as a miss without positions."""
        ...


@runtime_checkable
class Asks(Protocol):
    """A remote store that answers most look-ups after one question to its server."""

    def ask(self, key: bytes, scopes: Sequence[str]) -> tuple[Awaitable[Any], Any] | None:
        """Ask for what `get` would: a future, which nobody else waits for, and what to give to `told` with its result.
        None: it takes more than that.

        Raises:
            StoreError: if it cannot be asked.
        """
        ...

    def told(self, key: bytes, scopes: Sequence[str], about: Any, reply: Any) -> Lookup | None:
        """What `get` would return; None: more is to be asked, `get` does.

        Raises:
            StoreError: as `get`.
        """
        ...

    def refusal(self, error: Exception) -> Exception:
        """What `get` would raise, where the future has failed with this."""
        ...


@runtime_checkable
class Peeks(Protocol):
    """A store that may have something at hand, so that a hit need not wait even for the event loop."""

    def peek(self, key: bytes) -> Record | None:
        """The record that `get` would return now, and as used as if it had; None if it would return none, or only `get`
        can tell. Never waits."""
        ...


@runtime_checkable
class Keeps(Peeks, Protocol):
    """A store that may do at once, without even a turn of the event loop, what `get` and `put` do."""

    def positions(self, scopes: Sequence[str]) -> Mapping[str, int] | None:
        """As `get` gives them; None: only `get` can tell. Where there are some, `peek` knows of every record."""
        ...

    def keep(self, key: bytes, record: Record, *, retain: float) -> bool:
        """As `put`, where `positions` gave some."""
        ...


class Mould(Protocol):
    """What a store keeps entries by that are like one that it has; see `stores.moulds`.

    beginning: of their one tag, which is their URI's. positions: theirs.
    """

    @property
    def beginning(self) -> str: ...

    @property
    def positions(self) -> Mapping[str, int]: ...


class KeepsAlike(Protocol):
    """A store that need not be given an entry, where it is like one that it has."""

    def positions(self, scopes: Sequence[str]) -> Mapping[str, int] | None:
        """As `Keeps` has it."""
        ...

    def mould(self, key: bytes, entry: Entry, positions: Mapping[str, int]) -> Mould | None:
        """For entries that are like this one, which was kept under this key, and have these positions; None: there is
        no such way, or another one lies there by now."""
        ...

    def keep_alike(
        self, mould: Any, key: bytes, end: bytes, etag: bytes, body: bytes, born: float, retain: float,
        digest: bytes | None = None,
    ) -> bool:  # fmt: skip
        """As `Keeps.keep`, of the entry that has this body and ETag, was born then, and is else as the first, but for
        the end of its tag, in UTF-8; its Content-Length is that of the body. False: nothing was done, the store is to
        be given the entry. mould: of the same store. digest: the 16 bytes that the digits of the ETag say, where it is
        such a one and whoever asks knows them (`core.validators.digest_and_etag`).
        """
        ...


@runtime_checkable
class MayKeepAlike(Protocol):
    """Knows of such a store."""

    def alike(self) -> KeepsAlike | None:
        """It is not guarded: whoever asks it for something counts what it raises."""
        ...
