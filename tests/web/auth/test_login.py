"""Login with a token: the session, what it allows, and when it is no longer valid."""

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

from dispatcher.web.auth.access import AccessControl, AccessMiddleware, Scope, needs
from dispatcher.web.auth.login import LoginPages
from dispatcher.web.auth.oidc import local_target
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
async def console(access_control: AccessControl) -> AsyncIterator[str]:
    pages = Starlette(
        routes=[
            Route("/console/", needs(Scope.READ, _console)),
            Route("/redrive", needs(Scope.OPERATE, _redrive), methods=["POST"]),
            Route("/events", needs(Scope.PUBLISH, _redrive), methods=["POST"]),
            *LoginPages(access_control).routes(),
        ],
        middleware=[Middleware(AccessMiddleware, access_control=access_control)],
    )
    async with serving(SafeHeaders(pages), "127.0.0.1", 0) as url:
        yield url


def an_access_control(clock: ManualClock, file: Path, **options: Any) -> AccessControl:
    scopes = options.pop("scopes", ["publish", "read", "operate"])
    token = {"name": "oncall", "token_file": str(file), "scopes": scopes}
    return AccessControl(HttpConfig.model_validate({"tokens": [token], **options}), clock)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    return file


@pytest.fixture
async def browser() -> AsyncIterator[aiohttp.ClientSession]:
    """A client that keeps cookies, also for IP addresses (`unsafe` in aiohttp)."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


async def log_in(browser: aiohttp.ClientSession, url: str, token: str = TOKEN, target: str = "/console/") -> Any:
    fields = {"token": token, "next": target}
    async with browser.post(f"{url}/login", data=fields, allow_redirects=False) as answer:
        return answer


async def console_status(browser: aiohttp.ClientSession, url: str) -> int:
    async with browser.get(f"{url}/console/") as answer:
        return answer.status


async def test_a_token_is_exchanged_for_a_cookie_that_scripts_cannot_read(
    browser: aiohttp.ClientSession, file: Path
) -> None:
    async with console(an_access_control(ManualClock(), file)) as url:
        answer = await log_in(browser, url, target="/console/?state=dead")
        assert (answer.status, answer.headers["Location"]) == (303, "/console/?state=dead")
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert TOKEN not in cookie
        assert await console_status(browser, url) == 200


async def test_a_session_needs_the_csrf_token_for_changes_and_cannot_publish(
    browser: aiohttp.ClientSession, file: Path
) -> None:
    async with console(an_access_control(ManualClock(), file)) as url:
        await log_in(browser, url)
        async with browser.get(f"{url}/console/") as answer:
            token = (await answer.text()).partition('id="csrf">')[2].partition("<")[0]
        statuses = []
        for path, shown in (("/redrive", ""), ("/redrive", "x"), ("/redrive", token), ("/events", token)):
            async with browser.post(url + path, data={"csrf_token": shown}) as answer:
                statuses.append(answer.status)
        assert statuses == [403, 403, 200, 403]


async def test_a_session_expires(browser: aiohttp.ClientSession, file: Path) -> None:
    clock = ManualClock()
    async with console(an_access_control(clock, file, session="1h")) as url:
        await log_in(browser, url)
        clock.advance(timedelta(minutes=59))
        assert await console_status(browser, url) == 200
        clock.advance(timedelta(minutes=2))
        assert await console_status(browser, url) == 401


async def test_a_session_ends_when_its_token_is_replaced(browser: aiohttp.ClientSession, file: Path) -> None:
    async with console(an_access_control(ManualClock(), file)) as url:
        await log_in(browser, url)
        file.write_text(OTHER)  # noqa: ASYNC240 - a test
        assert await console_status(browser, url) == 401


async def test_a_session_survives_a_restart_and_has_its_tokens_current_scopes(
    browser: aiohttp.ClientSession, file: Path
) -> None:
    clock, key = ManualClock(), file.with_name("key")
    key.write_text("first-key\n")
    options: dict[str, Any] = {"session_key_file": str(key)}

    async def status_after_restart(**more: Any) -> int:
        async with console(an_access_control(clock, file, **options, **more)) as url:
            return await console_status(browser, url)

    async with console(an_access_control(clock, file, **options)) as url:
        await log_in(browser, url)
    assert await status_after_restart() == 200  # also at another replica
    assert await status_after_restart(scopes=["operate"]) == 403
    key.write_text("second-key\nfirst-key\n")
    assert await status_after_restart() == 200
    key.write_text("second-key\n")
    assert await status_after_restart() == 401


async def test_logging_out_ends_the_session(browser: aiohttp.ClientSession, file: Path) -> None:
    async with console(an_access_control(ManualClock(), file)) as url:
        await log_in(browser, url)
        async with browser.get(f"{url}/console/") as answer:
            token = (await answer.text()).partition('id="csrf">')[2].partition("<")[0]
        async with browser.post(f"{url}/logout", allow_redirects=False) as answer:
            assert answer.status == 403
        async with browser.post(f"{url}/logout", data={"csrf_token": token}, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, "/login")
        assert await console_status(browser, url) == 401


async def test_login_attempts_are_rate_limited_and_refused_from_other_sites(
    browser: aiohttp.ClientSession, file: Path
) -> None:
    clock = ManualClock()
    async with console(an_access_control(clock, file)) as url:
        async with browser.post(
            f"{url}/login", data={"token": TOKEN}, headers={"Origin": "https://x.example"}
        ) as answer:
            assert answer.status == 403
        assert {(await log_in(browser, url, f"guess-{number}")).status for number in range(10)} == {403}
        limited = await log_in(browser, url)
        assert (limited.status, limited.headers["Retry-After"]) == (429, "10")
        clock.advance(timedelta(seconds=10))
        assert (await log_in(browser, url)).status == 303


async def test_a_token_that_can_only_publish_cannot_log_in(browser: aiohttp.ClientSession, file: Path) -> None:
    async with console(an_access_control(ManualClock(), file, scopes=["publish"])) as url:
        assert (await log_in(browser, url)).status == 403


@pytest.mark.parametrize(
    "target",
    ["https://x.example/", "//x.example/", "/\\x.example/", "\\/x.example", "javascript:alert(1)", "/\t/x.example"],
)
def test_a_login_never_redirects_to_another_site(target: str) -> None:
    assert local_target(Request({"type": "http"}), target) == "/console/"


@asynccontextmanager
async def another_site(link: str) -> AsyncIterator[str]:
    """A page of another site with a link to the console."""

    async def page(_: Request) -> Response:
        return HTMLResponse(f'<a href="{link}">Open the console</a>')

    async with serving(Starlette(routes=[Route("/", page)]), "127.0.0.1", 0) as url:
        yield url.replace("127.0.0.1", "localhost")


@needs_a_browser
async def test_a_browser_stays_logged_in_when_it_follows_a_link_from_another_site(file: Path) -> None:
    async with console(an_access_control(ManualClock(), file)) as url, opened() as chromium:
        page = await chromium.new_page()
        await page.goto(f"{url}/console/?state=dead")
        await page.get_by_label("Token").fill(TOKEN)
        await page.get_by_role("button", name="Log in").click()
        await page.wait_for_url(f"{url}/console/?state=dead")
        assert await page.title() == "Console"
        assert await page.evaluate("document.cookie") == ""
        async with another_site(f"{url}/console/") as other:
            await page.goto(other)
            await page.get_by_text("Open the console").click()
            await page.wait_for_function("document.title == 'Console'")
        await page.context.clear_cookies()
        async with another_site(f"{url}/console/") as other:  # without a session: the login page
            await page.goto(other)
            await page.get_by_text("Open the console").click()
            await page.get_by_label("Token").wait_for()
