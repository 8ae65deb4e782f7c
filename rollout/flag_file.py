"""The local flag file as those write it who move and make flags (`tidegate.flags.local` reads it and describes it).

Each change is read, modified and replaced whole: a temporary file beside it, flushed to disk, then renamed over it,
under a lock file, so that readers never see half a file and two writers never lose each other's change.
"""

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from tidegate.errors import FlagError

__all__ = ["FlagFile", "JsonObject"]

_LOCK_WAIT = 2.0
"""Seconds to wait for another writer."""

JsonObject = dict[str, Any]


class FlagFile:
    """One flag file. Its methods block."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def load(self) -> JsonObject:
        """The whole document.

        Raises:
            FlagError: if it cannot be read or is no flag file.
        """
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"), object_pairs_hook=_no_duplicates)
        except OSError as error:
            raise FlagError(f"{self.path} could not be read: {error.strerror or error}") from error
        except ValueError as error:
            raise FlagError(f"{self.path} is not a flag file: {error}") from error
        if not isinstance(document, dict) or cast(JsonObject, document).get("version") != 1:
            raise FlagError(f'{self.path} is not a flag file: it does not say "version": 1')
        return cast(JsonObject, document)

    def change(self, change: Callable[[JsonObject], None], *, create: bool = False) -> None:
        """Read, change and replace the document. create: begin with one without flags where there is no file.

        Raises:
            FlagError: if it cannot be read or written; or what `change` raises, and then nothing is written.
        """
        lock = self.path.with_name(self.path.name + ".lock")
        try:
            with _locked(lock):
                new = create and not self.path.exists()
                document: JsonObject = {"version": 1, "flags": {}} if new else self.load()
                change(document)
                # Of a new file the mode is that of the lock file: both are made as the umask wants it.
                mode = (lock if new else self.path).stat().st_mode
                _replace(self.path, json.dumps(document, indent=2, ensure_ascii=False) + "\n", mode)
        except OSError as error:
            raise FlagError(f"{self.path} could not be written: {error.strerror or error}") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise ValueError(f"{name!r} stands there twice")
        made[name] = value
    return made


@contextmanager
def _locked(path: Path) -> Generator[None, None, None]:
    """Hold an exclusive lock on `path`; it goes away with the process, so nobody can leave it behind."""
    with path.open("a") as file:
        deadline = time.monotonic() + _LOCK_WAIT
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.01)
        yield


def _replace(path: Path, text: str, mode: int) -> None:
    """Put `text` in place of the file at once; its mode stays, and a link stays a link."""
    target = Path(os.path.realpath(path))
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode & 0o7777)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
