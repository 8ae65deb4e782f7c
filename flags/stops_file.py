"""Stop records in a JSON file, for one machine: no server needed.

    {"version": 1, "stops": {"production": {"tidegate.cache": {"stopped": true, "number": …, "since": …}}}}

The file is replaced whole, under a lock, so that nobody reads half of it and no writer loses another's record. A file
that is not there holds no record; one that cannot be read, or is no such file, cannot be used, and whoever has not read
it before keeps its gates shut. A kill puts a good one in its place and keeps the other as `<name>.unusable`.
"""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

from tidegate.errors import FlagError
from tidegate.files import locked, read_whole, replace_whole
from tidegate.flags.stop_records import Seen, StopRecord, encode, next_number

__all__ = ["FileHome"]

MAX_BYTES: Final = 1 << 20
_LOCK_WAIT: Final = 1.0

_Stops = dict[str, dict[str, Any]]


class FileHome:
    """The stop records of one environment in a file.

    path: the file; it need not exist. environment: whose records are read and written.
    """

    def __init__(self, path: str | Path, environment: str) -> None:
        self.path = Path(path)
        self._environment = environment

    def __str__(self) -> str:
        return str(self.path.absolute())

    def read(self, flags: tuple[str, ...]) -> Seen:
        """The records of these flags; none if there is no file.

        Raises:
            FlagError: if the file cannot be used.
        """
        held = self._load().get(self._environment, {})
        return {flag: json.dumps(held[flag]).encode() for flag in flags if flag in held}

    def write(self, record: StopRecord) -> int | None:
        """Put a record in the place of the flag's last one; its number is made here. None: nobody can be told.

        Raises:
            FlagError: if it cannot be written.
        """
        try:
            with locked(self.path, _LOCK_WAIT):
                stops = self._load_or_set_aside()
                held = stops.setdefault(self._environment, {}).get(record.flag)
                number = next_number(time.time(), None if held is None else json.dumps(held).encode())
                written = replace(record, number=number)
                stops[self._environment][record.flag] = json.loads(encode(written))
                # A new one is readable for the workers, who may be another user.
                mode = self.path.stat().st_mode if self.path.exists() else 0o644
                replace_whole(self.path, json.dumps({"version": 1, "stops": stops}, indent=2) + "\n", mode)
        except OSError as error:
            raise FlagError(f"the stop file {self} cannot be written: {error.strerror or error}") from error
        return None

    def close(self) -> None:
        """Nothing is held open."""

    def _load(self) -> _Stops:
        try:
            content = read_whole(self.path, MAX_BYTES)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise FlagError(f"the stop file {self} cannot be read: {error.strerror or error}") from error
        if len(content) > MAX_BYTES:
            raise FlagError(f"the stop file {self} is larger than {MAX_BYTES} bytes")
        try:
            document: object = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise FlagError(f"the stop file {self} is not JSON: {error}") from error
        root = cast(dict[str, Any], document) if isinstance(document, dict) else {}
        stops = root.get("stops")
        if root.get("version") != 1 or not isinstance(stops, dict) or not _all_objects(cast(_Stops, stops)):
            raise FlagError(f'the stop file {self} is none: it must hold {{"version": 1, "stops": {{…}}}}')
        return cast(_Stops, stops)

    def _load_or_set_aside(self) -> _Stops:
        try:
            return self._load()
        except FlagError:
            os.replace(self.path, self.path.with_name(self.path.name + ".unusable"))
            return {}


def _all_objects(stops: _Stops) -> bool:
    return all(isinstance(cast(object, held), dict) for held in stops.values())
