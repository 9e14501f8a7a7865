"""Authentication over real sockets: tokens and scopes, programs on this machine, pages of other sites."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dispatcher.clock import SystemClock
from dispatcher.web.auth.access import AccessControl, AccessMiddleware, Scope, needs
from dispatcher.web.config import HttpConfig
from dispatcher.web.headers import SafeHeaders
from dispatcher.web.server import serving

READER, OPERATOR, PUBLISHER = "reader-0123456789", "operator-0123456789", "publisher-0123456789"
TOKENS = [
    {"name": "grafana", "token": READER, "scopes": ["read"]},
    {"name": "oncall", "token": OPERATOR, "scopes": ["read", "operate"]},
    {"name": "flyte", "token": PUBLISHER, "scopes": ["publish"]},
]


async def _token(request: Request) -> Response:
    return JSONResponse({"csrf_token": request.state.csrf_token})


async def _change(request: Request) -> Response:
    await request.body()
    return JSONResponse({"done": True})


@asynccontextmanager
async def guarded(**http: Any) -> AsyncIterator[str]:
    """Serve a page for each scope; yields the base URL."""
    pages = Starlette(
        routes=[
            Route("/events", needs(Scope.PUBLISH, _token), methods=["POST"]),
            Route("/console/", needs(Scope.READ, _token)),
            Route("/redrive", needs(Scope.OPERATE, _change), methods=["POST"]),
        ],
        middleware=[
            Middleware(AccessMiddleware, access_control=AccessControl(HttpConfig.model_validate(http), SystemClock()))
        ],
    )
    async with serving(SafeHeaders(pages), "127.0.0.1", 0) as url:
        yield url


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def status(
    session: aiohttp.ClientSession, method: str, url: str, headers: Mapping[str, str] | None = None, data: Any = None
) -> int:
    async with session.request(method, url, headers=headers, data=data, allow_redirects=False) as answer:
        return answer.status


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def csrf_token(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(f"{url}/console/") as answer:
        token: str = (await answer.json())["csrf_token"]
        return token


async def test_a_token_opens_only_the_pages_of_its_scopes(session: aiohttp.ClientSession) -> None:
    async with guarded(tokens=TOKENS) as url:
        pages = [("POST", "/events"), ("GET", "/console/"), ("POST", "/redrive")]
        statuses = {
            token: [await status(session, method, url + path, bearer(token)) for method, path in pages]
            for token in (PUBLISHER, READER, OPERATOR, "nobody-0123456789", "")
        }
    assert statuses == {
        PUBLISHER: [200, 403, 403],
        READER: [403, 200, 403],
        OPERATOR: [403, 200, 200],
        "nobody-0123456789": [401, 401, 401],
        "": [401, 401, 401],
    }


async def test_http_token_has_the_scope_publish(session: aiohttp.ClientSession) -> None:
    async with guarded(token=PUBLISHER) as url:
        assert await status(session, "POST", f"{url}/events", bearer(PUBLISHER)) == 200
        assert await status(session, "GET", f"{url}/console/", bearer(PUBLISHER)) == 403
        assert await status(session, "GET", f"{url}/console/") == 401


async def test_a_token_file_can_rotate_and_one_without_a_usable_token_admits_nobody(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(f"{READER}\n")
    with structlog.testing.capture_logs() as logged:
        async with guarded(tokens=[{"name": "grafana", "token_file": str(file), "scopes": ["read"]}]) as url:
            assert await status(session, "GET", f"{url}/console/", bearer(READER)) == 200
            file.write_text(OPERATOR)
            assert await status(session, "GET", f"{url}/console/", bearer(READER)) == 401
            assert await status(session, "GET", f"{url}/console/", bearer(OPERATOR)) == 200
            file.write_text("\n")
            assert await status(session, "GET", f"{url}/console/", bearer("")) == 401
            for unusable in ("short", OPERATOR.encode("utf-16"), None):
                file.unlink()
                if unusable is not None:
                    file.write_bytes(unusable.encode() if isinstance(unusable, str) else unusable)
                for shown in (OPERATOR, "short"):
                    assert await status(session, "GET", f"{url}/console/", bearer(shown)) == 401
    assert {line["token"] for line in logged} == {"grafana"}
    assert OPERATOR not in str(logged)


async def test_without_a_token_a_browser_gets_the_login_page_and_a_program_401(
    session: aiohttp.ClientSession,
) -> None:
    async with guarded(tokens=TOKENS) as url:
        page = {"Accept": "text/html,*/*"}
        async with session.get(f"{url}/console/?state=dead", headers=page, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, "/login?next=%2Fconsole%2F%3Fstate%3Ddead")
        async with session.get(f"{url}/console/") as answer:
            assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert (await answer.json())["status"] == "error"


async def test_without_tokens_in_the_settings_this_machine_has_full_access(session: aiohttp.ClientSession) -> None:
    async with guarded() as url:
        assert await status(session, "POST", f"{url}/events") == 200
        shown = {"csrf_token": await csrf_token(session, url)}
        assert await status(session, "POST", f"{url}/redrive", data=shown) == 200
        assert await status(session, "POST", f"{url}/redrive", {"X-CSRF-Token": shown["csrf_token"]}) == 200


@pytest.mark.parametrize("shown", [None, {"csrf_token": ""}, {"csrf_token": "x" * 43}, b'{"csrf_token": ""}'])
async def test_a_change_with_cookies_needs_the_csrf_token(session: aiohttp.ClientSession, shown: Any) -> None:
    async with guarded() as url:
        assert await status(session, "POST", f"{url}/redrive", {"Cookie": "any=1"}, data=shown) == 403
        assert await status(session, "POST", f"{url}/redrive", data=shown) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "attacker.example"},  # a foreign name that resolves to this machine (DNS rebinding)
        {"Host": "127.0.0.1.attacker.example:8080"},
        {"Host": ""},
        {"Origin": "http://attacker.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:3000"},  # another program's page on this machine
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"X-Forwarded-For": "203.0.113.7"},
        {"Via": "1.1 proxy"},
    ],
)
async def test_without_tokens_in_the_settings_other_sites_and_proxies_have_no_access(
    session: aiohttp.ClientSession, headers: dict[str, str]
) -> None:
    async with guarded() as url:
        assert await status(session, "POST", f"{url}/events", headers) in (400, 403)
        assert await status(session, "GET", f"{url}/console/", headers) in (400, 403)


async def test_other_sites_may_link_here_but_not_post(session: aiohttp.ClientSession) -> None:
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    async with guarded() as url:
        assert await status(session, "GET", f"{url}/console/", followed) == 200
        assert await status(session, "POST", f"{url}/events", followed) == 403


async def test_every_response_has_the_security_headers(session: aiohttp.ClientSession) -> None:
    async with guarded() as url:
        for path in ("/console/", "/no/such/page", "/redrive"):
            async with session.get(url + path) as answer:
                assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
                assert "unsafe" not in answer.headers["Content-Security-Policy"]
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert answer.headers["Cache-Control"] == "no-store"
                assert "Server" not in answer.headers
