"""The token that FlyteAdmin wants to see: OAuth2 client credentials (RFC 6749, 4.4), renewed in time.

How to log in comes from Flyte's AuthMetadataService, which answers anybody. A token's age is counted from
when we got it, by our own clock: what other clocks say doesn't matter.
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

from channels.common.secret import reveal
from dispatcher.clock import Clock
from dispatcher.errors import FlyteAdminUnavailable
from dispatcher.flyte.admin.config import FlyteAdminConfig
from dispatcher.flyte.admin.errors import Passing

log = structlog.get_logger(__name__)

MARGIN = timedelta(minutes=1)
"""A token is renewed so long before it expires, or after four fifths of its life if that is short."""
UNTOLD_LIFE = timedelta(minutes=5)
"""What a token is good for where the server doesn't say."""
LONGEST_LIFE = timedelta(days=1)
LARGEST_ANSWER = 64 * 1024
_LONGEST_WORDS = 200


@dataclass(frozen=True, slots=True)
class Doorway:
    """How to log in, as AuthMetadataService says it."""

    token_endpoint: str
    scopes: tuple[str, ...] = ()
    audience: str = ""
    metadata_key: str = "authorization"
    """The gRPC metadata that carries the token; operators can rename it (flyteadmin `auth.grpcAuthorizationHeader`)."""


FindDoorway = Callable[[], Awaitable[Doorway]]
"""Asks AuthMetadataService."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token, and until when it is shown."""

    metadata: tuple[str, str]
    """As it goes with each question."""
    stale_at: datetime


class Login:
    """Keeps one token fresh; however many ask for it at once, one request is made."""

    def __init__(self, config: FlyteAdminConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._asking = asyncio.Lock()
        self._token: Token | None = None
        self.trouble: FlyteAdminUnavailable | None = None
        """Why the last request brought no token; None where it did."""

    async def token(self, find_doorway: FindDoorway, *, fallback_for: Token | None = None) -> Token:
        """The token to show; a new one where `fallback_for` was refused.

        Raises FlyteAdminUnavailable, naming the setting.
        """
        async with self._asking:
            held = self._token
            if held is None or held is fallback_for or self._clock.now() >= held.stale_at:
                self._token = None
                try:
                    held = self._token = await self._fetch(await find_doorway())
                except FlyteAdminUnavailable as error:
                    self.trouble = error
                    raise
                self.trouble = None
                log.info("logged in at FlyteAdmin", client=self._config.client_id)
            return held

    async def _fetch(self, doorway: Doorway) -> Token:
        url = self._config.token_endpoint or doorway.token_endpoint
        self._check(url)
        asked_at = self._clock.now()
        status, body = await self._post(url, doorway)
        answer = _parsed(body)
        if status != 200:
            raise _refusal(url, status, answer)
        token = answer.get("access_token")
        if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
            raise FlyteAdminUnavailable(f"rules.flyte_admin.token_endpoint: {url} answered without an access token")
        life = _life(answer.get("expires_in"))
        return Token((doorway.metadata_key, f"Bearer {token}"), asked_at + life - min(MARGIN, life / 5))

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

    async def _post(self, url: str, doorway: Doorway) -> tuple[int, bytes]:
        form = {"grant_type": "client_credentials"}
        if scopes := self._config.scopes or doorway.scopes:
            form["scope"] = " ".join(scopes)
        if doorway.audience:
            form["audience"] = doorway.audience
        limit = aiohttp.ClientTimeout(self._config.timeout.total_seconds() / 2)  # so that the one at fault is named
        try:
            async with (
                aiohttp.ClientSession(timeout=limit) as session,
                session.post(
                    url,
                    data=form,
                    headers={"Authorization": self._credentials(), "Accept": "application/json"},
                    ssl=self._trust(),
                    allow_redirects=False,  # the secret goes where it was meant to go, and nowhere else
                ) as answer,
            ):
                return answer.status, await answer.content.read(LARGEST_ANSWER)
        except aiohttp.InvalidURL:
            raise FlyteAdminUnavailable(f"rules.flyte_admin.token_endpoint: {url!r} is no address") from None
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            raise FlyteAdminUnavailable(
                f"rules.flyte_admin.ca_file: {url} shows a certificate that isn't trusted: {error.os_error}"
            ) from None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            words = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            raise Passing(f"rules.flyte_admin.token_endpoint: {url} can't be reached: {words}") from None

    def _credentials(self) -> str:
        """HTTP Basic, with both parts encoded first (RFC 6749, 2.3.1)."""
        try:
            secret = reveal(self._config.client_secret, self._config.client_secret_file)
        except (OSError, UnicodeDecodeError) as error:
            words = getattr(error, "strerror", None) or "not UTF-8"
            raise FlyteAdminUnavailable(f"rules.flyte_admin.client_secret_file: can't be read: {words}") from None
        pair = f"{quote_plus(self._config.client_id or '')}:{quote_plus(secret or '')}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"

    def _trust(self) -> ssl.SSLContext:
        """The system's certificates, and those of `ca_file`: the token endpoint may be another company's."""
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
    """Why no token was given, and which setting that points to."""
    code, words = (str(answer.get(name) or "")[:_LONGEST_WORDS] for name in ("error", "error_description"))
    said = f"HTTP {status}{f', {code}' if code else ''}{f': {words}' if words else ''}"
    match code:
        case "invalid_client" | "unauthorized_client" | "access_denied":
            setting = "client_secret: expired, or not this client's?"
        case "invalid_scope":
            setting = "scopes"
        case _ if status == 401:
            setting = "client_secret: expired, or not this client's?"
        case _ if status in {408, 429} or status >= 500:
            return Passing(f"rules.flyte_admin.token_endpoint: {url} answered {said}")
        case _:
            setting = "token_endpoint"
    return FlyteAdminUnavailable(f"rules.flyte_admin.{setting} {url} answered {said}")


def _life(value: Any) -> timedelta:
    """How long a token is good for. Servers have been seen to leave it out, write it as text, or get it wrong."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return UNTOLD_LIFE
    if not 0 < seconds < float("inf"):
        return UNTOLD_LIFE
    return timedelta(seconds=min(seconds, LONGEST_LIFE.total_seconds()))
