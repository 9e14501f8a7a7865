"""Spans that OpenTelemetry exports. The SDK sends them in batches from its own thread, so no other code waits for the
collector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import (
    Link,
    SpanKind,
    StatusCode,
    Tracer,
    TraceState,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes

from dispatcher.tracing import AttributeValue, ReadTraceContext, Span, Tracing, TracingConfig
from dispatcher.version import __version__

MAX_TRACESTATE = 512
"""Maximum number of characters of a `tracestate`. A longer `tracestate` is dropped. Source: W3C Trace Context,
3.3.1.5."""
EXPORT_TIMEOUT = 5
"""Maximum time in seconds for sending one batch of spans to the collector. Shutdown waits about as long for the last
batch."""
_KINDS = {"dispatcher.send": SpanKind.CLIENT}
_w3c = TraceContextTextMapPropagator()


class ExportingTracing(Tracing):
    """Starts spans that OpenTelemetry exports."""

    def __init__(self, config: TracingConfig) -> None:
        exporter = OTLPSpanExporter(
            endpoint=_traces_url(config.endpoint),
            headers={name: value.get_secret_value() for name, value in config.headers.items()} or None,
            timeout=EXPORT_TIMEOUT,
        )
        self._provider = TracerProvider(
            sampler=ParentBased(_LinkSampler(config.sample)),
            resource=Resource.create({"service.name": config.service_name, "service.version": __version__}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("dispatcher", __version__)

    def intake(self, read_context: ReadTraceContext) -> Span:
        context = _w3c.extract(read_context(), Context())
        span = self._tracer.start_span("dispatcher.intake", context, SpanKind.CONSUMER)
        return _ExportedSpan(span, self._tracer)

    def attempt(self, trace: str, *, first: bool, **attributes: AttributeValue) -> Span:
        event = _w3c.extract(_headers(trace), Context())
        event_span = get_current_span(event).get_span_context()
        linked = not first and event_span.is_valid
        span = self._tracer.start_span(
            "dispatcher.deliver",
            Context() if linked else event,
            links=[Link(event_span, {"dispatcher.link": "event"})] if linked else (),
            attributes=_prefixed(attributes),
        )
        return _ExportedSpan(span, self._tracer)

    def close(self) -> None:
        self._provider.shutdown()


class _ExportedSpan(Span):
    """A span that OpenTelemetry exports. If the sampler dropped the span, it is not exported and only passes the trace
    context on.
    """

    __slots__ = ("_span", "_tracer")

    def __init__(self, span: OtelSpan, tracer: Tracer) -> None:
        self._span = span
        self._tracer = tracer

    @property
    def trace(self) -> str:
        return " ".join(self.headers.values())

    @property
    def headers(self) -> Mapping[str, str]:
        carrier: dict[str, str] = {}
        _w3c.inject(carrier, set_span_in_context(self._span, Context()))
        if len(carrier.get("tracestate", "")) > MAX_TRACESTATE:
            del carrier["tracestate"]
        return carrier

    @property
    def log_fields(self) -> Mapping[str, str]:
        return {"trace_id": f"{self._span.get_span_context().trace_id:032x}"}

    def child(self, name: str) -> Span:
        context = set_span_in_context(self._span, Context())
        return _ExportedSpan(self._tracer.start_span(name, context, _KINDS.get(name, SpanKind.INTERNAL)), self._tracer)

    def end(self, *, failed: bool = False, **attributes: AttributeValue) -> None:
        self._span.set_attributes(_prefixed(attributes))
        if failed:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class _LinkSampler(Sampler):
    """Decides which new traces are exported: a share of them. A trace with a link is exported only if the linked span
    was.
    """

    def __init__(self, share: float) -> None:
        self._share = TraceIdRatioBased(share)
        self._all, self._none = TraceIdRatioBased(1), TraceIdRatioBased(0)

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        sampler = self._share
        if links:
            sampler = self._all if links[0].context.trace_flags.sampled else self._none
        return sampler.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return f"LinkSampler{{{self._share.get_description()}}}"


def _headers(trace: str) -> Mapping[str, str]:
    """Return the trace context as headers. `trace` is the text that the ledger stores (`Span.trace`)."""
    parent, _, state = trace.partition(" ")
    return {"traceparent": parent, "tracestate": state}


def _prefixed(attributes: Mapping[str, AttributeValue]) -> Mapping[str, AttributeValue]:
    return {f"dispatcher.{name}": value for name, value in attributes.items()}


def _traces_url(endpoint: str) -> str:
    return endpoint if urlsplit(endpoint).path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
