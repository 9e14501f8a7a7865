"""What MkDocs does beside docs/: pages from the repository's top, and the reference, written from the code."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "site"))

import reference  # noqa: E402 - it lies beside this file, which MkDocs loads by its path

FROM_TOP = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "reporting.md",
}
_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are no file of docs/."""
    pages = {
        page: _moved((ROOT / name).read_text(encoding="utf-8"))
        for name, page in FROM_TOP.items()
        if (ROOT / name).exists()
    }
    pages |= {"reference/commands.md": reference.commands(), "reference/settings.md": reference.settings()}
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links that lead out of docs/ lead to the pages made of what lies there."""
    return _LINK.sub(lambda link: f"]({FROM_TOP.get(link[1].removeprefix('../'), link[1])}{link[2] or ''})", markdown)


def _moved(text: str) -> str:
    """A text of the repository's top, with its links as they are from docs/."""
    return text.replace("](docs/", "](")
