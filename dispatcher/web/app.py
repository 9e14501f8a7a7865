"""The pages that the service serves, by path, and what each asks of its callers."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import ASGIApp

from dispatcher.web import health
from dispatcher.web.access import Access, Endpoint, Gate, Scope, needs
from dispatcher.web.events import EventsPage
from dispatcher.web.headers import SafeHeaders
from dispatcher.web.health import ReadyPage
from dispatcher.web.login import LoginPages


def application(events: EventsPage, ready: ReadyPage, metrics: Endpoint, gate: Gate) -> ASGIApp:
    """`metrics`: the page for Prometheus, for whoever may see it."""
    pages = Starlette(
        routes=[
            Route("/events", needs(Scope.PUBLISH, events.post), methods=["POST"]),
            Route("/healthz", health.alive),
            Route("/readyz", ready.get),
            *LoginPages(gate).routes(),
            Route("/metrics", metrics),
        ],
        middleware=[Middleware(Access, gate=gate)],
    )
    return SafeHeaders(pages)
