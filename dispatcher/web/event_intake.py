"""POST /events: receives CloudEvents over HTTP, in binary and structured mode.

The response is sent after the ledger has committed the event, so the status `recorded` means that the event is stored
durably.
Source: the CloudEvents HTTP protocol binding 1.0.2.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Literal

import structlog
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from dispatcher.errors import LedgerUnavailable, Unavailable, Unreadable
from dispatcher.flyte.decode import Headers
from dispatcher.intake.pipeline import BatchResult
from dispatcher.parsing.cloudevents import decode_http_attribute
from dispatcher.web.responses import json_response, problem

log = structlog.get_logger(__name__)

RETRY_AFTER = "5"
"""Value of the `Retry-After` header, in seconds. It is sent while the ledger or FlyteAdmin is unavailable."""

_KEPT_HEADERS = frozenset({"content-type", "traceparent", "tracestate"})

Take = Callable[[Sequence[tuple[Headers, bytes | None, str]]], Awaitable[BatchResult]]


class PublishResult(BaseModel):
    """What became of an event that was published."""

    status: Annotated[
        Literal["recorded", "duplicate", "ignored", "rejected"],
        Field(description="With status code 202, `rejected` means that the event is kept until its rules are known."),
    ]
    reason: str
    id: Annotated[str | None, Field(description="The rejected message, as in `/rejected/{id}`.")] = None
    event: Annotated[str | None, Field(description="The event's key.")] = None
    verdict: str | None = None
    deliveries: Annotated[Sequence[str] | None, Field(description="Keys, as in `/deliveries/{key}`.")] = None


class EventsPage:
    """Serves POST /events: passes the event to intake and returns the result to the publisher."""

    def __init__(self, take: Take) -> None:
        self._take = take

    async def post(self, request: Request) -> Response:
        body = await request.body()
        try:
            headers = _kafka_headers(request)
        except Unreadable as error:
            log.warning("event refused", reason=str(error))
            return problem(400, str(error))
        try:
            result = await self._take([(headers, body, "http")])
        except Unavailable as error:
            dependency = "the ledger" if isinstance(error, LedgerUnavailable) else "FlyteAdmin"
            log.warning("event not recorded: the publisher has to retry", reason=str(error))
            return problem(503, f"{dependency} is unavailable; nothing was recorded", {"Retry-After": RETRY_AFTER})
        return _response(result)


def _kafka_headers(request: Request) -> Headers:
    """Return the request's headers under the names that they have in Kafka messages: `ce-type` becomes `ce_type`.

    Only the headers of CloudEvents, the content type and trace headers are kept, because other headers may contain a
    token. Raises Unreadable if an attribute of the CloudEvent can't be decoded.
    """
    kept = []
    for name, value in request.headers.raw:
        text = name.decode("latin-1").lower()
        if text.startswith("ce-"):
            try:
                kept.append((text.replace("ce-", "ce_", 1), decode_http_attribute(value)))
            except Unreadable as error:
                raise Unreadable(f"the header {text} is {error}") from None
        elif text in _KEPT_HEADERS:
            kept.append((text, value))
    return kept


def _response(result: BatchResult) -> Response:
    if result.rejected:
        rejected = result.rejected[0]
        status = 202 if rejected.event else 400  # 202: the event is kept and can be replayed when its rules are known
        return json_response(PublishResult(status="rejected", id=rejected.id, reason=rejected.reason), status)
    if not result.recorded:
        ignored = PublishResult(status="ignored", reason="not a terminal phase change of a workflow")
        return json_response(ignored, 202)
    entry = result.recorded[0]
    recorded = PublishResult(
        status="recorded" if entry.event.key in result.new else "duplicate",
        event=entry.event.key,
        verdict=entry.verdict,
        reason=entry.reason,
        deliveries=[delivery.key for delivery in entry.deliveries],
    )
    return json_response(recorded, 202)
