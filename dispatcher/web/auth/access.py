"""Authentication and authorization of requests.

Callers send a bearer token or a session cookie. If the service listens on a loopback address and neither tokens nor an
OpenID Connect provider are configured, every program on this machine has full access. A route names the scope that its
callers need: `Route("/events", needs(Scope.PUBLISH, post))`.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from urllib.parse import urlencode, urlsplit

import structlog
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from dispatcher.clock import Clock
from dispatcher.model.rate_limit import Rate
from dispatcher.web.auth.session import Session, Sessions
from dispatcher.web.base_path import base_path_of, page_path
from dispatcher.web.config import HttpConfig, Scope, Token, is_loopback
from dispatcher.web.forms import FORM, read_form
from dispatcher.web.limits import RateLimiter, client_of, too_many_requests
from dispatcher.web.responses import error_response

__all__ = [
    "AccessControl",
    "AccessMiddleware",
    "Caller",
    "Endpoint",
    "Scope",
    "Unauthenticated",
    "caller",
    "needs",
    "still_allowed",
]

log = structlog.get_logger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]

LOGIN_RATE, LOGIN_BURST = Rate(6, "min"), 10
"""Maximum rate and burst of login attempts from one client address. They are enough for a person who mistypes a token,
and too few to guess a token."""
UNAUTHENTICATED_RATE, UNAUTHENTICATED_BURST = Rate(20, "s"), 200
"""Maximum rate and burst of requests from one client address without a valid token or session."""
_PROBES = ("/healthz", "/readyz")
"""Paths without a rate limit: if the service refused a health probe, the orchestrator could restart the service."""
CALLER = "dispatcher.caller"
_ACCESS_CONTROL = "dispatcher.access_control"
CSRF_FIELD = "csrf_token"
CSRF_HEADER = "x-csrf-token"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LOGIN_SCOPES = frozenset({Scope.READ, Scope.OPERATE})
"""Scopes that a logged-in person can have. `publish` is not among them, because only programs publish events."""
_FORMS = (FORM, "multipart/form-data")
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


@dataclass(frozen=True, slots=True)
class Caller:
    """A person or program that was identified, with the scopes that it has."""

    name: str
    scopes: frozenset[Scope]
    csrf_token: str | None = None
    """A request of this caller that changes something must contain this token. None if the caller has a bearer token:
    browsers send only cookies automatically, so a page of another site can't misuse a bearer token."""


@dataclass(frozen=True, slots=True)
class Unauthenticated:
    """The result for a request whose caller is not identified: status and reason of the error response."""

    status: int
    reason: str


class AccessControl:
    """Identifies callers and limits their request rates.

    Token files are read again at each request, so tokens can be replaced without a restart.
    """

    def __init__(self, config: HttpConfig, clock: Clock) -> None:
        self.sessions = Sessions(config.session_key_file, config.session, clock)
        self.clock = clock
        self._tokens = tuple(config.callers())
        self.oidc = config.oidc
        self.console = config.console
        self.open = config.loopback and not self._tokens and self.oidc is None
        """True if every program on this machine has full access, because no tokens and no provider are configured."""
        self._caller_limiter = RateLimiter(config.rate, max(config.rate.number, 1), clock)
        self._unauthenticated_limiter = RateLimiter(UNAUTHENTICATED_RATE, UNAUTHENTICATED_BURST, clock)
        self.login_limiter = RateLimiter(LOGIN_RATE, LOGIN_BURST, clock)
        """Limits the login attempts of each client."""
        self._csrf_token = secrets.token_urlsafe(32)

    def identify(self, request: HTTPConnection) -> Caller | Unauthenticated:
        """Return the caller to whom the request's token or session belongs, or the reason why there is none."""
        if self.open:
            return self._local_caller(request)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            found = self._find_token(token.strip())
            return Caller(found[0].name, found[0].scopes) if found else Unauthenticated(401, "the token is not known")
        if session := self.sessions.read(request):
            return self._session_caller(session)
        return Unauthenticated(401, "log in, or show a token: Authorization: Bearer …")

    def wait(self, scope: Connection, caller: Caller | Unauthenticated) -> timedelta:
        """Return how long the caller has to wait because of the rate limit; zero if the request is allowed now."""
        if page_path(scope) in _PROBES:
            return timedelta()
        match caller:
            case Caller():
                return self._caller_limiter.take(caller.name)
            case Unauthenticated():
                return self._unauthenticated_limiter.take(client_of(scope))

    def log_in(self, shown: str) -> Session | None:
        """Return a new session for a person who entered the token `shown`.

        Returns None if the token is unknown, or if it has neither the scope `read` nor `operate`.
        """
        found = self._find_token(shown)
        if found is None or not found[0].scopes & _LOGIN_SCOPES:
            return None
        token, secret = found
        return Session(token.name, secrets.token_urlsafe(32), self.sessions.fingerprint(secret))

    def _find_token(self, shown: str) -> tuple[Token, str] | None:
        """Return the configured token whose secret equals `shown`, and the secret; None if no token matches.

        `shown` is compared with every secret in constant time, so that the response time reveals nothing about them.
        """
        found = None
        for token, secret in self._secrets():
            if hmac.compare_digest(_digest(shown), _digest(secret)):
                found = token, secret
        return found

    def _session_caller(self, session: Session) -> Caller | Unauthenticated:
        """Return the caller of a session.

        A session that began with a token has the token's current scopes. If that token was removed or replaced, the
        session is no longer valid.
        """
        if self.oidc is not None and session.fingerprint == self.oidc.fingerprint:
            return Caller(session.name, session.scopes & _LOGIN_SCOPES, session.csrf_token)
        for token, secret in self._secrets():
            if token.name == session.name and self.sessions.matches_fingerprint(session.fingerprint, secret):
                return Caller(session.name, token.scopes & _LOGIN_SCOPES, session.csrf_token)
        return Unauthenticated(401, "the session is no longer valid: log in again")

    def _secrets(self) -> Iterator[tuple[Token, str]]:
        for token in self._tokens:
            try:
                yield token, token.reveal()
            except OSError as error:
                if error.errno == errno.ENODATA:  # the file is being rewritten
                    continue
                log.warning(
                    "a token's file can't be used: the token is refused", token=token.name, reason=error.strerror
                )

    def _local_caller(self, request: HTTPConnection) -> Caller | Unauthenticated:
        """Give a program on this machine full access, but refuse pages of other sites in a browser on this machine."""
        if not is_loopback(urlsplit(f"//{request.headers.get('host', '')}").hostname or ""):
            return Unauthenticated(403, "without http.tokens, only this machine is served: use 127.0.0.1 or localhost")
        if any(name in request.headers for name in _FORWARDED):
            return Unauthenticated(403, "without http.tokens, requests through a proxy are refused")
        if is_foreign(request):
            return Unauthenticated(403, "this request comes from another site's page")
        return Caller("this machine", frozenset(Scope), self._csrf_token)


def is_foreign(request: HTTPConnection) -> bool:
    """True if the browser's headers say that a page of another site made this request.

    False if a person followed a link on another site, because links are allowed.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        is_link = request.scope["method"] in SAFE_METHODS and request.headers.get("sec-fetch-mode") == "navigate"
        return site not in ("same-origin", "none") and not is_link
    origin = request.headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != request.headers.get("host")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


class AccessMiddleware:
    """ASGI middleware that identifies the caller for `needs`, limits the rate, and sets the `state` that pages show."""

    def __init__(self, app: ASGIApp, access_control: AccessControl) -> None:
        self._app = app
        self._access_control = access_control

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        caller = self._access_control.identify(HTTPConnection(scope))
        scope[CALLER] = caller
        scope[_ACCESS_CONTROL] = self._access_control
        state = scope.setdefault("state", {})
        state |= {"csrf_token": "", "caller": "", "console": self._access_control.console}
        if isinstance(caller, Caller):
            state |= {"csrf_token": caller.csrf_token or "", "caller": caller.name}
        wait = self._access_control.wait(scope, caller)
        await (too_many_requests(wait, scope) if wait else self._app)(scope, receive, send)


def caller(request: HTTPConnection) -> str:
    """Return the caller's name. Works only in endpoints wrapped in `needs`, which refuses unidentified callers."""
    name: str = request.scope[CALLER].name
    return name


def still_allowed(request: HTTPConnection, scope: Scope) -> bool:
    """True if the request's token or session has the scope now. A response that takes long has to ask again and again,
    because tokens are replaced and people log out. Works only in endpoints wrapped in `needs`.
    """
    access_control: AccessControl = request.scope[_ACCESS_CONTROL]
    caller = access_control.identify(request)
    return isinstance(caller, Caller) and scope in caller.scopes


def needs(scope: Scope, endpoint: Endpoint) -> Endpoint:
    """Wrap an endpoint so that only callers with the scope can use it. Others get an error or the login page."""

    @wraps(endpoint)
    async def guarded(request: Request) -> Response:
        match request.scope[CALLER]:
            case Caller() as caller if scope not in caller.scopes:
                return error_response(request.scope, 403, f"{caller.name} has no scope {scope}")
            case Caller() as caller if not await _has_csrf_token(request, caller, scope):
                reason = f"{CSRF_FIELD} or {CSRF_HEADER} is missing or old: reload the page"
                return error_response(request.scope, 403, reason)
            case Caller():
                return await endpoint(request)
            case unauthenticated:
                return _refusal(request, unauthenticated)

    return guarded


async def _has_csrf_token(request: Request, caller: Caller, scope: Scope) -> bool:
    """True if the request contains the caller's CSRF token, or doesn't need a CSRF token.

    A CSRF token protects cookies, so a request without cookies doesn't need one. This is so for programs on this
    machine: `is_foreign` has already refused requests from pages of other sites. Nor does publishing events, because
    people who log in at the console can't publish.
    """
    if caller.csrf_token is None or request.method in SAFE_METHODS or scope is Scope.PUBLISH:
        return True
    if "cookie" not in request.headers:
        return True
    shown = request.headers.get(CSRF_HEADER)
    if shown is None and request.headers.get("content-type", "").startswith(_FORMS):
        shown = (await read_form(request)).get(CSRF_FIELD)
    return hmac.compare_digest(_digest(shown or ""), _digest(caller.csrf_token))


_RELOAD = '<!doctype html><meta http-equiv="refresh" content="0"><title>Loading</title>'
"""Page that loads the same address again. If a person follows a link on another site, the browser doesn't send the
SameSite=Strict cookie; when this page loads the address again, the browser sends the cookie."""


def _refusal(request: Request, unauthenticated: Unauthenticated) -> Response:
    """Return an error for a program; redirect a browser to the login page."""
    page = request.method == "GET" and "text/html" in request.headers.get("accept", "")
    if not page or unauthenticated.status != 401:
        headers = {"WWW-Authenticate": "Bearer"} if unauthenticated.status == 401 else {}
        return error_response(request.scope, unauthenticated.status, unauthenticated.reason, headers)
    if request.headers.get("sec-fetch-site") == "cross-site":
        return HTMLResponse(_RELOAD)
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"{base_path_of(request.scope)}/login?{urlencode({'next': path})}", 303)
