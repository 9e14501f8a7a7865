"""/login, where a person shows a token and gets a session, and /logout."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import structlog
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from dispatcher.web.auth.access import AccessControl, Scope, client_of, is_foreign, needs
from dispatcher.web.auth.oidc import HOME, OidcPages, local
from dispatcher.web.limits import too_many
from dispatcher.web.responses import problem

log = structlog.get_logger(__name__)

_PAGES = Path(__file__).parent / "pages"


class LoginPages:
    """The form, its style, and the way out."""

    def __init__(self, gate: AccessControl) -> None:
        self._gate = gate
        templates = Environment(loader=FileSystemLoader(_PAGES), autoescape=True, undefined=StrictUndefined)
        self._provider = urlsplit(gate.oidc.issuer).hostname if gate.oidc is not None else ""
        self._oidc = OidcPages(gate, gate.oidc) if gate.oidc is not None else None
        self._form = templates.get_template("login.html.j2")

    def routes(self) -> list[Route]:
        return [
            Route("/login", self._show),
            Route("/login", self._log_in, methods=["POST"]),
            Route("/login/style.css", self._style),
            *(self._oidc.routes() if self._oidc is not None else ()),
            Route("/logout", needs(Scope.READ, self._log_out), methods=["POST"]),
        ]

    async def _show(self, request: Request) -> Response:
        goal = local(request.query_params.get("next", HOME))
        if self._gate.open:  # nobody has to
            return RedirectResponse(goal, 303)
        return self._page(goal)

    async def _log_in(self, request: Request) -> Response:
        if is_foreign(request):
            return problem(403, "another site's page asked for this")
        client = client_of(request.scope)
        if wait := self._gate.attempts.take(client):
            return too_many(wait)
        form = await request.form(max_files=0, max_fields=10)
        goal, shown = local(str(form.get("next", HOME))), str(form.get("token", "")).strip()
        session = self._gate.log_in(shown)
        if session is None:
            log.warning("a login was refused", client=client)
            return self._page(goal, "This token is not known here, or opens no page.", 403)
        log.info("logged in", caller=session.name, client=client)
        answer = RedirectResponse(goal, 303)
        self._gate.sessions.begin(answer, session, secure=request.url.scheme == "https")
        return answer

    async def _log_out(self, _: Request) -> Response:
        answer = RedirectResponse("/login", 303)
        self._gate.sessions.end(answer)
        return answer

    async def _style(self, _: Request) -> Response:
        return Response((_PAGES / "login.css").read_bytes(), media_type="text/css")

    def _page(self, goal: str, trouble: str = "", status: int = 200) -> Response:
        return HTMLResponse(self._form.render(next=goal, trouble=trouble, oidc=self._provider), status)
