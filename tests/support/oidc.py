"""A small OpenID Connect provider, which signs its id_tokens and can issue invalid ones."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from dispatcher.web.forms import read_form
from dispatcher.web.server import serving
from tests.support.clock import ManualClock

SECRET = secrets.token_hex(16)


@dataclass(slots=True)
class Provider:
    """An OpenID Connect provider that logs in the user `person` without asking."""

    url: str = ""
    person: dict[str, Any] = field(default_factory=lambda: {"sub": "u1", "groups": ["oncall"]})
    false_claims: dict[str, Any] = field(default_factory=dict)
    """Claims that replace the true ones in the id_token; None removes a claim."""
    nonces: Callable[[str], Any] = lambda nonce: nonce
    """Returns the claim `nonce` for the nonce of the request."""
    key: Any = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "1", "use": "sig"}))
    signs_with: Any = None
    algorithm: str = "RS256"
    error_description: str = ""
    """If it is set, the provider issues no token, and answers with this description."""
    token_requests: int = 0
    authorizations: dict[str, dict[str, str]] = field(default_factory=dict)
    """The authorization requests by code."""
    clock: ManualClock = field(default_factory=ManualClock)

    def routes(self) -> list[Route]:
        return [
            Route("/.well-known/openid-configuration", self._described),
            Route("/authorize", self._authorize),
            Route("/token", self._token, methods=["POST"]),
            Route("/keys", self._keys),
        ]

    async def _described(self, _: Request) -> Response:
        places = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
        return JSONResponse({"issuer": self.url, **{name: f"{self.url}/{path}" for name, path in places.items()}})

    async def _authorize(self, request: Request) -> Response:
        query = dict(request.query_params)
        assert (query["response_type"], query["code_challenge_method"]) == ("code", "S256")
        code = f"code-{len(self.authorizations)}"
        self.authorizations[code] = query
        return RedirectResponse(f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state']})}", 302)

    async def _token(self, request: Request) -> Response:
        self.token_requests += 1
        if self.error_description:
            return JSONResponse({"error": "invalid_client", "error_description": self.error_description}, 401)
        form = await read_form(request)
        query = self.authorizations.pop(form["code"])
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        proven = base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == query["code_challenge"]
        login = base64.b64encode(f"dispatcher:{SECRET}".encode()).decode()
        if not proven or request.headers.get("authorization") != f"Basic {login}":
            return JSONResponse({"error": "invalid_grant"}, 400)
        now = int(self.clock.now().timestamp())
        nonce = self.nonces(query["nonce"])
        claims = {"iss": self.url, "aud": "dispatcher", "iat": now, "exp": now + 300, "nonce": nonce}
        id_claims = {
            name: value for name, value in {**claims, **self.person, **self.false_claims}.items() if value is not None
        }
        header = {"alg": self.algorithm, "kid": "1"}
        signed = jwt.encode(header, id_claims, self.signs_with or self.key, [self.algorithm])
        return JSONResponse({"access_token": "a", "token_type": "Bearer", "expires_in": 300, "id_token": signed})

    async def _keys(self, _: Request) -> Response:
        return JSONResponse({"keys": [self.key.as_dict(private=False)]})


@asynccontextmanager
async def a_provider() -> AsyncIterator[Provider]:
    provider = Provider()
    async with serving(Starlette(routes=provider.routes()), "127.0.0.1", 0) as provider.url:
        yield provider
