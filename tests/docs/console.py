"""Console blocks: which commands stand there, and those of them that are only looked at."""

import re
import shlex
import tomllib

from tests.docs.pages import ROOT

__all__ = ["Stumbled", "check_packages", "check_targets", "commands"]


class Stumbled(AssertionError):
    """Something on a page does not work as it stands there."""


def commands(text: str) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines shown below it."""
    found: list[tuple[str, list[str]]] = []
    for line in text.replace("\\\n", " ").splitlines():
        if found and _is_open(found[-1][0]):
            found[-1] = (f"{found[-1][0]}\n{line}", [])
        elif line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        elif line.strip() and found:
            found[-1][1].append(line)
        elif line.strip():
            raise Stumbled(f"{line!r} stands below no command")
    return found


def _is_open(command: str) -> bool:
    """Whether a quotation goes on in the next line."""
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return True
    return False


def check_targets(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        if not re.search(rf"^{re.escape(word)}:", makefile, re.MULTILINE):
            raise Stumbled(f"the Makefile has no target {word}")


def check_packages(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()
    if words[0] != "install" or len(words) < 2:
        raise Stumbled(f"pip {' '.join(words)} installs nothing")
    for word in words[1:]:
        found = re.fullmatch(r"([\w.-]+)(?:\[([\w,]+)\])?", word)
        if found is None:
            raise Stumbled(f"{word} is no package")
        if found[1] in ("tidegate", "."):
            unknown = set((found[2] or "").split(",")) - {"", *project["optional-dependencies"]}
            if unknown:
                raise Stumbled(f"there is no extra {', '.join(sorted(unknown))}")
        elif f"\n{found[1].lower()}==" not in pinned:
            raise Stumbled(f"{found[1]} is not among the constraints")
