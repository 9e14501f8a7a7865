"""`http.base_path`: the dispatcher below a path of a host that it shares with Flyte."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from playwright.async_api import expect
from pydantic import ValidationError

from dispatcher.web.config import HttpConfig
from tests.support.chromium import needs_a_browser, opened
from tests.support.console import DEAD, serve_console
from tests.support.nginx import needs_nginx, nginx
from tests.support.oidc import SECRET, a_provider

BASE = "/notifications"
TOKEN = "operator-0123456789abcdef"
SHARED: dict[str, Any] = {
    "base_path": BASE,
    "trusted_proxies": ["127.0.0.1"],
    "tokens": [{"name": "oncall", "token": TOKEN, "scopes": ["read", "operate"]}],
}


@needs_a_browser
@needs_nginx
async def test_behind_nginx_everything_stays_below_the_base_path(tmp_path: Path) -> None:
    ledger = f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    async with a_provider() as provider:
        oidc = {"issuer": provider.url, "client_id": "dispatcher", "client_secret": SECRET, "operate": ["oncall"]}
        async with (
            serve_console(ledger, **SHARED, oidc=oidc) as console,
            nginx(tmp_path, console.url, BASE) as url,
            opened() as chromium,
        ):
            await console.finish("one", channels=["slack"])
            await console.deliver("slack", DEAD)
            context = await chromium.new_context(ignore_https_errors=True)
            page = await context.new_page()
            requested: list[str] = []
            page.on("request", lambda request: requested.append(request.url))
            await page.goto(f"{url}{BASE}")
            await page.get_by_label("Token").fill(TOKEN)
            await page.get_by_role("button", name="Log in").click()
            await page.wait_for_url(f"{url}{BASE}/console/")
            await expect(page.locator("#live")).to_have_text("live")
            await page.get_by_role("link", name="1 dead").click()
            await page.get_by_role("link", name="Slack to #dev-alerts").click()
            await expect(page.frame_locator("iframe.preview").locator("body")).to_contain_text("train.daily failed")
            await page.get_by_role("link", name="Redrive…").click()
            await page.get_by_role("button", name="Redrive 1").click()
            await expect(page.locator(".page-head")).to_contain_text("waiting")
            await page.get_by_role("searchbox").fill("one")
            await page.keyboard.press("Enter")
            await page.wait_for_url(f"{url}{BASE}/console/executions?execution=one")
            await page.get_by_role("link", name="API").click()
            await page.go_back()
            cookies = await context.cookies()
            await page.get_by_role("button", name="Log out").click()
            await page.wait_for_url(f"{url}{BASE}/login")
            assert await context.cookies() == []
            await page.get_by_role("link", name="Log in at 127.0.0.1").click()
            await page.wait_for_url(f"{url}{BASE}/console/")
    assert [(one.get("path"), one.get("secure")) for one in cookies] == [(BASE, True)]
    here = urlsplit(url).netloc
    assert {path.split("/")[1] for path in (urlsplit(one).path for one in requested if here in one)} == {BASE[1:]}


@needs_nginx
async def test_a_proxy_may_remove_the_base_path_and_probes_need_none(tmp_path: Path) -> None:
    ledger = f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        serve_console(ledger, **SHARED) as console,
        nginx(tmp_path, console.url, BASE, removes=True) as url,
        aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(ssl=False)) as session,
    ):
        async with session.get(f"{url}{BASE}/") as answer:
            assert answer.url.path == f"{BASE}/console/"
            assert f'href="{BASE}/console/deliveries"' in await answer.text()
        async with session.get(f"{url}{BASE}/api/v1/openapi.json") as answer:
            assert (await answer.json())["servers"] == [{"url": f"{BASE}/api/v1"}]
        async with session.get(f"{url}{BASE}/api/v1/nothing") as answer:
            assert (answer.status, answer.content_type) == (404, "application/problem+json")
        for address in (f"{console.url}/healthz", f"{console.url}{BASE}/healthz"):
            async with session.get(address, headers={"Authorization": ""}) as answer:
                assert answer.status == 200
        async with session.get(f"{console.url}{BASE}x/healthz") as answer:
            assert answer.status == 404


@pytest.mark.parametrize(("written", "path"), [("", ""), ("/", ""), ("/a/b-1/", "/a/b-1")])
def test_a_base_path_ends_without_a_slash(written: str, path: str) -> None:
    assert HttpConfig(base_path=written).base_path == path


@pytest.mark.parametrize("written", ["notifications", "//x", "/a//b", "/a/../b", "/a b", "/ä", "https://x/", "/a?b"])
def test_a_base_path_that_is_no_plain_path_is_refused(written: str) -> None:
    with pytest.raises(ValidationError, match="such as /notifications"):
        HttpConfig(base_path=written)
