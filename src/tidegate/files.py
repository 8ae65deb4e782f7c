"""Small files that several processes read and change: read whole, replaced whole, one writer at a time."""

import errno
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["locked", "read_whole", "replace_whole"]


def read_whole(path: Path, limit: int) -> bytes:
    """The bytes of a regular file, at most `limit` and one more, so that the caller sees that it is larger.

    Raises:
        OSError: if it cannot be read, or is a pipe or device, whose reading might never end.
    """
    # Without O_NONBLOCK, opening a pipe waits for whoever writes into it.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read(limit + 1)


@contextmanager
def locked(path: Path, wait: float) -> Generator[None]:
    """Hold an exclusive lock on the file beside `path` named like it with `.lock`, which is made if it is not there.

    It goes away with the process, so nobody can leave it behind. wait: seconds for another holder to let go.

    Raises:
        OSError: if it cannot be made, or is held for longer.
    """
    with path.with_name(path.name + ".lock").open("a") as file:
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.01)
        yield


def replace_whole(path: Path, text: str, mode: int) -> None:
    """Put `text` in place of the file at once, surely on the disk; a link stays a link.

    mode: permissions of the new file.

    Raises:
        OSError: if it cannot be written; the old file stays.
    """
    target = Path(os.path.realpath(path))
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode & 0o777)
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
