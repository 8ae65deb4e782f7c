"""What the processes of one run share: a file in memory with the truth and with counters, and files of notes."""

import mmap
import struct
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

__all__ = [
    "ENTITIES",
    "TENANTS",
    "WRITERS",
    "Board",
    "Call",
    "Count",
    "Done",
    "Phase",
    "Source",
    "read_notes",
    "scope_of",
    "write_notes",
    "writer_of",
]

ENTITIES: Final = 60
TENANTS: Final = 6
WRITERS: Final = 2
_PROCESSES: Final = 8


class Phase(IntEnum):
    """What the processes are to do."""

    RUN = 0
    """Read and write."""
    SETTLE = 1
    """Writers end, with nothing pending; readers go on."""
    CHECK = 2
    """Readers ask for everything once more, and end."""


class Count(IntEnum):
    """Counters of a process."""

    READY = 0
    MEMORY = 1
    REDIS = 2
    APP = 3
    PURGES = 4
    PENDING = 5
    REISSUED = 6


class Source(IntEnum):
    """Where an answer came from."""

    MEMORY = 0
    REDIS = 1
    APP = 2


class Call(NamedTuple):
    """One answer to a reader. Times are `time.monotonic()`, which on Linux is one clock for all processes.

    began: when the reader asked.
    proved: all that the server had to tell up to then had reached the reader when it asked: it had sent a PING at that
        time over the same path, had the answer, and some more.
    final: asked after everything had come to rest.
    """

    reader: int
    began: float
    proved: float
    entity: int
    version: int
    source: Source
    final: bool = False


class Done(NamedTuple):
    """A purge of one entity that returned done, and which version the entity had when it was asked for."""

    at: float
    entity: int
    version: int


_CALL: Final = struct.Struct("<BddHIB?")
_DONE: Final = struct.Struct("<dHI")


def scope_of(entity: int) -> str:
    """The scope of an entity's tag."""
    return f"tenant:t{entity % TENANTS}"


def writer_of(entity: int) -> int:
    """Which of the writers changes an entity."""
    return entity % TENANTS % WRITERS


class Board:
    """The shared numbers. Each has one process that writes it."""

    def __init__(self, path: Path) -> None:
        size = 8 * (1 + _PROCESSES * len(Count) + ENTITIES)
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        self._numbers = memoryview(self._map).cast("Q")

    def close(self) -> None:
        """Let go of the file."""
        self._numbers.release()
        self._map.close()

    @property
    def phase(self) -> Phase:
        """What is to be done now."""
        return Phase(self._numbers[0])

    @phase.setter
    def phase(self, phase: Phase) -> None:
        self._numbers[0] = phase

    def count(self, process: int, what: Count) -> int:
        """A process's counter."""
        return self._numbers[1 + process * len(Count) + what]

    def add(self, process: int, what: Count, number: int = 1) -> None:
        """Count; for that process."""
        self._numbers[1 + process * len(Count) + what] += number

    def total(self, what: Count) -> int:
        """Over all processes."""
        return sum(self.count(process, what) for process in range(_PROCESSES))

    def version(self, entity: int) -> int:
        """The truth about an entity."""
        return self._numbers[1 + _PROCESSES * len(Count) + entity]

    def raise_version(self, entity: int) -> int:
        """Change an entity; for its one writer."""
        place = 1 + _PROCESSES * len(Count) + entity
        self._numbers[place] += 1
        return self._numbers[place]


def write_notes(path: Path, notes: "list[Call] | list[Done]") -> None:
    """For `read_notes`; all are of one kind."""
    path.write_bytes(b"".join((_CALL if isinstance(note, Call) else _DONE).pack(*note) for note in notes))


def read_notes(folder: Path) -> tuple[list[Call], list[Done]]:
    """What all processes noted in this folder."""
    calls: list[Call] = []
    purges: list[Done] = []
    for path in folder.glob("*.calls"):
        calls += _calls(path.read_bytes())
    for path in folder.glob("*.purges"):
        purges += [Done(*fields) for fields in _DONE.iter_unpack(path.read_bytes())]
    return calls, purges


def _calls(data: bytes) -> Iterator[Call]:
    for reader, began, proved, entity, version, source, final in _CALL.iter_unpack(data):
        yield Call(reader, began, proved, entity, version, Source(source), final)
