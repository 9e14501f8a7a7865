"""The console: pages for the people who run the dispatcher. One module a page, its templates and static files beside.

Everything is drawn here, and works without a script; the script adds what is live. What is shown came from
anywhere, so it is escaped; messages are shown in frames in which nothing can be done.
"""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from dispatcher.web.config import Scope
from dispatcher.web.console import (
    deliveries,
    delivery,
    execution,
    executions,
    overview,
    redrive,
    rejected,
    search,
)
from dispatcher.web.console.shell import ROOT, Page, Shell, Sorry

__all__ = ["Shell", "routes"]

_STATIC = Path(__file__).parent / "static"
_TYPES = {"console.css": "text/css", "console.js": "text/javascript", "icon.svg": "image/svg+xml"}


def routes(shell: Shell) -> list[BaseRoute]:
    """The console's pages, by path, and what each asks of its callers."""
    read, operate = Scope.READ, Scope.OPERATE
    table: list[tuple[str, Scope, Page, str]] = [
        ("/", read, overview.get, "GET"),
        ("/stream", read, overview.stream, "GET"),
        ("/deliveries", read, deliveries.get, "GET"),
        ("/deliveries/{key}", read, delivery.get, "GET"),
        ("/deliveries/{key}/html", read, delivery.message, "GET"),
        ("/executions", read, executions.get, "GET"),
        ("/executions/{project}/{domain}/{name}", read, execution.get, "GET"),
        ("/redrive", operate, redrive.get, "GET"),
        ("/redrive", operate, redrive.post, "POST"),
        ("/rejected", read, rejected.list_, "GET"),
        ("/rejected/{id}", read, rejected.get, "GET"),
        ("/rejected/{id}/replay", operate, rejected.replay, "POST"),
        ("/search", read, search.get, "GET"),
    ]
    pages = [
        Route(f"{ROOT}{path}", shell.guarded(scope, page), methods=[method]) for path, scope, page, method in table
    ]
    nowhere = Route(f"{ROOT}/{{path:path}}", shell.guarded(read, _nowhere))
    return [
        Route("/", _to_console),
        Route(ROOT, _to_console),
        Route(f"{ROOT}/static/{{name}}", _static),
        *pages,
        nowhere,
    ]


async def _to_console(_: Request) -> Response:
    return RedirectResponse(f"{ROOT}/", 303)


async def _static(request: Request) -> Response:
    """The style, the script and the icon: for everybody, the login's page needs them too."""
    name = request.path_params["name"]
    if name not in _TYPES:
        return Response("no such file\n", 404, media_type="text/plain")
    return Response((_STATIC / name).read_bytes(), media_type=_TYPES[name])


async def _nowhere(shell: Shell, request: Request) -> Response:
    del shell, request
    raise Sorry(404, "There is no such page.")
