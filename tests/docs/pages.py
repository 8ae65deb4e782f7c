"""README.md, docs/*.md and examples/README.md, taken apart into what a reader would type or save."""

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Block", "Page"]

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))), "examples/README.md")

_BLOCK = re.compile(r"^```([\w-]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAME = r"[\w./-]+\.(?:py|toml|json|yaml|yml)"
_FIRST_LINE = re.compile(rf"# ({_NAME})\b.*\n")
_NAMED_BEFORE = re.compile(rf"`({_NAME})`[^`\n]*:\s*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block. file: the name to save it under, from a comment in its first line or the line just before."""

    language: str
    text: str
    line: int
    file: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page; `name` is its path in the repository."""

    name: str
    text: str
    blocks: tuple[Block, ...]

    @classmethod
    def of(cls, name: str, text: str | None = None) -> "Page":
        """The page of this name; `text` stands in for what is in the file."""
        if text is None:
            text = (ROOT / name).read_text(encoding="utf-8")
        return cls(name=name, text=text, blocks=tuple(_blocks(text)))

    def of_language(self, *languages: str) -> list[Block]:
        """Its blocks in one of these languages."""
        return [block for block in self.blocks if block.language in languages]

    def saved_as(self, file: str) -> Block:
        """The block with this file name."""
        (found,) = [block for block in self.blocks if block.file == file]
        return found

    def section(self, title: str) -> str:
        """The text below a heading, up to the next one of any level."""
        found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", self.prose, re.MULTILINE | re.DOTALL)
        assert found, f"{self.name} has no section {title!r}"
        return found[1]

    def table(self, title: str) -> list[list[str]]:
        """The cells of the tables in a section, heads and rules apart."""
        lines = [line for line in self.section(title).splitlines() if line.startswith("|")]
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
        rules = {at for at, row in enumerate(rows) if all(re.fullmatch(r":?-+:?", cell) for cell in row)}
        assert rules, f"{self.name}: there is no table below {title!r}"
        return [row for at, row in enumerate(rows) if at not in rules and at + 1 not in rules]

    @property
    def prose(self) -> str:
        """The text without its blocks."""
        return _BLOCK.sub("", self.text)


def _blocks(text: str) -> list[Block]:
    found: list[Block] = []
    for match in _BLOCK.finditer(text):
        language, body = match[1], match[2]
        named = _FIRST_LINE.match(body) or _NAMED_BEFORE.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(language=language, text=body, line=line, file=named[1] if named else None))
    return found
