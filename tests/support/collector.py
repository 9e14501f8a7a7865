"""Reads the spans that a scripted OpenTelemetry collector received: OTLP over HTTP, in protobuf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.http import ScriptedHttp


@dataclass(frozen=True, slots=True)
class ExportedSpan:
    """A span that arrived; ids are hexadecimal."""

    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    links: tuple[tuple[str, str], ...]
    """The ids of the linked traces and spans."""
    state: str
    failed: bool
    service: str


def spans(collector: ScriptedHttp) -> list[ExportedSpan]:
    """All spans that arrived, in the order in which they ended."""
    found = []
    for request in collector.requests:
        batch = ExportTraceServiceRequest.FromString(request.body)
        for resource in batch.resource_spans:
            service = _attributes(resource.resource.attributes)["service.name"]
            found += [_parse(span, service) for scope in resource.scope_spans for span in scope.spans]
    return found


def _parse(span: Any, service: str) -> ExportedSpan:
    return ExportedSpan(
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        attributes=_attributes(span.attributes),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        state=span.trace_state,
        failed=span.status.code == 2,
        service=service,
    )


def _attributes(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
