"""The local flag file as those write it who move and make flags (`tidegate.flags.local` reads it and describes it).

Each change is read, modified and replaced whole: a temporary file beside it, flushed to disk, then renamed over it,
under a lock file, so that readers never see half a file and two writers never lose each other's change.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from tidegate.errors import FlagError
from tidegate.files import locked, read_whole, replace_whole

__all__ = ["FlagFile", "JsonObject"]

MAX_BYTES = 1 << 20
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
            content = read_whole(self.path, MAX_BYTES)
            if len(content) > MAX_BYTES:
                raise FlagError(f"{self.path} is larger than {MAX_BYTES} bytes")
            document = json.loads(content.decode("utf-8"), object_pairs_hook=_no_duplicates)
        except OSError as error:
            raise FlagError(f"{self.path} could not be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise FlagError(f"{self.path} is not a flag file: {error}") from error
        if not isinstance(document, dict) or cast(JsonObject, document).get("version") != 1:
            raise FlagError(f'{self.path} is not a flag file: it does not say "version": 1')
        return cast(JsonObject, document)

    def change(self, change: Callable[[JsonObject], None], *, create: bool = False) -> None:
        """Read, change and replace the document. create: begin with one without flags where there is no file.

        Raises:
            FlagError: if it cannot be read or written; or what `change` raises, and then nothing is written.
        """
        try:
            with locked(self.path, _LOCK_WAIT):
                new = create and not self.path.exists()
                document: JsonObject = {"version": 1, "flags": {}} if new else self.load()
                change(document)
                # Of a new file the mode is that of the lock file: both are made as the umask wants it.
                mode = (self.path.with_name(self.path.name + ".lock") if new else self.path).stat().st_mode
                replace_whole(self.path, json.dumps(document, indent=2, ensure_ascii=False) + "\n", mode)
        except OSError as error:
            raise FlagError(f"{self.path} could not be written: {error.strerror or error}") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise ValueError(f"{name!r} stands there twice")
        made[name] = value
    return made
