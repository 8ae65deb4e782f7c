"""Hears of purges where a master of a cluster refuses CLIENT TRACKING: on a channel, on which every purge publishes the
names of the keys that it changed (`redis_purge`).

Guaranteed: what `tracking` guarantees, by the same means. A master tells its subscribers of its own purges as it tells
its followers: in order, over the connection whose heartbeat is answered, or that connection ends. Each master has one
(`tracking_cluster`); that the cluster tells the subscribers of the others too, some time later, changes nothing.
Not guaranteed: that changes are heard which no purge of Tidegate made (a FLUSHALL), nor purges of a user who may follow
the keys and not publish: all processes are to have the same rights.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from tidegate.middleware.stores.ears import Ears, RefusedError
from tidegate.middleware.stores.redis_link import Dial
from tidegate.middleware.stores.redis_purge import EVERYTHING
from tidegate.middleware.stores.tracking import Tracking

__all__ = ["Listening", "Masters"]

_log = logging.getLogger("tidegate")


class Listening(Tracking):
    """Follows the keys of one master as `Tracking` does; listens to the channel while it may not."""

    channel = b""
    not_followed: RefusedError | None = None
    """Why it listens to the channel; None: it need not."""

    async def _tune_in(self, ears: Ears) -> None:
        self.not_followed = None
        try:
            await super()._tune_in(ears)
        except RefusedError as why:
            self.not_followed = why
            try:
                await ears.ask(b"SUBSCRIBE", self.channel)
                # Who may only listen would hear nothing of the purges of others like it.
                await ears.ask(b"PUBLISH", self.channel, b"")
            except RefusedError as error:
                raise RefusedError(f"{why}; and a channel: {error}") from error

    def _heard(self, push: Sequence[Any]) -> None:
        if not push or push[0] != b"message":
            super()._heard(push)
        elif push[2] == EVERYTHING:
            self._void()
        elif push[2]:
            self._changed(push[2].split(b" "))


class Masters:
    """Makes what follows each master, and tells by which of the two it hears.

    prefix: of the keys. channel: its name. asks: the commands of a heartbeat. used: called with "tracking" or "channel"
    and whether it is what tells of purges now. The others as for `Tracking`.
    """

    def __init__(
        self,
        *,
        prefix: bytes,
        channel: bytes,
        changed: Callable[[Sequence[bytes]], None],
        void: Callable[[], None],
        failed: Callable[[Exception], None],
        asks: Sequence[tuple[bytes, ...]],
        used: Callable[[str, bool], None],
        flushed: Callable[[], object] = lambda: None,
    ) -> None:
        self._flushed = flushed
        self._prefix = prefix
        self._channel = channel
        self._changed = changed
        self._void = void
        self._failed = failed
        self._asks = asks
        self._used = used
        self._told = False

    def follow(self, dial: Dial, *, check: Callable[[Sequence[Any]], None]) -> Tracking:
        """Follows one; see `Tracking`."""
        one = Listening(
            dial,
            prefix=self._prefix,
            changed=self._changed,
            void=self._void,
            failed=self._failed,
            asks=self._asks,
            check=check,
            begun=lambda: self._begun(one),
            flushed=self._flushed,
        )
        one.channel = self._channel
        return one

    def _begun(self, one: Listening) -> None:
        why = one.not_followed
        self._used("tracking", why is None)
        self._used("channel", why is not None)
        if why is not None and not self._told:
            self._told = True
            _log.warning("%s; purges are heard on a channel instead", why)
