"""Spans by OpenTelemetry: batches of them leave in a thread of the SDK's own, and nobody waits for a collector."""

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
from opentelemetry.trace import Span as Recording
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes

from dispatcher.tracing import Brought, Fact, Span, Tracing, TracingConfig
from dispatcher.version import __version__

LONGEST_STATE = 512
"""Characters of `tracestate` that are carried on; of a longer one none. Source: W3C Trace Context, 3.3.1.5."""
PATIENCE = 5
"""Seconds that one batch may take at the collector; a stop waits about as long for the last."""
_KINDS = {"dispatcher.send": SpanKind.CLIENT}
_w3c = TraceContextTextMapPropagator()


class Exporting(Tracing):
    """Begins spans that are exported."""

    def __init__(self, config: TracingConfig) -> None:
        exporter = OTLPSpanExporter(
            endpoint=_traces_of(config.endpoint),
            headers={name: value.get_secret_value() for name, value in config.headers.items()} or None,
            timeout=PATIENCE,
        )
        self._provider = TracerProvider(
            sampler=ParentBased(_AsLinked(config.sample)),
            resource=Resource.create({"service.name": config.service_name, "service.version": __version__}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("dispatcher", __version__)

    def intake(self, brought: Brought) -> Span:
        begun = self._tracer.start_span("dispatcher.intake", _w3c.extract(brought(), Context()), SpanKind.CONSUMER)
        return _Seen(begun, self._tracer)

    def attempt(self, trace: str, *, first: bool, **facts: Fact) -> Span:
        event = _w3c.extract(_headers(trace), Context())
        known = get_current_span(event).get_span_context()
        apart = not first and known.is_valid
        begun = self._tracer.start_span(
            "dispatcher.deliver",
            Context() if apart else event,
            links=[Link(known, {"dispatcher.link": "event"})] if apart else (),
            attributes=_attributes(facts),
        )
        return _Seen(begun, self._tracer)

    def close(self) -> None:
        self._provider.shutdown()


class _Seen(Span):
    """A span that is exported, or one that the sampler has left out and that only carries the trace on."""

    __slots__ = ("_span", "_tracer")

    def __init__(self, span: Recording, tracer: Tracer) -> None:
        self._span = span
        self._tracer = tracer

    @property
    def trace(self) -> str:
        return " ".join(self.headers.values())

    @property
    def headers(self) -> Mapping[str, str]:
        carrier: dict[str, str] = {}
        _w3c.inject(carrier, set_span_in_context(self._span, Context()))
        if len(carrier.get("tracestate", "")) > LONGEST_STATE:
            del carrier["tracestate"]
        return carrier

    @property
    def named(self) -> Mapping[str, str]:
        return {"trace_id": f"{self._span.get_span_context().trace_id:032x}"}

    def part(self, name: str) -> Span:
        within = set_span_in_context(self._span, Context())
        return _Seen(self._tracer.start_span(name, within, _KINDS.get(name, SpanKind.INTERNAL)), self._tracer)

    def end(self, *, failed: bool = False, **facts: Fact) -> None:
        self._span.set_attributes(_attributes(facts))
        if failed:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class _AsLinked(Sampler):
    """A share of the traces; but one that is linked to an earlier one is kept where that was."""

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
        by = self._share
        if links:
            by = self._all if links[0].context.trace_flags.sampled else self._none
        return by.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return f"AsLinked{{{self._share.get_description()}}}"


def _headers(trace: str) -> Mapping[str, str]:
    parent, _, state = trace.partition(" ")
    return {"traceparent": parent, "tracestate": state}


def _attributes(facts: Mapping[str, Fact]) -> Mapping[str, Fact]:
    return {f"dispatcher.{name}": value for name, value in facts.items()}


def _traces_of(endpoint: str) -> str:
    return endpoint if urlsplit(endpoint).path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
