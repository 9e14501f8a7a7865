"""Logs in to a relay with a password (PLAIN, LOGIN or CRAM-MD5) or with an access token (XOAUTH2).

Secrets are read at each login, so operators can change them while the dispatcher runs. If the relay repeats a secret in
its reply, the secret is masked.
"""

from __future__ import annotations

import asyncio
import base64
import re
from pathlib import Path
from typing import Any

from aiosmtplib import SMTP, SMTPAuthenticationError
from pydantic import BaseModel, Field, SecretStr, ValidationError

from channels.common.secret import reveal
from channels.contract import Later, Misconfigured
from channels.email.config import OAuthConfig, RelayConfig
from channels.email.smtp_replies import login_refused

_PREFERRED_MECHANISMS = ("plain", "login", "cram-md5")
"""Login mechanisms for passwords, in order of preference. CRAM-MD5 is last, because it forces relays to store readable
passwords. PLAIN is safe, because TLS encrypts the login."""
RENEW_BEFORE_EXPIRY = 60.0
"""A token is renewed this many seconds before it expires. A token that is valid for less than two minutes is renewed
after half of that time."""
_ERROR_CODE = re.compile(r"[a-z_]{1,60}")


class SmtpAuth:
    """Logs in to one relay after a connection is opened."""

    def __init__(self, relay: RelayConfig, where: str) -> None:
        self._relay = relay
        self._where = where
        self._tokens = _TokenCache(relay.oauth, relay.timeout) if relay.oauth is not None else None

    async def authenticate(self, smtp: SMTP) -> None:
        """Log in, if the settings have a login.

        Raises `Misconfigured` if the login is impossible or refused, `Later` if it is refused for now, and aiosmtplib's
        errors if the connection fails.
        """
        username = self._relay.username
        if username is None:
            return
        if self._tokens is not None:
            await self._login_with_token(smtp, username, self._tokens)
        else:
            await self._login_with_password(smtp, username)

    async def _login_with_token(self, smtp: SMTP, username: str, tokens: _TokenCache) -> None:
        if "xoauth2" not in smtp.server_auth_methods:
            raise Misconfigured(f"{self._where} takes no tokens (no XOAUTH2): {_offered_mechanisms(smtp)}")
        token = await tokens.get()
        try:
            await smtp.auth_xoauth2(username, token)
        except SMTPAuthenticationError as error:
            tokens.forget(token)
            raise login_refused(self._where, "token", error.code, _masked(error.message, token)) from None

    async def _login_with_password(self, smtp: SMTP, username: str) -> None:
        password = _read("channels.email.password_file", self._relay.password, self._relay.password_file)
        allowed = _PREFERRED_MECHANISMS if self._relay.auth == "auto" else (self._relay.auth,)
        for mechanism in allowed:
            if mechanism in smtp.server_auth_methods:
                break
        else:
            raise Misconfigured(f"{self._where} offers no login by {' or '.join(allowed)}: {_offered_mechanisms(smtp)}")
        logins = {"plain": smtp.auth_plain, "login": smtp.auth_login, "cram-md5": smtp.auth_crammd5}
        try:
            await logins[mechanism](username, password)
        except SMTPAuthenticationError as error:
            reply = _masked(error.message, password, f"\0{username}\0{password}")
            raise login_refused(self._where, "login", error.code, reply) from None


class _TokenResponse(BaseModel):
    """The answer of an OAuth token endpoint (RFC 6749, 5.1)."""

    access_token: str = Field(min_length=1, pattern=r"^[\x20-\x7e]+$")
    expires_in: float = Field(300, gt=0)


class _TokenCache:
    """Provides the current access token. A token is requested once for all connections, and renewed before expiry."""

    def __init__(self, oauth: OAuthConfig, timeout: float) -> None:
        self._oauth = oauth
        self._timeout = timeout
        self._lock = asyncio.Lock()
        self._token = ""
        self._valid_until = 0.0

    async def get(self) -> str:
        """Return a valid token: from the file if there is one, else from the cache or from the token endpoint.

        Raises `Misconfigured` if the endpoint refuses or a file can't be read, `Later` if the endpoint gives no answer.
        """
        if self._oauth.token_file is not None:
            return _read("channels.email.oauth.token_file", None, self._oauth.token_file)
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if now >= self._valid_until:
                granted = await self._request_token()
                self._token = granted.access_token
                self._valid_until = now + max(granted.expires_in - RENEW_BEFORE_EXPIRY, granted.expires_in / 2)
            return self._token

    def forget(self, token: str) -> None:
        """Forget a token because the relay refused it. The next login requests a new token."""
        if token == self._token:
            self._valid_until = 0.0

    async def _request_token(self) -> _TokenResponse:
        """Request a token by the client-credentials flow (RFC 6749, 4.4), with the client's secret in the body.

        Raises `Misconfigured` or `Later` with `provider_wide` if the endpoint gives no token.
        """
        # Imported late: only token requests need aiohttp.
        import aiohttp  # noqa: PLC0415

        from channels.common.body import AnswerTooLong, read_whole  # noqa: PLC0415
        from channels.common.http import failed_request, open_session  # noqa: PLC0415
        from channels.common.proxy import proxy_for  # noqa: PLC0415

        oauth, where, url = self._oauth, "channels.email.oauth.token_url", str(self._oauth.token_url)
        form = {
            "grant_type": "client_credentials",
            "client_id": oauth.client_id,
            "client_secret": _read(
                "channels.email.oauth.client_secret_file", oauth.client_secret, oauth.client_secret_file
            ),
            **({"scope": oauth.scope} if oauth.scope else {}),
        }
        try:
            async with (
                open_session(self._timeout) as session,
                session.post(url, data=form, allow_redirects=False, proxy=proxy_for(url)) as response,
            ):
                status, body = response.status, await read_whole(response.content)
        except AnswerTooLong as error:
            raise Misconfigured(f"{where}: {error}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            failure = failed_request(error, where, provider_wide=True)
            if not isinstance(failure, Later):  # no answer; no mail was sent, so nothing is in doubt
                failure = Later(f"{where} did not answer: {type(error).__name__}", provider_wide=True)
            raise failure from None
        if status != 200:
            reason = f"{where} gave no token: {status}{_error_code(body)}; check channels.email.oauth"
            # 408, 429 and 5xx say nothing about the request.
            raise Later(reason, provider_wide=True) if status in {408, 429} or status >= 500 else Misconfigured(reason)
        try:
            return _TokenResponse.model_validate_json(body)
        except ValidationError:
            raise Misconfigured(f"{where} answered with something that is no token") from None


def _read(setting: str, value: SecretStr | None, file: Path | None) -> str:
    """Return a secret. Raises `Misconfigured` if its file can't be read. `setting`: the setting that names the file."""
    try:
        return reveal(value, file) or ""
    except UnicodeDecodeError:
        raise Misconfigured(f"{setting} can't be read: it is not UTF-8") from None
    except (OSError, ValueError) as error:
        raise Misconfigured(f"{setting} can't be read: {getattr(error, 'strerror', None) or error}") from None


def _error_code(body: bytes) -> str:
    """Return a space and the error code from the endpoint's answer (RFC 6749, 5.2). All other parts of the body are
    left out, because they may contain secrets.
    """

    class Refusal(BaseModel):
        error: Any = ""

    try:
        name = str(Refusal.model_validate_json(body).error)
    except ValidationError:
        return ""
    return f" {name}" if _ERROR_CODE.fullmatch(name) else ""


def _offered_mechanisms(smtp: SMTP) -> str:
    methods = ", ".join(method.upper() for method in smtp.server_auth_methods)
    return f"it offers {methods}" if methods else "it offers no login at all; over TLS it may"


def _masked(text: str, *secrets: str) -> str:
    """Return the text of the relay's reply, with the secrets masked. A secret is masked in plain text and in base64."""
    for secret in filter(None, secrets):
        for form in (secret, base64.b64encode(secret.encode()).decode()):
            text = text.replace(form, "********")
    return text
