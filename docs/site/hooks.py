"""MkDocs hooks: add pages from the repository's root, and the reference, which is generated from the code."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "site"))

import reference  # noqa: E402 - in this folder, which is not on sys.path when MkDocs loads this file

ROOT_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "reporting.md",
}
_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not files in docs/."""
    pages = {
        page: _with_moved_links((ROOT / name).read_text(encoding="utf-8"))
        for name, page in ROOT_PAGES.items()
        if (ROOT / name).exists()
    }
    pages |= {"reference/commands.md": reference.commands(), "reference/settings.md": reference.settings()}
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links to files in the repository's root to their pages in the site."""
    return _LINK.sub(lambda link: f"]({ROOT_PAGES.get(link[1].removeprefix('../'), link[1])}{link[2] or ''})", markdown)


def _with_moved_links(text: str) -> str:
    """A page from the repository's root, with its links relative to docs/."""
    return text.replace("](docs/", "](")
