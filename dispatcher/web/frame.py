"""The frame of every HTML page: head, navigation and footer; and the static files that pages load.

The console's pages, the login page and error pages look the same, whatever part of the dispatcher answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, Response
from starlette.types import Scope

from dispatcher.version import __version__
from dispatcher.web.auth.session import COOKIE
from dispatcher.web.base_path import base_path_of

_FOLDER = Path(__file__).parent
_TYPES = {"console.css": "text/css", "console.js": "text/javascript", "icon.svg": "image/svg+xml"}

_SENTENCES = {404: "there is no such page", 405: "this page can't be requested in this way"}
"""What error pages say where Starlette's reason only repeats the status."""


def environment(*folders: Path) -> Environment:
    """Return the environment of templates in these folders, which may extend `base.html.j2`. It escapes all values."""
    return Environment(
        loader=FileSystemLoader([*folders, _FOLDER / "templates"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def frame_values(scope: Scope) -> dict[str, Any]:
    """Return the values that `base.html.j2` shows. A caller who is not identified sees no navigation."""
    state: Mapping[str, Any] = scope.get("state", {})
    caller, console = state.get("caller", ""), state.get("console", False)
    return {
        "base_path": base_path_of(scope),
        "path": scope["path"],
        "version": __version__,
        "caller": caller,
        "console": console,
        "navigation": bool(caller and console),
        "logged_in": COOKIE in HTTPConnection(scope).cookies,
        "csrf_token": state.get("csrf_token", ""),
    }


def frame_page(scope: Scope, template: str, *, status: int, **values: Any) -> Response:
    """Return a page that needs no console: `error.html.j2` or `login.html.j2`."""
    html = _environment().get_template(template).render(frame_values(scope), status=status, **values)
    return HTMLResponse(html, status)


def error_page(scope: Scope, status: int, reason: str, headers: Mapping[str, str]) -> Response:
    """Return a page that says what went wrong. `reason`: a sentence."""
    phrase = HTTPStatus(status).phrase
    reason = _SENTENCES.get(status, reason) if reason == phrase else reason
    title = phrase.capitalize()
    response = frame_page(scope, "error.html.j2", status=status, title=title, reason=reason)
    response.headers.update(headers)
    return response


async def static(request: Request) -> Response:
    """Serve the style sheet, the script and the icon, which need no login."""
    name = request.path_params["name"]
    if name not in _TYPES:
        return Response("no such file\n", 404, media_type="text/plain")
    return Response((_FOLDER / "static" / name).read_bytes(), media_type=_TYPES[name])


@cache
def _environment() -> Environment:
    return environment()
