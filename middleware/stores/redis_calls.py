"""What callers of a connection to Redis wait for: one command each, or keys that several want."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import hiredis

from tidegate.errors import StoreError

__all__ = ["Asked", "Call", "Reads", "Word", "pack"]

Word = bytes | memoryview | str | int
"""One word of a command."""

_hiredis: Any = hiredis  # its annotations say that a command has one word
pack: Final[Callable[[tuple[Word, ...]], bytes]] = _hiredis.pack_command
"""A command as it is sent."""


class Call:
    """One command of one caller."""

    __slots__ = ("_words", "future")
    callers = 1

    def __init__(self, words: tuple[Word, ...], future: asyncio.Future[Any]) -> None:
        self._words = words
        self.future = future

    def packed(self) -> bytes:
        """As it is sent."""
        return pack(self._words)

    @property
    def awaited(self) -> bool:
        """Whether anybody waits for it still."""
        return not self.future.done()

    def resolve(self, reply: Any) -> None:
        """Its reply has come."""
        if self.future.done():
            return
        if isinstance(reply, Exception):
            self.future.set_exception(reply)
        else:
            self.future.set_result(reply)

    def fail(self, told: str) -> None:
        """No reply will come."""
        if not self.future.done():
            self.future.set_exception(StoreError(told))


class Asked(Call):
    """One that was packed before. It is looked at where it stands: most look-ups are of this kind."""

    __slots__ = ("command",)

    def __init__(self, command: bytes, future: asyncio.Future[Any]) -> None:
        self.command = command
        self.future = future

    def packed(self) -> bytes:
        """As it is sent."""
        return self.command


class Reads:
    """The keys that several callers want, each once."""

    __slots__ = ("keys", "waiting")

    def __init__(self) -> None:
        self.keys: dict[bytes, int] = {}
        self.waiting: list[tuple[asyncio.Future[list[Any]], list[int]]] = []

    @property
    def callers(self) -> int:
        return len(self.waiting)

    def packed(self) -> bytes:
        """As it is sent."""
        return pack((b"MGET", *self.keys))

    @property
    def awaited(self) -> bool:
        """Whether anybody waits for it still."""
        return any(not future.done() for future, _ in self.waiting)

    def add(self, keys: Sequence[bytes], future: asyncio.Future[list[Any]]) -> None:
        known = self.keys
        self.waiting.append((future, [known.setdefault(key, len(known)) for key in keys]))

    def resolve(self, reply: Any) -> None:
        """Its reply has come."""
        failed = isinstance(reply, Exception)
        for future, places in self.waiting:
            if future.done():
                continue
            if failed:
                future.set_exception(reply)
            else:
                future.set_result([reply[place] for place in places])

    def fail(self, told: str) -> None:
        """No reply will come."""
        for future, _ in self.waiting:
            if not future.done():
                future.set_exception(StoreError(told))
