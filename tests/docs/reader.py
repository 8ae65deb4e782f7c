"""Somebody who follows a page from top to bottom in an empty folder, and stumbles over everything that is wrong.

What is done with a block, by its language:

| language | what |
|---|---|
| `python` | runs; the blocks of a page share one namespace. `expression  # -> text` is compared (`…`: anything) |
| `toml` | is saved, and read by `Settings.load` |
| `json` | is saved, and read as a flag file |
| `yaml` | is saved, and read as a rollout's spec, if it has steps; another must be YAML |
| `console` | each `$ ` line runs in bash; lines below it must be found in what it prints (`…`: anything) |
| `text` | is for the eye; tests of single pages look at some |

Of `make` and `pip` lines it is only checked that target, extra and package exist. A line that ends with `&`, and
`rollout watch`, go on in the background until the end of the page. Ports are exchanged for free ones.
"""

import ast
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import yaml

from tests.docs.console import Stumbled, check_packages, check_targets, commands
from tests.docs.pages import Block, Page
from tests.services.server import free_port, wait_until
from tidegate import Settings
from tidegate.flags import parse_flags
from tidegate.rollout.loading import load_spec
from tidegate.rollout.store import Journal

__all__ = ["Reader", "Stumbled"]

SECONDS = 20.0
"""Within this time a server is up, a rollout begins, a flag is in force."""

_PORT = re.compile(r"(?<=\w:)(\d{4})\b|(?<=--port )(\d{4})\b")
_ASSIGNMENT = re.compile(r"([A-Z_]+)=\$\((.*)\)$", re.DOTALL)
_SHIMS = {
    "tidegate": '"{python}" -m tidegate.cli "$@"',
    "uvicorn": '"{python}" -m uvicorn "$@"',
    "python3": '"{python}" "$@"',
    "curl": '"{python}" "{curl}" "$@"',
}


class _Running:
    """A command in the background, and what it has printed."""

    def __init__(self, command: str, folder: Path, environ: Mapping[str, str], number: int) -> None:
        self.command = command
        self._log = folder / f".output-{number}"
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                ["bash", "-c", command if command.startswith("while ") else f"exec {command}"],
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def prints(self, text: str) -> None:
        """Wait until it has printed a text."""
        wait_until(lambda: text in self.output or self.process.poll() is not None, SECONDS, f"{self.command}: {text!r}")
        if text not in self.output:
            raise Stumbled(f"{self.command} ended with {self.process.returncode} and printed\n{self.output}")

    def end(self) -> int:
        """Its exit status, having been asked to end if it goes on."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS)


class Reader:
    """Follows one page.

    folder: an empty one, the working directory meanwhile.
    given: variables that a page leaves to its reader (`export TOKEN='…'`).
    ports: port on the page -> port here; others become free ones.
    """

    def __init__(
        self, folder: Path, *, given: Mapping[str, str] | None = None, ports: Mapping[int, int] | None = None
    ) -> None:
        self.folder = folder
        self.namespace: dict[str, Any] = {"__name__": "page", "_claim": _claim}
        self.ports = dict(ports or {})
        self._given = dict(given or {})
        self._running: list[_Running] = []
        self._numbers = itertools.count(1)
        self._left_environ: dict[str, str | None] = {}
        self._shims = folder / ".bin"
        self._shims.mkdir()
        for name, command in _SHIMS.items():
            shim = self._shims / name
            shim.write_text(
                "#!/bin/sh\nexec " + command.format(python=sys.executable, curl=Path(__file__).with_name("curl.py"))
            )
            shim.chmod(0o755)
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("TIDEGATE_", "REDIS_"))},
            "PATH": f"{self._shims}:{os.environ['PATH']}",
            "COLUMNS": "500",
            "PYTHONUNBUFFERED": "1",
        }

    def __enter__(self) -> "Reader":
        self._left_folder = Path.cwd()
        os.chdir(self.folder)
        return self

    def __exit__(self, *failed: object) -> None:
        try:
            self._leave(failed=failed[0] is not None)
        finally:
            for one in self._running:
                one.process.kill()
                one.process.wait()
            for name, value in self._left_environ.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            os.chdir(self._left_folder)

    def follow(self, page: Page) -> None:
        """Do everything that the page says.

        Raises:
            Stumbled: at the first thing that does not work; the message names page and line.
        """
        for block in page.blocks:
            do = getattr(self, f"_{block.language}", None)
            if do is None:
                raise Stumbled(
                    f"{page.name}:{block.line}: no test understands a block of {block.language or 'nothing'}"
                )
            try:
                do(block, page)
            except Exception as error:
                raise Stumbled(f"{page.name}:{block.line}: {type(error).__name__}: {error}") from error

    def text_of(self, block: Block) -> str:
        """A block's text with the ports of this reader."""
        return self.here(block.text)

    def here(self, text: str) -> str:
        """A text with the ports of this reader."""
        return _PORT.sub(lambda found: str(self.port(int(found[0]))), text)

    @property
    def running(self) -> list[subprocess.Popen[bytes]]:
        """The processes that go on in the background."""
        return [one.process for one in self._running]

    # --- files -------------------------------------------------------------------

    def _text(self, _block: Block, _page: Page) -> None:
        """For the eye."""

    def _toml(self, block: Block, _page: Page) -> None:
        Settings.load(str(self._save(block, "tidegate.toml")), {})

    def _json(self, block: Block, _page: Page) -> None:
        path = self._save(block, "flags.json")
        parse_flags(path.read_bytes(), str(path))

    def _yaml(self, block: Block, _page: Page) -> None:
        path = self._save(block, f"line-{block.line}.yaml")
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise Stumbled("is no mapping")
        if "steps" in found:
            load_spec(path)

    def _save(self, block: Block, name: str) -> Path:
        path = self.folder / (block.file or name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.text_of(block), encoding="utf-8")
        return path

    # --- python --------------------------------------------------------------------

    def _python(self, block: Block, page: Page) -> None:
        text = self.text_of(block)
        if block.file:
            self._save(block, block.file)
        tree = ast.parse(text, f"{page.name}, block of line {block.line}")
        claims = _Claims(text)
        tree = ast.fix_missing_locations(claims.visit(tree))
        if claims.left:
            raise Stumbled(f"these claims stand behind no expression: {sorted(claims.left.values())}")
        exec(compile(tree, f"<{page.name}, block of line {block.line}>", "exec"), self.namespace)

    # --- console -------------------------------------------------------------------

    def _console(self, block: Block, _page: Page) -> None:
        for command, shown in commands(self.text_of(block)):
            self.run(command, shown)

    def run(self, command: str, shown: list[str]) -> None:
        """Run one command and compare what it prints."""
        words = shlex.split(command, comments=True)
        if words[0] == "make":
            check_targets(words[1:])
        elif words[0] == "pip":
            check_packages(words[1:])
        elif words[0] == "export":
            self._export(words[1:])
        elif found := _ASSIGNMENT.match(command):
            self.environ[found[1]] = self._bash(found[2]).strip()
            if not self.environ[found[1]]:
                raise Stumbled(f"$ {command}\ngives nothing")
        elif words[0] == "cd":
            self.folder = (self.folder / words[1]).resolve()
            os.chdir(self.folder)
        elif words[-1] == "&" or words[:3] == ["tidegate", "rollout", "watch"]:
            self._begin(words, command.partition(" &")[0].partition("  #")[0].removesuffix("&"))
        elif words[0] in ("tidegate", "curl", "cp"):
            self._until_shown(command, shown, again=words[0] == "curl" and bool(shown))
        else:
            raise Stumbled(f"no test understands $ {command}")

    def _until_shown(self, command: str, shown: list[str], *, again: bool) -> None:
        """What is in force only after a moment is asked for again; a command is not."""
        deadline = time.monotonic() + SECONDS
        while True:
            printed = self._bash(command)
            missing = [line for line in shown if not _is_among(line, printed)]
            if not missing:
                return
            if not again or time.monotonic() > deadline:
                raise Stumbled(f"$ {command}\nprints\n{printed}\nand not\n" + "\n".join(missing))

    def _bash(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise Stumbled(f"$ {command}\nends with {done.returncode} and prints\n{done.stdout}{done.stderr}")
        return done.stdout

    def _export(self, words: list[str]) -> None:
        for word in words:
            name, given, value = word.partition("=")
            if not given:
                continue  # every variable of this reader is exported
            if "…" in value:
                if name not in self._given:
                    raise Stumbled(f"the page leaves {name} to its reader, and this one does not have it")
                value = self._given[name]
            self._left_environ.setdefault(name, os.environ.get(name))
            self.environ[name] = os.environ[name] = Template(value).substitute(self.environ)

    def _begin(self, words: list[str], command: str) -> None:
        for former in [one for one in self._running if words[0] == "uvicorn" and one.command.startswith("uvicorn")]:
            former.end()  # of a page's apps one runs at a time
            self._running.remove(former)
        running = _Running(command, self.folder, self.environ, next(self._numbers))
        self._running.append(running)
        if words[0] == "uvicorn":
            running.prints("Uvicorn running on")
        elif words[:2] == ["tidegate", "controller"]:
            running.prints("holding the lease")
        elif words[:3] == ["tidegate", "rollout", "watch"]:
            # A rollout that opens shows that app, flags, controller and spec of the page fit together.
            running.prints("opened to")
        elif words[0] != "while":
            raise Stumbled(f"no test understands $ {command} &")

    def _leave(self, *, failed: bool) -> None:
        for one in reversed(self._running):
            words = shlex.split(one.command, comments=True)
            if words[:3] == ["tidegate", "rollout", "watch"]:
                with Journal(self.folder / "tidegate-journal.sqlite3", make=False) as journal:
                    state = journal.get(words[3]).state
                if state in ("done", "aborted", "rolled_back"):
                    status, expected = one.process.wait(SECONDS), (int(state != "done"),)
                else:
                    status, expected = one.end(), (-signal.SIGTERM,)
            else:
                status, expected = one.end(), (0,) if words[0] == "tidegate" else (0, -signal.SIGTERM)
            if status not in expected and not failed:
                raise Stumbled(f"$ {one.command}\nends with {status} and prints\n{one.output}")

    def port(self, shown: int) -> int:
        """What stands here for a port on the page."""
        if shown not in self.ports:
            self.ports[shown] = free_port()
        return self.ports[shown]


class _Claims(ast.NodeTransformer):
    """Turns `expression  # -> text` into a comparison."""

    def __init__(self, text: str) -> None:
        self.left = {
            number: line.partition("# -> ")[2].strip()
            for number, line in enumerate(text.splitlines(), 1)
            if "# -> " in line
        }

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        """An expression statement: claimed about if its last line has a claim."""
        claim = self.left.pop(node.end_lineno or 0, None)
        if claim is None:
            return self.generic_visit(node)
        call = ast.Call(func=ast.Name("_claim", ast.Load()), args=[node.value, ast.Constant(claim)], keywords=[])
        return ast.copy_location(ast.Expr(call), node)


def _claim(value: object, claimed: str) -> None:
    if not _pattern(claimed).fullmatch(str(value)):
        raise Stumbled(f"the page says {claimed!r}, and it is {value!r}")


def _pattern(shown: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part.strip()) for part in shown.split("…")), re.DOTALL)


def _is_among(shown: str, printed: str) -> bool:
    return any(_pattern(shown.strip()).fullmatch(line.strip()) for line in printed.splitlines())
