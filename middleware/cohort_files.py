"""The files in which the workers of one server count: one of each living worker, and one of all dead ones together.

A worker maps its file into memory and holds a lock (flock) on it for as long as it lives, so that a file that can be
locked is that of a dead one. Whoever starts adds the dead ones' counts to `dead.cohorts` and removes their files:
however many workers come and go, there are as many files as live, and those that died since the last start.

Guaranteed: a reader finds every count once and only once, whatever is killed when. The new sum names the files that
went into it and takes the old one's place in one rename; only then are they removed. A reader passes over the files
that the sum names, and begins anew when the sum was replaced while it read.
Not guaranteed: anything after a crash of the machine (nothing is flushed to disk on purpose), or where somebody empties
the folder under living workers. On a file system without flock no file counts as a dead one's, and none is removed.
"""

import fcntl
import json
import math
import mmap
import os
import stat
import struct
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final, Self
from uuid import uuid4

__all__ = ["Labels", "Layout", "Part", "WorkerFile", "compact", "read_all"]

Labels = tuple[str, str, str]

_MAGIC: Final = b"TGCOHRT2"
_HEADER: Final = struct.Struct("<8sI4x")
_SUFFIX: Final = ".cohorts"
_DRAFT: Final = ".new"
_DEAD: Final = f"dead{_SUFFIX}"
_LOCK: Final = "dead.lock"
_MAX_BYTES: Final = 16 * 1024 * 1024
"""A file of 65 series has 10 KiB; what is larger than this is not ours."""
_OLD_DRAFT: Final = 60.0
"""Seconds after which a draft is taken for one whose writer was killed."""
_ATTEMPTS: Final = 100
"""How often a reader begins anew. Each time, some worker has started in the milliseconds that it takes to read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one file holds: for each of `labels` a row of `slots`, one after the other in `counts`.

    holds: names of the files whose counts are in this one.
    """

    labels: Sequence[Labels]
    slots: Sequence[str]
    counts: Sequence[float]
    holds: frozenset[str] = frozenset()

    def rows(self) -> Iterator[tuple[Labels, Sequence[float]]]:
        """Each series with its slots."""
        width = len(self.slots)
        for index, label in enumerate(self.labels):
            yield label, self.counts[index * width : (index + 1) * width]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What stands where in a worker's counts: first a row for each of `labels`, then `groups` rows that count for
    several labels at once, so that one request is one row's matter whatever it counts for.

    labels, slots: as in Part. groups: how many such rows. members: labels that each may count for.
    A group's row begins with its members, each as its label's place plus 1 (0: none), before its slots.
    """

    labels: Sequence[Labels]
    slots: Sequence[str]
    groups: int = 0
    members: int = 0

    @property
    def size(self) -> int:
        """Numbers in all."""
        return len(self.labels) * len(self.slots) + self.groups * (self.members + len(self.slots))

    def group(self, number: int) -> int:
        """Where a group's row begins."""
        return len(self.labels) * len(self.slots) + number * (self.members + len(self.slots))

    def part(self, counts: Sequence[float], holds: frozenset[str] = frozenset()) -> Part:
        """The counts by label: each group's added to those of its members.

        Raises:
            IndexError: if a group names a label that is not there.
        """
        width, members = len(self.slots), self.members
        sums = list(counts[: len(self.labels) * width])
        for number in range(self.groups):
            at = self.group(number)
            if not counts[at]:
                continue  # nor has any that follows it been begun, but that is not for a reader to rely on
            row = counts[at + members : at + members + width]
            for member in counts[at : at + members]:
                if member:
                    start = (range(len(self.labels))[int(member) - 1]) * width
                    sums[start : start + width] = map(float.__add__, sums[start : start + width], row)
        return Part(labels=self.labels, slots=self.slots, counts=sums, holds=holds)


class WorkerFile:
    """The file of this process, mapped: `counts` starts at 0, and what is written there survives `kill -9`."""

    def __init__(self, path: Path, mapped: mmap.mmap, start: int) -> None:
        self.path = path
        self._mapped = mapped
        self.counts = memoryview(mapped)[start:].cast("d")

    @classmethod
    def create(
        cls, directory: Path, labels: Sequence[Labels], slots: Sequence[str], *, groups: int = 0, members: int = 0
    ) -> Self:
        """A file of its own for this process, see Layout; the folder is made if it is missing.

        Raises:
            OSError: if that cannot be.
        """
        directory.mkdir(parents=True, exist_ok=True)
        layout = Layout(labels=labels, slots=slots, groups=groups, members=members)
        head = _head(layout)
        path = directory / f"{os.getpid()}-{uuid4().hex[:8]}{_SUFFIX}"
        draft = path.with_suffix(_DRAFT)
        with draft.open("x+b") as opened:
            # A file system may know no locks: then nobody can take this file for a dead one's either.
            with suppress(OSError):
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            opened.write(head + bytes(layout.size * 8))
            opened.flush()
            # The mapping keeps a descriptor of its own, and with it the lock.
            mapped = mmap.mmap(opened.fileno(), 0)
        draft.rename(path)  # readers see whole files only
        return cls(path, mapped, len(head))

    def close(self) -> None:
        """Let go of the mapping and the lock. The file stays, as a dead worker's."""
        self.counts.release()
        self._mapped.close()


def read_all(directory: Path, *, but: Path | None = None) -> list[Part]:
    """What all files hold together, but for one; what is not ours, or is just being made, is passed over.

    Raises:
        OSError: if the folder cannot be read, or workers start faster than it can be.
    """
    dead = directory / _DEAD
    for _ in range(_ATTEMPTS):
        before = _content(dead)
        whole = _parse(before)
        held = whole.holds if whole is not None else frozenset[str]()
        names = [name for name in _names(directory) if name not in held and (but is None or name != but.name)]
        parts = [part for name in names if (part := _parse(_content(directory / name))) is not None]
        if _content(dead) == before:
            return parts if whole is None else [whole, *parts]
    raise OSError(f"{dead} was replaced {_ATTEMPTS} times while it was read")


def compact(directory: Path, slots: Sequence[str]) -> None:
    """Add up what dead workers have counted, and remove their files.

    Files of other slots (of another version) stay. Somebody else at it already: nothing is done.

    Raises:
        OSError: if a file cannot be read, written or removed. No count is lost by it.
    """
    with _only_one(directory) as mine:
        if mine:
            _compact(directory, slots)


def _compact(directory: Path, slots: Sequence[str]) -> None:
    dead = directory / _DEAD
    whole = _parse(_content(dead))
    if dead.exists() and (whole is None or tuple(whole.slots) != tuple(slots)):
        return  # not ours: everything stays as it is, and is counted as it is
    if whole is not None:
        # Whoever made it was killed before it could remove what it holds.
        _remove(directory, whole.holds)
    parts = {name: part for name in _names(directory) if (part := _of_the_dead(directory / name, slots)) is not None}
    if parts:
        sums = {label: list(row) for label, row in whole.rows()} if whole is not None else {}
        for part in parts.values():
            for label, row in part.rows():
                into = sums.setdefault(label, [0.0] * len(slots))
                into[:] = map(float.__add__, into, row)
        counts = [value for row in sums.values() for value in row]
        draft = dead.with_suffix(_DRAFT)
        draft.write_bytes(
            _head(Layout(labels=list(sums), slots=slots), parts) + struct.pack(f"={len(counts)}d", *counts)
        )
        draft.replace(dead)
        _remove(directory, parts)
    for draft in directory.glob(f"*{_DRAFT}"):
        with suppress(FileNotFoundError):
            if time.time() - draft.stat().st_mtime > _OLD_DRAFT:
                draft.unlink()


@contextmanager
def _only_one(directory: Path) -> Generator[bool]:
    """Whether nobody else is at it. The lock goes with the process that holds it."""
    with (directory / _LOCK).open("a") as lock:
        yield _lock(lock)


def _lock(opened: IO[Any]) -> bool:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _of_the_dead(file: Path, slots: Sequence[str]) -> Part | None:
    """What a file holds whose worker has died, if it is one of ours."""
    if not _is_file(file):
        return None
    with file.open("rb") as opened:
        part = _parse(opened.read(_MAX_BYTES)) if _lock(opened) else None
    return part if part is not None and tuple(part.slots) == tuple(slots) else None


def _remove(directory: Path, names: Collection[str]) -> None:
    for name in names:
        (directory / name).unlink(missing_ok=True)


def _names(directory: Path) -> list[str]:
    """Every worker's file, by name."""
    return sorted(name for name in os.listdir(directory) if name.endswith(_SUFFIX) and name != _DEAD)


def _is_file(file: Path) -> bool:
    """Whether it is an ordinary file: a pipe would keep a reader waiting for ever."""
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except FileNotFoundError:
        return False


def _content(file: Path) -> bytes:
    """A file's bytes; none if it is not there, or is none that we would write."""
    try:
        if _is_file(file) and file.stat().st_size <= _MAX_BYTES:
            return file.read_bytes()
    except OSError:
        pass  # it went, or is not ours to read
    return b""


def _head(layout: Layout, holds: Collection[str] = ()) -> bytes:
    """A file's beginning: it says itself what its numbers mean, so that another version can add them up."""
    told = json.dumps(asdict(layout) | {"holds": sorted(holds)}).encode()
    told += b" " * (-len(told) % 8)
    return _HEADER.pack(_MAGIC, len(told)) + told


def _parse(data: bytes) -> Part | None:
    """A file's content, or None if it is not one of ours and whole."""
    if len(data) < _HEADER.size:
        return None
    magic, length = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        return None
    body = memoryview(data)[_HEADER.size + length :]
    try:
        told = json.loads(data[_HEADER.size :][:length])
        labels = [(str(flag), str(band), str(cohort)) for flag, band, cohort in told["labels"]]
        slots = [str(slot) for slot in told["slots"]]
        layout = Layout(
            labels=labels, slots=slots, groups=int(told.get("groups", 0)), members=int(told.get("members", 0))
        )
        holds = frozenset(str(name) for name in told["holds"] if os.sep not in str(name))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if min(layout.groups, layout.members) < 0 or len(body) != layout.size * 8 or len(set(labels)) != len(labels):
        return None
    counts = body.cast("d")
    if not all(math.isfinite(value) and value >= 0 for value in counts):
        return None
    try:
        return layout.part(counts, holds)
    except IndexError:
        return None
