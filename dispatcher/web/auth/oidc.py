"""Login through an OpenID Connect provider: the authorization code flow with PKCE, state and nonce.

An id_token is accepted only if the provider signed it and issued it for the configured `client_id`, if it is not
expired, and if it contains the nonce of this login. Each attempt to log in can be completed once. Sources: OpenID
Connect Core 1.0, 3.1; RFC 7636; RFC 9700.
"""

from __future__ import annotations

import hmac
import secrets
import warnings
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import structlog
from itsdangerous import BadData
from markupsafe import escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from channels.common.secret import mask, reveal
from dispatcher.web.auth.access import AccessControl, Scope
from dispatcher.web.auth.session import Session
from dispatcher.web.base_path import base_path_of
from dispatcher.web.config import Oidc
from dispatcher.web.limits import client_of, log_refusal, too_many_requests
from dispatcher.web.responses import error_response

log = structlog.get_logger(__name__)

COOKIE = "dispatcher_oidc"
LOGIN_TIMEOUT = 600
"""Maximum seconds from the redirect to the provider until the browser returns from the provider."""
MAX_REASON = 500
"""Maximum number of characters of the provider's error in the log."""
ALGORITHMS = ["RS256", "PS256", "ES256", "EdDSA"]
"""The accepted signature algorithms. All of them sign with a private key, which only the provider has. Tokens without a
signature (`none`) or signed with a shared secret (HS256) are refused."""


class OidcPages:
    """Serves /login/oidc, which redirects to the provider, and /oidc/callback, which gets the provider's response."""

    def __init__(self, access_control: AccessControl, config: Oidc) -> None:
        self._access_control = access_control
        self._config = config
        self._used: dict[str, datetime] = {}
        """The `state` of each attempt that has come back from the provider, with the time when its cookie expires."""

    def routes(self) -> list[Route]:
        return [Route("/login/oidc", self._redirect_to_provider), Route("/oidc/callback", self._callback)]

    async def _redirect_to_provider(self, request: Request) -> Response:
        if wait := self._access_control.login_limiter.take(client_of(request.scope)):
            return too_many_requests(wait, request.scope)
        login = {name: secrets.token_urlsafe(32) for name in ("state", "nonce", "verifier")}
        login["target"] = local_target(request, request.query_params.get("next"))
        try:
            async with self._client(request) as client:
                endpoint = (await self._provider(client))["authorization_endpoint"]
                address, _ = client.create_authorization_url(
                    endpoint, state=login["state"], nonce=login["nonce"], code_verifier=login["verifier"]
                )
        except Exception as error:  # noqa: BLE001 - whatever type the error has, this login fails
            return self._failed(request, error)
        response = RedirectResponse(address, 303)
        sealed = self._access_control.sessions.seal(login)
        # lax, not strict: the browser must send this cookie when the provider, which is another site, redirects back
        response.set_cookie(
            COOKIE,
            sealed,
            max_age=LOGIN_TIMEOUT,
            path=_cookie_path(request),
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
        )
        return response

    async def _callback(self, request: Request) -> Response:
        state = request.query_params.get("state", "")
        if not state.isascii():
            log_refusal(client_of(request.scope), "a login provider's state is ASCII")
            return error_response(request.scope, 400, "this state was not made here")
        try:
            login = self._access_control.sessions.unseal(request.cookies.get(COOKIE, ""), LOGIN_TIMEOUT)
        except BadData:
            return error_response(request.scope, 403, "this login was not started here, or too long ago: log in again")
        if not hmac.compare_digest(state, str(login.get("state", ""))):
            return error_response(request.scope, 403, "this response belongs to another login: log in again")
        if not self._use(state):
            return error_response(request.scope, 403, "this login was completed or has failed: log in again")
        try:
            claims = await self._claims(request, login)
        except Exception as error:  # noqa: BLE001 - whatever type the error has, this login fails
            return self._failed(request, error)
        name, scopes = self._person(claims)
        if not scopes:
            log.warning("a login was refused: in none of http.oidc's groups", caller=name)
            return error_response(request.scope, 403, f"{name} has no access to this console")
        log.info("logged in", caller=name)
        # This page opens the target. A redirect to the target would not work: the browser would still count it as a
        # request from the provider's site, and would not send the SameSite=Strict session cookie.
        target = escape(login["target"])
        response = HTMLResponse(
            f'<!doctype html><meta http-equiv="refresh" content="0;url={target}"><title>Welcome</title>'
        )
        session = Session(name, secrets.token_urlsafe(32), self._config.fingerprint, scopes)
        self._access_control.sessions.begin(request, response, session)
        response.delete_cookie(COOKIE, path=_cookie_path(request))
        return response

    def _use(self, state: str) -> bool:
        """Mark an attempt as used. Returns False if it was used before."""
        now = self._access_control.clock.now()
        self._used = {one: until for one, until in self._used.items() if until > now}
        if state in self._used:
            return False
        self._used[state] = now + timedelta(seconds=LOGIN_TIMEOUT)
        return True

    async def _claims(self, request: Request, login: dict[str, Any]) -> dict[str, Any]:
        """Fetch the id_token from the provider, verify it and return its claims.

        Raises an exception of any type if the token can't be fetched or is not valid.
        """
        from joserfc import jwt  # noqa: PLC0415 - joserfc is an optional dependency
        from joserfc.errors import SecurityWarning  # noqa: PLC0415 - joserfc is an optional dependency
        from joserfc.jwk import KeySet  # noqa: PLC0415 - joserfc is an optional dependency

        code, verifier = request.query_params.get("code"), login["verifier"]
        if not code:
            answer = (request.query_params.get(name, "") for name in ("error", "error_description"))
            raise ValueError(f"the provider refused: {' '.join(filter(None, answer)) or 'it sent no code'}")
        async with self._client(request) as client:
            provider = await self._provider(client)
            token = await client.fetch_token(provider["token_endpoint"], code=code, code_verifier=verifier)
            keys = (await client.request("GET", provider["jwks_uri"], withhold_token=True)).raise_for_status().json()
        with warnings.catch_warnings():
            warnings.simplefilter("error", SecurityWarning)  # joserfc only warns of an RSA key below 2048 bits
            key_set = KeySet.import_key_set(keys)
        claims: dict[str, Any] = jwt.decode(token["id_token"], key_set, ALGORITHMS).claims
        registry = jwt.JWTClaimsRegistry(
            now=int(self._access_control.clock.now().timestamp()),
            leeway=60,
            iss={"essential": True, "value": self._config.issuer},
            aud={"essential": True, "value": self._config.client_id},
            exp={"essential": True},
            sub={"essential": True},
        )
        registry.validate(claims)
        # OpenID Connect Core, 3.1.3.7: the third to fifth and the eleventh rule. The registry would accept lists.
        if claims.get("nonce") != login["nonce"]:
            raise ValueError("the id_token has the nonce of another login")
        audiences = {claims["aud"]} if isinstance(claims["aud"], str) else set(claims["aud"])
        if claims.get("azp", self._config.client_id if len(audiences) == 1 else None) != self._config.client_id:
            raise ValueError("the id_token was issued to another client (azp), or for several clients without azp")
        return claims

    def _person(self, claims: dict[str, Any]) -> tuple[str, frozenset[Scope]]:
        """Return the person's name and scopes. A group named like a mail address is not that address."""
        mail = claims.get("email") if claims.get("email_verified") is True else None
        groups = claims.get(self._config.groups_claim)
        found = {("group", group) for group in groups if isinstance(group, str)} if isinstance(groups, list) else set()
        found |= {("address", mail)} if isinstance(mail, str) else set()
        scopes = {Scope.READ, Scope.OPERATE} if found & self._config.people(Scope.OPERATE) else set()
        scopes |= {Scope.READ} if found & self._config.people(Scope.READ) else set()
        return str(mail or claims["sub"])[:200], frozenset(scopes)

    async def _provider(self, client: Any) -> dict[str, Any]:
        """Fetch the provider's configuration. Raises ValueError if its issuer is not `http.oidc.issuer`."""
        url = self._config.issuer.rstrip("/") + "/.well-known/openid-configuration"
        found: dict[str, Any] = (await client.request("GET", url, withhold_token=True)).raise_for_status().json()
        if found.get("issuer") != self._config.issuer:
            raise ValueError(f"the provider calls itself {found.get('issuer')!r}, and http.oidc.issuer doesn't")
        return found

    def _client(self, request: Request) -> Any:
        # authlib is an optional dependency, so it is imported here. The import emits a deprecation warning, which is
        # hidden from the log.
        with warnings.catch_warnings(record=True):
            from authlib.integrations.httpx_client import AsyncOAuth2Client  # noqa: PLC0415 - authlib is optional

            from dispatcher.web.auth.provider_http import HEADERS, BoundedTransport  # noqa: PLC0415 - so is httpx

        return AsyncOAuth2Client(
            self._config.client_id,
            reveal(self._config.client_secret, self._config.client_secret_file),
            scope=" ".join(self._config.scopes),
            redirect_uri=f"{request.base_url}oidc/callback",
            code_challenge_method="S256",
            headers=HEADERS,
            transport=BoundedTransport(),
        )

    def _failed(self, request: Request, error: Exception) -> Response:
        reason = mask(str(error) or type(error).__name__, self._secrets())[:MAX_REASON]
        log.warning("the login provider can't be reached, or its response is not valid", reason=reason)
        return error_response(request.scope, 502, "the login failed; the log says why")

    def _secrets(self) -> Iterator[str]:
        """Yield the client's secret, and the login of which it is a part (RFC 6749, 2.3.1), for `mask`."""
        with suppress(OSError):
            secret = reveal(self._config.client_secret, self._config.client_secret_file) or ""
            yield secret
            yield b64encode(f"{self._config.client_id}:{secret}".encode()).decode()


def local_target(request: Request, target: str | None) -> str:
    """Return the page to open after the login: `target` if it is one of the dispatcher's paths, else the console."""
    base_path = base_path_of(request.scope)
    is_local = target is not None and target.startswith(f"{base_path}/") and not target.startswith("//")
    if target is None or not is_local or not target.isprintable() or "\\" in target:
        return f"{base_path}/console/"
    return target


def _cookie_path(request: Request) -> str:
    return f"{base_path_of(request.scope)}/oidc"
