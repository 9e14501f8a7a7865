"""The console: web pages for operators, with one module per page.

The pages are rendered on the server and work without JavaScript; JavaScript only adds live updates. All data is
escaped, because events and error messages may contain HTML. The HTML of deliveries is shown in sandboxed frames.
"""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from dispatcher.web.config import Scope
from dispatcher.web.console import (
    change,
    deliveries,
    delivery,
    execution,
    executions,
    health,
    overview,
    rejected,
    rules,
    search,
    send_test,
    silences,
)
from dispatcher.web.console.base import ROOT, Console, Page, PageError

__all__ = ["Console", "routes"]


def routes(console: Console) -> list[BaseRoute]:
    """Return the console's routes, with the scope that each page requires."""
    read, operate = Scope.READ, Scope.OPERATE
    table: list[tuple[str, Scope, Page, str]] = [
        ("/", read, overview.get, "GET"),
        ("/stream", read, overview.stream, "GET"),
        ("/deliveries", read, deliveries.get, "GET"),
        ("/deliveries/{key}", read, delivery.get, "GET"),
        ("/deliveries/{key}/html", read, delivery.message, "GET"),
        ("/executions", read, executions.get, "GET"),
        ("/executions/causes", read, executions.causes, "GET"),
        ("/executions/{project}/{domain}/{name}", read, execution.get, "GET"),
        ("/health", read, health.get, "GET"),
        *((f"/{name}", operate, partial(change.get, what), "GET") for what, name in change.PAGES.items()),
        *((f"/{name}", operate, partial(change.post, what), "POST") for what, name in change.PAGES.items()),
        ("/rejected", read, rejected.list_, "GET"),
        ("/rejected/{id}", read, rejected.get, "GET"),
        ("/rejected/{id}/replay", operate, rejected.replay, "POST"),
        ("/rejected/{id}/dismiss", operate, rejected.dismiss, "POST"),
        ("/rules", read, rules.get, "GET"),
        ("/rules/owners", read, rules.owners, "GET"),
        ("/rules/routes", read, rules.list_, "GET"),
        ("/silences", read, silences.list_, "GET"),
        ("/silences/add", operate, silences.get_form, "GET"),
        ("/silences/add", operate, silences.post_form, "POST"),
        ("/silences/{id}", read, silences.get, "GET"),
        ("/silences/{id}/end", operate, silences.end, "POST"),
        ("/silences/{id}/extend", operate, silences.extend, "POST"),
        ("/search", read, search.get, "GET"),
        ("/send-test", read, send_test.get, "GET"),
        ("/send-test", read, send_test.post, "POST"),
    ]

    async def to_console(_: Request) -> Response:
        return RedirectResponse(console.url(""), 303)

    pages = [
        Route(f"{ROOT}{path}", console.guarded(scope, page), methods=[method]) for path, scope, page, method in table
    ]
    not_found = Route(f"{ROOT}/{{path:path}}", console.guarded(read, _not_found))
    return [
        Route("/", to_console),
        Route(ROOT, to_console),
        *pages,
        not_found,
    ]


async def _not_found(console: Console, request: Request) -> Response:
    del console, request
    raise PageError(404, "There is no such page.")
