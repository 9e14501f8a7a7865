"""Sessions of the console: signed cookies, each bound to the token or provider with which the person logged in."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
from itsdangerous import BadData, TimestampSigner, URLSafeTimedSerializer
from starlette.requests import HTTPConnection
from starlette.responses import Response

from dispatcher.clock import Clock
from dispatcher.web.config import Scope

log = structlog.get_logger(__name__)

COOKIE = "dispatcher_session"


@dataclass(frozen=True, slots=True)
class Session:
    """A login at the console."""

    name: str
    csrf_token: str
    """The session's forms must contain this token."""
    fingerprint: str
    """A hash of the login's token, or of the provider's settings. If either changes, the session becomes invalid."""
    scopes: frozenset[Scope] = frozenset()
    """Scopes granted through the OpenID Connect provider. A session from a token has the token's scopes instead."""


class _Signer(TimestampSigner):
    """TimestampSigner that reads the injected clock."""

    def __init__(self, *arguments: Any, clock: Clock, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._clock = clock

    def get_timestamp(self) -> int:
        return int(self._clock.now().timestamp())


class Sessions:
    """Signs and reads session cookies. With a key file, sessions survive a restart and work on every replica."""

    def __init__(self, key_file: Path | None, lifetime: timedelta, clock: Clock) -> None:
        self._key_file = key_file
        self._generated_key = secrets.token_bytes(32)
        self._lifetime = lifetime
        self._clock = clock

    def begin(self, response: Response, session: Session, *, secure: bool) -> None:
        """Set the session's cookie. `secure`: true if the browser must send it only over https."""
        data = {
            "name": session.name,
            "csrf": session.csrf_token,
            "fingerprint": session.fingerprint,
            "scopes": [*session.scopes],
        }
        response.set_cookie(
            COOKIE,
            str(self._serializer().dumps(data)),
            max_age=int(self._lifetime.total_seconds()),
            httponly=True,
            samesite="strict",
            secure=secure,
        )

    def end(self, response: Response) -> None:
        """Delete the session's cookie."""
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")

    def read(self, request: HTTPConnection) -> Session | None:
        """The session of the request's cookie; None if it is missing, expired or not signed with one of the keys."""
        cookie = request.cookies.get(COOKIE)
        if not cookie:
            return None
        try:
            data: dict[str, Any] = self._serializer().loads(cookie, max_age=int(self._lifetime.total_seconds()))
            scopes = frozenset(map(Scope, data["scopes"]))
            return Session(data["name"], data["csrf"], data["fingerprint"], scopes)
        except (BadData, KeyError, TypeError, ValueError):  # a cookie of another version may have other fields
            return None

    def seal(self, data: dict[str, Any]) -> str:
        """Sign data for a cookie. The browser's user can read the data."""
        return str(self._serializer("sealed").dumps(data))

    def unseal(self, text: str, seconds: int) -> dict[str, Any]:
        """The data signed by `seal` within the last `seconds`. Raises itsdangerous' BadData for anything else."""
        data: dict[str, Any] = self._serializer("sealed").loads(text, max_age=seconds)
        return data

    def fingerprint(self, secret: str) -> str:
        """A keyed hash that binds a session to a token without revealing it."""
        return _fingerprint(self._keys()[0], secret)

    def matches_fingerprint(self, fingerprint: str, secret: str) -> bool:
        """True if `fingerprint` was computed from this token with any of the keys."""
        matches = [hmac.compare_digest(fingerprint, _fingerprint(key, secret)) for key in self._keys()]
        return any(matches)  # a list, so every key is compared and the duration reveals nothing

    def _serializer(self, salt: str = "session") -> URLSafeTimedSerializer:
        oldest_first = self._keys()[::-1]  # itsdangerous signs with the last key
        options = {"clock": self._clock, "key_derivation": "hmac", "digest_method": hashlib.sha256}
        return URLSafeTimedSerializer(oldest_first, salt, signer=_Signer, signer_kwargs=options)

    def _keys(self) -> Sequence[bytes]:
        """The keys, newest first. While the file can't be read, only the generated key is used: sessions that were
        signed with the file's keys are then invalid.
        """
        if self._key_file is None:
            return [self._generated_key]
        try:
            lines = self._key_file.read_bytes().split()
        except OSError as error:
            log.warning("http.session_key_file can't be read: no session is valid", reason=str(error))
            lines = []
        return lines or [self._generated_key]


def _fingerprint(key: bytes, secret: str) -> str:
    return hmac.new(key, secret.encode(), hashlib.sha256).hexdigest()
