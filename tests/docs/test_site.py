"""The documentation site: it builds, has every command and setting, and loads nothing from other hosts."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from dispatcher.config.settings import Settings
from tests.support.pages import ROOT, pages


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it; a broken link or anchor fails the build."""
    folder = tmp_path_factory.mktemp("site")

    async def build() -> tuple[int | None, bytes]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder),
            cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, err = await process.communicate()
        return process.returncode, err

    status, err = asyncio.run(build())
    assert status == 0, err.decode()
    return folder


def test_the_site_has_every_page(site: Path) -> None:
    for page in pages():
        name = "index" if page.name == "README.md" else page.stem
        assert (site / f"{name}.html").exists(), f"{page}: name it in mkdocs.yml"


def test_the_navigation_has_every_page(site: Path) -> None:
    pages = {str(page.relative_to(site)) for page in site.rglob("*.html")} - {"404.html"}
    linked = set(re.findall(r'<a href="([^"#]+\.html)" class="md-nav__link', (site / "index.html").read_text()))
    assert pages - linked == set(), "name them in mkdocs.yml"


def test_the_reference_has_every_command_and_every_section(site: Path) -> None:
    commands = (site / "reference" / "commands.html").read_text()
    names = (
        "serve",
        "check",
        "publish",
        "deliveries redrive",
        "rejected replay",
        "templates lint",
        "import-flyteadmin",
    )
    for command in names:
        assert f">dispatcher {command}<" in commands
    settings = (site / "reference" / "settings.html").read_text()
    for name in Settings.model_fields:
        assert f'id="{name}"' in settings or f"<code>{name}</code>" in settings, name
    assert "<code>kafka.max_poll_records</code>" in settings
    assert "Maximum number of messages in a batch." in settings


def test_the_site_loads_nothing_from_other_hosts(site: Path) -> None:
    for page in site.rglob("*.html"):
        foreign = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?:https?:)?//[^\"]+", page.read_text())
        assert foreign == [], page
