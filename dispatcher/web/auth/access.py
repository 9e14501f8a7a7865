"""Who asks, and may they? Bearer tokens, logins at the console; on loopback without any token, this machine's programs.

A page names the scope that it needs in the table of routes: `Route("/events", needs(Scope.PUBLISH, post))`.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
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
from dispatcher.web.config import HttpConfig, Scope, Token, is_loopback
from dispatcher.web.limits import Buckets, neighbourhood, too_many
from dispatcher.web.responses import problem

__all__ = ["Access", "AccessControl", "Caller", "Endpoint", "Scope", "Stranger", "caller", "needs"]

log = structlog.get_logger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]
Refusal = Callable[[int, str, Mapping[str, str]], Response]

LOGINS, LOGINS_AT_ONCE = Rate(6, "min"), 10
"""Attempts that a client has at the login page: enough to mistype a token, too few to guess one."""
STRANGERS, STRANGERS_AT_ONCE = Rate(20, "s"), 200
"""Requests that a client has who shows nothing, or nothing that holds."""
_PROBED = ("/healthz", "/readyz")
"""Never refused: an orchestrator that gets no answer would end us."""
CALLER = "dispatcher.caller"
CSRF_FIELD = "csrf_token"
CSRF_HEADER = "x-csrf-token"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_FOR_PEOPLE = frozenset({Scope.READ, Scope.OPERATE})
"""What a login may do: events come from programs."""
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody we know."""

    name: str
    scopes: frozenset[Scope]
    csrf_token: str | None = None
    """What a request that changes something must carry: set where the browser shows by itself who asks."""


@dataclass(frozen=True, slots=True)
class Stranger:
    """Somebody who hasn't shown who they are, and what to tell them."""

    status: int
    reason: str


class AccessControl:
    """Knows the callers. Files of tokens are read at each request, so they may rotate."""

    def __init__(self, config: HttpConfig, clock: Clock) -> None:
        self.sessions = Sessions(config.session_key_file, config.session, clock)
        self.clock = clock
        self._tokens = tuple(config.callers())
        self.oidc = config.oidc
        self.open = config.loopback and not self._tokens and self.oidc is None
        """Whether this machine's programs may do everything."""
        self._known = Buckets(config.rate, max(config.rate.number, 1), clock)
        self._unknown = Buckets(STRANGERS, STRANGERS_AT_ONCE, clock)
        self.attempts = Buckets(LOGINS, LOGINS_AT_ONCE, clock)
        """Of each client at the login page."""
        self._csrf_token = secrets.token_urlsafe(32)

    def who(self, request: HTTPConnection) -> Caller | Stranger:
        """Who asks, by what the request shows."""
        if self.open:
            return self._neighbour(request)
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            found = self._token_of(shown.strip())
            return Caller(found[0].name, found[0].scopes) if found else Stranger(401, "the token is not known")
        if session := self.sessions.read(request):
            return self._logged_in(session)
        return Stranger(401, "show a token: Authorization: Bearer …")

    def wait(self, scope: Connection, who: Caller | Stranger) -> timedelta:
        """How long the caller has to wait for the next request; zero for one that may go on now."""
        if scope["path"] in _PROBED:
            return timedelta()
        match who:
            case Caller():
                return self._known.take(who.name)
            case Stranger():
                return self._unknown.take(client_of(scope))

    def log_in(self, shown: str) -> Session | None:
        """A new session for who shows this token; None where it is unknown, or opens no page."""
        found = self._token_of(shown)
        if found is None or not found[0].scopes & _FOR_PEOPLE:
            return None
        token, secret = found
        return Session(token.name, secrets.token_urlsafe(32), self.sessions.mark(secret))

    def _token_of(self, shown: str) -> tuple[Token, str] | None:
        """Every token is compared, each in the same time: how long it takes says nothing about any of them."""
        found = None
        for token, secret in self._secrets():
            if hmac.compare_digest(_digest(shown), _digest(secret)):
                found = token, secret
        return found

    def _logged_in(self, session: Session) -> Caller | Stranger:
        """A session ends with its token: when that is taken away, replaced, or loses a scope."""
        if self.oidc is not None and session.mark == self.oidc.mark:
            return Caller(session.name, session.scopes & _FOR_PEOPLE, session.csrf_token)
        for token, secret in self._secrets():
            if token.name == session.name and self.sessions.marked(session.mark, secret):
                return Caller(session.name, token.scopes & _FOR_PEOPLE, session.csrf_token)
        return Stranger(401, "the login is over")

    def _secrets(self) -> Iterator[tuple[Token, str]]:
        for token in self._tokens:
            try:
                secret = token.reveal()
            except (OSError, UnicodeDecodeError) as error:
                log.warning("a token's file can't be read: nobody can show it", token=token.name, reason=str(error))
                continue
            if secret:  # a file that is being written is no token
                yield token, secret

    def _neighbour(self, request: HTTPConnection) -> Caller | Stranger:
        """A program of this machine may do everything; a page that a browser here has from elsewhere, nothing."""
        if not is_loopback(urlsplit(f"//{request.headers.get('host', '')}").hostname or ""):
            return Stranger(403, "without http.tokens this machine alone is served: ask for 127.0.0.1 or localhost")
        if any(name in request.headers for name in _FORWARDED):
            return Stranger(403, "without http.tokens nobody is served through a proxy")
        if is_foreign(request):
            return Stranger(403, "another site's page asked for this")
        return Caller("this machine", frozenset(Scope), self._csrf_token)


def is_foreign(request: HTTPConnection) -> bool:
    """Whether a browser says that another site's page makes this request; following a link is no harm."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        follows = request.scope["method"] in SAFE_METHODS and request.headers.get("sec-fetch-mode") == "navigate"
        return site not in ("same-origin", "none") and not follows
    origin = request.headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != request.headers.get("host")


def client_of(scope: Connection) -> str:
    """What counts as one client of those whom we don't know."""
    return neighbourhood(scope["client"][0] if scope.get("client") else "")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


class Access:
    """ASGI middleware: who asks is in the request's scope, for `needs`; pages have `request.state.csrf_token`."""

    def __init__(self, app: ASGIApp, gate: AccessControl) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        who = self._gate.who(HTTPConnection(scope))
        scope[CALLER] = who
        scope.setdefault("state", {})["csrf_token"] = who.csrf_token or "" if isinstance(who, Caller) else ""
        wait = self._gate.wait(scope, who)
        await (too_many(wait) if wait else self._app)(scope, receive, send)


def caller(request: HTTPConnection) -> str:
    """The name of who asks, for a page behind `needs`."""
    name: str = request.scope[CALLER].name
    return name


def needs(scope: Scope, endpoint: Endpoint, *, problem: Refusal = problem) -> Endpoint:
    """The endpoint, for those who have the scope; `problem` says to the others why not."""

    @wraps(endpoint)
    async def guarded(request: Request) -> Response:
        match request.scope[CALLER]:
            case Caller() as someone if scope not in someone.scopes:
                return problem(403, f"{someone.name} has no scope {scope}", {})
            case Caller() as someone if not await _meant(request, someone, scope):
                return problem(403, f"the form is no longer valid: {CSRF_FIELD} or {CSRF_HEADER} is missing or old", {})
            case Caller():
                return await endpoint(request)
            case stranger:
                return _turned_away(request, stranger, problem)

    return guarded


async def _meant(request: Request, caller: Caller, scope: Scope) -> bool:
    """Whether the caller's own page asks, where a browser would let any page ask.

    Publishers are programs and no pages: a neighbour's needs no token, and `is_foreign` has kept browsers away.
    """
    if caller.csrf_token is None or request.method in SAFE_METHODS or scope is Scope.PUBLISH:
        return True
    shown = request.headers.get(CSRF_HEADER)
    if shown is None and request.headers.get("content-type", "").startswith(_FORMS):
        field = (await request.form(max_files=0)).get(CSRF_FIELD)
        shown = field if isinstance(field, str) else None
    return hmac.compare_digest(_digest(shown or ""), _digest(caller.csrf_token))


_ONCE_MORE = '<!doctype html><meta http-equiv="refresh" content="0"><title>One moment</title>'
"""A strict cookie stays at home when a link from elsewhere is followed; a page of ours that asks again has it."""


def _turned_away(request: Request, stranger: Stranger, problem: Refusal) -> Response:
    page = request.method == "GET" and "text/html" in request.headers.get("accept", "")
    if not page or stranger.status != 401:
        headers = {"WWW-Authenticate": "Bearer"} if stranger.status == 401 else {}
        return problem(stranger.status, stranger.reason, headers)
    if request.headers.get("sec-fetch-site") == "cross-site":
        return HTMLResponse(_ONCE_MORE)
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"/login?{urlencode({'next': path})}", 303)
