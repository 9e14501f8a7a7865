"""The pages /login, where a person exchanges a token for a session, and /logout, which ends the session."""

from __future__ import annotations

from urllib.parse import urlsplit

import structlog
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from dispatcher.web.auth.access import AccessControl, Scope, is_foreign, needs
from dispatcher.web.auth.oidc import OidcPages, local_target
from dispatcher.web.base_path import base_path_of
from dispatcher.web.forms import read_form
from dispatcher.web.frame import frame_page
from dispatcher.web.limits import client_of, too_many_requests
from dispatcher.web.responses import error_response

log = structlog.get_logger(__name__)


class LoginPages:
    """Serves the login form and the logout."""

    def __init__(self, access_control: AccessControl) -> None:
        self._access_control = access_control
        oidc = access_control.oidc
        self._provider = urlsplit(oidc.issuer).hostname if oidc is not None else ""
        self._oidc = OidcPages(access_control, oidc) if oidc is not None else None

    def routes(self) -> list[Route]:
        return [
            Route("/login", self._show),
            Route("/login", self._log_in, methods=["POST"]),
            *(self._oidc.routes() if self._oidc is not None else ()),
            Route("/logout", needs(Scope.READ, self._log_out), methods=["POST"]),
        ]

    async def _show(self, request: Request) -> Response:
        target = local_target(request, request.query_params.get("next"))
        if self._access_control.open:  # no login is needed, because everyone on this machine has full access
            return RedirectResponse(target, 303)
        return self._page(request, target)

    async def _log_in(self, request: Request) -> Response:
        if is_foreign(request):
            return error_response(request.scope, 403, "this request comes from another site's page")
        client = client_of(request.scope)
        if wait := self._access_control.login_limiter.take(client):
            return too_many_requests(wait, request.scope)
        form = await read_form(request)
        target, shown = local_target(request, form.get("next")), form.get("token", "").strip()
        session = self._access_control.log_in(shown)
        if session is None:
            log.warning("a login was refused", client=client)
            return self._page(request, target, "Unknown token, or a token without access to the console.", 403)
        log.info("logged in", caller=session.name, client=client)
        response = RedirectResponse(target, 303)
        self._access_control.sessions.begin(request, response, session)
        return response

    async def _log_out(self, request: Request) -> Response:
        response = RedirectResponse(f"{base_path_of(request.scope)}/login", 303)
        self._access_control.sessions.end(request, response)
        return response

    def _page(self, request: Request, target: str, error: str = "", status: int = 200) -> Response:
        return frame_page(request.scope, "login.html.j2", status=status, next=target, error=error, oidc=self._provider)
