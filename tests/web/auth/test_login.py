"""Logging in at the console: what a browser gets for a token, and when it is over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from dispatcher.web.auth.access import Access, AccessControl, Scope, needs
from dispatcher.web.auth.login import LoginPages
from dispatcher.web.auth.oidc import local
from dispatcher.web.config import HttpConfig
from dispatcher.web.headers import SafeHeaders
from dispatcher.web.server import serving
from tests.support.chromium import needs_a_browser, opened
from tests.support.clock import ManualClock

TOKEN, OTHER = "operator-0123456789", "replaced-0123456789"


async def _console(request: Request) -> Response:
    return HTMLResponse(f'<title>Console</title><main id="csrf">{request.state.csrf_token}</main>')


async def _redrive(request: Request) -> Response:
    return JSONResponse({"done": True})


@asynccontextmanager
async def console(gate: AccessControl) -> AsyncIterator[str]:
    pages = Starlette(
        routes=[
            Route("/console/", needs(Scope.READ, _console)),
            Route("/redrive", needs(Scope.OPERATE, _redrive), methods=["POST"]),
            Route("/events", needs(Scope.PUBLISH, _redrive), methods=["POST"]),
            *LoginPages(gate).routes(),
        ],
        middleware=[Middleware(Access, gate=gate)],
    )
    async with serving(SafeHeaders(pages), "127.0.0.1", 0) as url:
        yield url


def a_gate(clock: ManualClock, file: Path, **options: Any) -> AccessControl:
    scopes = options.pop("scopes", ["publish", "read", "operate"])
    caller = {"name": "oncall", "token_file": str(file), "scopes": scopes}
    return AccessControl(HttpConfig.model_validate({"tokens": [caller], **options}), clock)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    return file


@pytest.fixture
async def browser() -> AsyncIterator[aiohttp.ClientSession]:
    """Keeps cookies, as browsers do; of addresses too, which aiohttp calls unsafe."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


async def log_in(browser: aiohttp.ClientSession, url: str, token: str = TOKEN, goal: str = "/console/") -> Any:
    fields = {"token": token, "next": goal}
    async with browser.post(f"{url}/login", data=fields, allow_redirects=False) as answer:
        return answer


async def looks(browser: aiohttp.ClientSession, url: str) -> int:
    async with browser.get(f"{url}/console/") as answer:
        return answer.status


async def test_a_token_is_exchanged_for_a_session_that_no_script_reads(
    browser: aiohttp.ClientSession, file: Path
) -> None:
    async with console(a_gate(ManualClock(), file)) as url:
        answer = await log_in(browser, url, goal="/console/?state=dead")
        assert (answer.status, answer.headers["Location"]) == (303, "/console/?state=dead")
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert TOKEN not in cookie
        assert await looks(browser, url) == 200


async def test_a_session_needs_the_pages_token_to_change_something_and_publishes_nothing(
    browser: aiohttp.ClientSession, file: Path
) -> None:
    async with console(a_gate(ManualClock(), file)) as url:
        await log_in(browser, url)
        async with browser.get(f"{url}/console/") as answer:
            token = (await answer.text()).partition('id="csrf">')[2].partition("<")[0]
        statuses = []
        for path, shown in (("/redrive", ""), ("/redrive", "x"), ("/redrive", token), ("/events", token)):
            async with browser.post(url + path, data={"csrf_token": shown}) as answer:
                statuses.append(answer.status)
        assert statuses == [403, 403, 200, 403]


async def test_a_session_is_over_when_its_time_is(browser: aiohttp.ClientSession, file: Path) -> None:
    clock = ManualClock()
    async with console(a_gate(clock, file, session="1h")) as url:
        await log_in(browser, url)
        clock.advance(timedelta(minutes=59))
        assert await looks(browser, url) == 200
        clock.advance(timedelta(minutes=2))
        assert await looks(browser, url) == 401


async def test_a_session_is_over_when_its_token_is_replaced(browser: aiohttp.ClientSession, file: Path) -> None:
    async with console(a_gate(ManualClock(), file)) as url:
        await log_in(browser, url)
        file.write_text(OTHER)  # noqa: ASYNC240 - a test
        assert await looks(browser, url) == 401


async def test_a_session_may_do_what_its_token_may_now(browser: aiohttp.ClientSession, file: Path) -> None:
    clock, key = ManualClock(), file.with_name("key")
    key.write_text("first-key\n")
    options: dict[str, Any] = {"session_key_file": str(key)}

    async def looks_at(**more: Any) -> int:
        async with console(a_gate(clock, file, **options, **more)) as url:
            return await looks(browser, url)

    async with console(a_gate(clock, file, **options)) as url:
        await log_in(browser, url)
    assert await looks_at() == 200  # after a restart, or at another replica
    assert await looks_at(scopes=["operate"]) == 403
    key.write_text("second-key\nfirst-key\n")
    assert await looks_at() == 200
    key.write_text("second-key\n")
    assert await looks_at() == 401


async def test_logging_out_takes_the_session_away(browser: aiohttp.ClientSession, file: Path) -> None:
    async with console(a_gate(ManualClock(), file)) as url:
        await log_in(browser, url)
        async with browser.get(f"{url}/console/") as answer:
            token = (await answer.text()).partition('id="csrf">')[2].partition("<")[0]
        async with browser.post(f"{url}/logout", allow_redirects=False) as answer:
            assert answer.status == 403
        async with browser.post(f"{url}/logout", data={"csrf_token": token}, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, "/login")
        assert await looks(browser, url) == 401


async def test_guessing_is_slowed_down_and_a_foreign_page_logs_nobody_in(
    browser: aiohttp.ClientSession, file: Path
) -> None:
    clock = ManualClock()
    async with console(a_gate(clock, file)) as url:
        async with browser.post(
            f"{url}/login", data={"token": TOKEN}, headers={"Origin": "https://x.example"}
        ) as answer:
            assert answer.status == 403
        assert {(await log_in(browser, url, f"guess-{number}")).status for number in range(10)} == {403}
        late = await log_in(browser, url)
        assert (late.status, late.headers["Retry-After"]) == (429, "10")
        clock.advance(timedelta(seconds=10))
        assert (await log_in(browser, url)).status == 303


async def test_a_token_that_only_publishes_logs_nobody_in(browser: aiohttp.ClientSession, file: Path) -> None:
    async with console(a_gate(ManualClock(), file, scopes=["publish"])) as url:
        assert (await log_in(browser, url)).status == 403


@pytest.mark.parametrize(
    "goal",
    ["https://x.example/", "//x.example/", "/\\x.example/", "\\/x.example", "javascript:alert(1)", "/\t/x.example"],
)
def test_the_login_leads_nowhere_but_home(goal: str) -> None:
    assert local(goal) == "/console/"


@asynccontextmanager
async def elsewhere(link: str) -> AsyncIterator[str]:
    """Another site's page, which links to ours."""

    async def page(_: Request) -> Response:
        return HTMLResponse(f'<a href="{link}">look</a>')

    async with serving(Starlette(routes=[Route("/", page)]), "127.0.0.1", 0) as url:
        yield url.replace("127.0.0.1", "localhost")


@needs_a_browser
async def test_in_a_browser_one_logs_in_follows_links_from_elsewhere_and_stays_logged_in(file: Path) -> None:
    async with console(a_gate(ManualClock(), file)) as url, opened() as chromium:
        page = await chromium.new_page()
        await page.goto(f"{url}/console/?state=dead")
        await page.get_by_label("Token").fill(TOKEN)
        await page.get_by_role("button", name="Log in").click()
        await page.wait_for_url(f"{url}/console/?state=dead")
        assert await page.title() == "Console"
        assert await page.evaluate("document.cookie") == ""
        async with elsewhere(f"{url}/console/") as other:
            await page.goto(other)
            await page.get_by_text("look").click()
            await page.wait_for_function("document.title == 'Console'")
        await page.context.clear_cookies()
        async with elsewhere(f"{url}/console/") as other:  # and who isn't logged in comes to the login
            await page.goto(other)
            await page.get_by_text("look").click()
            await page.get_by_label("Token").wait_for()
