"""Logging in at a provider of OpenID Connect: the authorization code flow with PKCE, state and nonce.

What the provider says is believed only where its id_token is signed by its own key, for us, now, and for this very
attempt. Source: OpenID Connect Core 1.0, 3.1; RFC 7636; RFC 9700.
"""

from __future__ import annotations

import hmac
import secrets
import warnings
from typing import Any

import structlog
from itsdangerous import BadData
from markupsafe import escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from channels.common.secret import reveal
from dispatcher.web.auth.access import AccessControl, Scope, client_of
from dispatcher.web.auth.session import Session
from dispatcher.web.config import Oidc
from dispatcher.web.limits import too_many
from dispatcher.web.responses import problem

log = structlog.get_logger(__name__)

HOME = "/console/"
COOKIE = "dispatcher_oidc"
PATIENCE = 10.0
"""Seconds for each of the provider's answers."""
LONGEST = 600
"""Seconds that a person may take at the provider."""
ALGORITHMS = ["RS256", "PS256", "ES256", "EdDSA"]
"""With a key that only the provider has: never `none`, never a shared secret."""


class OidcPages:
    """/login/oidc sends a person to the provider, /oidc/callback hears what it says."""

    def __init__(self, gate: AccessControl, config: Oidc) -> None:
        self._gate = gate
        self._config = config

    def routes(self) -> list[Route]:
        return [Route("/login/oidc", self._leave), Route("/oidc/callback", self._come_back)]

    async def _leave(self, request: Request) -> Response:
        if wait := self._gate.attempts.take(client_of(request.scope)):
            return too_many(wait)
        attempt = {name: secrets.token_urlsafe(32) for name in ("state", "nonce", "verifier")}
        attempt["goal"] = local(request.query_params.get("next", HOME))
        try:
            async with self._client(request) as client:
                endpoint = (await self._provider(client))["authorization_endpoint"]
                address, _ = client.create_authorization_url(
                    endpoint, state=attempt["state"], nonce=attempt["nonce"], code_verifier=attempt["verifier"]
                )
        except Exception as error:  # noqa: BLE001 - a provider can fail in any way
            return self._failed(error)
        answer = RedirectResponse(address, 303)
        sealed = self._gate.sessions.seal(attempt)
        secure = request.url.scheme == "https"
        # lax: the provider's redirect comes from another site, and must bring it
        answer.set_cookie(COOKIE, sealed, max_age=LONGEST, path="/oidc", httponly=True, samesite="lax", secure=secure)
        return answer

    async def _come_back(self, request: Request) -> Response:
        try:
            attempt = self._gate.sessions.unseal(request.cookies.get(COOKIE, ""), LONGEST)
        except BadData:
            return problem(403, "this login was not begun here, or too long ago: begin at /login")
        if not hmac.compare_digest(request.query_params.get("state", ""), str(attempt.get("state", ""))):
            return problem(403, "this answer belongs to another login: begin at /login")
        try:
            claims = await self._claims(request, attempt)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, nobody is logged in
            return self._failed(error)
        name, scopes = self._person(claims)
        if not scopes:
            log.warning("a login was refused: in none of http.oidc's groups", caller=name)
            return problem(403, f"{name} may not look at this console")
        log.info("logged in", caller=name)
        # from a page of ours, not by a redirect from the provider's: or the strict cookie would stay at home
        goal = escape(attempt["goal"])
        answer = HTMLResponse(
            f'<!doctype html><meta http-equiv="refresh" content="0;url={goal}"><title>Welcome</title>'
        )
        session = Session(name, secrets.token_urlsafe(32), self._config.mark, scopes)
        self._gate.sessions.begin(answer, session, secure=request.url.scheme == "https")
        answer.delete_cookie(COOKIE, path="/oidc")
        return answer

    async def _claims(self, request: Request, attempt: dict[str, Any]) -> dict[str, Any]:
        """What the provider's id_token says, verified. Raises whatever is wrong with it."""
        from joserfc import jwt  # noqa: PLC0415 - an extra
        from joserfc.jwk import KeySet  # noqa: PLC0415

        async with self._client(request) as client:
            provider = await self._provider(client)
            code, verifier = request.query_params["code"], attempt["verifier"]
            token = await client.fetch_token(provider["token_endpoint"], code=code, code_verifier=verifier)
            keys = (await client.request("GET", provider["jwks_uri"], withhold_token=True)).raise_for_status().json()
        claims: dict[str, Any] = jwt.decode(token["id_token"], KeySet.import_key_set(keys), ALGORITHMS).claims
        registry = jwt.JWTClaimsRegistry(
            now=int(self._gate.clock.now().timestamp()),
            leeway=60,
            iss={"essential": True, "value": self._config.issuer},
            aud={"essential": True, "value": self._config.client_id},
            exp={"essential": True},
            sub={"essential": True},
            nonce={"essential": True, "value": attempt["nonce"]},
        )
        registry.validate(claims)
        return claims

    def _person(self, claims: dict[str, Any]) -> tuple[str, frozenset[Scope]]:
        mail = claims.get("email") if claims.get("email_verified") is True else None
        groups = claims.get(self._config.groups_claim)
        known_as = {str(group) for group in groups} if isinstance(groups, list) else set()
        known_as |= {str(mail)} if mail else set()
        scopes = {Scope.READ, Scope.OPERATE} if known_as & set(self._config.operate) else set()
        scopes |= {Scope.READ} if known_as & set(self._config.read) else set()
        return str(mail or claims["sub"])[:200], frozenset(scopes)

    async def _provider(self, client: Any) -> dict[str, Any]:
        """The provider's own description. Raises ValueError where it is another's."""
        url = self._config.issuer.rstrip("/") + "/.well-known/openid-configuration"
        found: dict[str, Any] = (await client.request("GET", url, withhold_token=True)).raise_for_status().json()
        if found.get("issuer") != self._config.issuer:
            raise ValueError(f"the provider calls itself {found.get('issuer')!r}, and http.oidc.issuer doesn't")
        return found

    def _client(self, request: Request) -> Any:
        with warnings.catch_warnings(
            record=True
        ):  # authlib would rather have httpx's successor, and insists on saying so
            from authlib.integrations.httpx_client import AsyncOAuth2Client  # noqa: PLC0415 - an extra

        return AsyncOAuth2Client(
            self._config.client_id,
            reveal(self._config.client_secret, self._config.client_secret_file),
            scope=" ".join(self._config.scopes),
            redirect_uri=str(request.base_url.replace(path="/oidc/callback")),
            code_challenge_method="S256",
            timeout=PATIENCE,
        )

    def _failed(self, error: Exception) -> Response:
        log.warning(
            "the login provider's word can't be had, or not be believed", reason=str(error) or type(error).__name__
        )
        return problem(502, "the login failed; the log says why")


def local(goal: str) -> str:
    """Where to go after the login: a path of ours, whatever a link to the login page says."""
    ours = goal.startswith("/") and not goal.startswith("//") and goal.isprintable() and "\\" not in goal
    return goal if ours else HOME
