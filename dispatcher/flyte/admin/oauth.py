"""Gets FlyteAdmin's access token with OAuth2 client credentials (RFC 6749, 4.4), and renews it before it expires.

FlyteAdmin's AuthMetadataService, which needs no token, names the token endpoint, the scopes and the gRPC metadata key.
The local clock measures the age of a token, from the time at which the token was requested, so the clocks of other
machines do not matter.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote_plus, urlsplit

import aiohttp
import orjson
import structlog

from channels.common.body import AnswerTooLong, read_whole
from channels.common.http import open_session, request_problem
from channels.common.proxy import UnusableProxy, proxy_for
from channels.common.secret import reveal
from dispatcher.clock import Clock
from dispatcher.errors import FlyteAdminUnavailable
from dispatcher.flyte.admin.config import FlyteAdminConfig
from dispatcher.flyte.admin.errors import TransientError

log = structlog.get_logger(__name__)

MARGIN = timedelta(minutes=1)
"""The client renews a token this long before the token expires. If the token is valid for less than 5 minutes, the
client renews the token after 4/5 of that time.
"""
DEFAULT_LIFETIME = timedelta(minutes=5)
"""Assumed lifetime of a token if the token endpoint's answer contains no valid `expires_in`."""
MAX_LIFETIME = timedelta(days=1)
_MAX_DETAILS = 200
"""Maximum length of the quotation from the token endpoint's error in an error message, in characters."""


@dataclass(frozen=True, slots=True)
class AuthMetadata:
    """FlyteAdmin's answer about where and how to request an access token (AuthMetadataService)."""

    token_endpoint: str
    scopes: tuple[str, ...] = ()
    audience: str = ""
    metadata_key: str = "authorization"
    """The gRPC metadata key that carries the token. flyteadmin's operators can rename the key with the option
    `auth.grpcAuthorizationHeader`."""


FetchAuthMetadata = Callable[[], Awaitable[AuthMetadata]]
"""A function that asks FlyteAdmin's AuthMetadataService for the AuthMetadata."""


@dataclass(frozen=True, slots=True)
class Token:
    """An access token, and the time at which the client must renew the token."""

    metadata: tuple[str, str]
    """The key and the value that each gRPC request carries as metadata."""
    renew_at: datetime


class OAuthClient:
    """Keeps one valid token. If several callers need a new token at the same time, they share one request."""

    def __init__(self, config: FlyteAdminConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._lock = asyncio.Lock()
        self._token: Token | None = None
        self.last_error: FlyteAdminUnavailable | None = None
        """The error of the last request for a token; None if the last request succeeded."""

    async def token(self, fetch_auth_metadata: FetchAuthMetadata, *, refused: Token | None = None) -> Token:
        """Return a valid token. After FlyteAdmin has refused a token, pass that token as `refused` to get a new token.

        Raises FlyteAdminUnavailable with the setting to check.
        """
        async with self._lock:
            token = self._token
            if token is None or token is refused or self._clock.now() >= token.renew_at:
                self._token = None
                try:
                    token = self._token = await self._fetch(await fetch_auth_metadata())
                except FlyteAdminUnavailable as error:
                    self.last_error = error
                    raise
                self.last_error = None
                log.info("logged in at FlyteAdmin", client=self._config.client_id)
            return token

    async def _fetch(self, auth: AuthMetadata) -> Token:
        url = self._config.token_endpoint or auth.token_endpoint
        self._check(url)
        requested_at = self._clock.now()
        status, body = await self._post(url, auth)
        answer = _parsed(body)
        if status != 200:
            raise _refusal(url, status, answer)
        token = answer.get("access_token")
        if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
            raise FlyteAdminUnavailable(f"rules.flyte_admin.token_endpoint: {url} answered without an access token")
        lifetime = _lifetime(answer.get("expires_in"))
        return Token((auth.metadata_key, f"Bearer {token}"), requested_at + lifetime - min(MARGIN, lifetime / 5))

    def _check(self, url: str) -> None:
        if not url:
            raise FlyteAdminUnavailable(
                f"rules.flyte_admin: {self._config.endpoint} names no token endpoint: set token_endpoint, "
                "or take client_id away if it asks nobody to log in"
            )
        given = self._config.token_endpoint is not None or self._config.insecure
        if urlsplit(url).scheme != "https" and not given:
            raise FlyteAdminUnavailable(
                f"rules.flyte_admin.token_endpoint: FlyteAdmin names {url}, where the secret would travel in the clear; "
                "set token_endpoint to an https address, or to this one if that is what you want"
            )

    async def _post(self, url: str, auth: AuthMetadata) -> tuple[int, bytes]:
        form = {"grant_type": "client_credentials"}
        if scopes := self._config.scopes or auth.scopes:
            form["scope"] = " ".join(scopes)
        if auth.audience:
            form["audience"] = auth.audience
        # Wait at most half of the look-up's timeout for the token. Otherwise the look-up would time out first, and the
        # error would blame FlyteAdmin instead of the slow token endpoint.
        timeout = self._config.timeout.total_seconds() / 2
        try:
            async with (
                open_session(timeout) as session,
                session.post(
                    url,
                    data=form,
                    headers={"Authorization": self._credentials(), "Accept": "application/json"},
                    ssl=self._ssl_context(),
                    proxy=proxy_for(url),
                    allow_redirects=False,  # a redirect could send the secret to another server
                ) as answer,
            ):
                return answer.status, await read_whole(answer.content)
        except (AnswerTooLong, UnusableProxy) as error:
            raise FlyteAdminUnavailable(f"rules.flyte_admin.token_endpoint: {url}: {error}") from None
        except aiohttp.InvalidURL:
            raise FlyteAdminUnavailable(f"rules.flyte_admin.token_endpoint: {url!r} is no address") from None
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            raise FlyteAdminUnavailable(
                f"rules.flyte_admin.ca_file: {url} shows a certificate that isn't trusted: {error.os_error}"
            ) from None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise TransientError(
                f"rules.flyte_admin.token_endpoint: {url} can't be reached: {request_problem(error)}"
            ) from None

    def _credentials(self) -> str:
        """Return the value of the header `Authorization`. The id and the secret are form-encoded (RFC 6749, 2.3.1)."""
        try:
            secret = reveal(self._config.client_secret, self._config.client_secret_file)
        except OSError as error:
            words = getattr(error, "strerror", None) or "not UTF-8"
            raise FlyteAdminUnavailable(f"rules.flyte_admin.client_secret_file: can't be read: {words}") from None
        pair = f"{quote_plus(self._config.client_id or '')}:{quote_plus(secret or '')}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"

    def _ssl_context(self) -> ssl.SSLContext:
        """Create a TLS context that trusts `ca_file` and the system's certificates.

        A token endpoint on the internet, run by an identity provider, has a certificate that only the system trusts.
        """
        context = ssl.create_default_context()
        if self._config.ca_file is not None:
            context.load_verify_locations(self._config.ca_file)
        return context


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _refusal(url: str, status: int, answer: dict[str, Any]) -> FlyteAdminUnavailable:
    """Return the error to raise if the token endpoint refused the request. The message names the setting to check."""
    code, words = (str(answer.get(name) or "")[:_MAX_DETAILS] for name in ("error", "error_description"))
    answered = f"HTTP {status}{f', {code}' if code else ''}{f': {words}' if words else ''}"
    match code:
        case "invalid_client" | "unauthorized_client" | "access_denied":
            setting = "client_secret: expired, or not this client's?"
        case "invalid_scope":
            setting = "scopes"
        case _ if status == 401:
            setting = "client_secret: expired, or not this client's?"
        case _ if status in {408, 429} or status >= 500:
            return TransientError(f"rules.flyte_admin.token_endpoint: {url} answered {answered}")
        case _:
            setting = "token_endpoint"
    return FlyteAdminUnavailable(f"rules.flyte_admin.{setting} {url} answered {answered}")


def _lifetime(value: Any) -> timedelta:
    """Convert `expires_in` to the token's lifetime. Some servers send no value, a number as text, or nonsense."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return DEFAULT_LIFETIME
    if not 0 < seconds < float("inf"):
        return DEFAULT_LIFETIME
    return timedelta(seconds=min(seconds, MAX_LIFETIME.total_seconds()))
