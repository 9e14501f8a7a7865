"""Login through OpenID Connect."""

from __future__ import annotations

import base64
import gzip
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
import structlog
from joserfc.errors import SecurityWarning
from joserfc.jwk import OctKey, RSAKey
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from dispatcher.web.auth.access import AccessControl, AccessMiddleware, Scope, needs
from dispatcher.web.auth.login import LoginPages
from dispatcher.web.config import HttpConfig
from dispatcher.web.headers import SafeHeaders
from dispatcher.web.server import serving
from tests.support.chromium import needs_a_browser, opened
from tests.support.oidc import SECRET, Provider, a_provider
from tests.support.servers import ForwardProxy, endless_server


async def _page(request: Request) -> Response:
    return HTMLResponse(f"<title>Console</title>{'may operate' if Scope.OPERATE in request.scope['scopes'] else ''}")


async def _console(request: Request) -> Response:
    request.scope["scopes"] = request.scope["dispatcher.caller"].scopes
    return await _page(request)


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with a_provider() as provider:
        yield provider


@asynccontextmanager
async def console(provider: Provider, folder: Path, **options: Any) -> AsyncIterator[str]:
    secret, key = folder / "secret", folder / "key"
    secret.write_text(SECRET)
    key.write_text("a key of the sessions")
    oidc = {"issuer": provider.url, "client_id": "dispatcher", "client_secret_file": str(secret), "read": ["team"]}
    config = {"console": True, "session_key_file": str(key), "oidc": {**oidc, "operate": ["oncall"], **options}}
    access_control = AccessControl(HttpConfig.model_validate(config), provider.clock)
    pages = Starlette(
        routes=[Route("/console/", needs(Scope.READ, _console)), *LoginPages(access_control).routes()],
        middleware=[Middleware(AccessMiddleware, access_control=access_control)],
    )
    async with serving(SafeHeaders(pages), "127.0.0.1", 0) as url:
        yield url


@pytest.fixture
async def browser() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


async def log_in(browser: aiohttp.ClientSession, url: str) -> int:
    """Log in at the provider; returns the status of the callback."""
    async with browser.get(f"{url}/login/oidc?next=/console/") as answer:
        return answer.status


async def console_access(browser: aiohttp.ClientSession, url: str) -> tuple[int, bool]:
    async with browser.get(f"{url}/console/") as answer:
        return answer.status, "may operate" in await answer.text()


@pytest.mark.parametrize(
    ("person", "access"),
    [
        ({"sub": "u1", "groups": ["oncall"]}, (200, True)),
        ({"sub": "u1", "groups": ["team", "other"]}, (200, False)),
        ({"sub": "u1", "groups": ["other"]}, (401, False)),
        ({"sub": "u1", "groups": "oncall"}, (401, False)),
        ({"sub": "u1", "email": "jane@example.com", "email_verified": True}, (200, False)),
        ({"sub": "u1", "email": "jane@example.com"}, (401, False)),  # an address that is not verified could be anyone's
        ({"sub": "oncall"}, (401, False)),
        ({"sub": "u1", "groups": ["jane@example.com"]}, (401, False)),  # a group of that name is not that person
        ({"sub": "u1", "groups": ["sre@example.com"]}, (200, False)),
        ({"sub": "u1", "email": "sre@example.com", "email_verified": True}, (401, False)),
        ({"sub": "u1", "email": "team", "email_verified": True}, (401, False)),
        ({"sub": "u1", "email": "group:sre@example.com", "email_verified": True, "groups": [["team"]]}, (401, False)),
    ],
)
async def test_groups_and_verified_addresses_grant_scopes(
    browser: aiohttp.ClientSession, provider: Provider, tmp_path: Path, person: dict[str, Any], access: tuple[int, bool]
) -> None:
    provider.person = person
    async with console(provider, tmp_path, read=["team", "jane@example.com", "group:sre@example.com"]) as url:
        assert (await console_access(browser, url))[0] == 401
        assert await log_in(browser, url) == (200 if access[0] == 200 else 403)
        assert await console_access(browser, url) == access


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://elsewhere.example"},
        {"aud": "another-client"},
        {"nonce": "of another login"},
        {"nonce": None},
        {"exp": 1},
        {"exp": None},
        {"iss": None},
        {"sub": None},
        {"aud": ["dispatcher", "another"]},
        {"aud": ["dispatcher", "another"], "azp": "another"},
        {"aud": "dispatcher", "azp": "another"},
        {"aud": ["dispatcher", "another"], "azp": ["dispatcher"]},
    ],
)
async def test_an_id_token_with_wrong_claims_is_refused(
    browser: aiohttp.ClientSession, provider: Provider, tmp_path: Path, claims: dict[str, Any]
) -> None:
    provider.false_claims = claims
    async with console(provider, tmp_path) as url:
        assert await log_in(browser, url) == 502
        assert (await console_access(browser, url))[0] == 401


async def test_a_nonce_among_others_is_refused(
    browser: aiohttp.ClientSession, provider: Provider, tmp_path: Path
) -> None:
    provider.nonces = lambda nonce: [nonce, "of another login"]
    async with console(provider, tmp_path) as url:
        assert await log_in(browser, url) == 502


async def test_several_audiences_are_accepted_if_the_token_was_issued_to_this_client(
    browser: aiohttp.ClientSession, provider: Provider, tmp_path: Path
) -> None:
    provider.false_claims = {"aud": ["account", "dispatcher"], "azp": "dispatcher"}
    async with console(provider, tmp_path) as url:
        assert await log_in(browser, url) == 200


async def test_a_provider_with_a_short_rsa_key_is_refused(
    browser: aiohttp.ClientSession, provider: Provider, tmp_path: Path
) -> None:
    with pytest.warns(SecurityWarning):
        provider.key = RSAKey.generate_key(1024, {"kid": "1", "use": "sig"})
    with structlog.testing.capture_logs() as logged, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as outside of tests, where a warning is no error
        async with console(provider, tmp_path) as url:
            assert await log_in(browser, url) == 502
    assert "2048" in logged[-1]["reason"]


async def test_an_attempt_to_log_in_is_completed_once(
    browser: aiohttp.ClientSession, provider: Provider, tmp_path: Path
) -> None:
    provider.false_claims = {"exp": 1}
    async with console(provider, tmp_path) as url:
        async with browser.get(f"{url}/login/oidc", allow_redirects=False) as answer:
            state = parse_qs(urlsplit(answer.headers["Location"]).query)["state"][0]
        statuses = []
        for code in range(5):
            async with browser.get(f"{url}/oidc/callback?code={code}&state={state}") as answer:
                statuses.append(answer.status)
    assert statuses == [502, 403, 403, 403, 403]
    assert provider.token_requests == 1


async def test_the_clients_secret_is_masked_if_the_provider_repeats_it(
    browser: aiohttp.ClientSession, provider: Provider, tmp_path: Path
) -> None:
    provider.error_description = f"the secret {SECRET} of {base64.b64encode(f'dispatcher:{SECRET}'.encode()).decode()}"
    with structlog.testing.capture_logs() as logged:
        async with console(provider, tmp_path) as url:
            assert await log_in(browser, url) == 502
    assert logged[-1]["reason"] == "invalid_client: the secret ******** of ********"


@pytest.mark.parametrize(
    ("algorithm", "key"), [("RS256", RSAKey.generate_key(2048)), ("HS256", OctKey.import_key(SECRET))]
)
async def test_an_id_token_signed_with_another_key_is_refused(
    browser: aiohttp.ClientSession, provider: Provider, tmp_path: Path, algorithm: str, key: Any
) -> None:
    provider.algorithm, provider.signs_with = algorithm, key
    async with console(provider, tmp_path) as url:
        assert await log_in(browser, url) == 502


async def test_a_callback_of_another_login_is_refused(
    browser: aiohttp.ClientSession, provider: Provider, tmp_path: Path
) -> None:
    async with console(provider, tmp_path) as url:
        async with browser.get(f"{url}/oidc/callback?code=a&state=b") as answer:
            assert answer.status == 403
        async with browser.get(f"{url}/login/oidc", allow_redirects=False) as answer:
            query = parse_qs(urlsplit(answer.headers["Location"]).query)
        assert query["redirect_uri"] == [f"{url}/oidc/callback"]
        async with browser.get(f"{url}/oidc/callback?code=a&state=another") as answer:
            assert answer.status == 403
        async with browser.get(f"{url}/oidc/callback?state={query['state'][0]}&error=access_denied") as answer:
            assert answer.status == 502
        async with browser.get(f"{url}/oidc/callback?code=a&state=%C3%A9") as answer:
            assert answer.status == 400
        assert (await console_access(browser, url))[0] == 401
    assert not provider.token_requests


async def test_sessions_end_when_the_settings_grant_other_scopes(
    browser: aiohttp.ClientSession, provider: Provider, tmp_path: Path
) -> None:
    async with console(provider, tmp_path) as url:
        await log_in(browser, url)
        assert await console_access(browser, url) == (200, True)
    async with console(provider, tmp_path, operate=["others"]) as url:
        assert (await console_access(browser, url))[0] == 401


@needs_a_browser
async def test_a_browser_returns_from_the_provider_to_the_requested_page(provider: Provider, tmp_path: Path) -> None:
    async with console(provider, tmp_path) as url, opened() as chromium:
        page = await chromium.new_page()
        await page.goto(f"{url}/console/?state=dead")
        await page.get_by_role("link", name="Log in at 127.0.0.1").click()
        await page.wait_for_url(f"{url}/console/?state=dead")
        assert await page.title() == "Console"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"issuer": "http://id.example.com"}, "issuer must be https"),
        ({"client_secret_file": None}, "give client_secret or client_secret_file"),
        ({"read": [], "operate": []}, "name groups or mail addresses"),
    ],
)
async def test_provider_settings_that_admit_anyone_or_no_one_are_refused(
    tmp_path: Path, changes: dict[str, Any], error: str
) -> None:
    provider = Provider(url="https://id.example.com")
    with pytest.raises(ValidationError, match=error):
        async with console(provider, tmp_path, **changes):
            pass


# -- the limits of requests to the provider


@pytest.mark.parametrize(
    ("head", "piece", "reason"),
    [
        (b"", b" " * 100_000, "longer than 4194304 bytes"),
        (b"Content-Encoding: gzip\r\n", gzip.compress(b" " * 10_000_000), "is compressed"),
        (b"Content-Length: 1000\r\n", b" ", "TimeoutError"),
    ],
)
async def test_a_provider_whose_answer_does_not_end_is_given_up(
    browser: aiohttp.ClientSession,
    provider: Provider,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    head: bytes,
    piece: bytes,
    reason: str,
) -> None:
    drips = len(piece) == 1
    monkeypatch.setattr("dispatcher.web.auth.provider_http.REQUEST_TIMEOUT", 1.0 if drips else 10.0)
    start = b"HTTP/1.1 200 OK\r\n" + head + b"\r\n"
    async with (
        endless_server(start, piece, pause=0.2 if drips else 0) as (endless_url, _),
        console(provider, tmp_path, issuer=endless_url) as url,
    ):
        with structlog.testing.capture_logs() as logs:
            async with browser.get(f"{url}/login/oidc") as answer:
                assert answer.status == 502
    (line,) = [one for one in logs if one["log_level"] == "warning"]
    assert reason in line["reason"]


async def test_the_provider_is_asked_through_the_proxy_of_the_environment(
    browser: aiohttp.ClientSession, provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ForwardProxy(int(provider.url.rpartition(":")[2])) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        async with console(provider, tmp_path) as url:
            assert await log_in(browser, url) == 200
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            assert await log_in(browser, url) == 200
    paths = ["/.well-known/openid-configuration", "/.well-known/openid-configuration", "/token", "/keys"]
    assert proxy.targets == [f"{provider.url}{path}" for path in paths]
