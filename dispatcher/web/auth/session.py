"""A login at the console: a signed cookie that says who, bound to the token that was shown."""

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
    """Who logged in, and what their pages' forms must carry."""

    name: str
    csrf_token: str
    mark: str
    """Of the token that was shown, or of the provider that vouches for them."""
    scopes: frozenset[Scope] = frozenset()
    """What the provider's word lets them do; who showed a token may do what the token may."""


class _Signer(TimestampSigner):
    """Of a time that is handed in."""

    def __init__(self, *arguments: Any, clock: Clock, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._clock = clock

    def get_timestamp(self) -> int:
        return int(self._clock.now().timestamp())


class Sessions:
    """Signs and reads sessions. With a file of keys they outlive a restart, and several replicas share them."""

    def __init__(self, key_file: Path | None, lasting: timedelta, clock: Clock) -> None:
        self._key_file = key_file
        self._own_key = secrets.token_bytes(32)
        self._lasting = lasting
        self._clock = clock

    def begin(self, response: Response, session: Session, *, secure: bool) -> None:
        """Give the browser its session, with the answer."""
        facts = {"name": session.name, "csrf": session.csrf_token, "mark": session.mark, "scopes": [*session.scopes]}
        response.set_cookie(
            COOKIE,
            str(self._serializer().dumps(facts)),
            max_age=int(self._lasting.total_seconds()),
            httponly=True,
            samesite="strict",
            secure=secure,
        )

    def end(self, response: Response) -> None:
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")

    def read(self, request: HTTPConnection) -> Session | None:
        """The session that the request shows; None where there is none, or it is over or not of our making."""
        cookie = request.cookies.get(COOKIE)
        if not cookie:
            return None
        try:
            facts: dict[str, Any] = self._serializer().loads(cookie, max_age=int(self._lasting.total_seconds()))
            scopes = frozenset(map(Scope, facts["scopes"]))
            return Session(facts["name"], facts["csrf"], facts["mark"], scopes)
        except (BadData, KeyError, TypeError, ValueError):  # an older version's may have other fields
            return None

    def seal(self, facts: dict[str, Any]) -> str:
        """Signed, for a browser to keep for us."""
        return str(self._serializer("sealed").dumps(facts))

    def unseal(self, text: str, seconds: int) -> dict[str, Any]:
        """What `seal` signed no longer ago than that. Raises itsdangerous' BadData for anything else."""
        facts: dict[str, Any] = self._serializer("sealed").loads(text, max_age=seconds)
        return facts

    def mark(self, secret: str) -> str:
        """What ties a session to a token, and tells nobody anything of it."""
        return _mark(self._keys()[0], secret)

    def marked(self, mark: str, secret: str) -> bool:
        """Whether `mark` was made of this token, with any of the keys."""
        return any([hmac.compare_digest(mark, _mark(key, secret)) for key in self._keys()])  # noqa: C419 - no early end

    def _serializer(self, salt: str = "session") -> URLSafeTimedSerializer:
        oldest_first = self._keys()[::-1]  # itsdangerous signs with the last
        options = {"clock": self._clock, "key_derivation": "hmac", "digest_method": hashlib.sha256}
        return URLSafeTimedSerializer(oldest_first, salt, signer=_Signer, signer_kwargs=options)

    def _keys(self) -> Sequence[bytes]:
        """Newest first. A file that can't be read for a moment must not let anybody in: then nobody has a session."""
        if self._key_file is None:
            return [self._own_key]
        try:
            lines = self._key_file.read_bytes().split()
        except OSError as error:
            log.warning("http.session_key_file can't be read: all logins are over", reason=str(error))
            lines = []
        return lines or [self._own_key]


def _mark(key: bytes, secret: str) -> str:
    return hmac.new(key, secret.encode(), hashlib.sha256).hexdigest()
