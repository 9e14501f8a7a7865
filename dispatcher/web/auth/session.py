"""Sessions of people who logged in at the console.

A session is a signed cookie. It is bound to the token or to the OpenID Connect provider that was used for the login.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from itsdangerous import BadData, TimestampSigner, URLSafeTimedSerializer
from starlette.requests import HTTPConnection
from starlette.responses import Response

from dispatcher.clock import Clock
from dispatcher.web.base_path import base_path_of
from dispatcher.web.config import Scope, read_session_keys

log = structlog.get_logger(__name__)

COOKIE = "dispatcher_session"


@dataclass(frozen=True, slots=True)
class Session:
    """The session of a person who has logged in at the console."""

    name: str
    csrf_token: str
    """Every form that is sent in this session must contain this token, so that other sites can't forge requests."""
    fingerprint: str
    """A hash of the token that was used for the login, or of the provider's settings. If the token or these settings
    change, the session becomes invalid."""
    scopes: frozenset[Scope] = frozenset()
    """Scopes that a login through the OpenID Connect provider has granted. Empty after a login with a token, because
    then the token's current scopes apply."""


class _Signer(TimestampSigner):
    """itsdangerous' `TimestampSigner`, which uses the injected clock instead of the system clock."""

    def __init__(self, *arguments: Any, clock: Clock, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._clock = clock

    def get_timestamp(self) -> int:
        return int(self._clock.now().timestamp())


class Sessions:
    """Signs and reads session cookies.

    With a key file, sessions survive a restart, and they are valid on every replica that has the same file.
    """

    def __init__(self, key_file: Path | None, lifetime: timedelta, clock: Clock) -> None:
        self._key_file = key_file
        self._generated_key = secrets.token_bytes(32)
        self._lifetime = lifetime
        self._clock = clock
        self._ended: dict[str, datetime] = {}
        """The CSRF tokens of the sessions that were logged out, each with the time from which its cookie is too old
        anyway. A copy of the cookie must not be valid after the logout."""

    def begin(self, request: HTTPConnection, response: Response, session: Session) -> None:
        """Set the session's cookie in the response to the request. After a login over https, browsers send it only
        over https.
        """
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
            path=_path(request),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )

    def end(self, request: HTTPConnection, response: Response) -> None:
        """End the request's session: delete its cookie, and refuse each copy of the cookie until it expires.

        Other replicas don't know of the logout, and this process forgets it when it restarts.
        """
        now = self._clock.now()
        if session := self.read(request):
            self._ended = {token: until for token, until in self._ended.items() if until > now}
            self._ended[session.csrf_token] = now + self._lifetime
        response.delete_cookie(COOKIE, path=_path(request), httponly=True, samesite="strict")

    def read(self, request: HTTPConnection) -> Session | None:
        """Return the session from the request's cookie.

        Returns None if the cookie is missing, expired, not signed with one of the keys, or of a session that was ended.
        """
        cookie = request.cookies.get(COOKIE)
        if not cookie:
            return None
        try:
            data: dict[str, Any] = self._serializer().loads(cookie, max_age=int(self._lifetime.total_seconds()))
            scopes = frozenset(map(Scope, data["scopes"]))
            session = Session(data["name"], data["csrf"], data["fingerprint"], scopes)
        except (BadData, KeyError, TypeError, ValueError):  # another version of the service may set other fields
            return None
        return session if session.csrf_token not in self._ended else None

    def seal(self, data: dict[str, Any]) -> str:
        """Sign data for a cookie, so that a change is detected. The browser's user can read the data."""
        return str(self._serializer("sealed").dumps(data))

    def unseal(self, text: str, seconds: int) -> dict[str, Any]:
        """Return the data that `seal` signed. Raises itsdangerous' `BadData` if the signature is wrong or too old."""
        data: dict[str, Any] = self._serializer("sealed").loads(text, max_age=seconds)
        return data

    def fingerprint(self, secret: str) -> str:
        """Return a keyed hash of a token. The hash binds a session to the token without revealing the token."""
        return _fingerprint(self._keys()[0], secret)

    def matches_fingerprint(self, fingerprint: str, secret: str) -> bool:
        """True if `fingerprint` was computed from this token with any of the session keys."""
        matches = [hmac.compare_digest(fingerprint, _fingerprint(key, secret)) for key in self._keys()]
        return any(matches)  # a list, not a generator: every key is compared, so the response time reveals nothing

    def _serializer(self, salt: str = "session") -> URLSafeTimedSerializer:
        oldest_first = self._keys()[::-1]  # itsdangerous signs with the last key, so the newest key comes last
        options = {"clock": self._clock, "key_derivation": "hmac", "digest_method": hashlib.sha256}
        return URLSafeTimedSerializer(oldest_first, salt, signer=_Signer, signer_kwargs=options)

    def _keys(self) -> Sequence[bytes]:
        """Return the keys, newest first.

        While the key file can't be used, only the generated key is used. Sessions that were signed with the file's keys
        are then invalid.
        """
        if self._key_file is None:
            return [self._generated_key]
        try:
            return read_session_keys(self._key_file)
        except OSError as error:
            log.warning("http.session_key_file can't be used: no session is valid", reason=error.strerror)
            return [self._generated_key]


def _path(request: HTTPConnection) -> str:
    """Return the cookie's path, so that browsers don't send it to other programs on the same host."""
    return base_path_of(request.scope) or "/"


def _fingerprint(key: bytes, secret: str) -> str:
    return hmac.new(key, secret.encode(), hashlib.sha256).hexdigest()
