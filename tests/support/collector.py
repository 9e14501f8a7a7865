"""An OpenTelemetry collector that keeps what it is sent: OTLP over HTTP, in protobuf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.http import ScriptedHttp


@dataclass(frozen=True, slots=True)
class Seen:
    """A span as it arrived; ids in hexadecimal."""

    name: str
    trace: str
    id: str
    parent: str
    facts: dict[str, Any]
    links: tuple[tuple[str, str], ...]
    """Trace and span."""
    state: str
    failed: bool
    service: str


def spans(collector: ScriptedHttp) -> list[Seen]:
    """All that has arrived, in the order in which it ended."""
    seen = []
    for request in collector.requests:
        sent = ExportTraceServiceRequest.FromString(request.body)
        for resource in sent.resource_spans:
            service = _facts(resource.resource.attributes)["service.name"]
            seen += [_seen(span, service) for scope in resource.scope_spans for span in scope.spans]
    return seen


def _seen(span: Any, service: str) -> Seen:
    return Seen(
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        facts=_facts(span.attributes),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        state=span.trace_state,
        failed=span.status.code == 2,
        service=service,
    )


def _facts(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
