"""The service's routes, and the scope that a caller needs for each route."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from dispatcher.web import health
from dispatcher.web.auth.access import AccessControl, AccessMiddleware, Endpoint, Scope, needs
from dispatcher.web.auth.login import LoginPages
from dispatcher.web.base_path import BasePath
from dispatcher.web.event_intake import EventsPage
from dispatcher.web.frame import static
from dispatcher.web.headers import SafeHeaders
from dispatcher.web.health import ReadyPage
from dispatcher.web.limits import MAX_BODY_BYTES, MAX_EVENT_BYTES, RequestLimits
from dispatcher.web.responses import disconnected, http_error, internal_error


def application(
    events: EventsPage,
    ready: ReadyPage,
    metrics: Endpoint,
    access_control: AccessControl,
    more: Sequence[BaseRoute] = (),
    *,
    base_path: str = "",
) -> ASGIApp:
    """Return the ASGI application that serves all routes.

    `metrics` is the endpoint for Prometheus. If it requires a scope, it is already wrapped in `needs`. `more` contains
    the routes of the console and its API if the console is enabled. `base_path`: the setting `http.base_path`.
    """
    pages = Starlette(
        routes=[
            Route("/events", needs(Scope.PUBLISH, events.post), methods=["POST"], max_body_size=MAX_EVENT_BYTES),
            Route("/healthz", health.alive),
            Route("/readyz", ready.get),
            Route("/static/{name}", static),
            *LoginPages(access_control).routes(),
            Route("/metrics", metrics),
            *more,
        ],
        middleware=[Middleware(RequestLimits), Middleware(AccessMiddleware, access_control=access_control)],
        exception_handlers={HTTPException: http_error, ClientDisconnect: disconnected, Exception: internal_error},
        max_body_size=MAX_BODY_BYTES,
    )
    return SafeHeaders(BasePath(pages, base_path))
