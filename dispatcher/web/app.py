"""The pages that the service serves, by path."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.routing import Route

from dispatcher.web import health
from dispatcher.web.events import EventsPage
from dispatcher.web.health import ReadyPage


def application(events: EventsPage, ready: ReadyPage) -> Starlette:
    return Starlette(
        routes=[
            Route("/events", events.post, methods=["POST"]),
            Route("/healthz", health.alive),
            Route("/readyz", ready.get),
        ]
    )
