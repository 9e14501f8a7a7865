"""The pages of README.md and docs/, taken apart into what a reader would type or copy."""

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
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that its first line says it is: `# launch_plans/train.yaml`."""
        found = re.match(r"# ([\w./-]+\.\w+)(?=[ ,\n]|$)", self.text)
        return found[1] if found else None

    @property
    def commands(self) -> list[str]:
        """The lines after `$ `, each with what it is continued by."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


def pages() -> list[Path]:
    """Every page that a reader may follow."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    """The page's blocks in these languages, in their order."""
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        if found["language"] in languages:
            indent = len(found["indent"])
            body = "".join(line[indent:] for line in found["text"].splitlines(keepends=True))
            line = text.count("\n", 0, found.start()) + 1
            yield Block(page.relative_to(ROOT).as_posix(), line, found["language"], body)


def words(command: str) -> list[str]:
    """A command's words, without the remark after it."""
    return shlex.split(command, comments=True)
