"""Chromium for tests, if it is installed, and axe, which checks a page's accessibility."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@asynccontextmanager
async def opened() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


async def axe_violations(page: Page) -> list[str]:
    """The rules that the page breaks, in light and in dark colours, each with the elements that break it."""
    found = []
    # The other rules do not depend on the colours.
    schemes: tuple[tuple[Literal["light", "dark"], dict[str, Any]], ...] = (
        ("light", {"resultTypes": ["violations"]}),
        ("dark", {"resultTypes": ["violations"], "runOnly": ["color-contrast", "link-in-text-block"]}),
    )
    for scheme, options in schemes:
        await page.emulate_media(color_scheme=scheme)
        results = await Axe().run(page, options=options)
        found += [
            f"{scheme}: {rule['id']}: {[node['target'] for node in rule['nodes']]}"
            for rule in results.response["violations"]
        ]
    return found
