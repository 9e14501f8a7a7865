"""The pages that the service serves, by path, and what each asks of its callers."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from dispatcher.web import health
from dispatcher.web.auth.access import Access, AccessControl, Endpoint, Scope, needs
from dispatcher.web.auth.login import LoginPages
from dispatcher.web.event_intake import EventsPage
from dispatcher.web.headers import SafeHeaders
from dispatcher.web.health import ReadyPage
from dispatcher.web.limits import LARGEST, LARGEST_EVENT, Limits
from dispatcher.web.responses import refused


def application(
    events: EventsPage, ready: ReadyPage, metrics: Endpoint, gate: AccessControl, more: Sequence[BaseRoute] = ()
) -> ASGIApp:
    """`metrics`: the page for Prometheus, for whoever may see it; `more`: the console's pages and the API's, where they
    are served.
    """
    pages = Starlette(
        routes=[
            Route("/events", needs(Scope.PUBLISH, events.post), methods=["POST"], max_body_size=LARGEST_EVENT),
            Route("/healthz", health.alive),
            Route("/readyz", ready.get),
            *LoginPages(gate).routes(),
            Route("/metrics", metrics),
            *more,
        ],
        middleware=[Middleware(Limits), Middleware(Access, gate=gate)],
        exception_handlers={HTTPException: refused},
        max_body_size=LARGEST,
    )
    return SafeHeaders(pages)
