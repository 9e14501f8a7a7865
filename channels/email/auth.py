"""Showing a relay who we are: a password by PLAIN, LOGIN or CRAM-MD5, or a token by XOAUTH2.

What is secret is read when it is needed, so it may rotate, and is cut out of whatever the relay answers.
"""

from __future__ import annotations

import asyncio
import base64
import re
from typing import Any

from aiosmtplib import SMTP, SMTPAuthenticationError
from pydantic import BaseModel, Field, ValidationError

from channels.common.secret import reveal
from channels.contract import Later
from channels.email.config import OAuthConfig, RelayConfig
from channels.email.smtp_replies import login_refused

_IN_TURN = ("plain", "login", "cram-md5")
"""Over TLS the simplest is the best: CRAM-MD5 makes relays keep passwords readable."""
EARLY = 60.0
"""Seconds before its end at which a token is renewed; a short-lived one at half its life."""
_CODE = re.compile(r"[a-z_]{1,60}")


class Login:
    """Logs connections in to one relay."""

    def __init__(self, relay: RelayConfig, where: str) -> None:
        self._relay = relay
        self._where = where
        self._tokens = _Tokens(relay.oauth, relay.timeout) if relay.oauth is not None else None

    async def show(self, smtp: SMTP) -> None:
        """Log in, if the settings have a login.

        Raises Later (everyone) where that can't be done or is refused; aiosmtplib's errors where the connection breaks.
        """
        username = self._relay.username
        if username is None:
            return
        if self._tokens is not None:
            await self._by_token(smtp, username, self._tokens)
        else:
            await self._by_password(smtp, username)

    async def _by_token(self, smtp: SMTP, username: str, tokens: _Tokens) -> None:
        if "xoauth2" not in smtp.server_auth_methods:
            raise Later(f"{self._where} takes no tokens (no XOAUTH2): {_offers(smtp)}", everyone=True)
        token = await tokens.get()
        try:
            await smtp.auth_xoauth2(username, token)
        except SMTPAuthenticationError as error:
            tokens.forget(token)
            raise login_refused(self._where, error.code, _without(error.message, token), token=True) from None

    async def _by_password(self, smtp: SMTP, username: str) -> None:
        try:
            password = reveal(self._relay.password, self._relay.password_file) or ""
        except OSError as error:
            raise Later(f"channels.email.password_file can't be read: {error.strerror}", everyone=True) from None
        wanted = _IN_TURN if self._relay.auth == "auto" else (self._relay.auth,)
        for mechanism in wanted:
            if mechanism in smtp.server_auth_methods:
                break
        else:
            raise Later(f"{self._where} offers no login by {' or '.join(wanted)}: {_offers(smtp)}", everyone=True)
        shows = {"plain": smtp.auth_plain, "login": smtp.auth_login, "cram-md5": smtp.auth_crammd5}
        try:
            await shows[mechanism](username, password)
        except SMTPAuthenticationError as error:
            words = _without(error.message, password, f"\0{username}\0{password}")
            raise login_refused(self._where, error.code, words, token=False) from None


class _Granted(BaseModel):
    """A token endpoint's answer (RFC 6749, 5.1)."""

    access_token: str = Field(min_length=1, pattern=r"^[\x20-\x7e]+$")
    expires_in: float = Field(300, gt=0)


class _Tokens:
    """Access tokens: one at a time, however many connections ask, renewed before it ends."""

    def __init__(self, oauth: OAuthConfig, timeout: float) -> None:
        self._oauth = oauth
        self._timeout = timeout
        self._asking = asyncio.Lock()
        self._token = ""
        self._good_until = 0.0

    async def get(self) -> str:
        """A token that is good for a while. Raises Later (everyone) where there is none to be had."""
        if self._oauth.token_file is not None:
            try:
                return reveal(None, self._oauth.token_file) or ""
            except OSError as error:
                raise Later(f"channels.email.oauth.token_file can't be read: {error.strerror}", everyone=True) from None
        async with self._asking:
            now = asyncio.get_running_loop().time()
            if now >= self._good_until:
                granted = await self._ask()
                self._token = granted.access_token
                self._good_until = now + max(granted.expires_in - EARLY, granted.expires_in / 2)
            return self._token

    def forget(self, token: str) -> None:
        """The relay refused it: the next login asks anew."""
        if token == self._token:
            self._good_until = 0.0

    async def _ask(self) -> _Granted:
        """The client-credentials flow (RFC 6749, 4.4), the client's secret in the body, as all endpoints take it."""
        import aiohttp  # noqa: PLC0415 - a relay with a password, or none, does without

        oauth, where = self._oauth, "channels.email.oauth.token_url"
        try:
            form = {
                "grant_type": "client_credentials",
                "client_id": oauth.client_id,
                "client_secret": reveal(oauth.client_secret, oauth.client_secret_file) or "",
                **({"scope": oauth.scope} if oauth.scope else {}),
            }
        except OSError as error:
            raise Later(
                f"channels.email.oauth.client_secret_file can't be read: {error.strerror}", everyone=True
            ) from None
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._timeout)) as session,
                session.post(str(oauth.token_url), data=form, allow_redirects=False) as response,
            ):
                status, body = response.status, await response.content.read(100_000)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Later(f"{where} can't be reached: {type(error).__name__}", everyone=True) from None
        if status != 200:
            raise Later(
                f"{where} gave no token: {status}{_error_code(body)}; check channels.email.oauth", everyone=True
            )
        try:
            return _Granted.model_validate_json(body)
        except ValidationError:
            raise Later(f"{where} answered with something that is no token", everyone=True) from None


def _error_code(body: bytes) -> str:
    """The error's name (RFC 6749, 5.2); nothing else of the body, which may hold anything."""

    class Refusal(BaseModel):
        error: Any = ""

    try:
        name = str(Refusal.model_validate_json(body).error)
    except ValidationError:
        return ""
    return f" {name}" if _CODE.fullmatch(name) else ""


def _offers(smtp: SMTP) -> str:
    methods = ", ".join(method.upper() for method in smtp.server_auth_methods)
    return f"it offers {methods}" if methods else "it offers no login at all; over TLS it may"


def _without(text: str, *secrets: str) -> str:
    """What the relay said, without our own secrets, plain or as they were sent."""
    for secret in filter(None, secrets):
        for shown in (secret, base64.b64encode(secret.encode()).decode()):
            text = text.replace(shown, "********")
    return text
