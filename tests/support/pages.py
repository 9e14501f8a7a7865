"""The blocks of code in README.md and docs/, for tests that run them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w+)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced code block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file name in its first line: `# launch_plans/train.yaml`; None if it has none."""
        found = re.match(r"# ([\w./-]+\.\w+)(?=[ ,\n]|$)", self.text)
        return found[1] if found else None

    @property
    def commands(self) -> list[str]:
        """The commands after `$ `, each joined with its continuation lines."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


def pages() -> list[Path]:
    """README.md and all pages of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    """The page's blocks in these languages, in the order of the page."""
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        if found["language"] in languages:
            indent = len(found["indent"])
            body = "".join(line[indent:] for line in found["text"].splitlines(keepends=True))
            line = text.count("\n", 0, found.start()) + 1
            yield Block(page.relative_to(ROOT).as_posix(), line, found["language"], body)


def words(command: str) -> list[str]:
    """A command's arguments, without a comment after it."""
    return shlex.split(command, comments=True)
