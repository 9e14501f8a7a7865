"""A fake PagerDuty: serves the Events API v2 locally, with the same checks and answers as PagerDuty.

The fake follows PagerDuty's page "Events API v2 overview" and PagerDuty's OpenAPI document. It answers 202 to an
accepted event, and 400 with a list of errors to an invalid event. Events with the same routing key and dedup key become
one incident.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dispatcher.demo.fakes.script import ReplyScript

_MAX_EVENT = 512 * 1024
_MAX_SUMMARY = 1024
_ACTIONS = {"trigger", "acknowledge", "resolve"}
_SEVERITIES = {"critical", "error", "warning", "info"}


@dataclass(slots=True)
class Incident:
    """One PagerDuty incident, with all events that PagerDuty merged into it."""

    service: str
    dedup_key: str
    status: str
    events: list[Mapping[str, Any]]


@dataclass(slots=True)
class PagerDutyReceiver:
    """A fake PagerDuty account. `services` maps each routing key to the name of its PagerDuty service."""

    services: Mapping[str, str] = field(default_factory=dict)
    incidents: list[Incident] = field(default_factory=list)
    changes: list[Mapping[str, Any]] = field(default_factory=list)
    """The accepted change events, in order."""
    requests: int = 0
    script: ReplyScript = field(default_factory=ReplyScript)
    arrived: Callable[[Incident], None] = lambda _: None

    def routes(self) -> list[Route]:
        return [
            Route("/v2/enqueue", self._answer_alert, methods=["POST"]),
            Route("/v2/change/enqueue", self._answer_change, methods=["POST"]),
        ]

    async def _answer_change(self, request: Request) -> Response:
        self.requests += 1
        return await self.script.play(request, self._handle_change)

    async def _handle_change(self, request: Request) -> Response:
        body = await request.body()
        errors = list(self._change_errors(body))
        if errors:
            refusal = {"status": "invalid event", "message": "Event object is invalid", "errors": errors}
            return JSONResponse(refusal, 400)
        event = orjson.loads(body)
        self.changes.append({name: value for name, value in event.items() if name != "routing_key"})
        return JSONResponse({"status": "success", "message": "Change event processed"}, 202)

    def _change_errors(self, body: bytes) -> Iterator[str]:
        event = orjson.loads(body)
        if event.get("routing_key") not in self.services:
            yield "Invalid routing key"
        if alert_fields := {"event_action", "dedup_key"} & event.keys():
            yield f"a change event has no {' and no '.join(sorted(alert_fields))}"
        payload = event.get("payload", {})
        if not payload.get("summary") or len(payload["summary"]) > _MAX_SUMMARY:
            yield "'payload.summary' is missing or too long"
        if "timestamp" in payload and not _has_zone(payload["timestamp"]):
            yield "'payload.timestamp' is invalid"

    async def _answer_alert(self, request: Request) -> Response:
        self.requests += 1
        return await self.script.play(request, self._handle_alert)

    async def _handle_alert(self, request: Request) -> Response:
        body = await request.body()
        errors = list(self._errors(body))
        if errors:
            refusal = {"status": "invalid event", "message": "Event object is invalid", "errors": errors}
            return JSONResponse(refusal, 400)
        event = orjson.loads(body)
        key = event.get("dedup_key") or f"generated-{self.requests}"
        self._merge(event, key)
        return JSONResponse({"status": "success", "message": "Event processed", "dedup_key": key}, 202)

    def _errors(self, body: bytes) -> Iterator[str]:
        if len(body) > _MAX_EVENT:
            yield "Event size exceeds 512 KB"
            return
        try:
            event = orjson.loads(body)
        except orjson.JSONDecodeError:
            yield "Body is not valid JSON"
            return
        if not re.fullmatch(r"[0-9a-zA-Z]{32}", str(event.get("routing_key", ""))):
            yield "'routing_key' is invalid"
        elif event["routing_key"] not in self.services:
            yield "Invalid routing key"
        if event.get("event_action") not in _ACTIONS:
            yield "'event_action' is invalid"
        if len(str(event.get("dedup_key", ""))) > 255:
            yield "'dedup_key' must not be longer than 255 characters"
        if event.get("event_action") == "trigger":
            yield from _payload_errors(event.get("payload"))
        for link in event.get("links", ()):
            if not isinstance(link, dict) or not str(link.get("href", "")).startswith(("https://", "http://")):
                yield "'links' must have an href"

    def _merge(self, event: Mapping[str, Any], key: str) -> None:
        service = self.services[event["routing_key"]]
        without_key = {name: value for name, value in event.items() if name != "routing_key"}
        incident = next(
            (
                one
                for one in self.incidents
                if (one.service, one.dedup_key) == (service, key) and one.status != "resolved"
            ),
            None,
        )
        if incident is None:
            if event["event_action"] != "trigger":
                return  # PagerDuty ignores an acknowledge or resolve event that matches no open incident
            incident = Incident(service, key, "triggered", [])
            self.incidents.append(incident)
        incident.events.append(without_key)
        new_status = {"acknowledge": "acknowledged", "resolve": "resolved"}
        incident.status = new_status.get(event["event_action"], incident.status)
        self.arrived(incident)


def _payload_errors(payload: Any) -> Iterator[str]:
    if not isinstance(payload, dict):
        yield "'payload' is missing or blank"
        return
    summary = payload.get("summary")
    if not isinstance(summary, str) or not summary:
        yield "'payload.summary' is missing or blank"
    elif len(summary.encode("utf-16-le", "surrogatepass")) // 2 > _MAX_SUMMARY:
        yield f"'payload.summary' must not be longer than {_MAX_SUMMARY} characters"
    if not payload.get("source"):
        yield "'payload.source' is missing or blank"
    if payload.get("severity") not in _SEVERITIES:
        yield "'payload.severity' is invalid (must be one of the following: 'critical', 'warning', 'error' or 'info')"
    if "timestamp" in payload and not _has_zone(payload["timestamp"]):
        yield "'payload.timestamp' is invalid"


def _has_zone(text: Any) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except (TypeError, ValueError):
        return False
